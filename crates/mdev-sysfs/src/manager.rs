//! The daemon's manager as the view asks it.

use uuid::Uuid;
use vfiod_core::Result;
use vfiod_mdev::{Instance, Removal, TypeStatus};

use crate::mdev_bus::MdevBus;
use vfiod_manager::{Manager, NewInstance};

impl MdevBus for Manager {
    fn parents(&self) -> Vec<String> {
        self.bus().parent_names()
    }

    fn types(&self, parent: &str) -> Option<Vec<TypeStatus>> {
        self.bus().types(parent)
    }

    fn instances(&self) -> Vec<Instance> {
        self.bus().instances()
    }

    fn instance(&self, uuid: Uuid) -> Option<Instance> {
        self.bus().instance(uuid)
    }

    fn create(&self, parent: &str, type_id: &str, uuid: Uuid) -> Result<()> {
        let (parent, type_id) = (parent.to_owned(), type_id.to_owned());
        let new = NewInstance { parent, type_id, uuid: Some(uuid), attributes: Vec::new() };
        Manager::create(self, new).map(drop)
    }

    /// The kernel would wait for the users; but whoever waits here cannot be killed. So a device
    /// in use is refused; `vfiod remove` has ways to ask its users or to take it from them.
    fn remove(&self, uuid: Uuid) -> Result<()> {
        Manager::remove(self, uuid, Removal::Refuse)
    }

    fn set_attribute(&self, uuid: Uuid, name: &str, value: &str) -> Result<()> {
        self.set_attributes(uuid, &[(name.to_owned(), value.to_owned())]).map(drop)
    }
}
