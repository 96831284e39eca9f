//! Objects: what a container has in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A container: its objects and its portal.
    Dprc,
    /// A command portal.
    Dpmcp,
    /// A pool of buffers.
    Dpbp,
    /// A concentrator of notifications.
    Dpcon,
}

impl Kind {
    /// All kinds; a saved image has their places in this list.
    pub(crate) const ALL: [Self; 4] = [Self::Dprc, Self::Dpmcp, Self::Dpbp, Self::Dpcon];

    /// What can be in a container, but containers.
    pub const OBJECTS: [Self; 3] = [Self::Dpmcp, Self::Dpbp, Self::Dpcon];

    /// Its name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dprc => "dprc",
            Self::Dpmcp => "dpmcp",
            Self::Dpbp => "dpbp",
            Self::Dpcon => "dpcon",
        }
    }

    /// The version of its commands that is spoken here: those of Linux at least.
    pub(crate) fn version(self) -> (u16, u16) {
        match self {
            Self::Dprc => (6, 5),
            Self::Dpmcp => (3, 1),
            Self::Dpbp | Self::Dpcon => (3, 2),
        }
    }

    /// How many regions it has: portals.
    pub(crate) fn regions(self) -> u8 {
        match self {
            Self::Dprc | Self::Dpmcp => 1,
            Self::Dpbp | Self::Dpcon => 0,
        }
    }

    /// How many interrupts it has.
    pub(crate) fn irqs(self) -> u8 {
        1
    }

    /// The kind of a name as it comes in a command.
    pub(crate) fn of(name: &[u8; 16]) -> Option<Self> {
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == &name[..length])
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::OBJECTS.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let known = Self::OBJECTS.map(Self::name).join(", ");
            let what = format!("there is no kind of object `{text}`; kinds: {known}");
            Error::new(Errno::INVAL, what)
        })
    }
}

/// An object's name in its Management Complex: kind and number, such as `dpbp.7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectId {
    /// What it is.
    pub kind: Kind,
    /// Which of its kind.
    pub id: u32,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.id)
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ObjectId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once('.').and_then(|(kind, id)| {
            let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
            Some(Self { kind, id: id.parse().ok()? })
        });
        parts.ok_or_else(|| format!("`{}` is no object", text.escape_debug()))
    }
}
