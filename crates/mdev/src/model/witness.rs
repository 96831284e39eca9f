//! A parent, devices and endpoints that watch how the bus treats them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;
use vfiod_core::device::Request;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, Region, RegionIndex, ResetCause, Result,
};

use crate::{Endpoint, NewInstance, Parent};

/// What they have seen. Its lock is std's, which the checker does not see, and is never held where
/// the checker may switch.
#[derive(Default)]
pub(super) struct Ledger {
    state: Mutex<State>,
    /// A place where the checker may switch.
    point: shuttle::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Devices that there are.
    alive: HashSet<Uuid>,
    open: HashSet<Uuid>,
    /// Endpoints that there are, and whether each has stopped listening.
    endpoints: HashMap<Uuid, bool>,
    parent_gone: bool,
    capacity: usize,
    asked: bool,
}

impl Ledger {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        let state = State { capacity, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), ..Self::default() })
    }

    fn pause(&self) {
        drop(self.point.lock());
    }

    fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a user was asked to close the device.
    pub(super) fn asked(&self) -> bool {
        self.with(|state| state.asked)
    }

    /// Nothing is left.
    pub(super) fn assert_empty(&self) {
        self.with(|state| {
            assert!(state.alive.is_empty(), "devices are left: {:?}", state.alive);
            assert!(state.endpoints.is_empty(), "endpoints are left");
        });
    }
}

/// Makes witnesses.
pub(super) struct Maker(pub(super) Arc<Ledger>);

impl Parent for Maker {
    fn check_attribute(&self, _type_id: &str, _name: &str, _value: &str) -> Result<()> {
        Ok(())
    }

    fn create(&self, _type_id: &str, uuid: Uuid) -> Result<NewInstance> {
        let ledger = self.0.clone();
        ledger.pause();
        ledger.with(|state| {
            assert!(!state.parent_gone, "made by a parent that has gone");
            assert!(state.alive.insert(uuid), "two devices of one UUID");
            assert!(state.alive.len() <= state.capacity, "more instances than units");
        });
        Ok(NewInstance { device: Box::new(Witness { uuid, ledger }), attributes: None })
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the model has failed already
        }
        self.0.with(|state| {
            assert!(state.alive.is_empty(), "an instance outlives its parent");
            state.parent_gone = true;
        });
    }
}

/// The way in of one instance.
pub(super) struct Watched {
    uuid: Uuid,
    ledger: Arc<Ledger>,
}

impl Watched {
    pub(super) fn open(uuid: Uuid, ledger: &Arc<Ledger>) -> Self {
        let twice = ledger.with(|state| state.endpoints.insert(uuid, false));
        assert!(twice.is_none(), "two endpoints of one instance");
        Self { uuid, ledger: ledger.clone() }
    }
}

impl Endpoint for Watched {
    fn stop_listening(&mut self) {
        self.ledger.pause();
        let before = self.ledger.with(|state| state.endpoints.insert(self.uuid, true));
        assert_eq!(before, Some(false), "stopped listening twice");
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the model has failed already
        }
        self.ledger.with(|state| {
            assert!(!state.alive.contains(&self.uuid), "the endpoint went before the device");
            assert_eq!(
                state.endpoints.remove(&self.uuid),
                Some(true),
                "an endpoint was dropped while listening"
            );
        });
    }
}

struct Witness {
    uuid: Uuid,
    ledger: Arc<Ledger>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the model has failed already
        }
        self.ledger.pause();
        self.ledger.with(|state| {
            assert!(!state.open.contains(&self.uuid), "dropped while open");
            assert!(state.alive.remove(&self.uuid), "dropped twice");
        });
    }
}

impl Device for Witness {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let regions = vec![Region::registers(4)];
        Description { flags: DeviceFlags::RESET, regions, irqs: Vec::new() }
    }

    fn init(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        self.ledger.pause();
        assert!(self.ledger.with(|state| state.open.insert(self.uuid)), "opened while open");
        Ok(())
    }

    fn close_device(&mut self) {
        self.ledger.pause();
        assert!(self.ledger.with(|state| state.open.remove(&self.uuid)), "closed while closed");
    }

    fn read(&mut self, _: RegionIndex, _: u64, data: &mut [u8]) -> Result<()> {
        assert!(self.ledger.with(|state| state.open.contains(&self.uuid)), "read while closed");
        data.fill(0);
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        self.ledger.pause();
        Ok(())
    }

    fn as_request(&mut self) -> Option<&mut dyn Request> {
        Some(self)
    }
}

impl Request for Witness {
    fn request(&mut self, _: u32) -> bool {
        self.ledger.with(|state| {
            state.asked = true;
            assert_eq!(
                state.endpoints.get(&self.uuid),
                Some(&true),
                "asked with the endpoint open"
            );
        });
        true
    }
}
