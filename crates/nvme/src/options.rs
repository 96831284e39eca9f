//! Options of the model: which disk, and what it is called.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use vfiod_core::{Errno, Error, Result};
use vfiod_disk::{Identity as DiskIdentity, Memory, Null};

use crate::limits::{DEFAULT_NAMESPACES, LARGEST_NAMESPACE};
use crate::rate::RateLimits;

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NvmeOptions {
    /// The image: a regular file or a block device, raw from its first byte on. By default the disk is in
    /// memory, and new with each start.
    #[schemars(extend("x-path" = "file"))]
    pub file: Option<PathBuf>,
    /// Further images, each a namespace of its own: 2, 3 and so on. What the other options say of an image
    /// is true of each.
    #[schemars(extend("x-path" = "file", "x-values" = "a list of paths"))]
    pub files: Vec<PathBuf>,
    /// Another controller of this daemon, which has this option as well, may use the same images. Nothing fences
    /// a host.
    pub shared: bool,
    /// The numbers of `files`, as many; 2, 3 and so on by default. Where a namespace was removed, or added with a
    /// number, the others keep theirs.
    #[schemars(extend("x-local" = true, "x-values" = "a list of numbers"))]
    pub numbers: Vec<u32>,
    /// The largest number that a namespace can have; 16 by default.
    #[schemars(extend("x-values" = "1 to 1024"))]
    pub namespaces: Option<u32>,
    /// Commands that are carried out at the same time; others wait in their queues; 1024 by default.
    #[schemars(extend("x-local" = true, "x-values" = "1 to 65536"))]
    pub commands: Option<u32>,
    /// Bytes of buffers for data that a disk cannot move by itself; 16 MiB by default.
    #[schemars(extend("x-local" = true, "x-values" = "at least 65536"))]
    pub buffers: Option<usize>,
    /// I/O commands per second, of all queues together; no limit by default. What exceeds it waits in its
    /// queue.
    #[schemars(extend("x-local" = true))]
    pub iops: Option<u64>,
    /// I/O commands that are carried out at once after a pause; those of a tenth of a second by default.
    #[schemars(extend("x-local" = true, "x-values" = "at least 1"))]
    pub iops_burst: Option<u64>,
    /// Bytes per second that are read and written, by all queues together; no limit by default.
    #[schemars(extend("x-local" = true))]
    pub bandwidth: Option<u64>,
    /// Bytes that are read and written at once after a pause; those of a tenth of a second by default.
    #[schemars(extend("x-local" = true, "x-values" = "at least 1"))]
    pub bandwidth_burst: Option<u64>,
    /// How hosts move doorbells: by messages, or by stores to a page that they map (mapped). SPDK's driver needs
    /// that. Such a controller is polled while it is enabled, which takes a processor.
    pub doorbells: DoorbellsOption,
    /// Size in bytes of the disk in memory; 64 MiB by default.
    #[schemars(extend("x-local" = true))]
    pub memory: Option<u64>,
    /// Size in bytes of a disk that reads as zeroes and forgets what is written: to measure what is in front
    /// of a disk. A read leaves the guest's memory as it is.
    #[schemars(extend("x-local" = true))]
    pub null: Option<u64>,
    /// Bytes of a block: 512 or 4096; 512 by default.
    #[schemars(extend("x-local" = true, "x-values" = "512 or 4096"))]
    pub block_size: Option<u32>,
    /// Blocks that the disk does not write whole when power fails are accepted.
    pub torn_writes: bool,
    /// Nothing is written to the image, and others may read it as well.
    pub readonly: bool,
    /// Whether the page cache is passed by; by default where the file and the block size allow it.
    #[schemars(extend("x-local" = true))]
    pub direct: Option<bool>,
    /// Whether the image is locked; true by default. Without locks nothing keeps others from writing to
    /// it meanwhile.
    #[schemars(extend("x-local" = true))]
    pub locks: Option<bool>,
    /// Where it is kept who the disk is; by default beside the image, `disk.img.vfiod`.
    #[schemars(extend("x-path" = true))]
    pub metadata: Option<PathBuf>,
    /// Who the disk is: who it was, unless it is a copy (auto); who it was (keep); somebody new (new).
    #[schemars(extend("x-local" = true))]
    pub identity: IdentityOption,
    /// The serial number, up to 20 printable ASCII characters; it is kept. By default a random one, made
    /// with the disk.
    pub serial: Option<String>,
    /// The UUID of the disk, which is its NGUID as well; it is kept. By default random ones, made with the
    /// disk.
    #[schemars(extend("x-local" = true, "x-values" = "a UUID"))]
    pub uuid: Option<String>,
}

