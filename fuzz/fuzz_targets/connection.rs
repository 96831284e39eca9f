//! A connection's whole life: what a client sends, in pieces, to a device that is really there.
//! The input is cut at every 0xfe, and each piece sent by itself.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vfiod_core::{DeviceSpec, OpenPolicy, Registration, Registry};
use vfiod_server::{Server, ServerOptions};

static DEVICE: LazyLock<(Server, Registration)> = LazyLock::new(|| {
    let edu = vfiod_devices::catalogue().build("edu", &Default::default(), Default::default()).expect("edu can be made");
    let spec = DeviceSpec { name: "edu".into(), open: OpenPolicy::Multi, ..Default::default() };
    let registration = Registry::new().register(spec, edu).expect("it can be registered");
    (Server::new(ServerOptions::default()).expect("a server starts"), registration)
});

fuzz_target!(|bytes: &[u8]| {
    let (server, registration) = &*DEVICE;
    let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
    let served = server
        .serve_connected(theirs.into(), registration.device().clone())
        .expect("the server takes a connection");
    for piece in bytes.split(|byte| *byte == 0xfe) {
        // Fails once the server has had enough.
        if ours.write_all(piece).is_err() {
            break;
        }
    }
    let _ = ours.shutdown(std::net::Shutdown::Write);
    // The server answers what it can, and closes: it must not hang.
    let timeout = Some(std::time::Duration::from_secs(10));
    ours.set_read_timeout(timeout).expect("a timeout can be set");
    let mut answers = Vec::new();
    let end = ours.read_to_end(&mut answers);
    assert!(!end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "it hangs");
    drop(served);
});
