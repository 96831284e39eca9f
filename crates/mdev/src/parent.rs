//! Parents: what offers mediated devices, and of which types.

use std::sync::Arc;

use uuid::Uuid;
use vfiod_core::contain::contain;
use vfiod_core::{Device, Errno, Error, Result};

/// What makes mediated devices. The bus calls these methods with no lock held; a panic in one is
/// an error of the call (`EIO`) and changes nothing.
pub trait Parent: Send + Sync + 'static {
    /// Called once, before the parent can be seen: the place to look at what it needs.
    ///
    /// # Errors
    /// Whatever stands in the way; the parent is not registered then.
    fn start(&self) -> Result<()> {
        Ok(())
    }

    /// How many more instances of a type there can be, for a parent that counts them itself
    /// ([`Capacity::Own`]). Called with the bus's lock held: must neither wait nor call the bus. What
    /// it says may have changed when [`Parent::create`] is called, which then fails with `EUSERS`.
    fn available(&self, _type_id: &str) -> u32 {
        0
    }

    /// Makes an instance of a type that [`ParentSpec::types`] names. The bus has counted it.
    ///
    /// # Errors
    /// Whatever stands in the way; nothing is left behind then.
    fn create(&self, type_id: &str, uuid: Uuid) -> Result<NewInstance>;

    /// Checks that instances of a type take a value for an attribute that the type lists as writable:
    /// for a definition, of which there is no instance yet. [`Attributes::set`] takes what this does,
    /// unless the instance is in use.
    ///
    /// # Errors
    /// `EINVAL`: not such a value, the message says what would be right.
    fn check_attribute(&self, type_id: &str, name: &str, value: &str) -> Result<()>;

    /// An instance that [`Parent::create`] has made has ended, and is not unregistered with its parent. Its
    /// device is unregistered; its UUID is free when this returns.
    fn ended(&self, _type_id: &str, _uuid: Uuid, _why: End) {}
}

/// Why an instance has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It could not be created after all; nobody has seen it.
    NotCreated,
    /// Somebody has removed it.
    Removed,
}

/// What a parent made.
pub struct NewInstance {
    /// The device, to be registered.
    pub device: Box<dyn Device>,
    /// Its attributes, if its type has any.
    pub attributes: Option<Arc<dyn Attributes>>,
}

/// What can be set of an instance (the kernel's vendor attributes in sysfs). Called with no lock
/// held, also by several threads at once and while the device is in use.
pub trait Attributes: Send + Sync {
    /// The value of an attribute that the type lists.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn get(&self, name: &str) -> Result<String>;

    /// Sets an attribute that the type lists as writable.
    ///
    /// # Errors
    /// `EINVAL`: not such a value, the message says what would be right; `EBUSY`: not while the
    /// device is in use.
    fn set(&self, name: &str, value: &str) -> Result<()>;
}

/// An attribute that the instances of a type have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeInfo {
    /// Its name.
    pub name: String,
    /// What may be written, for people: `a number from 0 to 65535`.
    pub values: String,
    /// What it does, in a line.
    pub summary: String,
    /// It can be set; otherwise only read.
    pub writable: bool,
}

/// A type of mediated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// Its name among its parent's types, e.g. `mtty-1`.
    pub id: String,
    /// Its name for people (sysfs `name`).
    pub name: String,
    /// What it is (sysfs `description`).
    pub description: String,
    /// `vfio-pci`, `vfio-fsl-mc`, … (sysfs `device_api`).
    pub device_api: String,
    /// How much of the parent's [`Capacity`] an instance takes, at least 1.
    pub takes: u32,
    /// What its instances let one set.
    pub attributes: Vec<AttributeInfo>,
}

impl TypeInfo {
    /// The attribute of a name.
    ///
    /// # Errors
    /// `ENOENT`, with the names that there are.
    pub fn attribute(&self, name: &str) -> Result<&AttributeInfo> {
        self.attributes.iter().find(|attribute| attribute.name == name).ok_or_else(|| {
            let known: Vec<_> = self.attributes.iter().map(|a| a.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let what = format!("{} has no attribute `{name}`; it has: {known}", self.id);
            Error::new(Errno::NOENT, what)
        })
    }
}

/// How much a parent has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// So many units for instances of all its types together.
    Shared(u32),
    /// So many units for each type.
    PerType(u32),
    /// As many as [`Parent::available`] says.
    Own,
}

/// How a parent is registered.
#[derive(Clone, Debug)]
pub struct ParentSpec {
    /// Its name, unique on its bus.
    pub name: String,
    /// What it offers, at least one type.
    pub types: Vec<TypeInfo>,
    /// How many.
    pub capacity: Capacity,
}

/// A registered parent, which its instances keep.
pub(crate) struct ParentEntry {
    pub(crate) spec: ParentSpec,
    pub(crate) ops: Box<dyn Parent>,
}

impl ParentEntry {
    /// Tells the parent that an instance has ended; a panic changes nothing.
    pub(crate) fn ended(&self, mdev_type: usize, uuid: Uuid, why: End) {
        let mdev_type = &self.spec.types[mdev_type].id;
        if let Err(panic) = contain(|| self.ops.ended(mdev_type, uuid, why)) {
            tracing::error!(%uuid, mdev_type, error = %panic, "a parent failed at the end of an instance");
        }
    }
}

impl ParentSpec {
    /// Checks it as [`crate::Bus::register`] does.
    ///
    /// # Errors
    /// `EINVAL`: it contradicts itself.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Errno::INVAL, what));
        check_name("parent", &self.name)?;
        if self.types.is_empty() {
            return wrong(format!("parent {} has no type", self.name));
        }
        for (at, mdev_type) in self.types.iter().enumerate() {
            check_name("type", &mdev_type.id)?;
            if mdev_type.takes == 0 {
                return wrong(format!("type {} takes nothing", mdev_type.id));
            }
            if self.types[..at].iter().any(|other| other.id == mdev_type.id) {
                return wrong(format!("parent {} has type {} twice", self.name, mdev_type.id));
            }
        }
        Ok(())
    }
}

/// Names become names of directories: one component of a path, and none with a meaning of its own.
fn check_name(what: &str, name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_graphic() && c != '/';
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(good) {
        let what = format!(
            "`{}` is no name for a {what}: up to 255 printable ASCII characters without blanks \
             and `/`, the first not a dot",
            name.escape_debug()
        );
        return Err(Error::new(Errno::INVAL, what));
    }
    Ok(())
}
