//! What the ports are connected to.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use vfiod_pci::irq_index::INTX;

use super::*;
use vfiod_testing::eventually;

/// Opens a terminal as a program on the host does.
fn open(path: &Path, flags: OFlags) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits() as i32).open(path).unwrap()
}

/// The same, without waiting in reads and writes.
fn plug_in(path: &Path) -> File {
    open(path, OFlags::NOCTTY | OFlags::NONBLOCK)
}

/// Reads until a terminal has brought so many bytes.
fn bring(terminal: &mut File, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    eventually("the host gets what the guest sent", || {
        let mut some = [0; 4096];
        match terminal.read(&mut some) {
            Ok(read) => bytes.extend_from_slice(&some[..read]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        bytes.len() >= count
    });
    bytes
}

fn terminal_card() -> (Driver, File) {
    let (device, backends) = card(Ports::One, Backend::Pty);
    set_up(&device, 0, 0);
    let terminal = plug_in(&backends.terminal(0).unwrap());
    (device, terminal)
}

#[test]
fn the_plug_loses_nothing() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    set_up(&device, 0, 0);
    let all: Vec<u8> = (0..32).collect();
    send(&device, 0, &all);
    assert_eq!(device.read8(0, LSR), READY, "the transmitter waits for the receiver");
    assert_eq!(received(&device, 0), all);
    assert_eq!(device.read8(0, LSR), IDLE);
    send(&device, 0, &all);
    send(&device, 0, b"!");
    assert_eq!(received(&device, 0), all, "what does not fit the transmitter is lost");

    send(&device, 0, &all);
    device.write8(0, IER, 2);
    assert_eq!(device.read8(0, IIR), NONE, "the transmitter is not empty");
    device.read8(0, DATA);
    assert_eq!(device.read8(0, IIR), NONE);
    for _ in 0..15 {
        device.read8(0, DATA);
    }
    assert_eq!(device.read8(0, IIR), EMPTY);
    assert_eq!(received(&device, 0), all[16..]);

    send(&device, 0, &all);
    device.write8(0, IIR, 0x05);
    assert_eq!(device.read8(0, IIR), EMPTY, "what waited has been cleared");
    assert_eq!(received(&device, 0), all[..16]);
}

#[test]
fn nothing_takes_everything() {
    let (device, backends) = card(Ports::One, Backend::None);
    set_up(&device, 0, 0);
    send(&device, 0, &[b'x'; 100]);
    assert_eq!(device.read8(0, LSR), IDLE);
    assert_eq!(device.read8(0, MSR), 0);
    assert_eq!(backends.terminal(0), None);
}

#[test]
fn a_terminal_carries_every_byte_both_ways() {
    let (device, mut terminal) = terminal_card();
    let interrupt = device.interrupt(INTX, 0);
    assert_eq!(device.read8(0, MSR), 0xb0, "clear to send, set ready, carrier");
    let all: Vec<u8> = (0..=255).collect();
    send(&device, 0, &all);
    assert_eq!(device.read8(0, LSR), IDLE);
    assert_eq!(bring(&mut terminal, 256), all);

    device.write8(0, IER, 1);
    terminal.write_all(&all).unwrap();
    let mut got = Vec::new();
    while got.len() < 256 {
        interrupt.wait();
        got.extend(received(&device, 0));
        device.mask_pin(false);
    }
    assert_eq!(got, all);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0);
}

/// As a program that is quick to leave: `echo text > /dev/pts/N`.
#[test]
fn what_a_program_wrote_before_it_left_arrives() {
    let (device, backends) = card(Ports::One, Backend::Pty);
    set_up(&device, 0, 0);
    for round in 0..20 {
        let mut terminal = plug_in(&backends.terminal(0).unwrap());
        let text = format!("a text of more than sixteen bytes, {round}");
        terminal.write_all(text.as_bytes()).unwrap();
        drop(terminal);
        let mut got = Vec::new();
        eventually("all of it", || {
            got.extend(received(&device, 0));
            got.len() >= text.len()
        });
        assert_eq!(got, text.as_bytes());
    }
}

#[test]
fn a_slow_reader_holds_the_sender_up() {
    let (device, mut terminal) = terminal_card();
    let interrupt = device.interrupt(INTX, 0);
    let mut sent = 0;
    while device.read8(0, LSR) == IDLE {
        send(&device, 0, &[sent as u8]);
        sent += 1;
        assert!(sent < 10_000_000, "the buffer has no bound");
    }
    assert_eq!(device.read8(0, LSR), 0, "the transmitter has one that it cannot send");
    send(&device, 0, &(sent..sent + 15).map(|byte| byte as u8).collect::<Vec<_>>());
    sent += 15;
    send(&device, 0, b"lost: the transmitter is full");
    device.write8(0, IER, 2);
    assert_eq!(device.read8(0, IIR), NONE);
    let got = bring(&mut terminal, sent);
    assert_eq!(got, (0..sent).map(|byte| byte as u8).collect::<Vec<_>>());
    interrupt.wait();
    assert_eq!(device.read8(0, IIR), EMPTY);
    assert_eq!(device.read8(0, LSR), IDLE);
}

