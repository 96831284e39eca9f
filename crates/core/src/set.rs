//! Device sets: devices that share one lock around first open, last close and reset.

use std::fmt;
use std::sync::Arc;

/// An object that can be the identity of a set: a PCI slot, a bus, a container.
pub trait SetObject: Send + Sync + 'static {
    /// What people call the set, e.g. `slot 0000:01:02`.
    fn set_name(&self) -> String;
}

/// The identity of a device set: *which object* the members share, compared by address.
///
/// It holds the object alive, so while a member is registered no other object can have the
/// same identity; the kernel asks its callers for that, here the type sees to it.
#[derive(Clone)]
pub struct SetId(Arc<dyn SetObject>);

impl SetId {
    /// The set of all devices that name this very object.
    pub fn of<T: SetObject>(object: &Arc<T>) -> Self {
        Self(object.clone())
    }

    /// The set's name for people.
    pub fn name(&self) -> String {
        self.0.set_name()
    }
}

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetId({})", self.name())
    }
}
