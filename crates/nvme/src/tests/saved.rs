//! The saved state: a controller that was moved goes on.

use vfiod_core::DescriptorTable;
use vfiod_core::dma::Perm;
use vfiod_disk::Memory;
use vfiod_tasks::ManualClock;
use vfiod_testing::Driver;

use super::rig::{
    BASE, BLOCKS, Command, DATA, Held, Host, LEN, namespace, nvme, pattern, with, with_common,
};
use crate::common::Common;

/// Saves the controller, and goes on with another one to which the state was restored.
fn move_to(host: Host, nvme: crate::Nvme) -> Host {
    let mut descriptors = DescriptorTable::new();
    let saved = host.device.device().save(&mut descriptors).unwrap();
    let new = Driver::restored(nvme, &saved, None, &mut descriptors).unwrap();
    host.moved(new)
}

#[test]
fn moved_controller_goes_on_where_it_was() {
    let disk = Memory::new(BLOCKS * 512).unwrap();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 8, 1);
    host.create_pair(2, 8, 2);
    let event = host.submit(0, Command::new(12));
    for n in 0..11 {
        host.memory.put(DATA - BASE, &pattern(n, 512));
        assert_eq!(host.perform(1, Command::io(1, n, 1, (DATA, 0))), Ok(0));
    }
    // A completion that the host has not taken.
    let last = host.submit(2, Command::io(2, 3, 1, (DATA, 0)));
    vfiod_testing::eventually("a completion", || host.peek(2).is_some());
    let mut host = move_to(host, with(disk));
    let settle = |host: &Host| host.device.settle();
    settle(&host);
    assert_eq!(host.wait(2).id, last);
    for n in 0..11 {
        let id = host.submit(1, Command::io(2, n, 1, (DATA, 0)));
        settle(&host);
        assert_eq!(host.wait(1).id, id);
        assert_eq!(host.memory.get(DATA - BASE, 512), pattern(n, 512));
    }
    // The request for an event is still outstanding.
    host.device.write32(0, 0x1000 + 8 * 5, 1);
    settle(&host);
    assert_eq!(host.wait(0).id, event);
}

/// What a controller has that nobody has set takes no room in a saved state, and what does not fit is refused.
#[test]
fn saved_state_says_what_is_not_the_default() {
    let mut host =
        Host::new(with_common(Common::new(16, [1, 3].map(|id| namespace(id, Held::new())).into())));
    let state = |host: &Host| {
        let saved = host.device.device().save(&mut DescriptorTable::new()).unwrap();
        let saved = serde_json::to_value(saved).unwrap();
        let places = ["error_recovery", "saved_error_recovery", "errors", "deferred"];
        let state = saved.pointer("/state/device/state/model/state").expect("the model's");
        places.map(|place| state[place].to_string())
    };
    assert_eq!(state(&host), ["[]", "[]", "\"\"", "\"\""]);
    let set = |id, value| Command::new(9).set(10, 0x05).set(11, value).namespace(id);
    assert_eq!([set(1, 6), set(3, 7)].map(|set| host.admin(set)), [Ok(0), Ok(0)]);
    assert_eq!(state(&host)[..2], ["[[1,6],[3,7]]", "[]"]);
    let read = |text| {
        let mut from = serde_json::Deserializer::from_str(text);
        crate::error_recovery::pairs::deserialize(&mut from).map(|values| values[..6].to_vec())
    };
    assert_eq!(read("[[3,258],[1,6]]").unwrap(), [6, 0, 0, 0, 2, 1]);
    for text in
        ["[[0,1]]", "[[1025,1]]", "[[1,0]]", "[[1,2],[1,2]]", "[[1,65536]]", "[[1]]", "\"00\""]
    {
        assert!(read(text).is_err(), "{text}");
    }
}

/// Saves the controller for a file, and restores it for the next client: the same host, whose memory was moved
/// by somebody else.
fn pass_on(host: Host, nvme: crate::Nvme) -> Host {
    let saved = host.device.device().save_portable().unwrap();
    let next = Driver::next_of(nvme, &saved).unwrap();
    next.settle();
    assert!(!next.device().status().failed);
    assert_eq!(next.config16(4) & 4, 0, "it reaches no memory yet");
    next.map_again(BASE, &host.memory, Perm::READ | Perm::WRITE);
    next.enable();
    next.settle();
    host.moved(next)
}

/// What the host had put into its queues, and the controller had not read, is carried out once it may reach memory.
#[test]
fn next_client_goes_on_with_the_queues_and_shadow_doorbells() {
    for pages in [false, true] {
        let disk = Memory::new(BLOCKS * 512).unwrap();
        let mut host = Host::with_clock(with(disk.clone()), &ManualClock::new());
        host.create_pair(1, 8, 1);
        if pages {
            host.set_pages(BASE + LEN - 2 * 4096, BASE + LEN - 4096).unwrap();
        }
        let done = |host: &mut Host, ids: &[u16]| {
            let mut seen: Vec<u16> =
                ids.iter().map(|_| host.poll(1).expect("it completes").id).collect();
            seen.sort_unstable();
            assert_eq!(seen, ids, "shadow doorbells: {pages}");
            assert!(host.poll(1).is_none(), "no more than once");
            host.release(1);
        };
        for n in 0..13 {
            host.memory.put(DATA - BASE, &pattern(n, 512));
            let id = host.submit(1, Command::io(1, n, 1, (DATA, 0)));
            host.settle();
            done(&mut host, &[id]);
        }
        let waiting: Vec<u16> =
            (0..3).map(|n| host.put(1, Command::io(2, n, 1, (DATA, 0)))).collect();
        host.ring(1);
        let mut host = pass_on(host, with(disk));
        // Its task looks now and then whether it may reach memory.
        vfiod_testing::eventually("the first of them completes", || {
            host.settle();
            host.peek(1).is_some()
        });
        done(&mut host, &waiting);
        for n in 0..13 {
            let id = host.submit(1, Command::io(2, n, 1, (DATA, 0)));
            host.settle();
            done(&mut host, &[id]);
            assert_eq!(host.memory.get(DATA - BASE, 512), pattern(n, 512));
        }
    }
}

/// Of a feature of namespaces each has its values, current and saved, also where the controller was moved.
#[test]
fn moved_controller_has_the_error_recovery_of_each_namespace() {
    let nvme = || with_common(Common::new(16, [1, 3].map(|id| namespace(id, Held::new())).into()));
    let mut host = Host::new(nvme());
    let set = |id, value| Command::new(9).set(10, 0x05).set(11, value).namespace(id);
    let get = |id, select: u32| Command::new(10).set(10, 0x05 | select << 8).namespace(id);
    assert_eq!(host.admin(set(1, 5).set(10, 1 << 31 | 0x05)), Ok(0));
    assert_eq!([set(1, 6), set(3, 7)].map(|set| host.admin(set)), [Ok(0), Ok(0)]);
    let mut host = move_to(host, nvme());
    let values = [get(1, 0), get(3, 0), get(1, 2), get(3, 2)].map(|get| host.admin(get));
    assert_eq!(values, [6, 7, 5, 0].map(Ok), "current, saved");
}

#[test]
fn save_amid_load_loses_and_repeats_nothing() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    for round in 0..20 {
        let ids = (0..40).map(|n| host.put(1, Command::io(2, n, 8, (DATA, 0)))).collect();
        host.ring(1);
        let saved = host.device.device().save(&mut DescriptorTable::new());
        saved.unwrap_or_else(|error| panic!("round {round}: {error}"));
        host.wait_all(1, ids);
        assert!(host.peek(1).is_none());
    }
}
