//! The systemd journal as standard error.

use std::io;
use std::os::fd::AsFd;

use tracing::Level;

/// Where systemd says what it made of standard output and error (`systemd.exec(5)`).
const VARIABLE: &str = "JOURNAL_STREAM";

/// Whether standard error goes to the journal. A process that was started with another one inherits
/// the variable, so the device and inode in it count.
pub(super) fn is_standard_error() -> bool {
    std::env::var(VARIABLE).is_ok_and(|stream| is_stream(&stream, io::stderr()))
}

fn is_stream(stream: &str, fd: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// The level's number for the journal, as in `sd-daemon(3)`.
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
