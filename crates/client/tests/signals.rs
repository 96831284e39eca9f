//! A signal that a handler catches does not end a call. Its own program, so that its only other thread
//! is the one that plays the server.

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;
use vfiod_client::wire::{Header, Version};
use vfiod_client::{Client, Options, Socket};
use zerocopy::IntoBytes;

/// Waits until the main thread sleeps.
fn await_sleep() {
    let pid = getpid().as_raw_nonzero();
    let is_asleep = || {
        let stat = fs::read_to_string(format!("/proc/self/task/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
    };
    while !is_asleep() {
        thread::yield_now();
    }
}

/// Replies to VERSION, after a signal has interrupted the client's wait for that.
fn serve(socket: &Socket, caught: &AtomicUsize) {
    let version = socket.receive_message().unwrap();
    for count in 1..=10 {
        await_sleep();
        kill_process(getpid(), Signal::USR1).unwrap();
        while caught.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }
    let payload = Version::default().encode();
    let header: Header = version.header.reply(payload.len());
    socket.send(&[header.as_bytes(), &payload].concat(), &[]).unwrap();
}

fn main() {
    let caught = Arc::new(AtomicUsize::new(0));
    let counter = caught.clone();
    let count = move || _ = counter.fetch_add(1, Ordering::SeqCst);
    let mut signals = Signals::new([SIGUSR1]).unwrap();
    thread::spawn(move || signals.forever().for_each(|_| count()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let timeout = Duration::from_secs(60);
    let server = thread::spawn(move || {
        serve(&Socket::from_fd(theirs.into(), timeout).unwrap(), &caught);
    });
    let options = Options { timeout, ..Options::default() };
    Client::with_socket(Socket::from_fd(ours.into(), timeout).unwrap(), options).unwrap();
    server.join().unwrap();
}
