//! Options of the model: which disk, and what it is called.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vfiod_config::{ConfiguredModel, Needs};
use vfiod_core::{Errno, Error, Result};
use vfiod_disk::{DirectIo, Disk, Image, ImageOptions, Memory};

use crate::controller::Nvme;
use crate::identity::Identity;
use crate::namespace::{Namespace, NamespaceIdentity};

/// Bytes of a disk in memory whose size is not said.
const MEMORY: u64 = 64 << 20;

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NvmeOptions {
    /// The image: a regular file or a block device, raw from its first byte on. By default the disk is in
    /// memory, and new with each start.
    #[schemars(extend("x-path" = "file"))]
    pub file: Option<PathBuf>,
    /// Size in bytes of the disk in memory; 64 MiB by default.
    pub memory: Option<u64>,
    /// Bytes of a block: 512 or 4096; 512 by default.
    #[schemars(extend("x-values" = "512 or 4096"))]
    pub block_size: Option<u32>,
    /// Blocks that the disk does not write whole when power fails are accepted.
    pub torn_writes: bool,
    /// Nothing is written to the image, and others may read it as well.
    pub readonly: bool,
    /// Whether the page cache is passed by; by default where the file and the block size allow it.
    pub direct: Option<bool>,
    /// Whether the image is locked; true by default. Without locks nothing keeps others from writing to
    /// it meanwhile.
    pub locks: Option<bool>,
    /// The serial number, up to 20 printable ASCII characters; by default a random one with each start.
    pub serial: Option<String>,
    /// The UUID of the disk, by which hosts know it; by default a random one with each start.
    #[schemars(extend("x-values" = "a UUID"))]
    pub uuid: Option<String>,
}

impl ConfiguredModel for Nvme {
    type Options = NvmeOptions;

    const SUMMARY: &'static str = "NVMe controller with one disk; Linux: nvme";
    const NEEDS: Needs = Needs { system_calls: vfiod_disk::SYSTEM_CALLS, ..Needs::NONE };

    fn configured(options: NvmeOptions) -> Result<Self> {
        options.check()?;
        Ok(Self::configured_with(options))
    }
}

fn invalid(what: String) -> Error {
    Error::new(Errno::INVAL, what)
}

impl NvmeOptions {
    fn block_size(&self) -> u32 {
        self.block_size.unwrap_or(512)
    }

    fn uuid(&self) -> Result<Option<Uuid>> {
        let parse = |text: &String| {
            text.parse().map_err(|_| invalid(format!("`uuid` is {text:?}; must be a UUID")))
        };
        self.uuid.as_ref().map(parse).transpose()
    }

    /// That the options agree with each other, without a look at the image.
    ///
    /// # Errors
    /// `EINVAL`.
    fn check(&self) -> Result<()> {
        let Self { file, memory, readonly, direct, locks, serial, .. } = self;
        if file.is_some() && memory.is_some() {
            return Err(invalid("`file` and `memory` name two disks; give one of them".to_owned()));
        }
        if file.is_none() && (*readonly || direct.is_some() || locks.is_some()) {
            let what = "`readonly`, `direct` and `locks` are about an image; `file` names it";
            return Err(invalid(what.to_owned()));
        }
        if !matches!(self.block_size(), 512 | 4096) {
            let what = format!("`block_size` is {}; must be 512 or 4096", self.block_size());
            return Err(invalid(what));
        }
        if let Some(serial) = serial {
            Identity::named(serial.clone(), Uuid::nil()).check()?;
        }
        self.uuid()?;
        match memory {
            // Made to see whether it can be.
            Some(bytes) => Memory::new(*bytes).map(drop),
            None => Ok(()),
        }
    }

    /// Opens the disk, and says what it is called.
    ///
    /// # Errors
    /// Those of [`Image::open`] and [`Memory::new`].
    pub(crate) fn open(&self) -> Result<(Identity, Namespace)> {
        let block_size = self.block_size();
        let disk = match &self.file {
            None => Disk::new(Memory::new(self.memory.unwrap_or(MEMORY))?),
            Some(path) => {
                let direct = match self.direct {
                    None => DirectIo::Auto,
                    Some(true) => DirectIo::Required,
                    Some(false) => DirectIo::Off,
                };
                let options = ImageOptions {
                    read_only: self.readonly,
                    block: block_size,
                    direct,
                    unlocked: self.locks == Some(false),
                    ..ImageOptions::new(path)
                };
                Disk::new(Image::open(&options)?)
            }
        };
        let uuid = self.uuid()?.unwrap_or_else(Uuid::new_v4);
        let random = || Uuid::new_v4().simple().to_string()[..20].to_uppercase();
        let serial = self.serial.clone().unwrap_or_else(random);
        Ok((
            Identity::named(serial, uuid),
            Namespace::new(1, uuid.into(), disk, block_size, self.torn_writes)?,
        ))
    }
}

impl From<Uuid> for NamespaceIdentity {
    fn from(uuid: Uuid) -> Self {
        Self { nguid: uuid.into_bytes(), uuid: uuid.into_bytes() }
    }
}
