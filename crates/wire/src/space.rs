//! Address spaces across the socket: an extension of this project's, in the manner of attaching two
//! devices to one IOAS of the kernel.
//!
//! | index | operation | data |
//! | --- | --- | --- |
//! | [`SPACE`] 0x7f03 | GET | none; the reply has [`SpaceOf`]: the connection's own device and file |
//! | [`SPACE`] 0x7f03 | SET | [`SpaceOf`] of another connection: its address space is joined |
//!
//! At first each device has a space of its own, which all its connections share. A client that wants
//! two devices to share one space gets the numbers of one connection and sets them on a connection of
//! the other device. From then on DMA_MAP and DMA_UNMAP on any connection of either device work on
//! one space: DMA_UNMAP with ALL unmaps what the other has mapped, too. The log of dirty pages is the
//! space's. What a connection has mapped goes when it is closed. The space lives on until no device is
//! attached to it; after its last connection is closed a device has a new space of its own.
//!
//! Both devices must be the same owner's: connections of one process, as for a hot reset
//! ([`crate::set`]).
//!
//! | errno of a join | when |
//! | --- | --- |
//! | `EINVAL` | the data is not 16 bytes |
//! | `ENOENT` | no such device, or no such file of it; also a connection that is closed by now |
//! | `EACCES` | the connection is another owner's. Not `EPERM`: the client may join spaces, but not this one |
//! | `EBUSY` | connections of this device have mappings, which the device would lose: unmap them first |
//!
//! To join the space that the device is attached to succeeds without effect.

use zerocopy::FromBytes;

use crate::payload::SpaceOf;
use crate::{DecodeError, EINVAL};

/// The feature that names and joins address spaces. GET and SET.
pub const SPACE: u16 = 0x7f03;

/// Decodes the data of [`SPACE`].
///
/// # Errors
/// `EINVAL`: another size than that of [`SpaceOf`].
pub fn decode(data: &[u8]) -> Result<SpaceOf, DecodeError> {
    SpaceOf::read_from_bytes(data)
        .map_err(|_| DecodeError::new(EINVAL, "the file of an address space is not 16 bytes long"))
}
