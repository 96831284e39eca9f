//! A file of a FUSE file system that has stopped answering.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;

use rustix::fs::fstat;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::files::examine;

/// Long enough for anything that does not wait for the file system.
const LONG: Duration = Duration::from_secs(60);

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const INIT: u32 = 26;

/// A file system with one file, which can be opened, and answers nothing else.
struct Stalled {
    directory: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Stalled {
    /// `None`: this process may not mount.
    fn mount() -> Option<Self> {
        let connection = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let directory = PathBuf::from(format!("/dev/shm/vfiod-stalled-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0\0", connection.as_raw_fd());
        let options = std::ffi::CString::from_vec_with_nul(options.into_bytes()).unwrap();
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        if mount("stalled", &directory, "fuse", flags, options.as_c_str()).is_err() {
            _ = std::fs::remove_dir(&directory);
            return None;
        }
        let server = Some(std::thread::spawn(move || serve(&connection)));
        Some(Self { directory, server })
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(self.directory.join("file")).unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // Whoever waits for an answer gets an error.
        _ = unmount(&self.directory, UnmountFlags::FORCE);
        _ = unmount(&self.directory, UnmountFlags::DETACH);
        _ = self.server.take().unwrap().join();
        _ = std::fs::remove_dir(&self.directory);
    }
}

/// Answers until the file has been opened; takes requests until the end of the connection.
fn serve(mut connection: &File) {
    let mut request = vec![0; 1 << 20];
    while let Ok(40..) = connection.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let mut body = Vec::new();
        match word(4) {
            INIT => {
                body.extend([7u32, 31, 0, 0, 0, 1 << 16, 1].map(u32::to_ne_bytes).concat());
                body.resize(64, 0);
            }
            LOOKUP => {
                // Number, generation, and that nothing of it is to be remembered.
                body.extend([2u64, 1, 0, 0, 0].map(u64::to_ne_bytes).concat());
                // Inode, size, blocks, times.
                body.extend([2u64, 0x1000, 8, 0, 0, 0].map(u64::to_ne_bytes).concat());
                let mode = 0o100_666;
                body.extend([0u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat());
            }
            OPEN => body.resize(16, 0),
            _ => continue,
        }
        let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
        reply.extend([0; 4]);
        reply.extend(&request[8..16]);
        reply.extend(body);
        _ = connection.write_all(&reply);
    }
}

#[test]
fn file_whose_file_system_does_not_answer_is_refused_at_once() {
    let Some(stalled) = Stalled::mount() else {
        eprintln!("SKIPPED: no FUSE file system can be mounted here");
        return;
    };
    // Threads borrow it, for a close waits for the file system, too.
    let file = stalled.open();
    let (judged, kind) = channel();
    let (examined, refused) = channel();
    let (asked, stat) = channel();
    let (kind, refused, waits) = std::thread::scope(|scope| {
        scope.spawn(|| judged.send(MemoryKind::of(&file)));
        scope.spawn(|| examined.send(examine(file.as_fd(), AcceptedFiles::Memory).map(drop)));
        let results = (kind.recv_timeout(LONG), refused.recv_timeout(LONG));
        scope.spawn(|| asked.send(fstat(&file).map(drop)));
        let waits = stat.recv_timeout(SOON);
        // Now it answers with errors.
        drop(stalled);
        (results.0, results.1, waits)
    });
    assert_eq!((kind, errno(refused.unwrap())), (Ok(MemoryKind::Other), Errno::NODEV));
    assert_eq!(waits, Err(RecvTimeoutError::Timeout), "the file system answers after all");
    assert!(stat.recv_timeout(LONG).unwrap().is_err());
}
