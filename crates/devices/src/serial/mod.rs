//! A PCI serial card with one or two 16550A ports, with the ids of the kernel's `mtty` sample
//! (`samples/vfio-mdev/mtty.c`): Linux's `8250_pci` drives it. Each port has a BAR of eight I/O
//! addresses; they share the pin.
//!
//! A port is connected to a loop-back plug, to a pseudo-terminal on the host, or to nothing
//! ([`Backend`]). Pseudo-terminals exist while the card is open; a task for each waits for its
//! changes. Input waits in the terminal while the receiver is full; output that the terminal's
//! reader does not take waits in the transmitter, which then tells the guest that it is not empty.
//! The outputs RTS and DTR reach the plug's inputs and stop nothing.
//!
//! # What it does not implement
//! Time: a character takes none, whatever the divisor. Parity, framing errors, breaks.

mod backends;
mod fifo;
mod image;
mod port;
mod pty;
mod registers;
mod replayed;
#[cfg(test)]
mod tests;
mod uart;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Quiesce, ReadTraits, Result, Why};
use vfiod_pci::{Bar, Cx, FunctionSpec, HasState, Model, Pin, Save, Task, Worker, Works};

pub use self::backends::{Backend, Backends};
pub use self::image::{FifoImage, SerialImage, UartImage};
use self::port::{Change, Port, Wire};
use self::pty::Pty;
use self::registers::REGISTERS;
use self::replayed::ReplayedInput;
use self::uart::Uart;

/// How many ports a card has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Ports {
    /// One.
    #[default]
    One,
    /// Two.
    Two,
}

impl TryFrom<u8> for Ports {
    type Error = String;

    fn try_from(count: u8) -> Result<Self, String> {
        match count {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err(format!("a card with {count} ports")),
        }
    }
}

impl From<Ports> for u8 {
    fn from(ports: Ports) -> Self {
        match ports {
            Ports::One => 1,
            Ports::Two => 2,
        }
    }
}

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SerialOptions {
    /// How many ports.
    #[schemars(with = "u8", range(min = 1, max = 2))]
    pub ports: Ports,
    /// What the ports are connected to while a client is there.
    #[schemars(extend("x-local" = true))]
    pub backend: Backend,
    /// Symbolic link to the first port's pseudo-terminal.
    #[schemars(extend("x-path" = "link"))]
    pub link0: Option<PathBuf>,
    /// Symbolic link to the second port's pseudo-terminal.
    #[schemars(extend("x-path" = "link"))]
    pub link1: Option<PathBuf>,
}

/// The card.
#[derive(Debug)]
pub struct Serial {
    ports: Vec<Port>,
    links: [Option<PathBuf>; 2],
    backends: Arc<Backends>,
    /// What terminals had when a session was captured.
    replayed: Arc<ReplayedInput>,
}

impl Serial {
    /// The card with its options.
    pub fn new(options: SerialOptions) -> Self {
        let SerialOptions { ports, backend, link0, link1 } = options;
        let ports = (0..u8::from(ports)).map(|port| Port::new(port.into())).collect();
        let backends = Arc::new(Backends::new(backend));
        Self { ports, links: [link0, link1], backends, replayed: Arc::default() }
    }

    /// What the ports are connected to, to be seen and changed from outside.
    pub fn backends(&self) -> Arc<Backends> {
        self.backends.clone()
    }
}

/// Passes the changes of a port's terminal on to the port.
async fn watch(task: Task<Serial>, port: usize, terminal: Change) {
    loop {
        // Also at first: a task before this one may have been cancelled on its way here.
        task.step(|card, cx| card.ports[port].terminal_changed(cx.interrupts())).await;
        terminal.changed().await;
    }
}

impl Model for Serial {
    type State = Works<HasState>;

