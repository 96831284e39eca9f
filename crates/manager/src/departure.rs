//! Users that leave: those that are asked to close their devices, many devices at the same time, and
//! those that have hung up and whose files are not released yet.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use vfiod_core::{DeviceRef, Errno, Registration, Result};
use vfiod_server::Departures;

/// The pause between the first two requests to close a device; each is twice as long as the one
/// before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: that of the kernel's `vfio_unregister_group_dev`.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a device is looked at that has users, and one is asked again that was busy.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Most threads that revoke files at the same time: a device that is slow to release its files holds
/// up others only if there are this many of its kind.
const MAX_REVOKERS: usize = 16;

/// How long clients that have hung up are waited for, as when a device is opened.
const DEPARTURE: Duration = Duration::from_secs(2);

/// Attempts something that is refused with `EBUSY` while a device is in use. A client that has hung up
/// does not count: its file is released soon, and the attempt is repeated then.
pub(crate) fn past_departures<T>(
    devices: &[Departures],
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + DEPARTURE;
    let mut again = true;
    loop {
        match attempt() {
            // If nobody is leaving any more, the last one has left since: one more attempt.
            Err(error) if error.errno() == Errno::BUSY && again => {
                again = devices.iter().any(|device| device.settle(deadline));
            }
            outcome => return outcome,
        }
    }
}

/// Refuses opens of devices, and asks their users to close them, as [`ask_users`].
pub(crate) fn ask_to_close(devices: &[&Registration], grace: Duration) {
    devices.iter().for_each(|device| device.bar_opens());
    let devices: Vec<_> = devices.iter().map(|device| device.device().clone()).collect();
    ask_users(&devices, grace);
}

/// Asks the users of devices to close them, at once and at growing intervals, for no longer than `grace`,
/// but once if that is not zero. Returns as soon as none of them is open.
pub(crate) fn ask_users(devices: &[DeviceRef], grace: Duration) {
    if grace.is_zero() {
        return;
    }
    // None: longer than a clock can say.
    let end = Instant::now().checked_add(grace);
    let is_open = |device: &DeviceRef| !device.status().files.is_empty();
    let mut open = devices.to_vec();
    open.retain(is_open);
    let mut pause = FIRST_PAUSE;
    for n in 0.. {
        let next = Instant::now() + pause;
        let next = end.map_or(next, |end| next.min(end));
        pause = (pause * 2).min(LONGEST_PAUSE);
        let mut unasked = open.clone();
        // At least once, also on a machine that has stood still for all that time.
        loop {
            // A device that is busy is asked when it is not: it delays nobody else.
            unasked.retain(|device| is_open(device) && !device.request_close(n, Duration::ZERO));
            open.retain(is_open);
            if open.is_empty() {
                return;
            }
            if Instant::now() >= next {
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        if Some(next) == end {
            return;
        }
    }
}

/// Revokes every file of devices, many at the same time.
pub(crate) fn revoke_all<'a>(devices: impl Iterator<Item = &'a Registration>) {
    let mut open: Vec<_> = devices.map(|device| device.device().clone()).collect();
    open.retain(|device| !device.status().files.is_empty());
    let threads = open.len().min(MAX_REVOKERS);
    let left = Mutex::new(open);
    std::thread::scope(|scope| {
        let revoke = || {
            loop {
                let next = vfiod_sync::lock(&left).pop();
                let Some(device) = next else { return };
                device.revoke_all();
            }
        };
        for _ in 1..threads {
            let started =
                std::thread::Builder::new().name("revoke".into()).spawn_scoped(scope, revoke);
            if started.is_err() {
                break;
            }
        }
        revoke();
    });
}
