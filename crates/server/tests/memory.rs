//! Clients ask for the largest of everything while there is little memory: each gets `ENOMEM`, and the
//! others, the device and the server go on.

// Of the other tests.
#[allow(dead_code)]
#[path = "protocol/rig.rs"]
mod rig;
#[path = "../../buffer/tests/scarce/mod.rs"]
mod scarce;
#[allow(dead_code)]
#[path = "../src/testing.rs"]
mod testing;

use vfiod_client::{Client, Error, GuestMemory};
use vfiod_wire::dirty::{DMA_LOGGING_REPORT, DMA_LOGGING_START};
use vfiod_wire::payload::{
    DmaBitmap, DmaLoggingControl, DmaLoggingReport, DmaUnmap, Feature, RegionAccess, dma_flag,
    feature_flag,
};
use vfiod_wire::{Command, Kind};
use zerocopy::IntoBytes;

use rig::*;

const ENOMEM: u32 = 12;
/// What everybody may have: `vfiod_buffer::SMALL`.
const SMALL: usize = 64 << 10;
/// Reads whose replies are more than a socket holds.
const READS: u16 = 100;
const MIB: usize = 1 << 20;
const IOVA: u64 = 0x10_0000;
const PAGE: u64 = 4096;
/// Mappings of one byte each.
const WINDOWS: u64 = 0x4000_0000;
const WINDOW_COUNT: u64 = 4096;

fn get(index: u16, argsz: usize, data: &[u8]) -> Vec<u8> {
    let flags = u32::from(index) | feature_flag::GET;
    [Feature { argsz: argsz as u32, flags }.as_bytes(), data].concat()
}

fn set(index: u16, data: &[u8]) -> Vec<u8> {
    let flags = u32::from(index) | feature_flag::SET;
    let argsz = (Feature::LEN + data.len()) as u32;
    [Feature { argsz, flags }.as_bytes(), data].concat()
}

/// Asks for the marks of a megabyte, with room for a whole megabyte of them.
fn report(client: &mut Client) -> Result<Vec<u8>, Error> {
    let asked = DmaLoggingReport { iova: IOVA, length: MIB as u64, page_size: PAGE };
    let payload = get(DMA_LOGGING_REPORT, MIB, asked.as_bytes());
    client.call(Command::DeviceFeature, &payload, &[]).map(|reply| reply.payload)
}

/// Unmaps memory, with room for a whole megabyte of marks.
fn unmap(client: &mut Client) -> Result<Vec<u8>, Error> {
    let flags = dma_flag::UNMAP_DIRTY;
    let argsz = (DmaUnmap::LEN + DmaBitmap::LEN + MIB) as u32;
    let unmap = DmaUnmap { argsz, flags, address: IOVA, size: MIB as u64 };
    let bitmap = DmaBitmap { page_size: PAGE, size: MIB as u64 };
    let payload = [unmap.as_bytes(), bitmap.as_bytes()].concat();
    client.call(Command::DmaUnmap, &payload, &[]).map(|reply| reply.payload)
}

#[test]
fn clients_that_ask_for_the_largest_of_everything_get_enomem_and_harm_nobody() {
    scarce::spare_this_thread(true);
    let rig = Rig::new();
    let (mut client, mut neighbour) = (rig.client(), rig.client());
    let memory = GuestMemory::new(MIB as u64).unwrap();
    client.dma_map(IOVA, MIB as u64, Some((memory.fd(), 0))).unwrap();
    for n in 0..WINDOW_COUNT {
        client.dma_map(WINDOWS + n, 1, Some((memory.fd(), n))).unwrap();
    }
    neighbour.dma_map(0, PAGE, Some((memory.fd(), 0))).unwrap();
    let control = DmaLoggingControl { page_size: PAGE, num_ranges: 0, reserved: 0 };
    client.feature_set(DMA_LOGGING_START, control.as_bytes()).unwrap();
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 7 * PAGE, 16), 0);
    let mut all_work = |client: &mut Client| {
        for client in [client, &mut neighbour] {
            write_u64(client, PLAIN, 0, 1);
            assert_eq!(read_u64(client, PLAIN, 0), 1);
        }
    };

    let scarcity = scarce::begin(SMALL);
    for region in [LARGE, MEMORY] {
        assert_eq!(refused(client.region_read(region, 0, &mut vec![0; MIB])), ENOMEM);
        all_work(&mut client);
    }
    assert_eq!(refused(client.region_write(LARGE, 0, &vec![1; MIB])), ENOMEM);
    all_work(&mut client);
    // It goes where it belongs as it arrives.
    client.region_write(MEMORY, 0, &vec![1; MIB]).unwrap();
    for payload in [get(FEATURE, MIB, &[]), set(FEATURE, &vec![0; MIB])] {
        assert_eq!(refused(client.call(Command::DeviceFeature, &payload, &[])), ENOMEM);
        all_work(&mut client);
    }
    assert_eq!(refused(report(&mut client)), ENOMEM);
    assert_eq!(refused(unmap(&mut client)), ENOMEM);
    all_work(&mut client);
    assert_eq!(dma(&mut client, DMA_WRITE, WINDOWS, WINDOW_COUNT), u64::from(ENOMEM));
    all_work(&mut client);
    // A client that takes no replies has a reply to each request all the same.
    let silent = negotiated(&rig);
    let read = RegionAccess { offset: 0, region: LARGE, count: SMALL as u32 / 2 };
    for id in 0..READS {
        silent.send(&message(id, Command::RegionRead, read.as_bytes()), &[]).unwrap();
    }
    all_work(&mut client);
    for id in 0..READS {
        let reply = silent.receive_message().unwrap().header;
        let enomem = reply.kind() == Kind::Reply(Err(ENOMEM));
        assert!(enomem || reply.kind() == Kind::Reply(Ok(())), "{reply:?}");
        assert_eq!(reply.id, id);
    }
    drop(silent);
    all_work(&mut client);
    assert!(scarce::refused() > 10, "{}", scarce::refused());
    drop(scarcity);

    // Nothing was lost, and nothing was done by halves.
    client.region_read(LARGE, 0, &mut vec![1; MIB]).unwrap();
    client.region_write(LARGE, 0, &vec![1; MIB]).unwrap();
    client.call(Command::DeviceFeature, &set(FEATURE, &[7; 9]), &[]).unwrap();
    let feature = client.call(Command::DeviceFeature, &get(FEATURE, MIB, &[]), &[]).unwrap();
    assert!(feature.payload.ends_with(&[7; 9]));
    assert_eq!(dma(&mut client, DMA_WRITE, WINDOWS, WINDOW_COUNT), 0);
    let marks = &report(&mut client).unwrap()[Feature::LEN + size_of::<DmaLoggingReport>()..];
    assert_eq!(marks[0], 1 << 7);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA + 9 * PAGE, 16), 0);
    assert_eq!(unmap(&mut client).unwrap()[DmaUnmap::LEN + DmaBitmap::LEN + 1], 1 << 1);

    // Its end takes no memory, however much it has mapped.
    let scarcity = scarce::begin(SMALL);
    drop(client);
    eventually("it is gone", || rig.connections() == 1);
    assert_eq!(read_u64(&mut neighbour, PLAIN, 0), 1);
    drop(scarcity);
    let mut next = rig.client();
    next.dma_map(WINDOWS, PAGE, Some((memory.fd(), 0))).unwrap();
    next.reset().unwrap();
}
