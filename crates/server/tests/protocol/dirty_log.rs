//! The log of pages that the device has written: DMA_LOGGING_START, STOP and REPORT.

use vfiod_client::{Client, GuestMemory};
use vfiod_wire::Command;
use vfiod_wire::dirty::{DMA_LOGGING_REPORT, DMA_LOGGING_START, DMA_LOGGING_STOP};
use vfiod_wire::payload::{
    DmaBitmap, DmaLoggingControl, DmaLoggingRange, DmaLoggingReport, DmaUnmap, Feature, dma_flag,
    feature_flag,
};
use zerocopy::IntoBytes;

use crate::rig::*;

const IOVA: u64 = 0x10_0000;
const SIZE: u64 = 0x10_0000;
const PAGE: u64 = 4096;
const E2BIG: u32 = 7;

/// A client with memory that the device can reach.
fn client(rig: &Rig) -> Client {
    let mut client = rig.client();
    let memory = GuestMemory::new(SIZE).unwrap();
    client.dma_map(IOVA, SIZE, Some((memory.fd(), 0))).unwrap();
    client
}

fn start_data(page_size: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let control = DmaLoggingControl { page_size, num_ranges: ranges.len() as u32, reserved: 0 };
    let mut data = control.as_bytes().to_vec();
    for (iova, length) in ranges.iter().copied() {
        data.extend_from_slice(DmaLoggingRange { iova, length }.as_bytes());
    }
    data
}

fn start(client: &mut Client) {
    client.feature_set(DMA_LOGGING_START, &start_data(PAGE, &[(IOVA, SIZE)])).unwrap();
}

fn asked(iova: u64, length: u64, page_size: u64) -> DmaLoggingReport {
    DmaLoggingReport { iova, length, page_size }
}

/// The pages that are reported of the memory.
fn report(client: &mut Client, page_size: u64) -> Vec<u64> {
    let asked = asked(IOVA, SIZE, page_size);
    let reply = client.feature_get(DMA_LOGGING_REPORT, asked.as_bytes()).unwrap();
    let (fixed, bitmap) = reply.split_at(asked.as_bytes().len());
    assert_eq!(fixed, asked.as_bytes());
    assert_eq!(bitmap.len() as u64, (SIZE / page_size).div_ceil(64) * 8);
    (0..SIZE / page_size).filter(|n| bitmap[*n as usize / 8] & 1 << (n % 8) != 0).collect()
}

#[test]
fn pages_that_the_device_writes_are_reported_once() {
    let rig = Rig::new();
    let mut client = client(&rig);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 7 * PAGE, 16), 0);
    start(&mut client);
    assert_eq!(report(&mut client, PAGE), [0; 0], "what was written before");
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 3 * PAGE - 8, 16), 0);
    assert_eq!(dma(&mut client, DMA_READ, IOVA + 9 * PAGE, 16), 0);
    assert_eq!(report(&mut client, PAGE), [2, 3]);
    assert_eq!(report(&mut client, PAGE), [0; 0]);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 20 * PAGE, 16), 0);
    assert_eq!(report(&mut client, 16 * PAGE), [1], "in larger pages");
    client.feature_set(DMA_LOGGING_STOP, &[]).unwrap();
    let asked = asked(IOVA, SIZE, PAGE);
    assert_eq!(refused(client.feature_get(DMA_LOGGING_REPORT, asked.as_bytes())), EINVAL);
}

#[test]
fn too_small_an_argsz_gets_the_size_and_keeps_the_marks() {
    let rig = Rig::new();
    let mut client = client(&rig);
    start(&mut client);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA, 16), 0);
    let flags = u32::from(DMA_LOGGING_REPORT) | feature_flag::GET;
    let feature = Feature { argsz: 8 + 24, flags };
    let payload = [feature.as_bytes(), asked(IOVA, SIZE, PAGE).as_bytes()].concat();
    let reply = client.call(Command::DeviceFeature, &payload, &[]).unwrap();
    assert_eq!(reply.payload, Feature { argsz: 8 + 24 + 32, flags }.as_bytes());
    assert_eq!(report(&mut client, PAGE), [0]);
}

#[test]
fn features_of_the_log_are_probed() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.feature_probe(DMA_LOGGING_START, false, true).unwrap();
    client.feature_probe(DMA_LOGGING_STOP, false, true).unwrap();
    client.feature_probe(DMA_LOGGING_REPORT, true, false).unwrap();
    assert_eq!(refused(client.feature_probe(DMA_LOGGING_START, true, false)), ENOTTY);
    assert_eq!(refused(client.feature_probe(DMA_LOGGING_REPORT, false, true)), ENOTTY);
}