/// While no reader has the terminal open, sending goes on. A reader that leaves in the midst does
/// not stall the guest.
#[test]
fn without_a_reader_nothing_is_held_up() {
    let (device, backends) = card(Ports::One, Backend::Pty);
    set_up(&device, 0, 0);
    send(&device, 0, &[b'x'; 100_000]);
    assert_eq!(device.read8(0, LSR), IDLE);
    let mut terminal = plug_in(&backends.terminal(0).unwrap());
    send(&device, 0, b"hello");
    assert_eq!(bring(&mut terminal, 5), b"hello", "and nothing older");

    let interrupt = device.interrupt(INTX, 0);
    while device.read8(0, LSR) == IDLE {
        send(&device, 0, &[b'y'; 16]);
    }
    device.write8(0, IER, 2);
    assert_eq!(interrupt.count(), 0);
    drop(terminal);
    interrupt.wait();
    assert_eq!(device.read8(0, LSR), IDLE);
}

#[test]
fn a_full_receiver_stops_the_terminal() {
    let (device, mut terminal) = terminal_card();
    let mut sent = 0;
    loop {
        let more: Vec<u8> = (sent..sent + 64).map(|byte| byte as u8).collect();
        match terminal.write(&more) {
            Ok(count) => sent += count,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 10_000_000, "the buffer has no bound");
    }
    eventually("the first of it", || device.read8(0, LSR) & READY != 0);
    assert_eq!(device.read8(0, LSR), IDLE | READY, "no overrun");
    let mut got = Vec::new();
    eventually("all of it", || {
        got.extend(received(&device, 0));
        got.len() >= sent
    });
    assert_eq!(got, (0..sent).map(|byte| byte as u8).collect::<Vec<_>>());
}

/// RTS is a pin: off, on, or off again (the direction of an RS-485 line), data is received.
#[test]
fn request_to_send_does_not_stop_the_receiver() {
    let (device, backends) = card(Ports::One, Backend::Pty);
    device.write8(0, LCR, 3);
    device.write8(0, IIR, 7);
    let mut terminal = plug_in(&backends.terminal(0).unwrap());
    for (outputs, byte) in [(0, b'a'), (2, b'b'), (0, b'c'), (1, b'd'), (LOOP | 2, b'e')] {
        device.write8(0, MCR, outputs);
        terminal.write_all(&[byte]).unwrap();
        device.write8(0, MCR, outputs & !LOOP);
        eventually("received", || device.read8(0, LSR) & READY != 0);
        assert_eq!(received(&device, 0), [byte], "outputs {outputs:#x}");
    }
}

#[test]
fn request_to_send_does_not_stop_the_transmitter_at_the_plug() {
    let (device, _) = card(Ports::One, Backend::Loopback);
    device.write8(0, LCR, 3);
    device.write8(0, IIR, 7);
    for outputs in [0, 2, 0] {
        device.write8(0, MCR, outputs);
        device.write8(0, DATA, b'x');
        assert_eq!(device.read8(0, LSR), IDLE | READY, "outputs {outputs:#x}");
        assert_eq!(received(&device, 0), b"x");
    }
}

/// 64 KiB each way at once, moved by interrupts alone, as a driver does: none may be missing.
#[test]
fn interrupts_alone_move_everything() {
    const LEN: usize = 64 << 10;
    let all: Vec<u8> = (0..LEN).map(|at| (at * 7 / 3) as u8).collect();
    for trigger in 0..4 {
        let (device, backends) = card(Ports::One, Backend::Pty);
        let interrupt = device.interrupt(INTX, 0);
        set_up(&device, 0, trigger);
        let mut terminal = open(&backends.terminal(0).unwrap(), OFlags::NOCTTY);
        let mut reader = terminal.try_clone().unwrap();
        let host = std::thread::spawn({
            let all = all.clone();
            move || terminal.write_all(&all).unwrap()
        });
        let heard = std::thread::spawn(move || {
            let mut bytes = vec![0; LEN];
            reader.read_exact(&mut bytes).unwrap();
            bytes
        });
        let (mut sent, mut got) = (0, Vec::new());
        device.write8(0, IER, 0x07);
        while sent < LEN || got.len() < LEN {
            interrupt.wait();
            loop {
                match device.read8(0, IIR) {
                    NONE => break,
                    RECEIVED | TIMEOUT => got.extend(received(&device, 0)),
                    EMPTY => {
                        let count = (LEN - sent).min(16);
                        send(&device, 0, &all[sent..sent + count]);
                        sent += count;
                    }
                    other => panic!("interrupt {other:#x}"),
                }
            }
            device.mask_pin(false);
        }
        host.join().unwrap();
        assert_eq!(got, all);
        assert_eq!(heard.join().unwrap(), all);
    }
}

