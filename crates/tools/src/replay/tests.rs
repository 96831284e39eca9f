//! A session with `edu` is captured through sockets and played again.

mod containers;
mod damaged;
mod queues;

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use vfiod_client::{Client, GuestMemory, IrqAction, IrqData, Options, Socket};
use vfiod_core::{DeviceSpec, Registry};
use vfiod_server::{Server, ServerOptions};

use super::player::Make;
use super::{Findings, play};
use crate::capture::format::{Event, Reader, Writer};
use crate::capture::proxy::{Closed, Proxy};

const IOVA: u64 = 0x10_0000;
const COMMAND: u64 = 4;
const BUS_MASTER: u32 = 0x0400_0006;

fn model(name: &'static str) -> Make {
    model_with(name, &[])
}

fn model_with(name: &'static str, options: &[String]) -> Make {
    let options = super::options_of(options).unwrap();
    Box::new(move || Ok(vfiod_devices::catalogue().build(name, &options, Default::default())?))
}

fn edu() -> Make {
    model("edu")
}

/// Runs `session` with `edu` through a proxy that writes to `path`.
fn capture(path: &Path, options: Options, session: impl FnOnce(&mut Client)) {
    capture_model(edu(), path, options, session);
}

fn capture_model(make: Make, path: &Path, options: Options, session: impl FnOnce(&mut Client)) {
    let spec = DeviceSpec { name: "captured".into(), ..DeviceSpec::default() };
    let registry = Registry::new();
    let _workers = vfiod_tasks::Workers::start(registry.runtime(), 1).unwrap();
    let registration = registry.register(spec, make().unwrap()).unwrap();
    // Transfers of small models shall take several messages, too.
    let options_of_server = ServerOptions { min_transfer: 1, ..ServerOptions::default() };
    let server = Server::new(options_of_server).unwrap();
    let (to_server, from_proxy) = UnixStream::pair().unwrap();
    let (to_proxy, from_client) = UnixStream::pair().unwrap();
    let served = server.serve_connected(from_proxy.into(), registration.device().clone()).unwrap();
    let writer = Writer::new(File::create(path).unwrap()).unwrap();
    let proxy = Proxy::new(to_proxy.into(), to_server.into(), writer).unwrap();
    let relaying = std::thread::spawn(move || proxy.run().unwrap());
    let socket = Socket::from_fd(from_client.into(), Duration::from_secs(60)).unwrap();
    let mut client = Client::with_socket(socket, options).unwrap();
    session(&mut client);
    drop(client);
    assert_eq!(relaying.join().unwrap(), Closed::ByClient);
    assert!(served.finish(Duration::from_secs(60)));
}

fn wait_for(event: &OwnedFd) {
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1));
    rustix::io::read(event, &mut [0; 8]).unwrap();
}

fn write(client: &mut Client, offset: u64, value: u32) {
    client.region_write(0, offset, &value.to_le_bytes()).unwrap();
}

fn read(client: &mut Client, offset: u64) -> u32 {
    let mut value = [0; 4];
    client.region_read(0, offset, &mut value).unwrap();
    u32::from_le_bytes(value)
}

/// Sets up an interrupt, computes, and copies memory both ways.
fn session(client: &mut Client) {
    let memory = client_memory();
    client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
    memory.write(0, b"guest data").unwrap();
    client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
    assert!(client.region_info(0).unwrap().fd.is_none());
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let fds = [event.as_fd()];
    client.set_irqs(0, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
    write(client, 0x20, 0x80);
    write(client, 0x08, 10);
    wait_for(&event);
    assert_eq!(read(client, 0x08), 3_628_800);
    acknowledge(client, 1);
    for (source, destination, command) in [(IOVA, 0x40000, 5), (0x40000, IOVA + 0x800, 7)] {
        transfer(client, source, destination, 10, command);
        wait_for(&event);
        acknowledge(client, 0x100);
    }
    let mut copied = [0; 10];
    memory.read(0x800, &mut copied).unwrap();
    assert_eq!(&copied, b"guest data");
    client.reset().unwrap();
    write(client, 0x04, 5);
    assert_eq!(read(client, 0x04), !5);
    client.dma_unmap(IOVA, memory.size()).unwrap();
}

/// Starts a transfer.
fn transfer(client: &mut Client, source: u64, destination: u64, count: u64, command: u64) {
    for (register, value) in [(0x80, source), (0x88, destination), (0x90, count), (0x98, command)] {
        client.region_write(0, register, &u64::to_le_bytes(value)).unwrap();
    }
}

fn acknowledge(client: &mut Client, cause: u32) {
    write(client, 0x64, cause);
    client.set_irqs(0, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
}

fn client_memory() -> GuestMemory {
    GuestMemory::new(0x1000).unwrap()
}

/// Rebuilt after every message, or not at all.
fn every(rebuild: bool) -> Option<NonZeroU64> {
    rebuild.then_some(NonZeroU64::MIN)
}

fn replay(path: &Path, rebuild: bool) -> Findings {
    play(BufReader::new(File::open(path).unwrap()), edu(), None, every(rebuild)).unwrap()
}

#[test]
fn captured_session_replays_without_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), session);
    for rebuild in [false, true] {
        let findings = replay(&path, rebuild);
        assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
        assert!(!findings.truncated);
        assert_eq!((findings.dma_messages, findings.signals), (2, 3));
    }
}

