//! What is measured, each with what its bytes alone cost.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;

use super::floor::{Exchange, Floor, WITH_FD};
use super::random::Random;
use super::session::{self, Session};

/// Reply to a REGION_WRITE, and the fixed part of that to a REGION_READ.
const ACCESS: usize = 32;
/// DEVICE_GET_INFO and its reply.
const INFO: Exchange = (32, 32);
/// DMA_MAP with a descriptor, and its reply; DMA_UNMAP and its reply.
const MAP: [Exchange; 2] = [(48 + WITH_FD, 16), (40, 40)];

/// Where the first window is.
const IOVA: u64 = 1 << 32;

/// A measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Accesses of a size, so many in flight.
    Access { write: bool, size: u32, depth: u32, posted: bool },
    /// DMA_MAP and DMA_UNMAP of a window on a file that is known, with so many others mapped.
    MapPair { windows: u64 },
    /// Connect, negotiate, get info, disconnect.
    Attach,
    /// An operation that runs inside the server (the bench device).
    Inside { operation: Operation, windows: u64 },
}

/// How long to wait between two looks whether an operation of the bench device has ended.
const LOOK: Duration = Duration::from_micros(500);
/// DMA_READ messages that are answered between two such looks.
const MESSAGES: u64 = 1024;

/// How long an operation may take: the device ends it then, and so the server does a transfer by message.
const LONGEST: Duration = Duration::from_secs(3);
/// How often an operation is started that took longer: a machine may stand still, or get slower.
const ATTEMPTS: usize = 4;

/// Operations of the bench device; a write of the number starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Translation of an address in a random window.
    Translate = 1,
    /// A copy of 64 bytes out of a random window.
    Copy = 3,
    /// The same out of a window without a file, by DMA_READ messages.
    Message = 4,
    /// An interrupt.
    Trigger = 5,
}

/// The bench device's registers, in its region 2.
mod register {
    pub(super) const OP: u64 = 0x00;
    pub(super) const ITERS: u64 = 0x08;
    pub(super) const BASE: u64 = 0x10;
    pub(super) const STRIDE: u64 = 0x18;
    pub(super) const COUNT: u64 = 0x20;
    pub(super) const LEN: u64 = 0x28;
    pub(super) const RESULT_NS: u64 = 0x30;
    pub(super) const ERRORS: u64 = 0x38;
    pub(super) const STATUS: u64 = 0x48;
}

/// The bench device's identity, and where its registers are.
const BENCH: u32 = 0x7e32_1234;
const REGISTERS: u32 = 2;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;

/// A server to be measured.
pub(super) struct Target<'a> {
    pub(super) socket: &'a Path,
    pub(super) spin: bool,
    /// The region and its offset that are accessed.
    pub(super) region: u32,
    pub(super) offset: u64,
    pub(super) region_size: u64,
    pub(super) writable: bool,
    pub(super) is_bench: bool,
}

impl<'a> Target<'a> {
    /// Looks at a server: the bench device is measured in its memory, a stranger by reads of its
    /// configuration space, unless a region is named.
    pub(super) fn look(
        socket: &'a Path,
        spin: bool,
        region: Option<(u32, u64)>,
    ) -> anyhow::Result<Self> {
        let mut session = Session::connect(socket, spin)?;
        let identity = session.read(CONFIG, 0, 4).unwrap_or(0);
        let is_bench = identity == u64::from(BENCH);
        let (region, offset, writable) = match region {
            Some((region, offset)) => (region, offset, true),
            None if is_bench => (0, 0, true),
            None => (CONFIG, 0, false),
        };
        let region_size = session.region_size(region)?;
        ensure!(offset < region_size, "region {region} has {region_size} bytes");
        Ok(Self { socket, spin, region, offset, region_size, writable, is_bench })
    }

    fn connect(&self) -> anyhow::Result<Session> {
        Session::connect(self.socket, self.spin)
    }
}

