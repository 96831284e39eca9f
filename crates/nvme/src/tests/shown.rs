//! What the operator is shown.

use serde_json::{Value, json};
use vfiod_core::{Errno, Metric, MetricValue};
use vfiod_disk::FailureKind;
use vfiod_testing::eventually;

use super::rig::{BASE, BLOCKS, Command, DATA, ENABLE, Held, Host, LEN, with};
use vfiod_nvme_spec::registers::{FATAL, READY, SHUT_DOWN, SHUTDOWN};

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
        "depth": 3, "commands": 0,
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

/// The metrics of a name: labels and values.
fn metrics(host: &Host, name: &str) -> Vec<(Vec<String>, MetricValue)> {
    let all = host.device.device().model_metrics().into_iter();
    let of_name = all.filter(|metric| metric.name == name);
    let labels = |metric: &Metric| metric.labels.iter().map(|(_, value)| value.clone()).collect();
    of_name.map(|metric| (labels(&metric), metric.value)).collect()
}

#[test]
fn commands_are_counted_by_opcode_bytes_and_status() {
    let mut host = Host::new(with(Held::new()));
    host.create_pair(1, 8, 1);
    host.create_pair(2, 8, 2);
    for queue in [1, 2, 2] {
        assert_eq!(host.perform(queue, Command::io(READ, 0, 2, (DATA, 0))), Ok(0));
    }
    assert_eq!(host.perform(1, Command::io(WRITE, 0, 4, (DATA, 0))), Ok(0));
    // A Copy whose source is behind the end.
    host.memory.put(DATA - BASE, &[0xff; 32]);
    host.perform(1, Command::io(0x19, 0, 1, (DATA, 0))).unwrap_err();
    // Behind the end, and an opcode that nobody knows.
    host.perform(2, Command::io(READ, BLOCKS, 1, (DATA, 0))).unwrap_err();
    host.perform(2, Command::io(0x99, 0, 1, (DATA, 0))).unwrap_err();
    let now = shown(&host);
    let counters = &now["counters"];
    let expected = json!({"copy": 1, "other": 1, "read": 4, "write": 1});
    assert_eq!(counters["io_commands"], expected);
    let expected = json!({"create_io_completion_queue": 2, "create_io_submission_queue": 2});
    assert_eq!(counters["admin_commands"], expected);
    assert_eq!((&counters["read_bytes"], &counters["written_bytes"]), (&json!(3072), &json!(2048)));
    let errors = counters["errors"].as_object().unwrap();
    assert_eq!(errors["lba_out_of_range"], 1);
    assert_eq!(errors["invalid_command_opcode"], 1);
    assert_eq!(errors.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 3);
    for (kind, count) in [("read", 4), ("write", 1), ("other", 2)] {
        assert_eq!(counters["times"][kind]["count"], count, "{kind}");
    }
    assert_eq!(counters["times"]["flush"], Value::Null);
    let of_queues = now["submission_queues"].as_array().unwrap().iter();
    let of_queues: Vec<_> = of_queues.map(|queue| queue["commands"].as_u64().unwrap()).collect();
    assert_eq!(of_queues, [4, 3, 4]);

    let commands = metrics(&host, "nvme_commands");
    let read = vec!["io".to_owned(), "read".to_owned()];
    assert!(commands.contains(&(read, MetricValue::Counter(4.0))), "{commands:?}");
    for (labels, histogram) in metrics(&host, "nvme_command_seconds") {
        let MetricValue::Histogram { buckets, sum } = histogram else { panic!("{histogram:?}") };
        let count: u64 = buckets.iter().map(|(_, count)| count).sum();
        let expected = match labels[0].as_str() {
            "read" => 4,
            "write" => 1,
            "other" => 2,
            _ => 0,
        };
        assert_eq!((count, sum > 0.0), (expected, expected > 0), "{labels:?}");
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0), "{buckets:?}");
        assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
    }
    // A queue that is deleted, and a controller that is reset, leave what was counted.
    host.disable();
    assert_eq!(shown(&host)["counters"]["io_commands"]["read"], 4);
    host.device.reset();
    assert_eq!(shown(&host)["counters"]["io_commands"]["read"], 4);
}

#[test]
fn depth_of_a_queue_is_what_the_disk_has() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 8, 1);
    disk.hold(true);
    (0..3).for_each(|block| _ = host.submit(1, Command::io(READ, block, 1, (DATA, 0))));
    let depth = |host: &Host| shown(host)["submission_queues"][1]["depth"].clone();
    eventually("the depth is 3", || depth(&host) == 3);
    disk.hold(false);
    disk.release();
    (0..3).for_each(|_| _ = host.wait(1));
    assert_eq!(depth(&host), 0);
}
