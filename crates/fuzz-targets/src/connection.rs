//! `connection`: a connection's whole life, as any bytes that a client sends, in pieces, to a device
//! that is really there. The input is cut at every 0xfe, and each piece sent by itself.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::Duration;

use vfiod_core::{DeviceSpec, OpenPolicy, Registration, Registry};
use vfiod_server::{Server, ServerOptions};

static DEVICE: LazyLock<(Server, Registration)> = LazyLock::new(|| {
    let models = vfiod_devices::catalogue();
    let edu = models.build("edu", &Default::default(), Default::default()).expect("edu is built");
    let spec = DeviceSpec { name: "edu".into(), open: OpenPolicy::Multi, ..Default::default() };
    let registration = Registry::new().register(spec, edu).expect("edu is registered");
    (Server::new(ServerOptions::default()).expect("a server starts"), registration)
});

pub(crate) fn serve(bytes: &[u8]) {
    let (server, registration) = &*DEVICE;
    let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
    let served = server
        .serve_connected(theirs.into(), registration.device().clone())
        .expect("the server takes a connection");
    for piece in bytes.split(|byte| *byte == 0xfe) {
        // Fails once the server has closed the connection.
        if ours.write_all(piece).is_err() {
            break;
        }
    }
    let _ = ours.shutdown(Shutdown::Write);
    // The server replies as far as it can, and closes: it must not hang.
    ours.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    let end = ours.read_to_end(&mut Vec::new());
    assert!(!end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it hangs");
    drop(served);
}