impl Measure {
    /// All of them, with these numbers of windows.
    pub(super) fn all(windows: &[u64]) -> Vec<Self> {
        let access = |write, size, depth, posted| Self::Access { write, size, depth, posted };
        let mut all = Vec::new();
        for size in [4, 4096, 1 << 20] {
            all.push(access(false, size, 1, false));
            all.push(access(true, size, 1, false));
        }
        all.push(access(false, 4, 32, false));
        all.push(access(true, 4, 32, true));
        all.push(Self::Attach);
        all.extend(windows.iter().map(|&windows| Self::MapPair { windows }));
        let inside = |operation, windows| Self::Inside { operation, windows };
        all.extend(windows.iter().map(|&windows| inside(Operation::Translate, windows)));
        // Out of one window: what many would show is the kernel finding pages for them.
        all.push(inside(Operation::Copy, 1));
        all.push(inside(Operation::Message, 1));
        all.push(inside(Operation::Trigger, 0));
        all
    }

    /// Whether it can be measured on a target; else why not.
    pub(super) fn fits(&self, target: &Target<'_>) -> Result<(), &'static str> {
        match *self {
            Self::Access { write: true, .. } if !target.writable => {
                Err("writes are measured on the bench device, or with --region")
            }
            Self::Access { size, .. } if u64::from(size) > target.region_size - target.offset => {
                Err("the region is smaller")
            }
            Self::Inside { .. } if !target.is_bench => Err("this is not the bench device"),
            _ => Ok(()),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        match *self {
            Self::Access { write, size, depth, posted } => {
                let what = if write { "write" } else { "read" };
                let size = match size {
                    size if size >= 1 << 20 => format!("{}MiB", size >> 20),
                    size if size >= 1 << 10 => format!("{}KiB", size >> 10),
                    size => format!("{size}B"),
                };
                match (posted, depth) {
                    (true, _) => format!("{what}.{size}.posted"),
                    (_, 1) => format!("{what}.{size}"),
                    (_, depth) => format!("{what}.{size}.x{depth}"),
                }
            }
            Self::MapPair { windows } => format!("map+unmap.{windows}"),
            Self::Attach => "attach".into(),
            Self::Inside { operation: Operation::Translate, windows, .. } => {
                format!("translate.{windows}")
            }
            Self::Inside { operation: Operation::Copy, .. } => "dma.64B".into(),
            Self::Inside { operation: Operation::Message, .. } => "dma.64B.messages".into(),
            Self::Inside { operation: Operation::Trigger, .. } => "interrupt".into(),
        }
    }

    /// Connects to the floor; `None` where there is no floor.
    pub(super) fn floor<'a>(
        &self,
        socket: &'a Path,
        spin: bool,
    ) -> anyhow::Result<Option<Slices<'a>>> {
        let plan = match *self {
            Self::Access { write, size, depth, posted } => {
                let (size, depth) = (size as usize, depth as usize);
                let request = ACCESS + if write { size } else { 0 };
                let reply = ACCESS + if write { 0 } else { size };
                if posted {
                    vec![(depth * request + INFO.0, INFO.1)]
                } else {
                    vec![(depth * request, depth * reply)]
                }
            }
            Self::MapPair { .. } => MAP.to_vec(),
            Self::Attach => {
                let version = session::version().len();
                // Our own server answers with about as many bytes as it was sent.
                let plan = [(version, version), INFO];
                return Ok(Some(slices(2, 1, move || {
                    Floor::connect(socket, &plan, spin).map(drop)
                })));
            }
            Self::Inside { operation: Operation::Trigger, .. } => {
                let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
                return Ok(Some(slices(256, 1, move || {
                    let signalled = rustix::io::write(&fd, &1u64.to_ne_bytes());
                    signalled.map(drop).context("cannot signal an eventfd")
                })));
            }
            Self::Inside { .. } => return Ok(None),
        };
        let mut floor = Floor::connect(socket, &plan, spin)?;
        Ok(Some(slices(self.batch(), self.depth(), move || floor.cycle())))
    }

    /// Operations that go together in one exchange.
    fn depth(&self) -> u64 {
        match *self {
            Self::Access { depth, .. } => depth.into(),
            _ => 1,
        }
    }