#[test]
fn malformed_requests_are_refused() {
    let rig = Rig::new();
    let mut client = client(&rig);
    let many = vec![(IOVA, PAGE); 1025];
    for data in [
        vec![],
        start_data(PAGE, &[(IOVA, SIZE)])[..31].to_vec(),
        [start_data(PAGE, &[]), vec![0]].concat(),
        start_data(0, &[]),
        start_data(4095, &[]),
        start_data(PAGE, &[(IOVA, 0)]),
        start_data(PAGE, &[(u64::MAX, 2)]),
        start_data(PAGE, &many),
    ] {
        assert_eq!(refused(client.feature_set(DMA_LOGGING_START, &data)), EINVAL, "{data:?}");
    }
    assert_eq!(refused(client.feature_set(DMA_LOGGING_STOP, &[0])), EINVAL);
    start(&mut client);
    let again = start_data(PAGE, &[]);
    assert_eq!(refused(client.feature_set(DMA_LOGGING_START, &again)), EINVAL);
    let mut refusal = |iova, length, page_size| {
        let asked = asked(iova, length, page_size);
        refused(client.feature_get(DMA_LOGGING_REPORT, asked.as_bytes()))
    };
    assert_eq!(refusal(IOVA, 0, PAGE), EINVAL);
    assert_eq!(refusal(u64::MAX, 2, PAGE), EINVAL);
    assert_eq!(refusal(IOVA, SIZE, 0), EINVAL);
    assert_eq!(refusal(IOVA, SIZE, 3), EINVAL);
    assert_eq!(refusal(0, u64::MAX, PAGE), E2BIG);
    assert_eq!(refused(client.feature_get(DMA_LOGGING_REPORT, &[0; 23])), EINVAL);
}

/// DMA_UNMAP of the memory, which asks for written pages.
fn unmap_payload(argsz: u32, address: u64, size: u64, page_size: u64, bitmap: u64) -> Vec<u8> {
    let unmap = DmaUnmap { argsz, flags: dma_flag::UNMAP_DIRTY, address, size };
    [unmap.as_bytes(), DmaBitmap { page_size, size: bitmap }.as_bytes()].concat()
}

#[test]
fn unmap_reports_the_pages_whose_marks_it_removes() {
    let rig = Rig::new();
    let mut client = client(&rig);
    start(&mut client);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 3 * PAGE - 8, 16), 0);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 70 * PAGE, 16), 0);
    let payload = unmap_payload(1 << 16, IOVA, SIZE, PAGE, 40);
    let reply = client.call(Command::DmaUnmap, &payload, &[]).unwrap();
    let (fixed, bitmap) = reply.payload.split_at(40);
    assert_eq!(fixed, payload);
    let mut expected = [0; 40];
    (expected[0], expected[8]) = (0b1100, 1 << 6);
    assert_eq!(bitmap, expected);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA, 16), EFAULT);
    assert_eq!(report(&mut client, PAGE), [0; 0], "the marks went with the mapping");
}

#[test]
fn refused_unmap_with_a_report_unmaps_nothing() {
    let rig = Rig::new();
    let mut client = client(&rig);
    let good = unmap_payload(72, IOVA, SIZE, PAGE, 32);
    let call = |client: &mut Client, payload: &[u8]| client.call(Command::DmaUnmap, payload, &[]);
    assert_eq!(refused(call(&mut client, &good)), EINVAL, "the log is off");
    start(&mut client);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + PAGE, 16), 0);
    let mut all = good.clone();
    all[4] |= dma_flag::UNMAP_ALL as u8;
    for payload in [
        good[..24].to_vec(),
        good[..39].to_vec(),
        all,
        unmap_payload(71, IOVA, SIZE, PAGE, 32),
        unmap_payload(24, IOVA, SIZE, PAGE, 32),
        unmap_payload(u32::MAX, IOVA, SIZE, PAGE, u64::MAX),
        unmap_payload(u32::MAX, IOVA, SIZE, PAGE, 1 << 31),
        unmap_payload(1 << 16, IOVA, SIZE, PAGE, 31),
        unmap_payload(1 << 16, IOVA, SIZE, PAGE, 0),
        unmap_payload(1 << 16, IOVA, SIZE, 0, 32),
        unmap_payload(1 << 16, IOVA, SIZE, 4095, 32),
        unmap_payload(1 << 16, IOVA, 0, PAGE, 32),
        unmap_payload(1 << 16, IOVA, SIZE - PAGE, PAGE, 32),
        unmap_payload(1 << 16, u64::MAX, SIZE, PAGE, 32),
    ] {
        assert_eq!(refused(call(&mut client, &payload)), EINVAL, "{payload:?}");
    }
    assert_eq!(report(&mut client, PAGE), [1], "mapping and marks are there");
    call(&mut client, &good).unwrap();
}
