//! The feature by which a connection joins the address space of another ([`vfiod_wire::space`]).

use rustix::io::Errno;
use vfiod_core::{DeviceId, Error, File, FileId, Result};
use vfiod_wire::payload::SpaceOf;
use vfiod_wire::space::{self, SPACE};
use zerocopy::IntoBytes;

/// Whether an index is this one: (get, set).
pub(crate) fn probe(index: u16) -> Option<(bool, bool)> {
    (index == SPACE).then_some((true, true))
}

/// Gets the numbers by which another connection joins this one's space.
pub(crate) fn get(file: &File, index: u16) -> Option<Result<Vec<u8>>> {
    (index == SPACE).then(|| {
        let own = SpaceOf { device: file.device().id().0, file: file.id().0 };
        Ok(own.as_bytes().to_vec())
    })
}

/// Joins another connection's space.
pub(crate) fn set(file: &File, index: u16, data: &[u8]) -> Option<Result<()>> {
    (index == SPACE).then(|| {
        let other = space::decode(data)
            .map_err(|error| Error::new(Errno::INVAL, error.what).because(error))?;
        file.join_space(DeviceId(other.device), FileId(other.file))
    })
}
