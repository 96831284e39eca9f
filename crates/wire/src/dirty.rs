//! The log of pages that devices have written: `VFIO_DEVICE_FEATURE_DMA_LOGGING_*` of the kernel's
//! `linux/vfio.h`, with ranges and bitmaps behind the fixed parts instead of pointers to them.

use zerocopy::FromBytes;

use crate::payload::{DmaLoggingControl, DmaLoggingRange, DmaLoggingReport};
use crate::{DecodeError, EINVAL};

/// The feature that starts the log. SET: [`DmaLoggingControl`], then its ranges.
pub const DMA_LOGGING_START: u16 = 6;
/// The feature that stops the log. SET, without data.
pub const DMA_LOGGING_STOP: u16 = 7;
/// The feature that reports pages, and takes their marks away. GET: [`DmaLoggingReport`]; the reply
/// has the same and a bitmap, a bit for each page from bit 0 of byte 0 on, in whole 64-bit words.
pub const DMA_LOGGING_REPORT: u16 = 8;

/// Most ranges in one start.
pub const MAX_RANGES: usize = 1024;

/// Decodes the data of [`DMA_LOGGING_START`].
///
/// # Errors
/// `EINVAL`: sizes that contradict each other; a page size that is no power of two; a range that is
/// empty or passes 2^64; more than [`MAX_RANGES`].
pub fn decode_start(data: &[u8]) -> Result<Vec<DmaLoggingRange>, DecodeError> {
    let wrong = |what| Err(DecodeError::new(EINVAL, what));
    let Ok((control, ranges)) = DmaLoggingControl::read_from_prefix(data) else {
        return wrong("DMA_LOGGING_START shorter than 16 bytes");
    };
    let count = control.num_ranges as usize;
    if count > MAX_RANGES || ranges.len() != count * DmaLoggingRange::LEN {
        return wrong(
            "DMA_LOGGING_START whose number of ranges is not that of its data, or over 1024",
        );
    }
    if !control.page_size.is_power_of_two() {
        return wrong("DMA_LOGGING_START with a page size that is no power of two");
    }
    let ranges = ranges.chunks_exact(DmaLoggingRange::LEN);
    let ranges: Vec<_> =
        ranges.filter_map(|range| DmaLoggingRange::read_from_bytes(range).ok()).collect();
    let is_wrong = |range: &DmaLoggingRange| {
        let last = range.length.checked_sub(1).and_then(|rest| range.iova.checked_add(rest));
        last.is_none()
    };
    if ranges.iter().any(is_wrong) {
        return wrong("DMA_LOGGING_START with a range that is empty or passes 2^64");
    }
    Ok(ranges)
}

/// Decodes the data of [`DMA_LOGGING_REPORT`].
///
/// # Errors
/// `EINVAL`: another size than that of [`DmaLoggingReport`].
pub fn decode_report(data: &[u8]) -> Result<DmaLoggingReport, DecodeError> {
    DmaLoggingReport::read_from_bytes(data)
        .map_err(|_| DecodeError::new(EINVAL, "DMA_LOGGING_REPORT that is not 24 bytes long"))
}
