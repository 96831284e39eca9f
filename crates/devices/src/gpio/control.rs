//! The outside world's socket: lines of text.
//!
//! | line | what it does | reply |
//! | --- | --- | --- |
//! | `set 3 1` | input 3 on | `ok` |
//! | `get` | | `inputs 0x0008 outputs 0x0000` |
//! | `watch` | from now on a line at every change | the lines now, as for `get` |
//! | anything else | | `error: …` |
//!
//! Of changes that come faster than a client reads, it gets the last.
//!
//! ```text
//! $ nc -U /run/vfiod/lines.control
//! set 3 1
//! ok
//! ```
//!
//! It is served by tasks of the device's runtime, and costs no thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
#[cfg(test)]
use std::sync::Weak;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, SocketFlags};
use vfiod_core::{Errno, Error, Result};
use vfiod_sockets::{NamedSocket, SocketAccess};
use vfiod_tasks::{Bell, Descriptor, Runtime, Task, race};

use super::lines::{Lines, Snapshot, Subscription};

/// Clients at the same time.
const MAX_CLIENTS: usize = 16;
/// The longest line in bytes. The longest valid one is far shorter.
const MAX_LINE: usize = 256;
/// How long the listener pauses when the kernel refuses it a connection (no descriptor is left).
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket and its clients. Dropping it ends them and removes the socket.
#[derive(Debug)]
pub(super) struct Control {
    socket: Option<NamedSocket>,
    listener: Arc<OwnedFd>,
    /// Accepts clients, and owns their tasks.
    accepting: Task<()>,
    #[cfg(test)]
    clients: Weak<()>,
}

impl Control {
    /// Listens at `path`. A socket at which no program listens is replaced.
    ///
    /// # Errors
    /// As [`NamedSocket::bind`]; no descriptor is left.
    pub(super) fn start(path: &Path, lines: Arc<Lines>, runtime: &Runtime) -> Result<Self> {
        let failed = |error: io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let what = format!("gpio: cannot watch the control socket {}", path.display());
            Error::new(errno, what).because(error)
        };
        let socket = NamedSocket::bind(path, SocketAccess::default()).map_err(|error| {
            Error::new(error.errno(), "gpio: cannot make the control socket").because(error)
        })?;
        // No line has any.
        vfiod_sockets::refuse_descriptors(&socket);
        let listener = Arc::new(socket.as_fd().try_clone_to_owned().map_err(failed)?);
        let descriptor =
            runtime.descriptor(listener.clone()).map_err(|errno| failed(errno.into()))?;
        let clients = Arc::new(());
        #[cfg(test)]
        let count = Arc::downgrade(&clients);
        let accepting = runtime.spawn(accept(descriptor, lines, clients, runtime.clone()));
        Ok(Self {
            socket: Some(socket),
            listener,
            accepting,
            #[cfg(test)]
            clients: count,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Its name goes while it still listens: no other server can have taken its place.
        drop(self.socket.take());
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        self.accepting.cancel();
    }
}

/// Accepts clients until it is cancelled. Each of them holds `clients`.
async fn accept(listener: Descriptor, lines: Arc<Lines>, clients: Arc<()>, runtime: Runtime) {
    let mut tasks: Vec<Task<()>> = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener.fd(), flags) {
            Ok(stream) => {
                tasks.retain(|task| !task.is_finished());
                if tasks.len() >= MAX_CLIENTS {
                    // It has read nothing yet: this fits its buffer.
                    let _ = rustix::io::write(stream, b"error: too many clients\n");
                    continue;
                }
                match runtime.descriptor(Arc::new(stream)) {
                    Ok(stream) => {
                        let (client, lines) = (clients.clone(), lines.clone());
                        tasks.push(runtime.spawn(async move {
                            let _client = client;
                            if let Err(error) = serve(Stream(stream), &lines).await {
                                tracing::debug!(%error, "gpio control connection failed");
                            }
                        }));
                    }
                    Err(error) => tracing::warn!(%error, "gpio: a control client was refused"),
                }
            }
            Err(Errno::AGAIN) => listener.readable().await,
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "gpio: cannot accept a control client");
                runtime.sleep(PAUSE).await;
            }
        }
    }
}

/// A client's socket.
struct Stream(Descriptor);

