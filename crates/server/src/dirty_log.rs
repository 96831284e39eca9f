//! The features that every device has because its address space does them: the log of pages that
//! devices have written ([`vfiod_wire::dirty`]), and its report by DMA_UNMAP. Devices that share a
//! space share its log.

use rustix::io::Errno;
use vfiod_buffer::{grow, zeroed};
use vfiod_core::dma::{Marks, dirty_bitmap_len};
use vfiod_core::{Error, File, Result};
use vfiod_protocol::limits::MAX_DATA;
use vfiod_wire::DecodeError;
use vfiod_wire::dirty::{
    DMA_LOGGING_REPORT, DMA_LOGGING_START, DMA_LOGGING_STOP, decode_report, decode_start,
};
use vfiod_wire::payload::DmaLoggingReport;
use zerocopy::IntoBytes;

fn invalid(error: DecodeError) -> Error {
    Error::new(Errno::INVAL, error.what).because(error)
}

fn no_such(what: &'static str) -> Error {
    Error::new(Errno::NOTTY, what)
}

/// Whether an index is one of these: (get, set).
pub(crate) fn probe(index: u16) -> Option<(bool, bool)> {
    match index {
        DMA_LOGGING_START | DMA_LOGGING_STOP => Some((false, true)),
        DMA_LOGGING_REPORT => Some((true, false)),
        _ => None,
    }
}

/// Gets one of these. `room` is how many bytes of data the client takes: if that is too little,
/// the marks stay.
pub(crate) fn get(file: &File, index: u16, data: &[u8], room: usize) -> Option<Result<Vec<u8>>> {
    match index {
        DMA_LOGGING_REPORT => Some(report(file, data, room)),
        DMA_LOGGING_START | DMA_LOGGING_STOP => {
            Some(Err(no_such("the log of dirty pages is started and stopped, not got")))
        }
        _ => None,
    }
}

/// Sets one of these.
pub(crate) fn set(file: &File, index: u16, data: &[u8]) -> Option<Result<()>> {
    match index {
        DMA_LOGGING_START => Some(start(file, data)),
        DMA_LOGGING_STOP => Some(stop(file, data)),
        DMA_LOGGING_REPORT => Some(Err(no_such("a report of dirty pages is got, not set"))),
        _ => None,
    }
}

/// Starts the log for the whole space, whatever the ranges: a report names its own.
fn start(file: &File, data: &[u8]) -> Result<()> {
    decode_start(data).map_err(invalid)?;
    // One step: another connection of the same space may start it at the same moment.
    if !file.start_dirty_log()? {
        return Err(Error::new(Errno::INVAL, "the log of dirty pages was started before"));
    }
    Ok(())
}

fn stop(file: &File, data: &[u8]) -> Result<()> {
    if !data.is_empty() {
        return Err(Error::new(Errno::INVAL, "DMA_LOGGING_STOP with data"));
    }
    file.space()?.stop_dirty_log();
    Ok(())
}

fn report(file: &File, data: &[u8], room: usize) -> Result<Vec<u8>> {
    let report = decode_report(data).map_err(invalid)?;
    let DmaLoggingReport { iova, length, page_size } = report;
    if !page_size.is_power_of_two() {
        let what = format!("DMA_LOGGING_REPORT with pages of {page_size} bytes: no power of two");
        return Err(Error::new(Errno::INVAL, what));
    }
    let len =
        dirty_bitmap_len(length, page_size).filter(|len| *len <= MAX_DATA).ok_or_else(|| {
            let what = format!("DMA_LOGGING_REPORT whose bitmap would be over {MAX_DATA} bytes");
            Error::new(Errno::TOOBIG, what)
        })?;
    let mut reply = report.as_bytes().to_vec();
    let fixed = reply.len();
    grow(&mut reply, fixed + len)?;
    let marks = if reply.len() <= room { Marks::Clear } else { Marks::Keep };
    file.space()?.report_dirty(iova, length, page_size, marks, &mut reply[fixed..])?;
    Ok(reply)
}

/// An empty bitmap for DMA_UNMAP that reports the written pages of `size` bytes.
///
/// # Errors
/// `EINVAL`: pages whose size is no power of two; a bitmap too small for them, or over [`MAX_DATA`];
/// `ENOMEM`.
pub(crate) fn unmap_bitmap(size: u64, page_size: u64, bitmap: u64) -> Result<Vec<u8>> {
    let wrong = |what: String| Error::new(Errno::INVAL, format!("DMA_UNMAP with {what}"));
    if !page_size.is_power_of_two() {
        return Err(wrong(format!("a bitmap for pages of {page_size} bytes: no power of two")));
    }
    let needed = dirty_bitmap_len(size, page_size).map(|len| len as u64);
    if needed.is_none_or(|needed| bitmap < needed) || bitmap > MAX_DATA as u64 {
        let what = format!("a bitmap of {bitmap} bytes: too small for its pages, or too large");
        return Err(wrong(what));
    }
    Ok(zeroed(bitmap as usize)?)
}
