//! A device as the demonstration's client drives it: accesses, interrupts, and the world outside.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use vfiod_client::{Client, IrqAction, IrqData, Options};
use vfiod_wire::payload::{pci_irq, pci_region};

use super::event::Step;

/// How long a device may take for anything.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Prints a step, and waits for the line on standard input that acknowledges it.
pub(super) fn tell(shown: &str, text: impl fmt::Display) -> anyhow::Result<()> {
    let step = Step { shown: shown.to_owned(), text: text.to_string() };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&step)?)?;
    out.flush()?;
    let read = io::stdin().lock().read_line(&mut String::new())?;
    ensure!(read > 0, "the demonstration has ended");
    Ok(())
}

/// A device under a driver.
pub(super) struct Driven {
    pub(super) client: Client,
}

impl Driven {
    pub(super) fn connect(path: &Path) -> anyhow::Result<Self> {
        let options = Options { timeout: TIMEOUT, ..Options::default() };
        let client = Client::connect_with(path, options)
            .with_context(|| format!("cannot attach to {}", path.display()))?;
        Ok(Self { client })
    }

    pub(super) fn identity(&mut self) -> anyhow::Result<(u16, u16)> {
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
        let deadline = Instant::now() + TIMEOUT;
        while !done(self)? {
            ensure!(Instant::now() < deadline, "{what} did not happen within {TIMEOUT:?}");
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

    /// Disables an interrupt index.
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
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut fds, Some(&timeout))?;
        ensure!(ready == 1, "no interrupt within {TIMEOUT:?}");
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
        stream.set_read_timeout(Some(TIMEOUT))?;
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