/// How hosts move doorbells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DoorbellsOption {
    /// By messages, and by shadow doorbells where they set them.
    #[default]
    Messages,
    /// By stores to a page that they map, and by messages.
    Mapped,
}

/// Who a disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IdentityOption {
    /// Who it was; a new disk and a copy are somebody new.
    #[default]
    Auto,
    /// Who it was, also if it is a copy.
    Keep,
    /// Somebody new.
    New,
}

pub(crate) fn invalid(what: String) -> Error {
    Error::new(Errno::INVAL, what)
}

impl NvmeOptions {
    /// The size of blocks, unless another one is kept.
    pub(crate) fn block_size(&self) -> u32 {
        self.block_size.unwrap_or(512)
    }

    pub(crate) fn uuid(&self) -> Result<Option<Uuid>> {
        let parse = |text: &String| {
            text.parse().map_err(|_| invalid(format!("`uuid` is {text:?}; must be a UUID")))
        };
        self.uuid.as_ref().map(parse).transpose()
    }

    /// That the options agree with each other, without a look at the image.
    ///
    /// # Errors
    /// `EINVAL`.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { file, memory, null, readonly, direct, locks, metadata, identity, .. } = self;
        if file.is_none() && !self.files.is_empty() {
            let what =
                "`files` are the second image and those behind it; `file` names the first one";
            return Err(invalid(what.to_owned()));
        }
        self.check_limits()?;
        let named_disks = [file.is_some(), memory.is_some(), null.is_some()];
        if named_disks.iter().filter(|named| **named).count() > 1 {
            let what = "`file`, `memory` and `null` name several disks; give one of them";
            return Err(invalid(what.to_owned()));
        }
        let named = metadata.is_some() || *identity != IdentityOption::Auto;
        if file.is_none() && (*readonly || direct.is_some() || locks.is_some() || named) {
            let what = "`readonly`, `direct`, `locks`, `metadata` and `identity` are about an image; \
                        `file` names it";
            return Err(invalid(what.to_owned()));
        }
        if self.shared && file.is_none() {
            let what = "`shared` is about images; `file` names the first one";
            return Err(invalid(what.to_owned()));
        }
        if *readonly && named {
            let what = "nothing is kept of an image that is `readonly`; leave `metadata` and \
                        `identity` out";
            return Err(invalid(what.to_owned()));
        }
        if metadata.as_deref().is_some_and(|metadata| self.images().any(|image| image == metadata))
        {
            let what = "`metadata` names an image; it is where who the disk is, is kept, a file of its own";
            return Err(invalid(what.to_owned()));
        }
        if !matches!(self.block_size(), 512 | 4096) {
            let what = format!("`block_size` is {}; must be 512 or 4096", self.block_size());
            return Err(invalid(what));
        }
        self.renamed(DiskIdentity::random())?;
        let block = u64::from(self.block_size());
        for (name, bytes) in [("memory", *memory), ("null", *null)] {
            if let Some(bytes) = bytes.filter(|bytes| *bytes == 0 || !bytes.is_multiple_of(block)) {
                let what = format!("`{name}` is {bytes}; must be a multiple of {block}, and not 0");
                return Err(invalid(what));
            }
        }
        // Made to see whether it can be.
        memory.map_or(Ok(()), |bytes| Memory::new(bytes).map(drop))?;
        null.map_or(Ok(()), |bytes| Null::new(bytes, false).map(drop))
    }

    /// That the limits are some.
    fn check_limits(&self) -> Result<()> {
        let (max, given) = (self.max_namespaces(), 1 + self.files.len());
        let outside = |name: &str, value: u64, is: &str| {
            Err(invalid(format!("`{name}` is {value}; must be {is}")))
        };
        if !(1..=LARGEST_NAMESPACE).contains(&max) {
            return outside("namespaces", max.into(), "1 to 1024");
        }
        if given > max as usize {
            let what =
                format!("`file` and `files` are {given} namespaces, and `namespaces` allows {max}");
            return Err(invalid(what));
        }
        self.rate_limits().check()?;
        self.check_numbers()?;
        match self.commands {
            None | Some(1..=0x1_0000) => {}
            Some(commands) => return outside("commands", commands.into(), "1 to 65536"),
        }
        match self.buffers {
            Some(bytes) if bytes < 0x1_0000 => {
                outside("buffers", bytes as u64, "at least 65536 bytes")
            }
            _ => Ok(()),
        }
    }

    /// How many commands and bytes per second.
    pub(crate) fn rate_limits(&self) -> RateLimits {
        let Self { iops, iops_burst, bandwidth, bandwidth_burst, .. } = *self;
        RateLimits { iops, iops_burst, bandwidth, bandwidth_burst }
    }

    pub(crate) fn set_rate_limits(&mut self, limits: RateLimits) {
        let RateLimits { iops, iops_burst, bandwidth, bandwidth_burst } = limits;
        (self.iops, self.iops_burst) = (iops, iops_burst);
        (self.bandwidth, self.bandwidth_burst) = (bandwidth, bandwidth_burst);
    }

    /// That the numbers of namespaces are some.
    fn check_numbers(&self) -> Result<()> {
        let (numbers, files, max) = (self.numbers.len(), self.files.len(), self.max_namespaces());
        if numbers != 0 && numbers != files {
            let what =
                format!("`numbers` has {numbers}, and `files` has {files}; give one for each");
            return Err(invalid(what));
        }
        let mut seen = BTreeSet::new();
        for number in &self.numbers {
            if !(2..=max).contains(number) {
                let what = format!(
                    "`numbers` has {number}; must be 2 to {max}, as `file` is 1 and `namespaces` is {max}"
                );
                return Err(invalid(what));
            }
            if !seen.insert(number) {
                return Err(invalid(format!("`numbers` has {number} twice; give each once")));
            }
        }
        Ok(())
    }

    /// The images of `files`, with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &PathBuf)> {
        let number = |n: usize| self.numbers.get(n).copied().unwrap_or(n as u32 + 2);
        self.files.iter().enumerate().map(move |(n, path)| (number(n), path))
    }

    /// The numbers of all namespaces, the first one's first.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        std::iter::once(1).chain(self.numbered().map(|(number, _)| number))
    }

    /// Says which images `files` are, and which numbers they have.
    pub(crate) fn set_numbered(&mut self, mut files: Vec<(u32, PathBuf)>) {
        files.sort();
        let is_usual = files.iter().zip(2..).all(|((number, _), usual)| *number == usual);
        (self.numbers, self.files) = files.into_iter().unzip();
        if is_usual {
            self.numbers.clear();
        }
    }

    pub(crate) fn max_namespaces(&self) -> u32 {
        self.namespaces.unwrap_or(DEFAULT_NAMESPACES)
    }

    /// Of a disk whose image the parent of mediated devices looks after.
    pub(crate) fn managed(image: PathBuf, limits: RateLimits) -> Self {
        let mut options = Self { file: Some(image), ..Self::default() };
        options.set_rate_limits(limits);
        options
    }

    /// The images.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Path> {
        self.file.iter().chain(&self.files).map(PathBuf::as_path)
    }

    /// The options that are about images, but for the images themselves: controllers that share these have the
    /// same.
    pub(crate) fn terms(&self) -> [(&'static str, Value); 11] {
        // Each controller has its own of some.
        let Self {
            file: _,
            files: _,
            numbers,
            shared: _,
            namespaces: _,
            commands: _,
            buffers: _,
            memory: _,
            null: _,
            iops: _,
            iops_burst: _,
            bandwidth: _,
            bandwidth_burst: _,
            doorbells: _,
            block_size,
            torn_writes,
            readonly,
            direct,
            locks,
            metadata,
            identity,
            serial,
            uuid,
        } = self;
        [
            ("numbers", json!(numbers)),
            ("namespaces", json!(self.max_namespaces())),
            ("block_size", json!(block_size)),
            ("torn_writes", json!(torn_writes)),
            ("readonly", json!(readonly)),
            ("direct", json!(direct)),
            ("locks", json!(locks)),
            ("metadata", json!(metadata)),
            ("identity", json!(identity)),
            ("serial", json!(serial)),
            ("uuid", json!(uuid)),
        ]
    }

    /// The first of them that is another one than in `other`.
    pub(crate) fn differs(&self, other: &Self) -> Option<&'static str> {
        let mut both = self.terms().into_iter().zip(other.terms());
        both.find(|(one, other)| one != other).map(|((name, _), _)| name)
    }

    /// An identity with the names that the options give.
    pub(crate) fn renamed(&self, identity: DiskIdentity) -> Result<DiskIdentity> {
        let mut identity = identity;
        if let Some(serial) = &self.serial {
            identity.serial.clone_from(serial);
        }
        if let Some(uuid) = self.uuid()? {
            (identity.uuid, identity.nguid) = (uuid, uuid.into_bytes());
        }
        identity.check()?;
        Ok(identity)
    }
}
