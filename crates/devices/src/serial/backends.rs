//! What the ports of a card are connected to, as its owner sees and sets it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::{Mutex, lock};

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

/// The backends of a card's ports. Usable from any thread, also while a callback of the card runs.
#[derive(Debug)]
pub struct Backends {
    setting: Mutex<Setting>,
}

#[derive(Debug)]
struct Setting {
    backend: Backend,
    /// While the card is open: the pseudo-terminal of each port that has one.
    terminals: Option<Vec<Option<PathBuf>>>,
}

impl Backends {
    pub(super) fn new(backend: Backend) -> Self {
        Self { setting: Mutex::new(Setting { backend, terminals: None }) }
    }

    /// What each port is connected to while the card is open.
    pub fn backend(&self) -> Backend {
        lock(&self.setting).backend
    }

    /// Sets what each port is connected to from the next first open on.
    ///
    /// # Errors
    /// `EBUSY`: the card is open.
    pub fn set_backend(&self, backend: Backend) -> Result<()> {
        let mut setting = lock(&self.setting);
        if setting.terminals.is_some() {
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
        lock(&self.setting).terminals.as_ref()?.get(port)?.clone()
    }

    /// Connects the ports: `connect` returns their terminals. The backend cannot change meanwhile.
    pub(super) fn connect(
        &self,
        connect: impl FnOnce(Backend) -> Result<Vec<Option<PathBuf>>>,
    ) -> Result<()> {
        let mut setting = lock(&self.setting);
        setting.terminals = Some(connect(setting.backend)?);
        Ok(())
    }

    /// The ports are not connected any more.
    pub(super) fn disconnect(&self) {
        lock(&self.setting).terminals = None;
    }
}
