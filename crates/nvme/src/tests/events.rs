//! Asynchronous events and Abort.

use super::rig::{Command, DATA, Held, Host, nvme, with};

const REQUEST: u8 = 12;

/// Requests events; none comes at once.
fn request(host: &mut Host, count: usize) -> Vec<u16> {
    let ids = (0..count).map(|_| host.submit(0, Command::new(REQUEST))).collect();
    // A command that follows completes, and it alone.
    assert!(host.identify(1, 0).is_ok());
    ids
}

fn abort(queue: u32, id: u16) -> Command {
    Command::new(8).set(10, queue | u32::from(id) << 16)
}

/// propolis#1199: a request that is told that it cannot be comes again at once, without end.
#[test]
fn requests_stay_outstanding_up_to_the_limit() {
    let mut host = Host::new(nvme());
    request(&mut host, 4);
    assert_eq!(host.admin(Command::new(REQUEST)), Err(0x105));
    host.disable();
    host.enable();
    // Those from before the reset are gone.
    request(&mut host, 4);
    assert_eq!(host.admin(Command::new(REQUEST)), Err(0x105));
}

#[test]
fn doorbell_errors_are_told_once_until_the_log_is_read() {
    let mut host = Host::new(nvme());
    let ids = request(&mut host, 2);
    // To a queue that is not there.
    host.device.write32(0, 0x1000 + 8 * 5, 1);
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (ids[0], 0, 0x1_0000));
    // The type is masked; a value past the end of the queue is told after the log was read.
    host.device.write32(0, 0x1004, 4000);
    assert!(host.identify(1, 0).is_ok());
    assert!(host.peek(0).is_none());
    let retained = Command::new(2).prps(DATA, 0).set(10, 1 | 1 << 15 | 15 << 16);
    assert_eq!(host.admin(retained), Ok(0));
    assert!(host.peek(0).is_none(), "the log was read, but the event retained");
    let command = Command::new(2).prps(DATA, 0).set(10, 1 | 15 << 16);
    let read = host.submit(0, command);
    let mut entries = [host.wait(0), host.wait(0)];
    entries.sort_by_key(|entry| entry.id != read);
    assert_eq!((entries[0].id, entries[0].status), (read, 0));
    assert_eq!((entries[1].id, entries[1].result), (ids[1], 0x1_0100));
}

/// openvmm#3886, spdk#2067: no event without its bit.
#[test]
fn temperature_events_come_only_if_they_were_asked_for() {
    for configured in [false, true] {
        let mut host = Host::new(nvme());
        let ids = request(&mut host, 1);
        let configure = Command::new(9).set(10, 0x0b).set(11, u32::from(configured) * 2);
        assert_eq!(host.admin(configure), Ok(0));
        // The threshold is below the temperature.
        let set = host.submit(0, Command::new(9).set(10, 4).set(11, 200));
        assert_eq!(host.wait(0).id, set);
        if configured {
            let entry = host.wait(0);
            assert_eq!((entry.id, entry.result), (ids[0], 0x2_0101));
        } else {
            assert!(host.identify(1, 0).is_ok());
        }
        assert_eq!(host.log(2, 512).unwrap()[0], 2, "the log says so in any case");
        assert!(host.peek(0).is_none());
    }
}

/// spdk#1883, spdk#1864: every result of an Abort; bit 0 says that nothing was aborted.
#[test]
fn abort_of_each_kind() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 16, 1);
    let ids = request(&mut host, 2);
    let done = host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    host.wait(1);
    for (queue, id) in [(1, done), (1, 0xffff), (0, 0xfff0), (7, 1), (0xffff, 1)] {
        assert_eq!(host.admin(abort(queue, id)), Ok(1), "queue {queue}, command {id:#x}");
    }
    let command = host.submit(0, abort(0, ids[1]));
    let mut entries = [host.wait(0), host.wait(0)];
    entries.sort_by_key(|entry| entry.id != command);
    assert_eq!((entries[0].id, entries[0].result, entries[0].status), (command, 0, 0));
    assert_eq!((entries[1].id, entries[1].status), (ids[1], 0x07));
    assert_eq!(host.admin(abort(0, ids[1])), Ok(1), "it has completed");
}

/// A command that the disk has begun completes, and Abort says that it was too late.
#[test]
fn abort_of_what_the_disk_does_is_too_late() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 16, 1);
    disk.hold(true);
    let read = host.submit(1, Command::io(2, 0, 1, (DATA, 0)));
    vfiod_testing::eventually("a read that is held", || disk.waiting() == 1);
    for _ in 0..3 {
        assert_eq!(host.admin(abort(1, read)), Ok(1));
    }
    assert!(host.peek(1).is_none());
    disk.release();
    let entry = host.wait(1);
    assert_eq!((entry.id, entry.status), (read, 0));
    assert_eq!(host.admin(abort(1, read)), Ok(1), "it has completed");
}

/// As many at once as Identify says, and the others are refused.
#[test]
fn aborts_beyond_the_limit_are_refused() {
    let mut host = Host::new(nvme());
    let limit = usize::from(host.identify(1, 0).unwrap()[258]) + 1;
    for _ in 0..3 {
        let count = limit + 3;
        (0..count).for_each(|_| _ = host.put(0, abort(0, 0xfff0)));
        host.ring(0);
        let entries: Vec<_> = (0..count).map(|_| host.wait(0)).collect();
        let refused = entries.iter().filter(|entry| entry.status == 0x103).count();
        let done = entries.iter().filter(|entry| (entry.status, entry.result) == (0, 1)).count();
        assert_eq!((done, refused), (limit, 3), "{entries:x?}");
    }
}

/// Events wait for a place in the admin completion queue.
#[test]
fn event_waits_for_a_place() {
    let mut host = Host::new(nvme());
    request(&mut host, 1);
    // 15 places, which the host does not give back.
    for _ in 0..15 {
        host.submit(0, Command::new(0x7f));
        vfiod_testing::eventually("a completion", || host.peek(0).is_some());
        assert_eq!(host.poll(0).unwrap().status, 1);
    }
    host.device.write32(0, 0x1000 + 8 * 5, 1);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert!(host.peek(0).is_none(), "the queue is full");
    host.release(0);
    assert_eq!(host.wait(0).result, 0x1_0000);
}