    fn spec(&self) -> FunctionSpec {
        let spec = FunctionSpec::new(0x4348, 0x3253)
            .subsystem(0x4348, 0x3253)
            .revision(0x10)
            .class(0x07_00_02) // serial controller, compatible with the 16550
            .pin(Pin::A);
        (0..).zip(&self.ports).fold(spec, |spec, (bar, _)| spec.bar(bar, Bar::io(8)))
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        cx.input_log().set_source(self.replayed.clone());
        Ok(())
    }

    fn read(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        let _call = cx.input_log().call();
        let port = &mut self.ports[usize::from(bar)];
        REGISTERS.read(offset, data, |register| port.read(register, cx.interrupts()).into());
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn find_register(&self, _bar: u8, range: Range<u64>) -> Option<u64> {
        REGISTERS.find_in(range)
    }

    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        let _call = cx.input_log().call();
        let port = &mut self.ports[usize::from(bar)];
        if let Some((register, value)) = REGISTERS.write(offset, data) {
            port.write(register, value as u8, cx.interrupts());
        }
    }

    /// Terminals stay, with what waits in them.
    fn reset(&mut self, cx: &Cx<Self>) {
        let _call = cx.input_log().call();
        let Self { ports, links: _, backends: _, replayed: _ } = self;
        for port in ports {
            port.reset(cx.interrupts());
        }
    }

    /// Connects every port, or none.
    fn open(&mut self, cx: &Cx<Self>) -> Result<()> {
        let Self { ports, links, backends, replayed } = self;
        backends.connect(|backend| {
            let wire = |(port, link): (usize, &Option<PathBuf>)| {
                Ok(match backend {
                    Backend::Loopback => Wire::Plug,
                    Backend::Pty if cx.input_log().is_replaying() => {
                        Wire::Replayed(replayed.port(port))
                    }
                    Backend::Pty => Wire::Terminal(Pty::open(link.as_deref(), cx.runtime())?),
                    Backend::None => Wire::Nothing,
                })
            };
            let links = links.iter().take(ports.len()).enumerate();
            let wires = links.map(wire).collect::<Result<Vec<_>>>()?;
            for (port, wire) in ports.iter_mut().zip(wires) {
                port.connect(wire, cx.interrupts(), cx.input_log());
            }
            Ok(ports.iter().map(|port| port.terminal().map(Path::to_owned)).collect())
        })
    }

    fn close(&mut self, _cx: &Cx<Self>) {
        self.ports.iter_mut().for_each(Port::disconnect);
        self.backends.disconnect();
    }
}

impl Worker for Serial {
    /// What waits in a terminal can be moved at any time.
    fn quiesce(&mut self, _cx: &Cx<Self>, _why: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        for (number, port) in self.ports.iter().enumerate() {
            let Some(terminal) = port.change() else { continue };
            cx.ensure_task(&format!("port {number}"), |task| watch(task, number, terminal));
        }
    }
}

impl Save for Serial {
    const KIND: &'static str = "serial";
    const VERSION: u32 = 1;
    type Image = SerialImage;

    fn save(&self) -> SerialImage {
        let Self { ports, links: _, backends: _, replayed: _ } = self;
        let image = |port: usize| ports.get(port).map_or_else(UartImage::default, Port::save);
        SerialImage { ports: [image(0), image(1)] }
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: SerialImage) -> Result<()> {
        let uart = |port: usize| {
            Uart::restored(&image.ports[port]).ok_or_else(|| {
                Error::new(Errno::INVAL, "serial: a register value that a 16550A cannot have")
            })
        };
        let uarts = [uart(0)?, uart(1)?];
        for (port, uart) in self.ports.iter_mut().zip(uarts) {
            port.restore(uart);
        }
        Ok(())
    }
}

#[cfg(test)]
vfiod_testing::conformance!(one_port, Serial::new(SerialOptions::default()));
#[cfg(test)]
vfiod_testing::conformance!(
    two_terminals,
    Serial::new(SerialOptions {
        ports: Ports::Two,
        backend: Backend::Pty,
        ..SerialOptions::default()
    })
);
