//! The demonstration's client: a process of its own that drives both devices, tells each step on
//! standard output and waits for a line on standard input before the next.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use vfiod_client::{Client, GuestMemory, IrqAction, IrqData, Options};
use vfiod_wire::payload::{pci_irq, pci_region};

use super::arguments::DemoClient;
use super::happening::Step;
use super::{drive_edu, drive_gpio};

/// How long a device may take for anything.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs the client.
pub(crate) fn run(args: &DemoClient) -> anyhow::Result<()> {
    let mut lines = Driven::connect(&args.gpio)?;
    let (vendor, device) = lines.identity()?;
    ensure!((vendor, device) == (0x494f, 0x0dc8), "lines is {vendor:04x}:{device:04x}");
    tell("identified", format_args!("attached to lines, a PCI device {vendor:04x}:{device:04x}"))?;
    match Client::connect(&args.gpio) {
        Err(error) => {
            let errno = error.remote_errno().context("lines: a second client was not refused")?;
            ensure!(errno == 22, "lines: a second client was refused with errno {errno}");
            tell("second-open-refused", "lines is single-open: a second open gets EINVAL")?;
        }
        Ok(_) => bail!("lines is single-open, but was opened twice"),
    }
    drive_gpio::drive(&mut lines, &mut Outside::connect(&args.control)?)?;

    let memory = GuestMemory::new(1 << 20)?;
    let mut teacher = Driven::connect(&args.edu)?;
    drive_edu::identify(&mut teacher)?;
    let mut again = Driven::connect(&args.edu)?;
    let (vendor, device) = again.identity()?;
    tell(
        "further-open",
        format_args!("teacher is multi-open: a second file on the same {vendor:04x}:{device:04x}"),
    )?;
    drive_edu::dma(&mut teacher, &memory)?;
    drive_edu::interrupts(&mut teacher)?;
    teacher.client.reset()?;
    tell("reset", "reset teacher: its registers are as after power-on")?;
    tell("closing", "closing lines and one of the files on teacher; then ending without a word")?;
    drop(lines);
    drop(again);
    // The kernel closes what is left: the same to the server as a crash.
    std::process::exit(0)
}

/// Tells a step and waits until it was heard.
pub(super) fn tell(shown: &str, text: impl fmt::Display) -> anyhow::Result<()> {
    let step = Step { shown: shown.to_owned(), text: text.to_string() };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&step)?)?;
    out.flush()?;
    let heard = io::stdin().lock().read_line(&mut String::new())?;
    ensure!(heard > 0, "nobody listens any more");
    Ok(())
}

/// A device under a driver.
pub(super) struct Driven {
    pub(super) client: Client,
}

impl Driven {
    fn connect(path: &Path) -> anyhow::Result<Self> {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let client = Client::connect_with(path, options)
            .with_context(|| format!("cannot attach to {}", path.display()))?;
        Ok(Self { client })
    }

    fn identity(&mut self) -> anyhow::Result<(u16, u16)> {
        let mut word = [0; 4];
        self.client.region_read(pci_region::CONFIG, 0, &mut word)?;
        let word = u32::from_le_bytes(word);
        Ok((word as u16, (word >> 16) as u16))
    }

    pub(super) fn read8(&mut self, region: u32, offset: u64) -> anyhow::Result<u8> {
        let mut byte = [0; 1];
        self.client.region_read(region, offset, &mut byte)?;
        Ok(byte[0])
    }

    pub(super) fn read32(&mut self, region: u32, offset: u64) -> anyhow::Result<u32> {
        let mut word = [0; 4];
        self.client.region_read(region, offset, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    pub(super) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        Ok(self.client.region_write(region, offset, data)?)
    }

    /// Lets the device master the bus, and answer in memory and I/O space.
    pub(super) fn enable(&mut self) -> anyhow::Result<()> {
        self.write(pci_region::CONFIG, 4, &7u16.to_le_bytes())
    }

    /// Waits for a condition on the device's registers.
    pub(super) fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self)? {
            ensure!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Sets up the first vector of an interrupt index.
    pub(super) fn interrupt(&mut self, index: u32) -> anyhow::Result<Interrupt> {
        use std::os::fd::AsFd;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags).context("cannot make an eventfd")?;
        let fds = [fd.as_fd()];
        self.client.set_irqs(index, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds))?;
        Ok(Interrupt { index, fd })
    }

    /// Takes an interrupt index back.
    pub(super) fn no_interrupt(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let index = interrupt.index;
        Ok(self.client.set_irqs(index, 0, 0, IrqAction::Trigger, IrqData::None)?)
    }
}

/// An interrupt vector's eventfd.
pub(super) struct Interrupt {
    index: u32,
    fd: OwnedFd,
}

impl Interrupt {
    /// Waits for it, and lets the next one through where it masks itself.
    pub(super) fn wait(&self, driven: &mut Driven, acknowledge: Acknowledge) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut fds, Some(&timeout))?;
        ensure!(ready == 1, "no interrupt within {PATIENCE:?}");
        rustix::io::read(&self.fd, &mut [0; 8])?;
        acknowledge(driven)?;
        if self.index == pci_irq::INTX {
            driven.client.set_irqs(self.index, 0, 1, IrqAction::Unmask, IrqData::None)?;
        }
        // Acknowledged: it must not come again.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let again = rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&now))?;
        ensure!(again == 0, "the interrupt came again after it was acknowledged");
        Ok(())
    }
}

/// Tells the device that its interrupt was seen.
pub(super) type Acknowledge = fn(&mut Driven) -> anyhow::Result<()>;

/// The world at the other end of the gpio's lines.
pub(super) struct Outside {
    stream: BufReader<UnixStream>,
}

impl Outside {
    /// Connects to a gpio's control socket.
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.stream.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }

    /// Switches an input.
    pub(super) fn set(&mut self, input: u32, on: bool) -> anyhow::Result<()> {
        let answer = self.ask(&format!("set {input} {}", u32::from(on)))?;
        ensure!(answer == "ok", "the outside answered `{answer}`");
        Ok(())
    }

    /// What the outputs show.
    pub(super) fn outputs(&mut self) -> anyhow::Result<u16> {
        let answer = self.ask("get")?;
        let word = answer.split_whitespace().skip_while(|word| *word != "outputs").nth(1);
        word.and_then(|word| u16::from_str_radix(word.trim_start_matches("0x"), 16).ok())
            .with_context(|| format!("the outside answered `{answer}`"))
    }
}
