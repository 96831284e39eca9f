//! A save and restore between any two events changes nothing; what is read is checked.

use proptest::prelude::*;
use vfiod_protocol::Connection;
use vfiod_protocol::wire::Command;

use crate::any_cut::{any_message, feed, first, outcome};
use crate::driver::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn after_every_event_it_changes_nothing(
        messages in prop::collection::vec(any_message(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 13),
    ) {
        let messages = [vec![first()], messages].concat();
        let mut kept = Driver::fresh();
        feed(&mut kept, &messages, &cuts);
        let mut rebuilt = Driver::fresh();
        rebuilt.rebuilds = true;
        rebuilt.takes_accesses = true;
        feed(&mut rebuilt, &messages, &cuts);
        prop_assert_eq!(outcome(&mut rebuilt), outcome(&mut kept));
    }

    /// Whatever is in a saved state, it is refused or it works; nothing panics.
    #[test]
    fn damaged_state_is_refused_or_works(
        messages in prop::collection::vec(any_message(), 0..4),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut driver = Driver::negotiated();
        driver.silent = true;
        for (bytes, _) in messages {
            driver.feed(&bytes, &[]);
        }
        let last = message(5, Command::DeviceReset, &[]);
        driver.feed(&last[..cut.index(last.len())], &[1]);
        let mut text = serde_json::to_vec(&driver.connection).unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(connection) = serde_json::from_slice::<Connection<u32>>(&text) {
            driver.connection = connection;
            driver.silent = false;
            if let Some((bytes, _)) = driver.connection.pending() {
                let _ = driver.connection.pending_reply(bytes.start).map(|reply| reply.refuse(5));
            }
            driver.feed(&last, &[]);
        }
    }
}

#[test]
fn request_that_waits_is_still_there() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    driver.feed(&message(1, Command::DeviceReset, &[]), &[]);
    let before = driver.connection.pending();
    driver.rebuild();
    assert_eq!(driver.connection.pending(), before);
    let (bytes, _) = before.unwrap();
    driver.connection.pending_reply(bytes.start).unwrap().done();
    driver.run();
    assert_eq!(driver.take_sent()[0].header.id, 1);
}

#[test]
fn output_that_was_not_sent_is_still_there_with_its_descriptors() {
    let mut driver = Driver::negotiated();
    let info = [32u32, 0, 0, 0, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    let mut info = info;
    info[0] = 200;
    let bytes = message(1, Command::DeviceGetRegionInfo, &info);
    driver.connection.receive(&bytes, Default::default(), driver.now).unwrap();
    let Some(vfiod_protocol::Event::Call(call)) = driver.connection.next().unwrap() else {
        panic!()
    };
    call.reply.region_info(7, 0x1000, &[], Some((77, 0)));
    driver.rebuild();
    driver.run();
    assert_eq!(driver.take_sent()[0].fds, [77]);
}

#[test]
fn states_that_do_not_hold_together_are_refused() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    let reset = message(1, Command::DeviceReset, &[]);
    driver.feed(&reset, &[]);
    driver.feed(&reset[..7], &[4]);
    let good = serde_json::to_value(&driver.connection).unwrap();
    assert!(serde_json::from_value::<Connection<u32>>(good.clone()).is_ok());
    let damage: [fn(&mut serde_json::Value); 7] = [
        |state| state["input"]["position"] = u64::MAX.into(),
        |state| state["input"]["descriptors"][0][0] = 0.into(),
        |state| state["input"]["bytes"] = serde_json::json!([1, 2, 3]),
        |state| state["input"]["arrivals"] = serde_json::json!([]),
        |state| state["input"]["overtaken"] = serde_json::json!([1u64 << 40]),
        |state| state["outside"] = serde_json::json!({"received": 1}),
        |state| state["output"]["fds"] = serde_json::json!([[5, [1]]]),
    ];
    for damage in damage {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(serde_json::from_value::<Connection<u32>>(bad.clone()).is_err(), "{bad}");
    }
}
