//! The outside world's socket: lines of text.
//!
//! | line | what it does | answer |
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
//! Costs one sleeping thread for each card that has such a socket, and one for each client.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::{Mutex, MutexGuard, lock};

use super::lines::{Lines, Snapshot, Subscription};

/// Clients at once.
const MAX_CLIENTS: usize = 16;
/// The longest line that makes sense is far shorter.
const MAX_LINE: usize = 256;
/// How long the listener rests when the kernel refuses it a connection (descriptors are short).
const REST: Duration = Duration::from_millis(100);

/// A listening socket with its threads. Dropping it ends them and removes the socket.
#[derive(Debug)]
pub(super) struct Control {
    shared: Arc<Shared>,
    path: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listener: UnixListener,
    lines: Arc<Lines>,
    ended: AtomicBool,
    /// To wake them up with when it ends.
    clients: Mutex<HashMap<u64, UnixStream>>,
}

impl Control {
    /// Listens at `path`. A socket that nobody listens at is replaced.
    pub(super) fn start(path: &Path, lines: Arc<Lines>) -> Result<Self> {
        let failed = |error: std::io::Error, what: &str| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::new(errno, format!("gpio: {what} the control socket {}", path.display()))
                .because(error)
        };
        if is_left_behind(path) {
            std::fs::remove_file(path).map_err(|error| failed(error, "cannot replace"))?;
        }
        let listener = UnixListener::bind(path).map_err(|error| failed(error, "cannot make"))?;
        let shared = Arc::new(Shared {
            listener,
            lines,
            ended: AtomicBool::new(false),
            clients: Mutex::default(),
        });
        let accepting = std::thread::Builder::new().name("gpio-control".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.accept()
        });
        let mut control = Self { shared, path: path.to_owned(), accepting: None };
        control.accepting = Some(accepting.map_err(|error| failed(error, "no thread for"))?);
        Ok(control)
    }
}

/// Whether there is a socket of a server that is gone. Connecting to any other kind of file is
/// refused just the same; that is somebody's data.
fn is_left_behind(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error| Errno::from_io_error(&error) == Some(Errno::CONNREFUSED);
    socket && UnixStream::connect(path).is_err_and(refused)
}

impl Drop for Control {
    fn drop(&mut self) {
        // While it still listens: nobody else can have taken its place.
        let _ = std::fs::remove_file(&self.path);
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        // None is added any more.
        for stream in self.shared.clients().values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        lock(&self.clients)
    }

    fn accept(self: Arc<Self>) {
        let mut next = 0;
        loop {
            let accepted = self.listener.accept();
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.admit(next, stream),
                Err(error) => {
                    tracing::warn!(%error, "gpio: a control client was not let in");
                    std::thread::sleep(REST);
                }
            }
            next += 1;
        }
    }

    fn admit(self: &Arc<Self>, id: u64, mut stream: UnixStream) {
        let duplicate = {
            let mut clients = self.clients();
            if clients.len() >= MAX_CLIENTS {
                drop(clients);
                // It has read nothing yet: this fits its buffer.
                let _ = stream.write_all(b"error: too many clients\n");
                return;
            }
            stream.try_clone().map(|duplicate| clients.insert(id, duplicate))
        };
        let started = duplicate.and_then(|_| {
            let shared = self.clone();
            let serve = move || {
                if let Err(error) = serve(stream, &shared.lines) {
                    tracing::debug!(%error, "a gpio control client is gone");
                }
                shared.clients().remove(&id);
            };
            std::thread::Builder::new().name("gpio-client".to_owned()).spawn(serve)
        });
        if let Err(error) = started {
            tracing::warn!(%error, "gpio: a control client was not let in");
            self.clients().remove(&id);
        }
    }
}

/// A change to tell a client of: an eventfd that the lines signal.
struct Watch {
    changed: Arc<OwnedFd>,
    seen: Snapshot,
    _subscription: Subscription,
}

impl Watch {
    fn new(lines: &Arc<Lines>) -> std::io::Result<Self> {
        let changed = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let signalled = changed.clone();
        let subscription = lines.on_change(move |_| {
            // Full only if the client was not told of 2^64 changes: it will be.
            let _ = rustix::io::write(&signalled, &1u64.to_ne_bytes());
        });
        Ok(Self { changed, seen: lines.snapshot(), _subscription: subscription })
    }
}

