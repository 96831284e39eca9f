//! SR-IOV: a physical function, its virtual functions, and the VF token that their users share.
//!
//! The configuration of the devices sets up virtual functions, not the user of the physical function,
//! who can read the SR-IOV capability and not write it, as with the kernel's `vfio-pci`. A virtual
//! function looks as it does with `vfio-pci`: it has its real ids and base address registers, and no
//! INTx. It is a device set of its own.
//!
//! # The VF token
//! Users of virtual functions have to trust the user of the physical function, who can disturb them.
//! So both prove that they belong together by a token, as in the kernel's
//! `vfio_pci_validate_vf_token`:
//!
//! | who opens | with | outcome |
//! | --- | --- | --- |
//! | a virtual function | the token that was set | opened |
//! | a virtual function | none, or another; or none was set | `EACCES` |
//! | the physical function, no virtual one being open | a token | opened, and the token is set |
//! | the physical function, no virtual one being open | none | opened |
//! | the physical function, a virtual one being open | the token that was set | opened |
//! | the physical function, a virtual one being open | none, or another | `EACCES` |
//! | any other function | a token | `EINVAL` |
//!
//! The physical function's user sets the token at any time by DEVICE_FEATURE 0
//! (`VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`), 16 bytes.

use std::fmt;
use std::sync::Arc;

use vfiod_core::device::Token;
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::{Mutex, MutexGuard, lock};

use crate::address::Address;
use crate::masked_bytes::MaskedBytes;

/// `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`.
pub(crate) const TOKEN_FEATURE: u16 = 0;

/// The virtual functions of a physical one (PCIe 9.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualFunctions {
    /// How many there can be (TotalVFs), at least 1.
    pub total: u16,
    /// How many there are (NumVFs).
    pub count: u16,
    /// How far the first is from the physical one (First VF Offset), in functions: eight to a
    /// device number.
    pub offset: u16,
    /// How far each is from the one before (VF Stride).
    pub stride: u16,
}

impl VirtualFunctions {
    /// As many as that, all of them there, from half the bus away, one behind the other.
    pub fn new(total: u16) -> Self {
        Self { total, count: total, offset: 128, stride: 1 }
    }

    /// Where a virtual function of this number, from 0, is for a physical one in a place.
    /// `None`: there is no such number, or it would be on another bus.
    pub fn address(&self, physical: Address, number: u16) -> Option<Address> {
        if number >= self.total {
            return None;
        }
        let first = u32::from(physical.device) * 8 + u32::from(physical.function);
        let at = first + u32::from(self.offset) + u32::from(number) * u32::from(self.stride);
        let at = u8::try_from(at).ok()?;
        Some(Address { device: at >> 3, function: at & 7, ..physical })
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(Errno::INVAL, format!("SR-IOV: {what}")));
        if self.total == 0 || self.count > self.total {
            return bad(format!("{} of {} virtual functions", self.count, self.total));
        }
        if self.offset == 0 || (self.stride == 0 && self.total > 1) {
            return bad(format!("offset {} and stride {}", self.offset, self.stride));
        }
        Ok(())
    }

    /// The capability behind its header. The physical function's user can write nothing of it.
    pub(crate) fn image(&self, device: u16) -> MaskedBytes {
        let mut image = MaskedBytes::new(0x40 - 4);
        let enabled = self.count > 0;
        // Control: VF Enable and VF Memory Space Enable (9.3.3.3).
        image.set16(0x04, if enabled { 0x0009 } else { 0 }, 0);
        // InitialVFs, TotalVFs, NumVFs (9.3.3.5 to 9.3.3.7).
        image.set16(0x08, self.total, 0);
        image.set16(0x0a, self.total, 0);
        image.set16(0x0c, self.count, 0);
        // First VF Offset, VF Stride, VF Device ID (9.3.3.9 to 9.3.3.11).
        image.set16(0x10, self.offset, 0);
        image.set16(0x12, if self.total > 1 { self.stride } else { 0 }, 0);
        image.set16(0x16, device, 0);
        // Supported Page Sizes: those that every device must support; System Page Size: 4 KiB
        // (9.3.3.12, 9.3.3.13).
        image.set32(0x18, 0x0000_0553, 0);
        image.set32(0x1c, 0x0000_0001, 0);
        image
    }
}

/// What a physical function and its virtual ones share. One for each physical function.
#[derive(Clone)]
pub struct Sriov {
    functions: VirtualFunctions,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// `None`: no token matches. The kernel has a random token in this state.
    token: Option<Token>,
    /// Virtual functions that are open.
    users: usize,
}

impl fmt::Debug for Sriov {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = self.state().users;
        f.debug_struct("Sriov").field("functions", &self.functions).field("users", &users).finish()
    }
}

/// What a function is to its SR-IOV siblings.
#[derive(Clone, Debug, Default)]
pub enum Role {
    /// It has none.
    #[default]
    Alone,
    /// The physical function.
    Physical(Sriov),
    /// A virtual function.
    Virtual(Sriov),
}

