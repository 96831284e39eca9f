//! The types of disks that the parent's options give.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Result};

use crate::rate::RateLimits;

/// A disk has a multiple of so many bytes: a block of the larger format.
const LEAST_UNIT: u64 = 4096;

/// A type of disk.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskType {
    /// Its name among the types.
    pub(super) name: String,
    /// Bytes of a disk that is made.
    pub(super) size: u64,
    /// As the options of the model.
    #[serde(default)]
    pub(super) iops: Option<u64>,
    #[serde(default)]
    pub(super) iops_burst: Option<u64>,
    #[serde(default)]
    pub(super) bandwidth: Option<u64>,
    #[serde(default)]
    pub(super) bandwidth_burst: Option<u64>,
    #[serde(default)]
    pub(super) allocation: Allocation,
    #[serde(default)]
    pub(super) on_remove: OnRemove,
}

/// How the image of a disk is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Allocation {
    /// Blocks take space once they are written.
    #[default]
    Sparse,
    /// All blocks have their space from the beginning.
    Full,
}

/// What becomes of the image of an instance that is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnRemove {
    /// It stays, for an instance of the same UUID.
    #[default]
    Keep,
    /// It is deleted.
    Delete,
}

impl DiskType {
    pub(super) fn limits(&self) -> RateLimits {
        let Self { iops, iops_burst, bandwidth, bandwidth_burst, .. } = *self;
        RateLimits { iops, iops_burst, bandwidth, bandwidth_burst }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.size == 0 || !self.size.is_multiple_of(LEAST_UNIT) {
            let what = format!("its `size` is {}; must be a multiple of {LEAST_UNIT}", self.size);
            return Err(Error::new(Errno::INVAL, what));
        }
        self.limits().check()
    }
}
