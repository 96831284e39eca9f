//! A PCI serial card with one or two 16550A ports, with the ids of the kernel's `mtty` sample
//! (`samples/vfio-mdev/mtty.c`): Linux's `8250_pci` drives it. Each port has a BAR of eight I/O
//! addresses; they share the pin.
//!
//! A port is connected to a loop-back plug, to a pseudo-terminal on the host, or to nothing
//! ([`Backend`]). Pseudo-terminals exist while the card is open, and cost one thread for all of
//! them. Input waits in the terminal while the receiver is full or the guest asks for none (RTS);
//! output that the terminal's reader does not take waits in the transmitter, which then tells the
//! guest that it is not empty.
//!
//! # What it does not implement
//! Time: a character takes none, whatever the divisor. Parity, framing errors, breaks.

mod fifo;
mod image;
mod poller;
mod port;
mod pty;
mod registers;
#[cfg(test)]
mod tests;
mod uart;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, ReadTraits, Result};
use vfiod_pci::{Bar, Cx, FunctionSpec, HasState, Model, Pin, Save};

pub use self::image::{FifoImage, SerialImage, UartImage};
use self::port::{Port, Wire};
use self::pty::Pty;
use self::registers::REGISTERS;
use vfiod_sync::{Mutex, MutexGuard, lock};

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

/// What a port is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A plug that joins each output to its input: what is sent is received.
    #[default]
    Loopback,
    /// A pseudo-terminal on the host.
    Pty,
    /// Nothing: what is sent is lost, and no line of the modem is on.
    None,
}

impl Backend {
    /// Their names, for messages.
    pub const NAMES: &str = "loopback, pty or none";
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Pty => "pty",
            Self::None => "none",
        })
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// `EINVAL`, with the names that there are.
    fn from_str(name: &str) -> Result<Self> {
        let known = [Self::Loopback, Self::Pty, Self::None];
        known.into_iter().find(|backend| backend.to_string() == name).ok_or_else(|| {
            let what = format!("`{}` is no backend: {}", name.escape_debug(), Self::NAMES);
            Error::new(Errno::INVAL, what)
        })
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
    pub backend: Backend,
    /// Symbolic link to the first port's pseudo-terminal.
    #[schemars(extend("x-values" = "a path"))]
    pub link0: Option<PathBuf>,
    /// Symbolic link to the second port's pseudo-terminal.
    #[schemars(extend("x-values" = "a path"))]
    pub link1: Option<PathBuf>,
}

/// The card.
#[derive(Debug)]
pub struct Serial {
    wires: Arc<Wires>,
}

/// What the outside sees of a card: what its ports are connected to. Usable from any thread.
#[derive(Debug)]
pub struct Wires {
    ports: Vec<Arc<Port>>,
    links: [Option<PathBuf>; 2],
    setting: Mutex<Setting>,
}

#[derive(Debug)]
struct Setting {
    backend: Backend,
    open: bool,
}

impl Serial {
    /// The card with its options.
    pub fn new(options: SerialOptions) -> Self {
        let SerialOptions { ports, backend, link0, link1 } = options;
        let ports = (0..u8::from(ports)).map(|port| Arc::new(Port::new(port.into()))).collect();
        let setting = Mutex::new(Setting { backend, open: false });
        Self { wires: Arc::new(Wires { ports, links: [link0, link1], setting }) }
    }

    /// What the ports are connected to, to be seen and changed from outside.
    pub fn wires(&self) -> Arc<Wires> {
        self.wires.clone()
    }
}

impl Wires {
    /// What each port is connected to while the card is open.
    pub fn backend(&self) -> Backend {
        self.setting().backend
    }

    /// Changes it.
    ///
    /// # Errors
    /// `EBUSY`: the card is open.
    pub fn set_backend(&self, backend: Backend) -> Result<()> {
        let mut setting = self.setting();
        if setting.open {
            return Err(Error::new(
                Errno::BUSY,
                "the backend cannot change while the card is open",
            ));
        }
        setting.backend = backend;
        Ok(())
    }

    /// The pseudo-terminal of a port, counted from 0; `None` while there is none.
    pub fn terminal(&self, port: usize) -> Option<PathBuf> {
        self.ports.get(port)?.terminal()
    }

    fn setting(&self) -> MutexGuard<'_, Setting> {
        lock(&self.setting)
    }

    /// Connects every port, or none.
    fn connect(&self) -> Result<()> {
        let mut setting = self.setting();
        let wire = |(port, link): (&Arc<Port>, &Option<PathBuf>)| {
            Ok(match setting.backend {
                Backend::Loopback => Wire::Plug,
                Backend::Pty => Wire::Terminal(Pty::open(link.as_deref(), Arc::downgrade(port))?),
                Backend::None => Wire::Nothing,
            })
        };
        let wires = self.ports.iter().zip(&self.links).map(wire).collect::<Result<Vec<_>>>()?;
        for (port, wire) in self.ports.iter().zip(wires) {
            port.connect(wire);
        }
        setting.open = true;
        Ok(())
    }

    fn disconnect(&self) {
        let mut setting = self.setting();
        for port in &self.ports {
            port.disconnect();
        }
        setting.open = false;
    }
}

impl Model for Serial {
    type State = HasState;

    fn spec(&self) -> FunctionSpec {
        let spec = FunctionSpec::new(0x4348, 0x3253)
            .subsystem(0x4348, 0x3253)
            .revision(0x10)
            .class(0x07_00_02) // serial controller, compatible with the 16550
            .pin(Pin::A);
        (0..).zip(&self.wires.ports).fold(spec, |spec, (bar, _)| spec.bar(bar, Bar::io(8)))
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        for port in &self.wires.ports {
            port.use_interrupts(cx.interrupts().clone());
        }
        Ok(())
    }

    fn read(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        let port = &self.wires.ports[usize::from(bar)];
        REGISTERS.read(offset, data, |register| port.read(register).into());
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn write(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        let port = &self.wires.ports[usize::from(bar)];
        if let Some((register, value)) = REGISTERS.write(offset, data) {
            port.write(register, value as u8);
        }
    }

    /// What waits in a terminal is the outside's, and stays.
    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { wires } = self;
        for port in &wires.ports {
            port.reset();
        }
    }

    fn open(&mut self, _cx: &Cx<Self>) -> Result<()> {
        self.wires.connect()
    }

    fn close(&mut self, _cx: &Cx<Self>) {
        self.wires.disconnect();
    }
}

impl Save for Serial {
    const KIND: &'static str = "serial";
    const VERSION: u32 = 1;
    type Image = SerialImage;

    fn save(&self) -> SerialImage {
        let Self { wires } = self;
        let image =
            |port: usize| wires.ports.get(port).map_or_else(UartImage::default, |port| port.save());
        SerialImage { ports: [image(0), image(1)] }
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: SerialImage) -> Result<()> {
        let uarts = [image.ports[0].uart()?, image.ports[1].uart()?];
        for (port, uart) in self.wires.ports.iter().zip(uarts) {
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