fn denied(what: &str) -> Error {
    Error::new(Errno::ACCESS, format!("the VF token is {what}"))
}

impl Sriov {
    /// Of a physical function that has these virtual ones.
    ///
    /// # Errors
    /// `EINVAL`: none, more of them than there can be, or in one place.
    pub fn new(functions: VirtualFunctions) -> Result<Self> {
        functions.check()?;
        Ok(Self { functions, state: Arc::default() })
    }

    /// The virtual functions.
    pub fn functions(&self) -> VirtualFunctions {
        self.functions
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn set_token(&self, token: Token) {
        self.state().token = Some(token);
    }
}

impl State {
    fn check(&self, token: Option<Token>) -> Result<()> {
        let Some(token) = token else { return Err(denied("missing")) };
        if self.token == Some(token) { Ok(()) } else { Err(denied("not the one that was set")) }
    }
}

impl Role {
    pub(crate) fn admit(&self, token: Option<Token>) -> Result<()> {
        match self {
            Self::Alone if token.is_none() => Ok(()),
            Self::Alone => {
                let what = "a VF token for what is neither a physical nor a virtual function";
                Err(Error::new(Errno::INVAL, what))
            }
            Self::Virtual(sriov) => sriov.state().check(token),
            Self::Physical(sriov) => {
                let mut state = sriov.state();
                if state.users > 0 {
                    return state.check(token);
                }
                state.token = token.or(state.token);
                Ok(())
            }
        }
    }

    /// The first open of a function, or the last close.
    pub(crate) fn count_user(&self, open: bool) {
        if let Self::Virtual(sriov) = self {
            let mut state = sriov.state();
            state.users = if open { state.users + 1 } else { state.users.saturating_sub(1) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<Token> = Some(Token([1; 16]));
    const B: Option<Token> = Some(Token([2; 16]));

    #[track_caller]
    fn errno(result: Result<()>) -> Option<Errno> {
        result.err().map(|error| error.errno())
    }

    /// The table above, row by row.
    #[test]
    fn who_is_admitted() {
        let sriov = Sriov::new(VirtualFunctions::new(2)).unwrap();
        let (pf, vf) = (Role::Physical(sriov.clone()), Role::Virtual(sriov.clone()));
        for token in [None, A, Some(Token([0; 16]))] {
            assert_eq!(errno(vf.admit(token)), Some(Errno::ACCESS), "none was set");
        }
        pf.admit(None).unwrap();
        assert_eq!(errno(vf.admit(A)), Some(Errno::ACCESS), "none was set");
        pf.admit(A).unwrap();
        vf.admit(A).unwrap();
        assert_eq!(errno(vf.admit(B)), Some(Errno::ACCESS));
        assert_eq!(errno(vf.admit(None)), Some(Errno::ACCESS));
        // Kept, if its user comes back without one.
        pf.admit(None).unwrap();
        vf.admit(A).unwrap();

        vf.count_user(true);
        assert_eq!(errno(pf.admit(None)), Some(Errno::ACCESS));
        assert_eq!(errno(pf.admit(B)), Some(Errno::ACCESS));
        pf.admit(A).unwrap();
        // By its user at any time.
        sriov.set_token(Token([2; 16]));
        pf.admit(B).unwrap();
        vf.admit(B).unwrap();
        vf.count_user(false);
        pf.admit(A).unwrap();
        vf.admit(A).unwrap();

        Role::Alone.admit(None).unwrap();
        assert_eq!(errno(Role::Alone.admit(A)), Some(Errno::INVAL));
    }

    #[test]
    fn places_of_virtual_functions() {
        let at = |text: &str| text.parse::<Address>().unwrap();
        let functions = VirtualFunctions { stride: 2, ..VirtualFunctions::new(64) };
        assert_eq!(functions.address(at("01:02.1"), 0), Some(at("01:12.1")));
        assert_eq!(functions.address(at("01:02.1"), 4), Some(at("01:13.1")));
        assert_eq!(functions.address(at("01:02.1"), 55), Some(at("01:1f.7")));
        assert_eq!(functions.address(at("01:02.1"), 56), None, "past the bus");
        assert_eq!(VirtualFunctions::new(4).address(at("0:0.0"), 4), None);
    }

    #[test]
    fn numbers_that_contradict_each_other() {
        let one = VirtualFunctions::new(1);
        let wrong = [
            VirtualFunctions::new(0),
            VirtualFunctions { count: 2, ..one },
            VirtualFunctions { offset: 0, ..one },
            VirtualFunctions { stride: 0, ..VirtualFunctions::new(2) },
        ];
        for wrong in wrong {
            assert_eq!(Sriov::new(wrong).unwrap_err().errno(), Errno::INVAL, "{wrong:?}");
        }
        Sriov::new(VirtualFunctions { stride: 0, ..one }).unwrap();
    }
}
