//! A directory with a holder, and its clients.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// After that a test fails that waits for something.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) directory: tempfile::TempDir,
    holder: std::cell::RefCell<Child>,
}

impl Stage {
    /// Starts a holder whose worker is ready.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// Starts a holder whose worker is ready in a directory with these files.
    pub(crate) fn with(name: &str, files: &[&str]) -> Self {
        let stage = Self::unready(name, files);
        stage.wait_for("ready");
        stage
    }

    /// Starts a holder in a directory with these files.
    pub(crate) fn unready(name: &str, files: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        for file in files {
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        let holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "roles::holder", "--nocapture"])
            .env("STAGE", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { directory, holder: holder.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn wait_for(&self, name: &str) {
        let start = Instant::now();
        while !self.path(name).exists() {
            assert!(start.elapsed() < LIMIT, "no {name}: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn connect(&self) -> Client {
        let socket = UnixStream::connect(self.path("socket")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Client { socket }
    }

    /// Sends the holder a request.
    pub(crate) fn request(&self, byte: u8) {
        self.holder.borrow_mut().stdin.as_mut().unwrap().write_all(&[byte]).unwrap();
    }

    /// Lets a holder run that was stopped.
    pub(crate) fn resume_holder(&self) {
        let pid = Pid::from_child(&self.holder.borrow());
        rustix::process::kill_process(pid, Signal::CONT).unwrap();
    }

    /// Waits for the holder to end.
    pub(crate) fn holder_status(&self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.holder.borrow_mut().try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(start.elapsed() < LIMIT, "the holder does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn kill(&self, pid: u32) {
        let pid = Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Workers and successors look for it.
        let _ = std::fs::write(self.path("over"), "");
        let mut holder = self.holder.borrow_mut();
        let _ = holder.kill();
        let _ = holder.wait();
    }
}

/// Whether there is a process that is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A client: it sends a byte, and gets eight.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
}

impl Client {
    pub(crate) fn ask(&mut self, what: u8) {
        self.socket.write_all(&[what]).unwrap();
    }

    /// The next reply, as a number.
    pub(crate) fn number(&mut self) -> u64 {
        let mut reply = [0; 8];
        self.socket.read_exact(&mut reply).expect("a reply in time");
        u64::from_le_bytes(reply)
    }

    pub(crate) fn asked(&mut self, what: u8) -> u64 {
        self.ask(what);
        self.number()
    }

    /// The worker's process id.
    pub(crate) fn pid(&mut self) -> u32 {
        self.asked(b'p') as u32
    }

    pub(crate) fn holder(&mut self) -> u64 {
        self.asked(b'h')
    }

    /// How often this was asked, by anybody.
    pub(crate) fn count(&mut self) -> u64 {
        self.asked(b'c')
    }

    /// How many workers there were before.
    pub(crate) fn starts(&mut self) -> u64 {
        self.asked(b'n')
    }

    /// How the worker before has ended.
    pub(crate) fn death(&mut self) -> String {
        let mut text = vec![0; self.asked(b'd') as usize];
        self.socket.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }
}