impl Stream {
    /// Receives what there is into `received`; `None` if nothing is there yet, 0 at the end.
    fn receive(&self, received: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let mut bytes = [0; MAX_LINE];
        match rustix::io::read(self.0.fd(), &mut bytes) {
            Ok(count) => {
                received.extend_from_slice(&bytes[..count]);
                Ok(Some(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a line. Waits while the client does not read.
    async fn send(&self, line: impl std::fmt::Display) -> io::Result<()> {
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match rustix::net::send(self.0.fd(), rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::AGAIN) => self.0.writable().await,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the client has closed its socket, not only its sending side.
    fn is_closed(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// The changes that a client gets.
struct Watch {
    changed: Arc<Bell>,
    seen: Snapshot,
    _subscription: Subscription,
}

impl Watch {
    fn new(lines: &Arc<Lines>) -> Self {
        let changed = Arc::new(Bell::new());
        let rings = changed.clone();
        let subscription = lines.on_change(move |_| rings.ring(None));
        Self { changed, seen: lines.snapshot(), _subscription: subscription }
    }
}

/// Serves a client until it disconnects. One that only watches may shut down its sending side.
async fn serve(stream: Stream, lines: &Arc<Lines>) -> io::Result<()> {
    let mut received = Vec::new();
    let mut watch: Option<Watch> = None;
    let mut sends = true;
    loop {
        if let Some(watch) = &mut watch
            && watch.changed.take().is_some()
        {
            let now = lines.snapshot();
            if std::mem::replace(&mut watch.seen, now) != now {
                stream.send(now).await?;
            }
        }
        match if sends { stream.receive(&mut received)? } else { None } {
            Some(0) if watch.is_none() => return Ok(()),
            Some(0) => sends = false,
            Some(_) => {
                while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = received.drain(..=end).collect();
                    obey(&String::from_utf8_lossy(&line), &stream, lines, &mut watch).await?;
                }
                if received.len() >= MAX_LINE {
                    let what = format!("error: a line of more than {MAX_LINE} bytes");
                    return stream.send(what).await;
                }
            }
            None if stream.is_closed() => return Ok(()),
            None => match &watch {
                Some(watch) => {
                    let is_rung = || watch.changed.is_rung().then_some(());
                    let rung = watch.changed.wait_for(is_rung);
                    race(rung, stream.0.changed()).await;
                }
                None => stream.0.changed().await,
            },
        }
    }
}

async fn obey(
    line: &str,
    stream: &Stream,
    lines: &Arc<Lines>,
    watch: &mut Option<Watch>,
) -> io::Result<()> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [] => Ok(()),
        ["get"] => stream.send(lines.snapshot()).await,
        ["set", line, value] => match parse(line, value) {
            Some((mask, values)) => {
                lines.set_inputs(mask, values);
                stream.send("ok").await
            }
            None => stream.send("error: `set` takes an input 0 to 15 and 0 or 1").await,
        },
        ["watch"] => {
            let new = Watch::new(lines);
            let seen = new.seen;
            *watch = Some(new);
            stream.send(seen).await
        }
        _ => stream.send("error: expected `get`, `set INPUT 0|1` or `watch`").await,
    }
}

fn parse(line: &str, value: &str) -> Option<(u16, u16)> {
    let line: u32 = line.parse().ok().filter(|line| *line < 16)?;
    let mask = 1 << line;
    match value {
        "0" => Some((mask, 0)),
        "1" => Some((mask, mask)),
        _ => None,
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inputs {:#06x} outputs {:#06x}", self.inputs, self.outputs)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use vfiod_tasks::Workers;

    use super::*;
    use vfiod_testing::eventually;

    struct Rig {
        lines: Arc<Lines>,
        control: Control,
        path: PathBuf,
        _dir: tempfile::TempDir,
        runtime: Runtime,
        _workers: Workers,
    }

    impl Rig {
        /// The number of clients that are served.
        fn clients(&self) -> usize {
            self.control.clients.strong_count() - 1
        }
    }

    fn rig(inputs: u16) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gpio.sock");
        let lines = Arc::new(Lines::new(inputs));
        let runtime = Runtime::new().unwrap();
        let workers = Workers::start(&runtime, 1).unwrap();
        let control = Control::start(&path, lines.clone(), &runtime).unwrap();
        Rig { lines, control, path, _dir: dir, runtime, _workers: workers }
    }

    struct Client {
        stream: UnixStream,
        reader: BufReader<UnixStream>,
    }

    impl Client {
        fn new(rig: &Rig) -> Self {
            let stream = UnixStream::connect(&rig.path).unwrap();
            // A missing reply must not hang the test.
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let reader = BufReader::new(stream.try_clone().unwrap());
            Self { stream, reader }
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            line
        }

        fn ask(&mut self, text: &str) -> String {
            self.stream.write_all(text.as_bytes()).unwrap();
            self.line()
        }
    }

    #[test]
    fn text_in_and_out() {
        let rig = rig(1);
        let mut client = Client::new(&rig);
        assert_eq!(client.ask("get\n"), "inputs 0x0001 outputs 0x0000\n");
        assert_eq!(client.ask("set 3 1\n"), "ok\n");
        assert_eq!(rig.lines.snapshot().inputs, 9);
        assert_eq!(client.ask("set 0 0\n"), "ok\n");
        assert_eq!(rig.lines.snapshot().inputs, 8);
        for bad in ["set 16 1\n", "set 1 2\n", "set -1 1\n", "jump\n", "set 1\n", "\u{ff}\n"] {
            assert!(client.ask(bad).starts_with("error: "), "{bad}");
        }
        assert_eq!(client.ask("\n \nget\n"), "inputs 0x0008 outputs 0x0000\n");
        assert_eq!(client.ask("set 15 1\nget\n"), "ok\n");
        assert_eq!(client.line(), "inputs 0x8008 outputs 0x0000\n");
    }

    #[test]
    fn a_watcher_is_told_and_may_still_speak() {
        let rig = rig(9);
        let mut client = Client::new(&rig);
        assert_eq!(client.ask("watch\n"), "inputs 0x0009 outputs 0x0000\n");
        rig.lines.set_outputs(0xff00, 0x8000);
        assert_eq!(client.line(), "inputs 0x0009 outputs 0x8000\n");
        rig.lines.set_outputs(0x00ff, 0);
        assert_eq!(client.ask("get\n"), "inputs 0x0009 outputs 0x8000\n");
        let mut other = Client::new(&rig);
        assert_eq!(other.ask("set 0 0\n"), "ok\n");
        assert_eq!(client.line(), "inputs 0x0008 outputs 0x8000\n");
        client.stream.shutdown(Shutdown::Write).unwrap();
        rig.lines.set_outputs(0x00ff, 1);
        assert_eq!(client.line(), "inputs 0x0008 outputs 0x8001\n");
        drop(client);
        eventually("the watcher's task ends", || rig.clients() == 1);
    }

    #[test]
    fn a_watcher_that_does_not_read_holds_up_nobody() {
        let rig = rig(0);
        let mut client = Client::new(&rig);
        client.ask("watch\n");
        for round in 0..200_000u32 {
            rig.lines.set_outputs(0xffff, round as u16 | 1);
        }
        rig.lines.set_outputs(0xffff, 0xbeef);
        // Some of them, and the last.
        while client.line() != "inputs 0x0000 outputs 0xbeef\n" {}
    }

    #[test]
    fn endless_lines_and_too_many_clients_are_refused() {
        let rig = rig(0);
        let mut endless = Client::new(&rig);
        assert_eq!(endless.ask(&"x".repeat(MAX_LINE)), "error: a line of more than 256 bytes\n");
        assert_eq!(endless.line(), "", "and it is closed");
        eventually("it has gone", || rig.clients() == 0);
        let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| Client::new(&rig)).collect();
        for client in &mut clients {
            client.ask("get\n");
        }
        let mut more = Client::new(&rig);
        assert_eq!(more.line(), "error: too many clients\n");
        assert_eq!(more.line(), "");
        clients.pop();
        // Seen from inside: one that is refused while it writes may find the connection reset
        // before it has read why.
        let full = || rig.clients() == MAX_CLIENTS;
        eventually("there is room again", || !full());
        assert!(Client::new(&rig).ask("get\n").starts_with("inputs"));
    }

    #[test]
    fn ends_with_the_card() {
        let rig = rig(0);
        let mut client = Client::new(&rig);
        client.ask("watch\n");
        let Rig { lines, control, path, _dir, runtime: _, _workers } = rig;
        drop(control);
        assert!(!path.exists());
        assert_eq!(client.line(), "", "end of file");
        drop(client);
        eventually("nothing of it is left", || Arc::strong_count(&lines) == 1);
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let rig = rig(0);
        let error = Control::start(&rig.path, rig.lines.clone(), &rig.runtime).unwrap_err();
        assert_eq!(error.errno(), Errno::ADDRINUSE);
        assert!(rig.path.exists());
        let left = rig.path.with_extension("left");
        drop(UnixListener::bind(&left).unwrap());
        let control = Control::start(&left, rig.lines.clone(), &rig.runtime).unwrap();
        UnixStream::connect(&left).unwrap();
        drop(control);
        let text = rig.path.with_extension("text");
        std::fs::write(&text, "important").unwrap();
        // Not a socket: refused and left alone.
        Control::start(&text, rig.lines.clone(), &rig.runtime).unwrap_err();
        assert_eq!(std::fs::read(&text).unwrap(), b"important");
    }
}
