//! The educational device as a mediated one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfiod_config::ConfiguredParent;
use vfiod_core::Result;
use vfiod_mdev::{
    AttributeInfo, Attributes, Capacity, NewInstance, Parent, ParentSpec, TypeInfo, Uuid,
};

use super::{ParentOptions, function, number};
use crate::edu::{Edu, EduOptions};

pub(crate) struct EduParent;

fn mdev_type() -> TypeInfo {
    TypeInfo {
        id: "edu-1".to_owned(),
        name: "edu".to_owned(),
        description: "QEMU's educational device: factorial, DMA both ways, INTx and MSI".to_owned(),
        device_api: "vfio-pci".to_owned(),
        takes: 1,
        attributes: vec![AttributeInfo {
            name: "dma_mask".to_owned(),
            values: "a number from 0 to 2^64 - 1".to_owned(),
            summary: "address bits of the DMA engine".to_owned(),
            writable: true,
        }],
    }
}

impl ConfiguredParent for EduParent {
    type Options = ParentOptions;

    const SUMMARY: &'static str = "QEMU's educational device; type edu-1";

    fn configured(name: &str, options: ParentOptions) -> Result<(ParentSpec, Box<dyn Parent>)> {
        let (name, capacity) = (name.to_owned(), Capacity::PerType(options.instances));
        Ok((ParentSpec { name, types: vec![mdev_type()], capacity }, Box::new(Self)))
    }
}

impl Parent for EduParent {
    fn check_attribute(&self, _type_id: &str, _name: &str, value: &str) -> Result<()> {
        mask(value).map(drop)
    }

    fn create(&self, _type_id: &str, _uuid: Uuid) -> Result<NewInstance> {
        let edu = Edu::new(EduOptions::default());
        let attributes: Arc<dyn Attributes> = Arc::new(Mask(edu.dma_mask()));
        Ok(NewInstance { device: function(edu)?, attributes: Some(attributes) })
    }
}

/// The one attribute. It goes for transfers that are started from now on.
struct Mask(Arc<AtomicU64>);

impl Attributes for Mask {
    fn get(&self, _name: &str) -> Result<String> {
        Ok(format!("{:#x}", self.0.load(Ordering::Relaxed)))
    }

    fn set(&self, _name: &str, value: &str) -> Result<()> {
        self.0.store(mask(value)?, Ordering::Relaxed);
        Ok(())
    }
}

fn mask(value: &str) -> Result<u64> {
    number(value, u64::MAX)
}