/// Accesses of every region, interrupts, mappings and resets, in an order that a seed decides.
fn anything(client: &mut Client, seed: u64) {
    let mut random = seed;
    let mut next = move |end: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % end
    };
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let regions = client.device_info().unwrap().num_regions;
    let sizes: Vec<u64> =
        (0..regions).map(|index| client.region_info(index).unwrap().reply.info.size).collect();
    let memory = client_memory();
    client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
    client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
    for _ in 0..300 {
        let region = next(regions.into()) as u32;
        let size = sizes[region as usize].min(0x100);
        let offset = if size == 0 { 0 } else { next(size) & !3 };
        let mut data = [next(256) as u8, next(4) as u8, 0, 0];
        // What is refused, is refused again.
        match next(12) {
            0..5 => drop(client.region_read(region, offset, &mut data)),
            5..8 if region != 7 => drop(client.region_write(region, offset, &data)),
            8 => drop(client.region_read(region, offset, &mut data[..1])),
            9 => {
                let fds = [event.as_fd()];
                let data = IrqData::EventFds(&fds);
                drop(client.set_irqs(0, 0, 1, IrqAction::Trigger, data));
            }
            10 if next(20) == 0 => drop(client.reset()),
            _ => drop(client.irq_info(next(6) as u32)),
        }
    }
    client.dma_unmap(IOVA, memory.size()).unwrap();
}

#[test]
fn everything_can_be_rebuilt_after_every_message() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["template", "gpio", "edu", "serial"] {
        for seed in 1..4 {
            let path = dir.path().join(format!("{name}{seed}.capture"));
            capture_model(model(name), &path, Options::default(), |client| anything(client, seed));
            for rebuild in [false, true] {
                let file = BufReader::new(File::open(&path).unwrap());
                let findings = play(file, model(name), None, every(rebuild)).unwrap();
                assert_eq!(
                    findings.differences,
                    Vec::<String>::new(),
                    "{name}, rebuild: {rebuild}"
                );
                assert!(findings.requests > 200);
            }
        }
    }
}

/// Replays a capture of a model, plain and rebuilt.
fn must_replay(path: &Path, name: &'static str, options: &[String]) {
    for rebuild in [false, true] {
        let file = BufReader::new(File::open(path).unwrap());
        let findings = play(file, model_with(name, options), None, every(rebuild)).unwrap();
        assert_eq!(findings.differences, Vec::<String>::new(), "{name}, rebuild: {rebuild}");
        assert!(!findings.truncated);
    }
}

/// A thread sets inputs all the time, while the guest reads them and has interrupts on.
#[test]
fn inputs_that_change_from_outside_arrive_at_the_same_places() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..3 {
        let path = dir.path().join(format!("gpio{seed}.capture"));
        let control = dir.path().join("control");
        let make = model_with("gpio", &[format!("control={}", control.display())]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            capture_model(make, &path, Options::default(), |client| {
                let mut outside = UnixStream::connect(&control).unwrap();
                let done = &done;
                let setter = scope.spawn(move || {
                    let mut replies = BufReader::new(outside.try_clone().unwrap());
                    let mut round = 0;
                    // Fewer than the server keeps if nobody collects them for a while.
                    while !done.load(Ordering::Relaxed) && round < 1500 {
                        writeln!(outside, "set {} {}", round % 16, round / 16 % 2).unwrap();
                        replies.read_line(&mut String::new()).unwrap();
                        round += 1;
                    }
                    round
                });
                anything(client, seed);
                done.store(true, Ordering::Relaxed);
                assert!(setter.join().unwrap() > 0);
            });
        });
        must_replay(&path, "gpio", &[]);
    }
}

