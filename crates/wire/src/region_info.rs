//! The reply to DEVICE_GET_REGION_INFO with its chain of capabilities.

use zerocopy::{FromBytes, IntoBytes};

use crate::payload::{CapHeader, RegionInfo, SparseArea, region_cap, region_flag};
use crate::{DecodeError, EINVAL};

const SPARSE_FIXED: usize = CapHeader::LEN + 8;

/// A region as DEVICE_GET_REGION_INFO describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionReply {
    /// The fixed part; `argsz` is the size of a whole reply.
    pub info: RegionInfo,
    /// Mappable parts; empty for "all of it" or for none.
    pub areas: Vec<SparseArea>,
    /// Type and subtype of a device-specific region.
    pub kind: Option<(u32, u32)>,
}

/// Builds the payload for a client that takes `argsz` bytes. The capability of sparse areas is
/// present where `areas` is not empty. `offset` is where the region begins in the file that clients
/// map, in bytes.
///
/// Where they do not fit, the reply is cut to the fixed part, which says how much is needed;
/// `cap_offset` is 32 even then, because QEMU refuses CAPS with an offset below that. The second
/// value says whether the reply is whole, that is, whether the descriptor belongs to it.
pub fn encode_region_info(
    argsz: u32,
    index: u32,
    flags: u32,
    size: u64,
    offset: u64,
    areas: &[SparseArea],
) -> (Vec<u8>, bool) {
    let caps = if areas.is_empty() { 0 } else { SPARSE_FIXED + size_of_val(areas) };
    let needed = RegionInfo::LEN + caps;
    let mut info = RegionInfo { argsz: needed as u32, flags, index, cap_offset: 0, size, offset };
    if caps != 0 {
        info.flags |= region_flag::CAPS;
        info.cap_offset = RegionInfo::LEN as u32;
    }
    let mut payload = info.as_bytes().to_vec();
    let whole = argsz as usize >= needed;
    if whole && caps != 0 {
        let header = CapHeader { id: region_cap::SPARSE_MMAP, version: 1, next: 0 };
        payload.extend_from_slice(header.as_bytes());
        payload.extend_from_slice((areas.len() as u32).as_bytes());
        payload.extend_from_slice(0u32.as_bytes());
        payload.extend_from_slice(areas.as_bytes());
    }
    (payload, whole)
}

/// Reads a reply.
///
/// # Errors
/// `EINVAL`: too short, or a chain that leaves the payload, runs backwards or lies about its
/// areas.
pub fn decode_region_info(payload: &[u8]) -> Result<RegionReply, DecodeError> {
    let bad = |what| DecodeError::new(EINVAL, what);
    let (info, _) = RegionInfo::read_from_prefix(payload)
        .map_err(|_| bad("region info shorter than 32 bytes"))?;
    let mut reply = RegionReply { info, ..RegionReply::default() };
    if info.flags & region_flag::CAPS == 0 || info.argsz as usize > payload.len() {
        return Ok(reply);
    }
    let mut offset = info.cap_offset as usize;
    while offset != 0 {
        let bytes = payload.get(offset..).ok_or(bad("region capability outside the reply"))?;
        let (header, body) =
            CapHeader::read_from_prefix(bytes).map_err(|_| bad("region capability cut short"))?;
        match header.id {
            region_cap::SPARSE_MMAP => {
                let (count, body) =
                    u32::read_from_prefix(body).map_err(|_| bad("sparse areas cut short"))?;
                let areas = body.get(4..).unwrap_or_default();
                let len = (count as usize).checked_mul(SparseArea::LEN);
                let areas = len
                    .and_then(|len| areas.get(..len))
                    .ok_or(bad("more sparse areas than the reply holds"))?;
                reply.areas = areas
                    .chunks_exact(SparseArea::LEN)
                    .filter_map(|chunk| SparseArea::read_from_bytes(chunk).ok())
                    .collect();
            }
            region_cap::TYPE => {
                let ([kind, subtype], _) =
                    <[u32; 2]>::read_from_prefix(body).map_err(|_| bad("region type cut short"))?;
                reply.kind = Some((kind, subtype));
            }
            _ => {}
        }
        let next = header.next as usize;
        if next != 0 && next <= offset {
            return Err(bad("region capabilities in a loop"));
        }
        offset = next;
    }
    Ok(reply)
}