/// Where the state is kept between users, so is what the port holds.
#[test]
fn the_next_user_finds_what_was_kept() {
    let card = Serial::new(SerialOptions::default());
    let device = Driver::with_policy(card, vfiod_core::StatePolicy::Retain);
    set_up(&device, 0, 0);
    device.write8(0, IER, 8);
    let all: Vec<u8> = (0..20).collect();
    send(&device, 0, &all);
    let device = device.reopen();
    assert_eq!(device.read8(0, IIR), NONE, "no line has changed");
    assert_eq!(device.read8(0, MSR), 0xb0);
    assert_eq!(received(&device, 0), all);
}

#[test]
fn terminals_are_there_while_the_card_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let links = ["first", "second"].map(|name| directory.path().join(name));
    let card = Serial::new(SerialOptions {
        ports: Ports::Two,
        backend: Backend::Pty,
        link0: Some(links[0].clone()),
        link1: Some(links[1].clone()),
    });
    let backends = card.backends();
    assert_eq!(backends.terminal(0), None);
    // Left behind by one that was killed.
    std::os::unix::fs::symlink("/dev/pts/999999", &links[0]).unwrap();
    let mut device = Driver::new(card);
    for _ in 0..3 {
        let paths = [0, 1].map(|port| backends.terminal(port).unwrap());
        assert_ne!(paths[0], paths[1]);
        for (path, link) in paths.iter().zip(&links) {
            assert_eq!(std::fs::read_link(link).unwrap(), *path);
        }
        set_up(&device, 1, 0);
        let mut terminal = plug_in(&links[1]);
        send(&device, 1, b"second");
        assert_eq!(bring(&mut terminal, 6), b"second");
        let busy = backends.set_backend(Backend::None).unwrap_err();
        assert_eq!(busy.errno(), Errno::BUSY);
        device = device.reopen();
    }
    drop(device);
    assert_eq!(backends.terminal(0), None);
    for link in &links {
        assert!(std::fs::symlink_metadata(link).is_err(), "the link has gone");
    }
    backends.set_backend(Backend::None).unwrap();
    assert_eq!(backends.backend(), Backend::None);
}

#[test]
fn nothing_but_a_link_to_a_terminal_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    std::fs::write(&link, "precious").unwrap();
    let card = Serial::new(SerialOptions {
        backend: Backend::Pty,
        link0: Some(link.clone()),
        ..SerialOptions::default()
    });
    let backends = card.backends();
    let function = vfiod_pci::Function::new(card).unwrap();
    let spec = vfiod_core::DeviceSpec { name: "card".to_owned(), ..Default::default() };
    let registration = vfiod_core::Registry::new().register(spec, Box::new(function)).unwrap();
    let open = || registration.device().open(vfiod_core::Owner::in_process("test")).map(drop);
    assert_eq!(open().unwrap_err().errno(), Errno::EXIST);
    assert_eq!(std::fs::read_to_string(&link).unwrap(), "precious");
    backends.set_backend(Backend::Loopback).expect("it is not open");
    open().unwrap();
}

/// Programs come and go on a terminal while the guest sends and receives; nothing stops for ever.
#[test]
fn readers_come_and_go() {
    let (device, backends) = card(Ports::One, Backend::Pty);
    let interrupt = device.interrupt(INTX, 0);
    set_up(&device, 0, 2);
    device.write8(0, IER, 3);
    let path = backends.terminal(0).unwrap();
    let echo = std::thread::spawn(move || {
        for round in 0..50 {
            let mut terminal = plug_in(&path);
            let _ = terminal.write(&[round; 64]);
            let _ = terminal.read(&mut [0; 64]);
        }
    });
    while !echo.is_finished() {
        if device.read8(0, LSR) & 0x20 != 0 {
            send(&device, 0, &[b'z'; 16]);
        }
        received(&device, 0);
        interrupt.count();
        device.mask_pin(false);
    }
    echo.join().unwrap();
    eventually("all is sent or lost", || {
        received(&device, 0);
        device.read8(0, LSR) == IDLE
    });
}
