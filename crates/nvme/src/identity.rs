//! What a controller and its subsystem are called.

use vfiod_core::{Errno, Error, Result};

/// FR: the version of this crate.
pub(crate) const FIRMWARE: &str = env!("CARGO_PKG_VERSION");

/// What a controller and its subsystem are called (5.17.2.1). It does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) serial: String,
    pub(crate) model: String,
    /// SUBNQN.
    pub(crate) subsystem_name: String,
    /// CNTLID.
    pub(crate) controller: u16,
}

impl Identity {
    /// What the controller of a disk is called that has this serial number and UUID.
    pub(crate) fn named(serial: String, uuid: uuid::Uuid) -> Self {
        Self {
            serial,
            model: "vfiod NVMe disk".to_owned(),
            subsystem_name: format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"),
            controller: 0,
        }
    }

    /// That each is printable ASCII, not empty, and fits its field.
    ///
    /// # Errors
    /// `EINVAL`.
    pub(crate) fn check(&self) -> Result<()> {
        let fields = [
            ("serial number", &self.serial, 20),
            ("model", &self.model, 40),
            ("subsystem name", &self.subsystem_name, 223),
        ];
        for (what, text, most) in fields {
            let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if text.trim().is_empty() || text.len() > most || !printable {
                let what =
                    format!("{what} {text:?}; must be 1 to {most} printable ASCII characters");
                return Err(Error::new(Errno::INVAL, what));
            }
        }
        Ok(())
    }
}
