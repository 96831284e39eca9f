//! Disks as mediated devices: a parent over a directory, in which each instance has an image of its own,
//! `UUID.img`.

mod images;
pub(crate) mod instance;
#[cfg(test)]
mod tests;
mod types;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_config::{ConfiguredParent, Needs};
use vfiod_core::{Errno, Error, Result};
use vfiod_mdev::{Attributes, Capacity, End, NewInstance, Parent, ParentSpec, TypeInfo, Uuid};
use vfiod_pci::Function;
use vfiod_sync::{Mutex, lock};

use self::images::Images;
use self::instance::ManagedImage;
use self::types::DiskType;
use crate::controller::Nvme;
use crate::options::NvmeOptions;

/// Options of the parent.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DisksOptions {
    /// Where the images are: a directory that nobody else may write to. It is made if it is missing.
    #[schemars(extend("x-values" = "a directory", "x-path" = "directory"))]
    directory: Option<PathBuf>,
    /// Bytes that the images in the directory may have together, as their disks see them.
    #[schemars(extend("x-values" = "bytes"))]
    capacity: Option<u64>,
    /// The types of disks that there are.
    #[schemars(extend("x-values" = "a list of { name, size, iops, iops_burst, bandwidth, bandwidth_burst, allocation, on_remove }"))]
    types: Vec<DiskType>,
}

/// The parent of disks that have their images in a directory.
pub struct Disks {
    images: Arc<Images>,
    types: Vec<DiskType>,
    /// Those that there are.
    instances: Mutex<HashMap<Uuid, Arc<ManagedImage>>>,
}

impl ConfiguredParent for Disks {
    type Options = DisksOptions;

    const SUMMARY: &'static str =
        "NVMe disks, with images in a directory; types as the options say";
    const NEEDS: Needs = Needs { system_calls: vfiod_disk::SYSTEM_CALLS, ..Needs::NONE };

    fn configured(name: &str, options: DisksOptions) -> Result<(ParentSpec, Box<dyn Parent>)> {
        let missing = |what: &str| Error::new(Errno::INVAL, what.to_owned());
        let directory = options
            .directory
            .ok_or_else(|| missing("`directory` is missing: where the images of the disks are"))?;
        let capacity = options.capacity.ok_or_else(|| {
            missing("`capacity` is missing: how many bytes the images may have together")
        })?;
        if options.types.is_empty() {
            return Err(missing(
                "`types` is empty; { name = \"small\", size = 1073741824 } is one",
            ));
        }
        for disk in &options.types {
            disk.check().map_err(|error| {
                let what = format!("type {:?}", disk.name);
                Error::new(error.errno(), what).because(error)
            })?;
        }
        let types = options.types.iter().map(info).collect();
        let spec = ParentSpec { name: name.to_owned(), types, capacity: Capacity::Own };
        spec.validate()?;
        let images = Arc::new(Images::new(directory, capacity));
        let parent = Self { images, types: options.types, instances: Mutex::default() };
        Ok((spec, Box::new(parent)))
    }
}

/// What the bus is told of a type.
fn info(disk: &DiskType) -> TypeInfo {
    let limit = |rate: Option<u64>, of: &str| match rate {
        None | Some(0) => String::new(),
        Some(rate) => format!(", {rate} {of} per second"),
    };
    let (iops, bandwidth) = (limit(disk.iops, "I/O commands"), limit(disk.bandwidth, "bytes"));
    TypeInfo {
        id: disk.name.clone(),
        name: "NVMe disk".to_owned(),
        description: format!("NVMe disk of {} bytes{iops}{bandwidth}", disk.size),
        device_api: "vfio-pci".to_owned(),
        takes: 1,
        attributes: instance::attributes(),
    }
}

impl Disks {
    fn disk_type(&self, id: &str) -> Result<&DiskType> {
        let found = self.types.iter().find(|disk| disk.name == id);
        found.ok_or_else(|| Error::new(Errno::INVAL, format!("no type `{id}`")))
    }
}

impl Parent for Disks {
    fn start(&self) -> Result<()> {
        self.images.start()
    }

    fn available(&self, type_id: &str) -> u32 {
        self.disk_type(type_id).map_or(0, |disk| self.images.available(disk.size))
    }

    fn check_attribute(&self, _type_id: &str, name: &str, value: &str) -> Result<()> {
        instance::check(name, value)
    }

    fn create(&self, type_id: &str, uuid: Uuid) -> Result<NewInstance> {
        let disk = self.disk_type(type_id)?;
        self.images.reserve(uuid, disk.size)?;
        let image = Arc::new(ManagedImage::new(self.images.clone(), uuid, disk));
        lock(&self.instances).insert(uuid, image.clone());
        let made = || -> Result<NewInstance> {
            let options = NvmeOptions::managed(image.path(), disk.limits());
            let nvme = Nvme::configured_with(options, Some(image.clone()));
            image.set_rate(nvme.common.rate.clone());
            let attributes: Arc<dyn Attributes> = image.clone();
            Ok(NewInstance { device: Box::new(Function::new(nvme)?), attributes: Some(attributes) })
        };
        made().inspect_err(|_| self.ended(type_id, uuid, End::NotCreated))
    }

    fn ended(&self, _type_id: &str, uuid: Uuid, why: End) {
        let image = lock(&self.instances).remove(&uuid);
        if let Some(image) = image {
            image.ended(why);
        }
    }
}
