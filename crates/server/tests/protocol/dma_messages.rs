//! DMA_READ and DMA_WRITE: memory that the client gave no descriptor for.

use std::time::Duration;

use vfiod_client::{Client, GuestMemory, Options};
use vfiod_wire::payload::{DmaAccess, RegionAccess};
use vfiod_wire::{Command, Kind};
use zerocopy::{FromBytes, IntoBytes};

use crate::rig::*;

const IOVA: u64 = 0x4000_0000;
const SIZE: u64 = 4 << 20;

fn client_with_messages(rig: &Rig, options: Options) -> (Client, GuestMemory) {
    rig.wait_idle(); // windows are the device's: those of a client before must be gone
    let memory = GuestMemory::new(SIZE).unwrap();
    memory.attach(IOVA, SIZE, 0);
    let mut client = rig.client_with(options.memory(memory.clone()));
    client.dma_map(IOVA, SIZE, None).unwrap();
    (client, memory)
}

fn both_ways(client: &mut Client, memory: &GuestMemory) {
    memory.write(0x123, b"by message").unwrap();
    assert_eq!(dma(client, DMA_READ, IOVA + 0x123, 10), 0);
    let mut data = [0; 10];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(&data, b"by message");
    client.region_write(PLAIN, 0, b"back again").unwrap();
    assert_eq!(dma(client, DMA_WRITE, IOVA + 0x456, 10), 0);
    memory.read(0x456, &mut data).unwrap();
    assert_eq!(&data, b"back again");
}

#[test]
fn on_the_one_socket_from_within_a_command() {
    let rig = Rig::new();
    let (mut client, memory) = client_with_messages(&rig, Options::default());
    for _ in 0..50 {
        both_ways(&mut client, &memory);
    }
}

#[test]
fn on_the_second_socket() {
    let rig = Rig::new();
    let (mut client, memory) = client_with_messages(&rig, Options::default().twin_socket());
    assert!(client.has_twin_socket());
    for _ in 0..50 {
        both_ways(&mut client, &memory);
    }
}

#[test]
fn from_a_thread_of_the_device() {
    let rig = Rig::new();
    for options in [Options::default(), Options::default().twin_socket()] {
        let (mut client, _memory) = client_with_messages(&rig, options);
        for _ in 0..20 {
            dma(&mut client, DMA_READ_BESIDE, IOVA, 0x1000);
            // Served while the client waits for its own answers, or for nothing.
            client.serve_dma(Duration::from_millis(1)).unwrap();
            eventually("the transfer ends", || read_u64(&mut client, DMA, 24) != u64::MAX);
            assert_eq!(read_u64(&mut client, DMA, 24), 0);
        }
    }
}

#[test]
fn large_transfers_are_cut_to_what_the_client_takes() {
    let rig = Rig::new();
    let mut options = Options::default();
    options.capabilities.max_data_xfer_size = Some(1000);
    let (mut client, memory) = client_with_messages(&rig, options);
    let data: Vec<u8> = (0..8192u32).map(|i| ((i * 31) >> 3) as u8).collect();
    memory.write(0, &data).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, IOVA, 8192), 0);
    let mut back = vec![0; 8192];
    client.region_read(PLAIN, 0, &mut back).unwrap();
    assert!(back == data);
}

#[test]
fn commands_behind_the_one_that_waits_are_handled_after_it() {
    let rig = Rig::new();
    let (mut client, _memory) = client_with_messages(&rig, Options::default());
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, 16);
    let op = [RegionAccess { offset: 16, region: DMA, count: 8 }.as_bytes(), DMA_READ.as_bytes()]
        .concat();
    let started = client.submit(Command::RegionWrite, &op, &[]).unwrap();
    let read = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    let behind: Vec<_> = (0..100)
        .map(|_| client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap())
        .collect();
    client.complete(started).unwrap();
    for id in behind {
        client.complete(id).unwrap();
    }
    assert_eq!(read_u64(&mut client, DMA, 24), 0);
}

#[test]
fn a_client_that_refuses_gives_the_device_its_errno() {
    let rig = Rig::new();
    let mut client = rig.client(); // no memory: refuses with EFAULT
    client.dma_map(IOVA, SIZE, None).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, IOVA, 16), EFAULT);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA, 16), EFAULT);
    client.device_info().unwrap();
}

#[test]
fn a_client_that_does_not_answer_costs_its_device_three_seconds() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.dma_map(IOVA, SIZE, None).unwrap();
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, 16);
    let op = [RegionAccess { offset: 16, region: DMA, count: 8 }.as_bytes(), DMA_READ.as_bytes()]
        .concat();
    client.socket().send(&message(77, Command::RegionWrite, &op), &[]).unwrap();
    let request = client.socket().receive_message().unwrap();
    assert_eq!(request.header.command, Command::DmaRead as u16);
    let access = DmaAccess::read_from_bytes(&request.payload).unwrap();
    assert_eq!(access, DmaAccess { address: IOVA, count: 16 });
    // Meanwhile another client of the device's set is served; see `hostility` for other devices.
    let reply = client.socket().receive_message().unwrap();
    assert_eq!((reply.header.id, reply.header.kind()), (77, Kind::Reply(Ok(()))));
    assert_eq!(read_u64(&mut client, DMA, 24), ETIMEDOUT);
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let rig = Rig::new();
    for bad in [
        Vec::new(),
        vec![0; 15],
        DmaAccess { address: IOVA, count: 16 }.as_bytes().to_vec(),
        [DmaAccess { address: IOVA, count: 16 }.as_bytes(), &[0; 17]].concat(),
        [DmaAccess { address: IOVA + 1, count: 16 }.as_bytes(), &[0; 16]].concat(),
        [DmaAccess { address: IOVA, count: 15 }.as_bytes(), &[0; 15]].concat(),
    ] {
        rig.wait_idle();
        let mut client = rig.client();
        client.dma_map(IOVA, SIZE, None).unwrap();
        write_u64(&mut client, DMA, 0, IOVA);
        write_u64(&mut client, DMA, 8, 16);
        let op =
            [RegionAccess { offset: 16, region: DMA, count: 8 }.as_bytes(), DMA_READ.as_bytes()]
                .concat();
        client.socket().send(&message(77, Command::RegionWrite, &op), &[]).unwrap();
        let request = client.socket().receive_message().unwrap();
        let mut answer = request.header.reply(bad.len()).as_bytes().to_vec();
        answer.extend_from_slice(&bad);
        client.socket().send(&answer, &[]).unwrap();
        assert_eq!(client.socket().receive_message().unwrap().header.id, 77);
        assert_eq!(read_u64(&mut client, DMA, 24), u64::from(EIO), "{bad:?}");
    }
}

#[test]
fn replies_to_nothing_are_ignored() {
    let rig = Rig::new();
    let mut client = rig.client();
    for command in Command::ALL {
        let header = vfiod_wire::Header::command(5, *command, 0, false).reply(0);
        client.socket().send(header.as_bytes(), &[]).unwrap();
    }
    client.device_info().unwrap();
}

#[test]
fn the_server_only_commands_are_refused_from_clients() {
    let rig = Rig::new();
    let mut client = rig.client();
    let access = DmaAccess { address: 0, count: 0 };
    assert_eq!(refused(client.call(Command::DmaRead, access.as_bytes(), &[])), EINVAL);
    assert_eq!(refused(client.call(Command::DmaWrite, access.as_bytes(), &[])), EINVAL);
}
