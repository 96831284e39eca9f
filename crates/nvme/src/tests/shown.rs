//! What the operator is shown.

use serde_json::{Value, json};
use vfiod_core::Errno;
use vfiod_disk::FailureKind;
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, ENABLE, Held, Host, LEN, with};
use crate::spec::registers::{FATAL, READY, SHUT_DOWN, SHUTDOWN};

const WRITE: u8 = 1;
const READ: u8 = 2;

fn shown(host: &Host) -> Value {
    host.device.device().model_status().expect("a controller reports")
}

fn state(host: &Host) -> String {
    shown(host)["controller"].as_str().unwrap().to_owned()
}

#[test]
fn each_state_of_a_controller_is_shown() {
    let disk = Held::new();
    let mut host = Host::disabled(with(disk.clone()));
    assert_eq!(state(&host), "disabled");
    assert_eq!(shown(&host)["submission_queues"], json!([]));
    host.enable();
    assert_eq!(state(&host), "enabled");
    // Disabled while the disk has a request: it is not disabled before that has ended.
    host.create_pair(1, 8, 1);
    disk.hold(true);
    host.submit(1, Command::io(READ, 0, 1, (DATA, 0)));
    eventually("the disk has it", || disk.waiting() == 1);
    host.device.write32(0, 0x14, ENABLE & !1);
    assert_eq!(state(&host), "disabling");
    disk.hold(false);
    disk.release();
    host.await_status(READY, 0);
    assert_eq!(state(&host), "disabled");
    host.forget_queues();
    host.enable();
    // Shut down, while the flush is held back, and then.
    disk.hold(true);
    host.device.write32(0, 0x14, ENABLE | 1 << 14);
    eventually("the flush of the shutdown", || disk.waiting() == 1);
    assert_eq!(state(&host), "shutting_down");
    disk.hold(false);
    disk.release();
    host.await_status(SHUTDOWN, SHUT_DOWN);
    assert_eq!(state(&host), "shut_down");
    host.device.write32(0, 0x14, ENABLE & !1);
    host.await_status(READY, 0);
    // A size of pages that it does not have.
    host.device.write32(0, 0x14, ENABLE | 0xf << 7);
    host.await_status(FATAL, FATAL);
    assert_eq!(state(&host), "fatal");
    host.device.write32(0, 0x14, 0);
    assert_eq!(state(&host), "disabled");
    host.enable();
    // Its queues have vanished.
    host.device.unmap(BASE, LEN).unwrap();
    host.device.write32(0, 0x1000, 1);
    host.await_fatal();
    assert_eq!(state(&host), "fatal");
    host.device.reset();
    assert_eq!(state(&host), "disabled");
}

#[test]
fn queues_are_shown_with_what_waits_in_them() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 8, 1);
    host.create_pair(2, 16, 3);
    disk.hold(true);
    for block in 0..3 {
        host.submit(2, Command::io(READ, block, 1, (DATA, 0)));
    }
    eventually("the disk has them", || disk.waiting() == 3);
    let now = shown(&host);
    assert_eq!(now["commands"], 3);
    let numbers = |list: &Value| {
        let all = list.as_array().unwrap().iter();
        all.map(|queue| queue["number"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&now["submission_queues"]), [0, 1, 2]);
    assert_eq!(numbers(&now["completion_queues"]), [0, 1, 2]);
    let expected = json!({
        "number": 2, "entries": 16, "completion_queue": 2, "waiting": 0, "shadow_doorbell": false,
    });
    assert_eq!(now["submission_queues"][2], expected);
    disk.hold(false);
    disk.release();
    let expected = json!({
        "number": 2, "entries": 16, "vector": 3, "waiting": 3, "shadow_doorbell": false,
    });
    // Their entries are not taken: the host has not said so.
    eventually("completions wait", || shown(&host)["completion_queues"][2] == expected);
    assert_eq!(shown(&host)["commands"], 0);
    (0..3).for_each(|_| _ = host.wait(2));
    eventually("they are taken", || shown(&host)["completion_queues"][2]["waiting"] == 0);
    host.set_pages(DATA + 0x1000, DATA + 0x2000).unwrap();
    let now = shown(&host);
    assert_eq!(now["submission_queues"][1]["shadow_doorbell"], true);
    assert_eq!(now["completion_queues"][2]["shadow_doorbell"], true);
}

#[test]
fn namespace_is_shown_with_the_sync_that_failed() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 8, 1);
    let expected = json!({
        "number": 1, "uuid": "12345678-9abc-def0-1234-56789abcdef0", "backend": "",
        "block_size": 512, "capacity": 4 << 20, "read_only": false, "formatting": false,
        "in_flight": 0,
    });
    assert_eq!(shown(&host)["namespaces"], json!([expected]));
    disk.hold(true);
    host.submit(1, Command::io(WRITE, 0, 1, (DATA, 0)));
    eventually("it is in flight", || shown(&host)["namespaces"][0]["in_flight"] == 1);
    disk.hold(false);
    disk.release();
    host.wait(1);
    disk.fail_as(Some(FailureKind::Medium), Some(Errno::IO));
    host.perform(1, Command::new(0).namespace(1)).unwrap_err();
    let why = shown(&host)["namespaces"][0]["sync_failure"].to_string();
    assert!(why.contains("asked to fail"), "{why}");
}