/// Serves a client until it or the card has gone. One that only listens may have shut down its
/// sending side.
fn serve(mut stream: UnixStream, lines: &Arc<Lines>) -> std::io::Result<()> {
    let mut received = Vec::new();
    let mut watch: Option<Watch> = None;
    let mut sends = true;
    loop {
        let interest = if sends { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(&stream, interest)];
        if let Some(watch) = &watch {
            fds.push(PollFd::new(&watch.changed, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let ready = fds[0].revents();
        drop(fds);
        if let Some(watch) = &mut watch
            && rustix::io::read(&watch.changed, &mut [0; 8]).is_ok()
        {
            let now = lines.snapshot();
            if std::mem::replace(&mut watch.seen, now) != now {
                writeln!(stream, "{now}")?;
            }
        }
        if ready.contains(PollFlags::IN) {
            let mut bytes = [0; MAX_LINE];
            match stream.read(&mut bytes)? {
                0 if watch.is_none() => return Ok(()),
                0 => sends = false,
                count => received.extend_from_slice(&bytes[..count]),
            }
            while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                obey(&String::from_utf8_lossy(&line), &mut stream, lines, &mut watch)?;
            }
            if received.len() >= MAX_LINE {
                return writeln!(stream, "error: a line of more than {MAX_LINE} bytes");
            }
        } else if ready.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return Ok(());
        }
    }
}

fn obey(
    line: &str,
    stream: &mut UnixStream,
    lines: &Arc<Lines>,
    watch: &mut Option<Watch>,
) -> std::io::Result<()> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [] => Ok(()),
        ["get"] => writeln!(stream, "{}", lines.snapshot()),
        ["set", line, value] => match parse(line, value) {
            Some((mask, values)) => {
                lines.set_inputs(mask, values);
                writeln!(stream, "ok")
            }
            None => writeln!(stream, "error: `set` takes an input 0 to 15 and 0 or 1"),
        },
        ["watch"] => {
            let new = Watch::new(lines)?;
            let seen = new.seen;
            *watch = Some(new);
            writeln!(stream, "{seen}")
        }
        _ => writeln!(stream, "error: expected `get`, `set INPUT 0|1` or `watch`"),
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
    use std::io::{BufRead, BufReader};
    use std::net::Shutdown;

    use super::*;
    use vfiod_testing::eventually;

    struct Rig {
        lines: Arc<Lines>,
        control: Control,
        path: PathBuf,
        _dir: tempfile::TempDir,
    }

    fn rig(inputs: u16) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gpio.sock");
        let lines = Arc::new(Lines::new(inputs));
        let control = Control::start(&path, lines.clone()).unwrap();
        Rig { lines, control, path, _dir: dir }
    }

    struct Client {
        stream: UnixStream,
        reader: BufReader<UnixStream>,
    }

    impl Client {
        fn new(rig: &Rig) -> Self {
            let stream = UnixStream::connect(&rig.path).unwrap();
            // Not to hang, should an answer not come.
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
        eventually("the watcher's thread ends", || rig.control.shared.clients().len() == 1);
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
        eventually("it has gone", || rig.control.shared.clients().is_empty());
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
        let full = || rig.control.shared.clients().len() == MAX_CLIENTS;
        eventually("there is room again", || !full());
        assert!(Client::new(&rig).ask("get\n").starts_with("inputs"));
    }

    #[test]
    fn ends_with_the_card() {
        let rig = rig(0);
        let mut client = Client::new(&rig);
        client.ask("watch\n");
        let Rig { lines, control, path, _dir } = rig;
        drop(control);
        assert!(!path.exists());
        assert_eq!(client.line(), "", "end of file");
        drop(client);
        eventually("nothing of it is left", || Arc::strong_count(&lines) == 1);
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let rig = rig(0);
        let error = Control::start(&rig.path, rig.lines.clone()).unwrap_err();
        assert_eq!(error.errno(), Errno::ADDRINUSE);
        assert!(rig.path.exists());
        let left = rig.path.with_extension("left");
        drop(UnixListener::bind(&left).unwrap());
        let control = Control::start(&left, rig.lines.clone()).unwrap();
        UnixStream::connect(&left).unwrap();
        drop(control);
        let text = rig.path.with_extension("text");
        std::fs::write(&text, "important").unwrap();
        // Not a socket: refused and left alone.
        Control::start(&text, rig.lines.clone()).unwrap_err();
        assert_eq!(std::fs::read(&text).unwrap(), b"important");
    }
}
