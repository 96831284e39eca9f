//! What this program is when it is started again. Each is a test, that does nothing otherwise.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use vfiod_holder::{End, Event, Options};
use vfiod_journal::link::{self, Wait};
use vfiod_journal::memory::{SharedWords, Words, create_file};
use vfiod_journal::message::{Class, Death, Head, Key, PROTOCOL, Settings, ToHolder, ToWorker};

/// Most connections of a holder.
pub(crate) const CONNECTIONS: u32 = 12;
const LISTENER: Key = Key { owner: 0, token: 1 };
const COUNTER: Key = Key { owner: 0, token: 2 };
const EXTRA: Key = Key { owner: 0, token: 3 };

fn stage() -> Option<PathBuf> {
    std::env::var_os("STAGE").map(PathBuf::from)
}

fn log(line: &dyn std::fmt::Display) {
    let path = stage().unwrap().join("log");
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

fn options(requests: Option<OwnedFd>) -> Options {
    let arguments = |name: &str| ["--exact", name, "--nocapture"].map(Into::into).to_vec();
    let (worker, successor) = (arguments("roles::worker"), arguments("roles::successor"));
    let is_short = stage().is_some_and(|stage| stage.join("short").exists());
    let successor_limit = if is_short { Duration::from_millis(200) } else { crate::stage::LIMIT };
    let (name, kept) = ("test".into(), Vec::new());
    let log = |event: &Event| log(event);
    Options { name, worker, successor, requests, successor_limit, kept, log }
}

fn end(end: std::io::Result<End>) -> ! {
    log(&format_args!("{end:?}"));
    std::process::exit(match end {
        Ok(End::Worker(status)) => status.into(),
        Ok(End::Replaced) => 0,
        Err(_) => 99,
    })
}

#[test]
fn holder() {
    if stage().is_none() || std::env::var_os("VFIOD_HOLDER").is_some() {
        return;
    }
    let requests = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    end(vfiod_holder::run(options(Some(requests))));
}

#[test]
fn successor() {
    if std::env::var_os("VFIOD_HOLDER").is_none() {
        return;
    }
    match std::fs::read_to_string(stage().unwrap().join("successor")).as_deref() {
        Ok("exit") => std::process::exit(1),
        Ok(_) => loop {
            // It takes everything, and says nothing: no `Ready`.
            match link::receive(link::of_worker(), Wait::Yes) {
                Ok(Some(_)) => {}
                _ => std::process::exit(1),
            }
            if std::env::var_os("VFIOD_HOLDER").is_none() {
                return;
            }
        },
        Err(_) => end(vfiod_holder::take_over(options(None))),
    }
}

fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

fn send(message: ToHolder, fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    if link::send(link::of_worker(), &message.encode(), &fds, Wait::Yes).is_err() {
        std::process::exit(3);
    }
}

/// Ends worker and holder when the test has ended.
fn finish_if_over(stage: &Path) {
    if stage.join("over").exists() || !stage.exists() {
        send(ToHolder::Finish, &[]);
        std::process::exit(0);
    }
}

struct Worker {
    stage: PathBuf,
    starts: u64,
    death: Death,
    kept: BTreeMap<Key, OwnedFd>,
    connections: BTreeMap<u64, (OwnedFd, u64)>,
    refused: usize,
}

#[test]
fn worker() {
    let (Some(stage), true) = (stage(), std::env::var_os("VFIOD_HOLDER").is_some()) else { return };
    let _ = rustix::process::set_parent_process_death_signal(None);
    finish_if_over(&stage);
    if stage.join("fail").exists() {
        std::process::exit(23);
    }
    while stage.join("hold").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Worker::receive_all(stage).serve()
}

impl Worker {
    fn receive_all(stage: PathBuf) -> Self {
        let mut this = Self {
            stage,
            starts: 0,
            death: Death::First,
            kept: BTreeMap::new(),
            connections: BTreeMap::new(),
            refused: 0,
        };
        let dies: Option<u32> = read(&this.stage.join("die"));
        if let Some(dies) = dies {
            std::fs::write(this.stage.join("die"), (dies + 1).to_string()).unwrap();
        }
        for received in 0.. {
            if dies == Some(received) {
                die();
            }
            if this.receive() {
                break;
            }
        }
        let _ = std::fs::remove_file(this.stage.join("die"));
        send(ToHolder::Hello { protocol: PROTOCOL }, &[]);
        if this.starts == 0 {
            this.set_up();
        }
        send(ToHolder::Ready, &[]);
        std::fs::write(this.stage.join("ready"), "").unwrap();
        this
    }

    /// Receives a message; whether it was the last of the beginning.
    fn receive(&mut self) -> bool {
        let Ok(Some(mut received)) = link::receive(link::of_worker(), Wait::Yes) else {
            std::process::exit(4)
        };
        match ToWorker::decode(received.bytes()).unwrap() {
            ToWorker::Begin { starts, death, .. } => (self.starts, self.death) = (starts, death),
            ToWorker::Kept { key, .. } => {
                self.kept.insert(key, received.only_fd().unwrap());
            }
            ToWorker::Connection { number, sent, .. } => {
                assert_eq!(received.fds.len(), 3);
                self.connections.insert(number, (received.fds.swap_remove(0), sent));
            }
            ToWorker::Complete => return true,
            ToWorker::Refused { .. } => self.refused += 1,
            ToWorker::Settings(_) | ToWorker::Crowded { .. } | ToWorker::Sent { .. } => {}
        }
        false
    }

    /// What the first one does.
    fn set_up(&mut self) {
        let settings =
            Settings { connections: CONNECTIONS, backoff_ms: [0; 8], ..Settings::default() };
        send(ToHolder::Set(settings), &[]);
        let listener = OwnedFd::from(UnixListener::bind(self.stage.join("socket")).unwrap());
        send(ToHolder::Keep { key: LISTENER, class: Class::Listener }, &[&listener]);
        let counter = SharedWords::create("counter", 1).unwrap();
        send(ToHolder::Keep { key: COUNTER, class: Class::Plain }, &[&counter]);
        self.kept.insert(COUNTER, counter);
        send(ToHolder::Listen { key: LISTENER, on: true }, &[]);
    }

    fn serve(mut self) -> ! {
        let link = link::of_worker();
        loop {
            finish_if_over(&self.stage);
            let mut fds = vec![PollFd::new(&link, PollFlags::IN)];
            fds.extend(self.connections.values().map(|(fd, _)| PollFd::new(fd, PollFlags::IN)));
            let glance = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            if rustix::event::poll(&mut fds, Some(&glance)).is_err() {
                continue;
            }
            let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let numbers: Vec<_> = self.connections.keys().copied().collect();
            for (number, ready) in numbers.into_iter().zip(&ready[1..]) {
                if *ready {
                    self.handle(number);
                }
            }
            if ready[0] {
                self.receive();
            }
        }
    }

    fn handle(&mut self, number: u64) {
        let (socket, sent) = &self.connections[&number];
        let sent = *sent;
        let mut byte = [0];
        match rustix::io::read(socket, &mut byte) {
            Ok(0) | Err(_) => {
                self.connections.remove(&number);
                send(ToHolder::DropOwner { owner: number }, &[]);
                return;
            }
            Ok(_) => {}
        }
        let socket = socket.try_clone().unwrap();
        let reply = |value: u64| {
            let _ = rustix::io::write(&socket, &value.to_le_bytes());
        };
        match byte[0] {
            b'p' => reply(std::process::id().into()),
            b'h' => reply(std::env::var("VFIOD_HOLDER").unwrap().parse().unwrap()),
            b'n' => reply(self.starts),
            b'd' => {
                let text = format!("{:?}", self.death);
                reply(text.len() as u64);
                rustix::io::write(&socket, text.as_bytes()).unwrap();
            }
            b'c' => {
                let words = SharedWords::open(&self.kept[&COUNTER], 1).unwrap();
                words.publish(0, words.load(0) + 1);
                reply(words.load(0));
            }
            b'f' => reply(self.kept.contains_key(&EXTRA).into()),
            b'k' => {
                // The holder reads this only when the worker is dead.
                let holder = std::env::var("VFIOD_HOLDER").unwrap().parse().unwrap();
                let holder = rustix::process::Pid::from_raw(holder).unwrap();
                rustix::process::kill_process(holder, Signal::STOP).unwrap();
                let file = create_file("extra", 8).unwrap();
                send(ToHolder::Keep { key: EXTRA, class: Class::Plain }, &[&file]);
                die()
            }
            b'l' => {
                let null = std::fs::File::open("/dev/null").unwrap();
                rustix::stdio::dup2_stdin(null).unwrap();
                std::thread::sleep(Duration::from_secs(1000));
            }
            b's' => {
                // The same position: the second time it is known as sent.
                let head = Head::new(b"the head").unwrap();
                let file = create_file("passed", 8).unwrap();
                send(ToHolder::SendHead { connection: number, position: 0, head }, &[&file]);
                if sent > 0 {
                    rustix::io::write(&socket, b"no more.").unwrap();
                }
            }
            b'q' => {
                send(ToHolder::Finish, &[]);
                std::process::exit(5)
            }
            b'x' => reply(self.attack()),
            _ => {}
        }
    }

    /// Sends what is no message, and waits until it is refused.
    fn attack(&mut self) -> u64 {
        let before = self.refused;
        let file = create_file("attack", 8).unwrap();
        let link = link::of_worker();
        let attacks: [&[u8]; 4] = [&[0; 200], &[2; 28], &[9, 0, 0, 0, 1], &[7, 0, 0, 0]];
        for bytes in attacks {
            link::send_bytes(&link, bytes, &[file.as_fd()], Wait::Yes).unwrap();
        }
        send(ToHolder::Drop { key: EXTRA }, &[]);
        send(ToHolder::Listen { key: COUNTER, on: true }, &[]);
        while self.refused < before + 6 {
            self.receive();
        }
        1
    }
}

fn read<T: std::str::FromStr>(path: &Path) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
