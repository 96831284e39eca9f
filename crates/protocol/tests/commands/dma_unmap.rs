//! DMA_UNMAP.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::{DmaUnmap, dma_flag};
use zerocopy::IntoBytes;

use crate::driver::*;

#[test]
fn request_is_echoed() {
    for unmap in [
        DmaUnmap { argsz: 24, flags: 0, address: 0x1000, size: 0x1000 },
        DmaUnmap { argsz: 24, flags: dma_flag::UNMAP_ALL, address: 0, size: 0 },
    ] {
        let mut driver = Driver::negotiated();
        let reply = driver.ask(Command::DmaUnmap, unmap.as_bytes(), &[]).unwrap();
        assert_eq!(reply.payload, unmap.as_bytes());
    }
}

#[test]
fn refusal_is_padded_for_rust_vmm() {
    let mut driver = Driver::rust_vmm();
    let unmap = DmaUnmap { argsz: 24, flags: 4, ..DmaUnmap::default() };
    let reply = driver.ask(Command::DmaUnmap, unmap.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), DmaUnmap::LEN));
}
