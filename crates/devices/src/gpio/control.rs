//! The outside world's socket: lines of text.
//!
//! ```text
//! set 3 1        input 3 on                       ok
//! get            all lines                        inputs 0x0008 outputs 0x0000
//! watch          a line at every change           inputs … outputs …
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vfiod_core::{Errno, Error, Result};

use super::lines::{Lines, Snapshot};

/// People and programs at once.
const MAX_CLIENTS: usize = 16;
/// The longest line that makes sense is far shorter.
const MAX_LINE: u64 = 256;

/// A listening socket with its thread. Dropping it ends both.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    pub(super) fn start(path: &Path, lines: Arc<Lines>) -> Result<Self> {
        let failed = |error: std::io::Error, what: &str| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::new(errno, format!("gpio: {what} the control socket {}", path.display()))
                .because(error)
        };
        if UnixStream::connect(path)
            .is_err_and(|error| error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()))
        {
            // Left over from a server that is gone.
            std::fs::remove_file(path).map_err(|error| failed(error, "cannot replace"))?;
        }
        let listener = UnixListener::bind(path).map_err(|error| failed(error, "cannot make"))?;
        let accepting = listener.try_clone().map_err(|error| failed(error, "cannot duplicate"))?;
        std::thread::Builder::new()
            .name("gpio-control".to_owned())
            .spawn(move || accept(&accepting, &lines))
            .map_err(|error| failed(error, "no thread for"))?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The thread's accept fails from now on, and it ends.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, lines: &Arc<Lines>) {
    let clients = Arc::new(AtomicUsize::new(0));
    while let Ok((mut stream, _)) = listener.accept() {
        if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            let _ = stream.write_all(b"error: too many clients\n");
            continue;
        }
        let (lines, count) = (lines.clone(), clients.clone());
        let serve = move || {
            if let Err(error) = serve(stream, &lines) {
                tracing::debug!(%error, "a gpio control client is gone");
            }
            count.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("gpio-client".to_owned()).spawn(serve).is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(stream: UnixStream, lines: &Lines) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if (&mut reader).take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            ["get"] => writeln!(writer, "{}", lines.snapshot())?,
            ["set", line, value] => match parse(line, value) {
                Some((mask, values)) => {
                    lines.set_inputs(mask, values);
                    writeln!(writer, "ok")?;
                }
                None => writeln!(writer, "error: `set` takes an input 0 to 15 and 0 or 1")?,
            },
            ["watch"] => watch(&mut writer, lines)?,
            _ => writeln!(writer, "error: expected `get`, `set INPUT 0|1` or `watch`")?,
        }
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

fn watch(writer: &mut UnixStream, lines: &Lines) -> std::io::Result<()> {
    let mut seen = lines.snapshot();
    writeln!(writer, "{seen}")?;
    loop {
        let now = lines.wait_for_change(seen, Duration::from_secs(1));
        if now != seen {
            writeln!(writer, "{now}")?;
            seen = now;
        } else if is_gone(writer) {
            return Ok(());
        }
    }
}

/// Whether a client that only listens has closed its end.
fn is_gone(stream: &UnixStream) -> bool {
    use rustix::net::RecvFlags;
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut byte, flags), Ok((0, _)))
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inputs {:#06x} outputs {:#06x}", self.inputs, self.outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_and_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gpio.sock");
        let lines = Arc::new(Lines::new(1));
        let control = Control::start(&path, lines.clone()).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut ask = |text: &str| {
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            reader.read_line(&mut answer).unwrap();
            answer
        };
        assert_eq!(ask("get\n"), "inputs 0x0001 outputs 0x0000\n");
        assert_eq!(ask("set 3 1\n"), "ok\n");
        assert_eq!(lines.snapshot().inputs, 9);
        for bad in ["set 16 1\n", "set 1 2\n", "set -1 1\n", "jump\n", "set 1\n"] {
            assert!(ask(bad).starts_with("error: "), "{bad}");
        }
        assert_eq!(ask("watch\n"), "inputs 0x0009 outputs 0x0000\n");
        lines.set_outputs(0xff00, 0x8000);
        assert_eq!(ask(""), "inputs 0x0009 outputs 0x8000\n");
        drop(control);
        assert!(!path.exists());
    }
}