    /// Exchanges between two looks at the clock.
    fn batch(&self) -> u64 {
        match *self {
            Self::Access { size, depth: 1, .. } if size < 1 << 16 => 32,
            Self::MapPair { .. } => 8,
            _ => 2,
        }
    }

    /// Connects to the server.
    pub(super) fn server<'a>(&self, target: &'a Target<'_>) -> anyhow::Result<Slices<'a>> {
        match *self {
            Self::Access { write, size, depth, posted } => {
                let mut session = target.connect()?;
                let one = session::access(target.region, target.offset, size, write, posted);
                let mut messages = one.repeat(depth as usize);
                let (count, reply) = if posted {
                    messages.extend_from_slice(&session::get_info());
                    (1, INFO.1)
                } else {
                    (depth as usize, ACCESS + if write { 0 } else { size as usize })
                };
                // Once by itself: a refusal has another length.
                session.call(
                    &session::access(target.region, target.offset, size, write, false),
                    None,
                )?;
                Ok(slices(self.batch(), self.depth(), move || {
                    session.exchange(&messages, count, reply)
                }))
            }
            Self::MapPair { windows } => {
                let mut session = target.connect()?;
                let memory = Memory::new(windows, true)?;
                memory.map_all(&mut session)?;
                let mut random = Random::new(12345);
                Ok(slices(self.batch(), 1, move || {
                    let gap = memory.gap(random.below(windows.max(1)));
                    memory.map_one(&mut session, gap)?;
                    session.exchange(&session::dma_unmap(gap, memory.window), 1, MAP[1].1)
                }))
            }
            Self::Attach => {
                let info = session::get_info();
                Ok(slices(self.batch(), 1, move || {
                    // One after the other: a device that takes one client takes the next when
                    // the last one has been released.
                    Session::connect(target.socket, target.spin)?.exchange(&info, 1, INFO.1)
                }))
            }
            Self::Inside { operation, windows } => inside(target, operation, windows),
        }
    }
}

/// Measures for about as long as it is asked to: nanoseconds for an operation.
pub(super) type Slices<'a> = Box<dyn FnMut(Duration) -> anyhow::Result<f64> + 'a>;

/// Slices of exchanges over a connection that is there.
fn slices<'a>(
    batch: u64,
    depth: u64,
    mut exchange: impl FnMut() -> anyhow::Result<()> + 'a,
) -> Slices<'a> {
    Box::new(move |budget| timed(budget, batch, depth, &mut exchange))
}

/// Slices of an operation that the bench device runs by itself.
fn inside<'a>(
    target: &'a Target<'_>,
    operation: Operation,
    windows: u64,
) -> anyhow::Result<Slices<'a>> {
    let file = operation != Operation::Message;
    let mut session = target.connect()?;
    // Bus mastering and memory on.
    session.call(&config_write(4, 6), None)?;
    let memory = Memory::new(windows, file)?;
    memory.map_all(&mut session)?;
    let eventfd: OwnedFd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    if operation == Operation::Trigger {
        session.call(&session::set_irq(MSIX), Some(eventfd.as_fd()))?;
    }
    let settings = [
        (register::BASE, IOVA),
        (register::STRIDE, memory.stride()),
        (register::COUNT, windows.max(1)),
        (register::LEN, 64),
    ];
    for (register, value) in settings {
        session.write64(REGISTERS, register, value)?;
    }
    let mut run_once = move |count: u64| -> anyhow::Result<(u64, u64)> {
        // The server has a copy of the descriptor; the client's is held as long as it is used.
        let _eventfd = &eventfd;
        session.write64(REGISTERS, register::ITERS, count)?;
        let op = operation as u64;
        if file {
            session.write64(REGISTERS, register::OP, op)?;
            // Seldom: each look costs the server a little.
            while session.read(REGISTERS, register::STATUS, 8)? != 0 {
                std::thread::sleep(LOOK);
            }
        } else {
            // All at once but for a few looks: each delays the server's messages a little.
            let mut served = 0;
            session.write64_serving(REGISTERS, register::OP, op, &mut served)?;
            while session.read64_serving(REGISTERS, register::STATUS, &mut served)? != 0 {
                // They may be fewer than expected: the device gives up after some seconds.
                let some = (count - served.min(count)).min(MESSAGES);
                served += session.serve(some)?;
            }
        }
        let errors = session.read(REGISTERS, register::ERRORS, 8)?;
        let elapsed = session.read(REGISTERS, register::RESULT_NS, 8)?;
        Ok((errors, elapsed))
    };
    let mut run = move |mut count: u64| -> anyhow::Result<f64> {
        let mut attempts = ATTEMPTS;
        loop {
            let (errors, elapsed) = run_once(count)?;
            if errors == 0 {
                return Ok(elapsed as f64 / count as f64);
            }
            attempts -= 1;
            let too_long = u128::from(elapsed) >= LONGEST.as_nanos();
            ensure!(
                too_long && attempts > 0,
                "{errors} of {count} operations failed in the device"
            );
            count = (count / 4).max(1);
        }
    };
    // First a few, to see how many fit into a slice.
    let few = run(100)?.max(1.0);
    Ok(Box::new(move |budget| {
        let count = (budget.as_nanos() as f64 / few) as u64;
        run(count.clamp(10, 10_000_000))
    }))
}

