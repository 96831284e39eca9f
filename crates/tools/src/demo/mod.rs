//! `vfiod demo`: two functions of one slot, served by this process, driven by a client in a
//! process of its own and, where there is a QEMU, by an unmodified Linux guest.
//!
//! Every event is printed in order, and compared with the expected ones: the exit code is 0 only if
//! all of them were seen.

pub(crate) mod arguments;
mod client;
mod drive_edu;
mod drive_gpio;
mod driven;
mod event;
mod expected;
mod guest;
mod narrator;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use vfiod_core::event::Event;
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_pci::{BusKind, ResetScope};

use self::arguments::Demo;
pub(crate) use self::client::run as run_client;
use self::event::{DemoEvent, Step};
use self::expected::{LINES, TEACHER};
use self::narrator::Narrator;
use vfiod_config::{
    BusConfig, Config, DeviceConfig, OptionSetting, SlotConfig, SocketAccess, SocketConfig,
    SriovConfig,
};
use vfiod_daemon::{Asked, Signals};
use vfiod_manager::Stack;

/// How long an event that is expected may take.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often signals are polled for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Where everything is.
struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self, device: &str) -> PathBuf {
        self.path(&format!("{device}.sock"))
    }

    fn control(&self) -> PathBuf {
        self.path("lines.control")
    }
}

/// What the narrator gets, and from whom.
enum Word {
    /// The core.
    Core(DemoEvent),
    /// The client's process.
    Client(String),
    /// The guest's console.
    Guest(String),
    /// A process has closed its output.
    End,
}

/// Runs `vfiod demo`.
pub(crate) fn run(args: &Demo) -> anyhow::Result<()> {
    let harness = guest::find(args)?;
    let directory = tempfile::Builder::new().prefix("vfiod-demo-").tempdir()?;
    let stage = Stage { directory };
    let (sender, words) = mpsc::channel();
    // So that an interrupted demonstration takes its actors and sockets along.
    let signals = Signals::catch().context("cannot catch signals")?;
    let mut show = Show { narrator: Narrator::new(args.json), words, signals };
    show.narrator.say(
        "One slot, two functions made of software: `lines`, a card with 16 outputs and 16 inputs \
         (gpio),\nand `teacher`, QEMU's educational device (edu). All of it is served by this \
         process over vfio-user.",
    )?;

    show.narrator.scene("Registration")?;
    let observer = sender.clone();
    let tell = move |event: &Event<'_>| {
        let _ = observer.send(Word::Core(DemoEvent::of(event)));
    };
    let stack =
        Stack::start(&configuration(&stage), &vfiod_devices::catalogue(), Some(Arc::new(tell)))?;
    show.catch_up()?;

    let mut result = client_scene(&mut show, &stage, &sender);
    if let (Ok(()), Some(harness)) = (&result, &harness) {
        result = guest_scene(&mut show, &stage, &sender, harness);
    }
    if result.is_ok() {
        show.narrator.scene("The devices go, last first")?;
    }
    stack.stop(Duration::from_secs(2));
    show.catch_up()?;
    result?;

    let deviations = expected::find_deviations(show.narrator.events(), harness.is_some());
    if !deviations.is_empty() {
        bail!("the demonstration did not show what it must: {}", deviations.join("; "));
    }
    let rest = if harness.is_none() && !args.without_qemu {
        "\nFor an unmodified Linux guest that drives the same devices: vfiod demo --with-qemu"
    } else {
        ""
    };
    let count = expected::CLIENT.len() + if harness.is_some() { expected::GUEST.len() } else { 0 };
    show.narrator.say(&format!("\nAll {count} steps were seen, in the right order.{rest}"))
}

fn client_scene(show: &mut Show, stage: &Stage, sender: &Sender<Word>) -> anyhow::Result<()> {
    let mut client = Actor::client(stage, sender)?;
    show.narrator.scene(format!("A client in a process of its own (pid {})", client.child.id()))?;
    let ended = show.follow(&mut client, Duration::from_secs(30), |_| Ok(()));
    ended?;
    let status = client.end()?;
    if !status.success() {
        bail!("the client failed ({status})");
    }
    // Its end is seen by the server when the kernel has closed its sockets.
    show.until_closed()
}

fn guest_scene(
    show: &mut Show,
    stage: &Stage,
    sender: &Sender<Word>,
    harness: &Path,
) -> anyhow::Result<()> {
    show.narrator.scene("An unmodified Linux guest under QEMU, without KVM (a minute at most)")?;
    let mut guest = Actor::guest(stage, sender, harness)?;
    let control = stage.control();
    let ended = show
        .follow(&mut guest, Duration::from_secs(180), |step| guest::answer_outside(step, &control));
    ended?;
    let status = guest.end()?;
    if let Some(reason) = &guest.failure {
        bail!("in the guest: {reason}");
    }
    if !status.success() {
        bail!("the guest failed ({status}); --log info shows its console");
    }
    show.until_closed()
}

