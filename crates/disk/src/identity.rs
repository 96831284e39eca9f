//! Who a disk is, for a guest: made with the disk, kept beside it, derived from nothing.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vfiod_dma::{Errno, Error, Result};

/// Names and numbers by which a guest tells disks apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Serial number: 1 to 20 printable ASCII characters, without a space at either end.
    pub serial: String,
    /// The subsystem's qualified name, `nqn.` and so on: at most 223 bytes.
    pub nqn: String,
    /// The controller's number in its subsystem, 1 to 0xffef.
    pub controller: u16,
    /// The namespace's globally unique identifier, not 0.
    #[serde(with = "hex::serde")]
    pub nguid: [u8; 16],
    /// The namespace's UUID, not 0.
    pub uuid: Uuid,
}

impl Identity {
    /// A new one, that no other disk has.
    pub fn random() -> Self {
        let (serial, subsystem) = (Uuid::new_v4().simple().to_string(), Uuid::new_v4());
        // The company's number in it is one that nobody is assigned: locally administered, not a group's.
        let mut nguid = *Uuid::new_v4().as_bytes();
        nguid[8] = nguid[8] & 0xfc | 0x02;
        Self {
            serial: format!("VFIOD{}", &serial[..15]),
            nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{subsystem}"),
            controller: 1,
            nguid,
            uuid: Uuid::new_v4(),
        }
    }

    /// Whether a guest can be given it.
    ///
    /// # Errors
    /// `EINVAL`: what is wrong, and what would be right.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Errno::INVAL, what));
        let serial = self.serial.as_str();
        let printable = serial.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if !(1..=20).contains(&serial.len()) || !printable || serial.trim() != serial {
            return refuse(format!(
                "serial number {serial:?}: 1 to 20 printable ASCII characters, no space at either end"
            ));
        }
        let graphic = self.nqn.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.nqn.starts_with("nqn.") || self.nqn.len() > 223 || !graphic {
            return refuse(format!(
                "subsystem name {:?}: `nqn.`, then printable ASCII characters, 223 in all at most",
                self.nqn
            ));
        }
        if !(1..=0xffef).contains(&self.controller) {
            return refuse(format!("controller number {}: 1 to 65519", self.controller));
        }
        if self.nguid == [0; 16] || self.uuid.is_nil() {
            return refuse("an NGUID or UUID of zeroes stands for none".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_identities_are_right_and_differ() {
        let [first, second] = [Identity::random(), Identity::random()];
        for identity in [&first, &second] {
            identity.check().unwrap();
            assert_eq!((identity.serial.len(), identity.nguid[8] & 3), (20, 2));
        }
        assert_ne!(first.serial, second.serial);
        assert_ne!(first.nqn, second.nqn);
        assert_ne!(first.nguid, second.nguid);
        assert_ne!(first.uuid, second.uuid);
    }

    type Change = fn(&mut Identity);

    #[test]
    fn identities_that_a_guest_cannot_have_are_refused() {
        let changes: [(Change, &str); 9] = [
            (|identity| identity.serial.clear(), "serial number \"\""),
            (|identity| identity.serial = " a".to_owned(), "serial number"),
            (|identity| identity.serial = "a\u{7f}".to_owned(), "serial number"),
            (|identity| identity.serial = "ä".to_owned(), "serial number"),
            (|identity| identity.serial = "a".repeat(21), "serial number"),
            (|identity| identity.nqn = "iqn.x".to_owned(), "subsystem name"),
            (|identity| identity.nqn = format!("nqn.{}", "a".repeat(220)), "subsystem name"),
            (|identity| identity.controller = 0, "controller number 0"),
            (|identity| identity.nguid = [0; 16], "of zeroes"),
        ];
        for (change, expected) in changes {
            let mut identity = Identity::random();
            change(&mut identity);
            let error = identity.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