fn config_write(offset: u64, value: u16) -> Vec<u8> {
    let mut message = session::access(CONFIG, offset, 2, true, false);
    let at = message.len() - 2;
    message[at..].copy_from_slice(&value.to_le_bytes());
    message
}

/// The client's memory, and where its windows are: each followed by a gap of its size.
struct Memory {
    file: Option<OwnedFd>,
    windows: u64,
    window: u64,
}

impl Memory {
    fn new(windows: u64, file: bool) -> anyhow::Result<Self> {
        // Of 2 MiB, as guests have them; so many that they would not fit, smaller.
        let window = if windows <= 1 << 16 { 2 << 20 } else { 64 << 10 };
        let file = if file {
            let fd = rustix::fs::memfd_create("vfiod-bench", MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&fd, (windows + 1) * window).context("cannot make memory")?;
            Some(fd)
        } else {
            None
        };
        Ok(Self { file, windows, window })
    }

    fn stride(&self) -> u64 {
        2 * self.window
    }

    fn gap(&self, n: u64) -> u64 {
        IOVA + n * self.stride() + self.window
    }

    /// Maps all windows, a few in flight at a time.
    fn map_all(&self, session: &mut Session) -> anyhow::Result<()> {
        // Those of the client before, if the server has not seen its end yet.
        session.call(&session::dma_unmap_all(), None)?;
        let mut next = 0;
        while next < self.windows {
            let group = (self.windows - next).min(16);
            for n in next..next + group {
                self.send_map(session, IOVA + n * self.stride(), n)?;
            }
            session
                .replies(group as usize, MAP[0].1)
                .with_context(|| format!("the server took {next} of {} windows", self.windows))?;
            next += group;
        }
        Ok(())
    }

    fn map_one(&self, session: &mut Session, iova: u64) -> anyhow::Result<()> {
        self.send_map(session, iova, self.windows)?;
        session.replies(1, MAP[0].1)
    }

    fn send_map(&self, session: &mut Session, iova: u64, n: u64) -> anyhow::Result<()> {
        match &self.file {
            Some(fd) => {
                let message = session::dma_map(iova, self.window, n * self.window);
                session.send_with(&message, fd.as_fd())
            }
            None => session.send(&session::dma_map(iova, self.window, 0)),
        }
    }
}

/// Runs `exchange` in batches for about as long as `budget`: nanoseconds for one of the `depth`
/// operations in each. One exchange goes before, untimed: the other side has run meanwhile.
fn timed(
    budget: Duration,
    batch: u64,
    depth: u64,
    mut exchange: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    exchange()?;
    let start = Instant::now();
    let mut count = 0;
    loop {
        for _ in 0..batch {
            exchange()?;
        }
        count += batch * depth;
        let elapsed = start.elapsed();
        if elapsed >= budget {
            return Ok(elapsed.as_nanos() as f64 / count as f64);
        }
        if count > 1 << 40 {
            bail!("the clock stands still");
        }
    }
}