/// Characters arrive at a terminal while the guest polls, reads, resets its FIFO and goes away.
#[test]
fn characters_of_a_terminal_arrive_at_the_same_places() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..3 {
        let path = dir.path().join(format!("serial{seed}.capture"));
        let link = dir.path().join("terminal");
        let options = ["backend=pty".to_owned(), format!("link0={}", link.display())];
        capture_model(model_with("serial", &options), &path, Options::default(), |client| {
            let terminal = File::options().read(true).write(true).open(&link).unwrap();
            for round in 0..3 {
                (&terminal).write_all(b"what somebody types\n").unwrap();
                anything(client, 3 * seed + round);
                // Eight bits, no divisor latch; DTR and RTS: the guest wants all of it.
                client.region_write(0, 3, &[3]).unwrap();
                client.region_write(0, 4, &[3]).unwrap();
                // What came before may have been dropped by a reset.
                (&terminal).write_all(b"\n").unwrap();
                let mut last = [0];
                while last != *b"\n" {
                    let mut status = [0];
                    client.region_read(0, 5, &mut status).unwrap();
                    if status[0] & 1 != 0 {
                        client.region_read(0, 0, &mut last).unwrap();
                    }
                }
            }
        });
        must_replay(&path, "serial", &["backend=pty".to_owned()]);
    }
}

#[test]
fn memory_without_descriptor_and_a_second_socket_replay_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    let memory = client_memory();
    memory.attach(IOVA, memory.size(), 0);
    let options = Options::default().twin_socket().memory(memory.clone());
    capture(&path, options, |client| {
        assert!(!client.has_twin_socket());
        client.dma_map(IOVA, memory.size(), None).unwrap();
        client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
        transfer(client, IOVA, 0x40000, 16, 1);
        while read(client, 0x98) & 1 != 0 {}
    });
    for rebuild in [false, true] {
        let findings = replay(&path, rebuild);
        assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
        assert_eq!(findings.dma_messages, 1);
    }
}

/// The guest sees one completion, and what the messages brought, however often the device was
/// rebuilt between them.
#[test]
fn device_is_rebuilt_between_the_messages_of_a_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    // 16 messages for each transfer: more than are sent ahead.
    let mut options = Options::default();
    options.capabilities.max_data_xfer_size = Some(64);
    capture(&path, options, |client| {
        let memory = client_memory();
        let bytes: Vec<u8> = (0..1024u32).map(|byte| (byte % 251) as u8).collect();
        memory.write(0, &bytes).unwrap();
        client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
        client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let fds = [event.as_fd()];
        client.set_irqs(0, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
        for (source, destination, command) in [(IOVA, 0x40000, 5), (0x40000, IOVA + 0x800, 7)] {
            transfer(client, source, destination, 1024, command);
            wait_for(&event);
            acknowledge(client, 0x100);
        }
        let mut copied = vec![0; bytes.len()];
        memory.read(0x800, &mut copied).unwrap();
        assert_eq!(copied, bytes);
    });
    for rebuild in [false, true] {
        let findings = replay(&path, rebuild);
        assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
        assert_eq!((findings.dma_messages, findings.signals), (32, 2));
    }
}

#[test]
fn session_of_a_client_that_asks_for_the_set_replays_without_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), |client| {
        assert_eq!(client.hot_reset_info().unwrap().members[0].name, "captured");
    });
    assert_eq!(replay(&path, true).differences, Vec::<String>::new());
}

/// The events of a capture, changed, as a capture.
fn changed(path: &Path, change: impl Fn(&mut Event)) -> Vec<u8> {
    let mut reader = Reader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    while let Ok(mut event) = reader.read() {
        change(&mut event);
        writer.write(&event, 0).unwrap();
    }
    bytes
}

#[test]
fn differences_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), |client| {
        assert_eq!(read(client, 0), 0x0100_00ed);
    });
    let id = [0xed, 0, 0, 1];
    let other = changed(&path, |event| {
        if let Event::Server { message } = event
            && message.ends_with(&id)
        {
            *message.last_mut().unwrap() = 2;
        }
    });
    let findings = play(Cursor::new(other), edu(), None, None).unwrap();
    let text = "record 4: region 0, offset 0x0: 0x20000ed was read, now 0x10000ed";
    assert_eq!(findings.differences, [text]);
}

#[test]
fn truncated_capture_is_replayed_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), session);
    let bytes = std::fs::read(&path).unwrap();
    let mut requests = 0;
    for part in 1..8 {
        let findings =
            play(Cursor::new(&bytes[..bytes.len() * part / 8]), edu(), None, None).unwrap();
        assert!(findings.truncated);
        assert_eq!(findings.differences, Vec::<String>::new());
        assert!(findings.requests >= requests);
        requests = findings.requests;
    }
    assert!(requests > 10);
    assert!(!replay(&path, false).truncated);
}