fn configuration(stage: &Stage) -> Config {
    let device = |name: &str, model: &str, function, open| DeviceConfig {
        name: name.to_owned(),
        model: model.to_owned(),
        place: Some((0, function)),
        sriov: SriovConfig::None,
        token: None,
        open,
        state: StatePolicy::Reset,
        options: Vec::new(),
        socket: SocketConfig::Path(stage.socket(name), SocketAccess::default()),
        span: 0..0,
    };
    let mut lines = device(LINES, "gpio", 0, OpenPolicy::Single);
    lines.options.push(OptionSetting {
        name: "control".into(),
        value: stage.control().display().to_string().into(),
        span: 0..0,
    });
    Config {
        buses: vec![BusConfig {
            name: "backplane".to_owned(),
            segment: 0,
            number: 1,
            kind: BusKind::Bridged(ResetScope::Slot),
            bridge: None,
        }],
        slots: vec![SlotConfig { bus: 0, number: 2 }],
        devices: vec![lines, device(TEACHER, "edu", 1, OpenPolicy::Multi)],
        ..Config::default()
    }
}

/// The narrator and what it hears.
struct Show {
    narrator: Narrator,
    words: Receiver<Word>,
    signals: Signals,
}

impl Show {
    /// Prints the events that have come already.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        while let Ok(word) = self.words.try_recv() {
            if let Word::Core(event) = word {
                self.narrator.tell(event)?;
            }
        }
        Ok(())
    }

    /// Prints events until the process has ended; `outside` does what the world outside the device
    /// does about a step.
    fn follow(
        &mut self,
        actor: &mut Actor,
        limit: Duration,
        outside: impl Fn(&Step) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(Asked::Finish(signal)) = self.signals.wait(Duration::ZERO) {
                bail!("ended by {signal}");
            }
            match self.words.recv_timeout(POLL_INTERVAL) {
                Ok(Word::Core(event)) => self.narrator.tell(event)?,
                Ok(Word::Client(line)) => {
                    let step: Step = serde_json::from_str(&line)
                        .with_context(|| format!("the client said `{line}`"))?;
                    self.narrator.tell(DemoEvent::Client(step))?;
                    actor.go_on();
                }
                Ok(Word::Guest(line)) => {
                    if let Some(step) = guest::step(&line) {
                        outside(&step)?;
                        self.narrator.tell(DemoEvent::Guest(step))?;
                    } else {
                        tracing::info!(line, "guest");
                        if let Some(reason) = line.trim().strip_prefix("failed: ") {
                            actor.failure = Some(reason.to_owned());
                        }
                    }
                }
                Ok(Word::End) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => bail!("it took longer than {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("every source of events has ended"),
            }
        }
    }

    /// Waits until every device has seen its last close.
    fn until_closed(&mut self) -> anyhow::Result<()> {
        let count = |events: &[DemoEvent], wanted: fn(&DemoEvent) -> bool| {
            events.iter().filter(|event| wanted(event)).count()
        };
        loop {
            let events = self.narrator.events();
            let opened = count(events, |e| matches!(e, DemoEvent::FirstOpen { .. }));
            let closed = count(events, |e| matches!(e, DemoEvent::LastClose { .. }));
            if opened == closed {
                return Ok(());
            }
            match self.words.recv_timeout(EVENT_TIMEOUT) {
                Ok(Word::Core(event)) => self.narrator.tell(event)?,
                Ok(_) => {}
                Err(_) => bail!("a client has ended, but its device was not closed"),
            }
        }
    }
}

/// A process that drives the devices. Ended when dropped.
struct Actor {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Its own message about its failure.
    failure: Option<String>,
}

impl Actor {
    fn client(stage: &Stage, sender: &Sender<Word>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .arg("demo-client")
            .args([stage.socket(LINES), stage.control(), stage.socket(TEACHER)])
            .stdin(Stdio::piped());
        Self::start(command, sender, Word::Client)
    }

    fn guest(stage: &Stage, sender: &Sender<Word>, harness: &Path) -> anyhow::Result<Self> {
        let control = stage.control();
        let (lines, teacher) = (stage.socket(LINES), stage.socket(TEACHER));
        let command = guest::command(harness, &stage.path("guest.sh"), &lines, &teacher)?;
        guest::switch_inputs(&control)?;
        Self::start(command, sender, Word::Guest)
    }

    fn start(
        mut command: Command,
        sender: &Sender<Word>,
        word: fn(String) -> Word,
    ) -> anyhow::Result<Self> {
        let name = command.get_program().display().to_string();
        let mut child =
            command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let actor = Self { child, stdin, failure: None };
        let sender = sender.clone();
        thread::Builder::new().name("demo-reader".into()).spawn(move || {
            let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
            for line in lines.map_while(Result::ok) {
                if sender.send(word(line)).is_err() {
                    return;
                }
            }
            let _ = sender.send(Word::End);
        })?;
        Ok(actor)
    }

    /// Lets a client that waits for the narrator go on.
    fn go_on(&mut self) {
        // A client that is gone has its end told elsewhere.
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(b"\n").and_then(|()| stdin.flush());
        }
    }

    /// Its exit status. It gets SIGTERM if it has not ended after a while.
    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        self.stdin = None;
        if let Some(status) = self.exited(EVENT_TIMEOUT)? {
            return Ok(status);
        }
        // A request, so that the harness takes QEMU along.
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)?;
        if let Some(status) = self.exited(EVENT_TIMEOUT)? {
            return Ok(status);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    fn exited(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() > deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It is over already, unless something failed.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
            if !matches!(self.exited(Duration::from_secs(2)), Ok(Some(_))) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
