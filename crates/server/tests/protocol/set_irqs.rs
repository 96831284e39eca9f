//! DEVICE_SET_IRQS.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vfiod_client::{Client, IrqAction, IrqData};
use vfiod_wire::Command;
use vfiod_wire::payload::{IrqSet, irq_flag};
use zerocopy::IntoBytes;

use crate::rig::*;

fn set_up(client: &mut Client, index: u32, start: u32, events: &[OwnedFd]) {
    let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
    let count = events.len() as u32;
    let set = client.set_irqs(index, start, count, IrqAction::Trigger, IrqData::EventFds(&fds));
    set.expect("the vectors get their eventfds");
}

fn trigger(client: &mut Client, vector: u64) {
    write_u64(client, KNOBS, TRIGGER, vector);
}

#[test]
fn vectors_signal_their_eventfds() {
    let rig = Rig::new();
    let mut client = rig.client();
    let events: Vec<_> = (0..4).map(|_| event()).collect();
    set_up(&mut client, VECTORS, 0, &events);
    trigger(&mut client, 2);
    trigger(&mut client, 2);
    trigger(&mut client, 0);
    assert_eq!(events.iter().map(signals).collect::<Vec<_>>(), [1, 0, 2, 0]);
}

#[test]
fn vectors_come_in_several_messages() {
    // Clients send at most as many descriptors as max_msg_fds says.
    let rig = Rig::new();
    let mut client = rig.client();
    let events: Vec<_> = (0..VECTOR_COUNT).map(|_| event()).collect();
    for (i, events) in events.chunks(8).enumerate() {
        set_up(&mut client, VECTORS, i as u32 * 8, events);
    }
    for vector in 0..VECTOR_COUNT {
        trigger(&mut client, vector.into());
    }
    assert!(events.iter().all(|event| signals(event) == 1));
}

#[test]
fn as_many_vectors_are_set_up_at_once_as_linux_passes_descriptors() {
    // As a client does that ignores max_msg_fds and error replies.
    let rig = Rig::new();
    let mut client = rig.client();
    let events: Vec<_> = (0..253).map(|_| event()).collect();
    set_up(&mut client, VECTORS, 0, &events);
    for vector in 0..events.len() as u64 {
        trigger(&mut client, vector);
    }
    assert!(events.iter().all(|event| signals(event) == 1));
    // Not more in one message, however many pieces it comes in.
    let rest = VECTOR_COUNT as usize - events.len();
    let set = IrqSet { argsz: 20, flags: 0x24, index: VECTORS, start: 0, count: VECTOR_COUNT };
    let bytes = message(7, Command::DeviceSetIrqs, set.as_bytes());
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    client.socket().send(&bytes[..20], &fds).unwrap();
    client.socket().send(&bytes[20..], &fds[..rest]).unwrap();
    assert_eq!(reply_errno(&client.socket().receive_message().unwrap()), EINVAL);
}

#[test]
fn eventfds_without_descriptors_take_vectors_away() {
    // As QEMU does first with MSI-X.
    let rig = Rig::new();
    let mut client = rig.client();
    client.set_irqs(VECTORS, 0, 1, IrqAction::Trigger, IrqData::EventFds(&[])).unwrap();
    let events = [event(), event()];
    set_up(&mut client, VECTORS, 0, &events);
    client.set_irqs(VECTORS, 0, 1, IrqAction::Trigger, IrqData::EventFds(&[])).unwrap();
    trigger(&mut client, 0);
    trigger(&mut client, 1);
    assert_eq!([signals(&events[0]), signals(&events[1])], [0, 1]);
}

#[test]
fn a_count_of_0_disables_the_index() {
    let rig = Rig::new();
    let mut client = rig.client();
    let events = [event(), event()];
    set_up(&mut client, VECTORS, 0, &events);
    client.set_irqs(VECTORS, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
    trigger(&mut client, 0);
    trigger(&mut client, 1);
    assert_eq!([signals(&events[0]), signals(&events[1])], [0, 0]);
}

#[test]
fn automasked_line_is_signalled_again_at_unmask_while_asserted() {
    let rig = Rig::new();
    let mut client = rig.client();
    let line = [event()];
    set_up(&mut client, LINE, 0, &line);
    let unmask = |client: &mut Client| {
        client.set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    };
    write_u64(&mut client, KNOBS, LEVEL, 1);
    write_u64(&mut client, KNOBS, LEVEL, 1);
    assert_eq!(signals(&line[0]), 1, "masked by its own trigger");
    unmask(&mut client);
    assert_eq!(signals(&line[0]), 1, "still asserted");
    write_u64(&mut client, KNOBS, LEVEL, 0);
    unmask(&mut client);
    assert_eq!(signals(&line[0]), 0);
    write_u64(&mut client, KNOBS, LEVEL, 1);
    assert_eq!(signals(&line[0]), 1);
}

#[test]
fn masked_line_is_signalled_at_unmask() {
    let rig = Rig::new();
    let mut client = rig.client();
    let line = [event()];
    set_up(&mut client, LINE, 0, &line);
    client.set_irqs(LINE, 0, 1, IrqAction::Mask, IrqData::None).unwrap();
    write_u64(&mut client, KNOBS, LEVEL, 1);
    assert_eq!(signals(&line[0]), 0);
    client.set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::Bool(&[0])).unwrap();
    assert_eq!(signals(&line[0]), 0);
    client.set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::Bool(&[1])).unwrap();
    assert_eq!(signals(&line[0]), 1);
}

