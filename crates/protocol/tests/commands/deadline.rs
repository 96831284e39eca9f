//! A request has one deadline, from the arrival of its first byte.

use std::time::Duration;

use vfiod_protocol::limits::REQUEST_TIMEOUT;
use vfiod_protocol::wire::Command;

use crate::driver::*;

#[test]
fn starts_with_the_first_byte() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    let bytes = message(1, Command::DeviceReset, &[]);
    let first = driver.now;
    driver.feed(&bytes[..1], &[]);
    driver.now = first.after(Duration::from_secs(1));
    driver.feed(&bytes[1..], &[]);
    let (_, deadline) = driver.connection.pending().unwrap();
    assert_eq!(deadline, first.after(REQUEST_TIMEOUT));
}

#[test]
fn waiting_behind_others_counts() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    let first = driver.now;
    driver.feed(&message(1, Command::DeviceReset, &[]).repeat(2), &[]);
    driver.now = first.after(Duration::from_secs(3));
    let (bytes, _) = driver.connection.pending().unwrap();
    driver.connection.pending_reply(bytes.start).unwrap().done();
    driver.run();
    let (_, deadline) = driver.connection.pending().unwrap();
    assert_eq!(deadline, first.after(REQUEST_TIMEOUT));
}

#[test]
fn late_request_gets_etimedout_and_its_reply_is_not_sent() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    driver.feed(&message(1, Command::DeviceReset, &[]), &[]);
    let (bytes, deadline) = driver.connection.pending().unwrap();
    assert!(driver.connection.expire(driver.now).is_none());
    let refusal = driver.connection.expire(deadline).unwrap();
    assert_eq!((refusal.errno, refusal.bytes.clone()), (ETIMEDOUT, bytes.clone()));
    assert!(driver.connection.expire(deadline).is_none());
    assert!(driver.connection.pending_reply(bytes.start).is_none());
    driver.run();
    let sent = driver.take_sent();
    assert_eq!((sent.len(), sent[0].errno()), (1, Some(ETIMEDOUT)));
}

/// A client that sends byte by byte takes no memory for the times of their arrival, and its
/// deadline is at most late by what was merged.
#[test]
fn many_arrivals_are_merged() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    let bytes = message(1, Command::DeviceReset, &[]).repeat(1000);
    for byte in bytes {
        driver.now = driver.now.after(Duration::from_millis(2));
        driver.feed(&[byte], &[]);
    }
    let text = serde_json::to_value(&driver.connection).unwrap();
    assert!(text["input"]["arrivals"].as_array().unwrap().len() <= 256);
}
