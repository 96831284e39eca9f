//! Hostile clients, each against the program from outside: every client of another device gets every
//! reply, and the daemon keeps nothing of the attack. How long they wait is not judged here.

mod process;

use std::process::Stdio;

use process::{good, run, until, vfiod};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Makes an attack, in short: the command fails unless every reply has come, the daemon's connections,
/// descriptors and threads are as before, its attacked devices work, and it ends at SIGTERM.
fn attack(name: &str) {
    let args = ["bench", "--isolation", "--json", "--seconds", "1", "--attack", name];
    let output = run(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding["attack"], name);
    assert!(finding["rounds"].as_u64().unwrap() > 0, "no attack was made: {finding}");
    for side in ["victims", "control"] {
        let [requests, replies] =
            ["requests", "replies"].map(|count| finding[side][count].as_u64().unwrap());
        // Each of the 50 has asked.
        assert!(requests >= 50, "{finding}");
        assert_eq!(requests, replies, "{finding}");
    }
}

macro_rules! attacks {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                attack($name);
            }
        )*

        #[test]
        fn every_attack_is_made_here() {
            let list = good(["bench", "--isolation", "--list"]);
            let listed: Vec<_> =
                list.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(listed, ["none", $($name),*]);
        }
    };
}

attacks! {
    clients_that_stall_harm_no_neighbour: "stall",
    clients_that_flood_harm_no_neighbour: "flood",
    clients_that_read_no_replies_harm_no_neighbour: "unread-replies",
    clients_that_read_no_descriptors_harm_no_neighbour: "unread-descriptors",
    eventfds_that_block_harm_no_neighbour: "blocked-eventfd",
    memory_that_blocks_harms_no_neighbour: "blocked-memory",
    eventfds_that_signal_themselves_harm_no_neighbour: "eventfd-loop",
    clients_that_come_and_go_harm_no_neighbour: "connect-churn",
    clients_that_send_byte_by_byte_harm_no_neighbour: "slow-senders",
    devices_that_are_slow_harm_no_neighbour: "slow-device",
    memory_that_is_truncated_harms_no_neighbour: "truncation",
    clients_that_wait_for_one_that_departs_harm_no_neighbour: "departing",
    clients_that_take_all_they_get_harm_no_neighbour: "quotas",
    bytes_out_of_band_harm_no_neighbour: "out-of-band",
    sockets_with_one_direction_harm_no_neighbour: "shutdown",
    descriptors_in_the_middle_of_a_message_harm_no_neighbour: "middle-descriptors",
    descriptors_with_every_byte_harm_no_neighbour: "byte-descriptors",
    clients_that_send_their_own_end_harm_no_neighbour: "own-end",
    clients_that_go_amid_work_harm_no_neighbour: "close-amid-work",
}

/// The processes that a process has started, by their arguments.
fn children(of: u32) -> Vec<(Pid, String)> {
    let path = format!("/proc/{of}/task/{of}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pids = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    let arguments = |pid: Pid| {
        let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
        Some((pid, std::fs::read_to_string(path).ok()?))
    };
    pids.filter_map(arguments).collect()
}

#[test]
fn victims_without_replies_fail_the_command() {
    let args = ["bench", "--isolation", "--attack", "none", "--seconds", "86400"];
    let bench = vfiod(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut daemon = None;
    until("the attack", || {
        let children = children(bench.id());
        daemon = children.iter().find(|(_, args)| args.contains("/attacked/")).map(|(pid, _)| *pid);
        children.iter().any(|(_, args)| args.contains("bench-attack"))
    });
    kill_process(daemon.unwrap(), Signal::KILL).unwrap();
    let output = bench.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("attack `none`: ") && said.contains("victim"), "{said}");
}