#[test]
fn eventfd_of_the_client_unmasks_a_line() {
    let rig = Rig::new();
    let mut client = rig.client();
    let line = [event()];
    set_up(&mut client, LINE, 0, &line);
    let unmask = event();
    client.set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::EventFds(&[unmask.as_fd()])).unwrap();
    write_u64(&mut client, KNOBS, LEVEL, 1);
    assert_eq!(signals(&line[0]), 1);
    for _ in 0..3 {
        rustix::io::write(&unmask, &1u64.to_ne_bytes()).unwrap();
        eventually("the line comes again", || signals(&line[0]) == 1);
    }
}

#[test]
fn client_triggers_its_own_vectors() {
    let rig = Rig::new();
    let mut client = rig.client();
    let events = [event(), event(), event()];
    set_up(&mut client, VECTORS, 0, &events);
    client.set_irqs(VECTORS, 0, 3, IrqAction::Trigger, IrqData::Bool(&[1, 0, 1])).unwrap();
    client.set_irqs(VECTORS, 2, 1, IrqAction::Trigger, IrqData::None).unwrap();
    assert_eq!(events.iter().map(signals).collect::<Vec<_>>(), [1, 0, 2]);
}

#[test]
fn malformed_set_irqs_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let one = event();
    let fds = [one.as_fd()];
    let events = IrqData::EventFds(&fds);
    let trigger = IrqAction::Trigger;
    for (index, start, count) in [
        (IRQS, 0, 1),
        (u32::MAX, 0, 1),
        (NO_IRQ, 0, 1),
        (VECTORS, VECTOR_COUNT, 1),
        (VECTORS, u32::MAX, 1),
    ] {
        assert_eq!(refused(client.set_irqs(index, start, count, trigger, events)), EINVAL);
    }
    // More or fewer descriptors than vectors; ranges past the end.
    assert_eq!(refused(client.set_irqs(VECTORS, 0, 2, trigger, events)), EINVAL);
    let two = [one.as_fd(), one.as_fd()];
    assert_eq!(refused(client.set_irqs(VECTORS, 0, 1, trigger, IrqData::EventFds(&two))), EINVAL);
    let end = VECTOR_COUNT - 1;
    assert_eq!(refused(client.set_irqs(VECTORS, end, 2, trigger, IrqData::EventFds(&two))), EINVAL);
    assert_eq!(refused(client.set_irqs(VECTORS, 1, u32::MAX, trigger, IrqData::None)), EINVAL);
    // Something that is no eventfd.
    let file = tempfile::tempfile().unwrap();
    let wrong = [file.as_fd()];
    assert_eq!(refused(client.set_irqs(VECTORS, 0, 1, trigger, IrqData::EventFds(&wrong))), EINVAL);
    // Masking what cannot be masked.
    assert_eq!(refused(client.set_irqs(VECTORS, 0, 1, IrqAction::Mask, IrqData::None)), EINVAL);
}

#[test]
fn invalid_flags_and_sizes_of_set_irqs_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let good = IrqSet {
        argsz: 20,
        flags: irq_flag::DATA_NONE | irq_flag::ACTION_TRIGGER,
        index: VECTORS,
        start: 0,
        count: 0,
    };
    client.call(Command::DeviceSetIrqs, good.as_bytes(), &[]).unwrap();
    let both_actions = irq_flag::ACTION_MASK | irq_flag::ACTION_UNMASK;
    for flags in [
        0,
        irq_flag::DATA_NONE,
        irq_flag::ACTION_TRIGGER,
        irq_flag::DATA_NONE | irq_flag::DATA_BOOL | irq_flag::ACTION_TRIGGER,
        irq_flag::DATA_NONE | both_actions,
        good.flags | 1 << 6,
        u32::MAX,
    ] {
        let bad = IrqSet { flags, ..good };
        let refusal = refused(client.call(Command::DeviceSetIrqs, bad.as_bytes(), &[]));
        assert_eq!(refusal, EINVAL, "{flags:#x}");
    }
    let small = IrqSet { argsz: 19, ..good };
    assert_eq!(refused(client.call(Command::DeviceSetIrqs, small.as_bytes(), &[])), EINVAL);
    let large = IrqSet { argsz: 21, ..good };
    assert_eq!(refused(client.call(Command::DeviceSetIrqs, large.as_bytes(), &[])), 7, "E2BIG");
    let short = &good.as_bytes()[..19];
    assert_eq!(refused(client.call(Command::DeviceSetIrqs, short, &[])), EINVAL);
    // Fewer booleans than vectors.
    let flags = irq_flag::DATA_BOOL | irq_flag::ACTION_TRIGGER;
    let set = IrqSet { argsz: 22, flags, count: 3, ..good };
    let payload = [set.as_bytes(), &[1, 1]].concat();
    assert_eq!(refused(client.call(Command::DeviceSetIrqs, &payload, &[])), EINVAL);
}

#[test]
fn eventfds_go_with_their_client() {
    let rig = Rig::new();
    let events = [event()];
    let mut first = rig.client();
    set_up(&mut first, VECTORS, 0, &events);
    let mut second = rig.client();
    trigger(&mut second, 0);
    assert_eq!(signals(&events[0]), 1);
    drop(first);
    eventually("the first is gone", || rig.connections() == 1);
    eventually("its eventfd is no longer signalled", || {
        trigger(&mut second, 0);
        signals(&events[0]) == 0
    });
}
