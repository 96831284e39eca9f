//! What the file system needs of a bus of mediated devices.

use uuid::Uuid;
use vfiod_core::Result;
use vfiod_mdev::{Instance, TypeStatus};

/// What the file system shows and asks. Methods that only look are called often, for each
/// component of a path, and should not block; the others are called by a thread of their own.
pub trait MdevBus: Send + Sync + 'static {
    /// Names of parents.
    fn parents(&self) -> Vec<String>;

    /// Types of a parent; `None`: there is no such parent.
    fn types(&self, parent: &str) -> Option<Vec<TypeStatus>>;

    /// Every instance.
    fn instances(&self) -> Vec<Instance>;

    /// An instance.
    fn instance(&self, uuid: Uuid) -> Option<Instance>;

    /// Creates an instance, as the bus does without being told more.
    ///
    /// # Errors
    /// Those of [`vfiod_mdev::Bus::create`].
    fn create(&self, parent: &str, type_id: &str, uuid: Uuid) -> Result<()>;

    /// Removes an instance. Whoever wrote cannot be killed before this returns.
    ///
    /// # Errors
    /// Those of [`vfiod_mdev::Bus::remove`].
    fn remove(&self, uuid: Uuid) -> Result<()>;

    /// Sets an attribute of an instance.
    ///
    /// # Errors
    /// Those of [`Instance::set_attribute`].
    fn set_attribute(&self, uuid: Uuid, name: &str, value: &str) -> Result<()>;
}
