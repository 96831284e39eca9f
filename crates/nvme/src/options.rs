//! Options of the model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vfiod_config::{ConfiguredModel, Needs};
use vfiod_core::{Error, Result};
use vfiod_disk::{Disk, Memory};

use crate::common::Common;
use crate::controller::Nvme;
use crate::identity::Identity;
use crate::namespace::{Namespace, NamespaceIdentity};

/// Options of the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NvmeOptions {
    /// Size in bytes of a disk in memory, which is new with each start.
    pub memory: u64,
    /// Bytes of a block: 512 or 4096.
    #[schemars(extend("enum" = [512, 4096]))]
    pub block_size: u32,
    /// The serial number, up to 20 characters; by default a random one.
    pub serial: Option<String>,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self { memory: 64 << 20, block_size: 512, serial: None }
    }
}

impl ConfiguredModel for Nvme {
    type Options = NvmeOptions;

    const SUMMARY: &'static str = "NVMe controller with a disk; Linux: nvme";
    const NEEDS: Needs = Needs::NONE;

    fn configured(options: NvmeOptions) -> Result<Self> {
        let disk = Disk::new(Memory::new(options.memory)?);
        let uuid = random_uuid()?;
        let serial = options.serial.unwrap_or_else(|| uuid.simple().to_string()[..20].to_owned());
        Self::with_disk(disk, options.block_size, serial, uuid)
    }
}

/// A UUID that nobody else has.
///
/// # Errors
/// What the kernel fails with.
fn random_uuid() -> Result<Uuid> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::new(errno, "cannot get random bytes for a serial number"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

impl Nvme {
    /// A controller with one namespace.
    ///
    /// # Errors
    /// `EINVAL`: the disk cannot have such blocks, or the serial number is not printable ASCII.
    pub(crate) fn with_disk(
        disk: Disk,
        block_size: u32,
        serial: String,
        uuid: Uuid,
    ) -> Result<Self> {
        let identity = Identity {
            serial,
            model: "vfiod NVMe disk".to_owned(),
            subsystem_name: format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"),
            controller: 0,
        };
        identity.check()?;
        let named = NamespaceIdentity { nguid: uuid.into_bytes(), uuid: uuid.into_bytes() };
        let namespace = Namespace::new(1, named, disk, block_size)?;
        Ok(Self::new(identity, Common::new(vec![namespace])))
    }
}
