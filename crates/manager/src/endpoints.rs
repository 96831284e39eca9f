//! The sockets of mediated devices: by their UUID, in one directory.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;
use vfiod_core::{DeviceRef, Errno, Error, Result};
use vfiod_mdev::{Endpoint, NoEndpoint};
use vfiod_server::{
    ConnectionInfo, ConnectionTotals, ConnectionUsage, Departures, Listener, Served, SocketAccess,
};

use crate::stack::Stack;

/// The directory of the sockets, and the instances that are served.
pub(super) struct Endpoints {
    directory: Option<PathBuf>,
    access: SocketAccess,
    open: Mutex<HashMap<Uuid, Served>>,
}

impl Endpoints {
    /// Sockets in a directory, which is made if need be; without one, instances have none.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(super) fn new(directory: Option<PathBuf>, access: SocketAccess) -> Result<Arc<Self>> {
        if let Some(path) = &directory {
            fs::create_dir_all(path).map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Error::new(errno, format!("cannot make the directory {}", path.display()))
            })?;
        }
        Ok(Arc::new(Self { directory, access, open: Mutex::default() }))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Uuid, Served>> {
        vfiod_sync::lock(&self.open)
    }

    /// Where an instance's clients connect.
    pub(super) fn path(&self, uuid: Uuid) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{uuid}.sock")))
    }

    /// Starts to serve an instance.
    ///
    /// # Errors
    /// Errors of the socket or the kernel.
    pub(super) fn make(
        self: &Arc<Self>,
        stack: &Stack,
        uuid: Uuid,
        device: &DeviceRef,
    ) -> Result<Box<dyn Endpoint>> {
        let Some(path) = self.path(uuid) else { return Ok(Box::new(NoEndpoint)) };
        let listener = Listener::bind(path, self.access)?;
        let served = stack.server().serve(listener, device.clone())?;
        self.open().insert(uuid, served);
        Ok(Box::new(SocketEndpoint { endpoints: self.clone(), uuid }))
    }

    /// The connections to an instance.
    pub(super) fn clients(&self, uuid: Uuid) -> Vec<ConnectionInfo> {
        self.open().get(&uuid).map_or_else(Vec::new, Served::clients)
    }

    /// The connections of those that an instance has for itself.
    pub(super) fn own_connections(&self, uuid: Uuid) -> Option<ConnectionUsage> {
        self.open().get(&uuid).map(Served::own_connections)
    }

    /// The clients of an instance that have hung up.
    pub(super) fn departures(&self, uuid: Uuid) -> Option<Departures> {
        self.open().get(&uuid).map(Served::departures)
    }

    /// What was counted on all connections to an instance.
    pub(super) fn totals(&self, uuid: Uuid) -> ConnectionTotals {
        self.open().get(&uuid).map_or_else(ConnectionTotals::default, Served::totals)
    }
}

/// The socket of one instance.
struct SocketEndpoint {
    endpoints: Arc<Endpoints>,
    uuid: Uuid,
}

impl Endpoint for SocketEndpoint {
    fn stop_listening(&mut self) {
        if let Some(served) = self.endpoints.open().get_mut(&self.uuid) {
            served.stop_listening();
        }
    }
}

impl Drop for SocketEndpoint {
    fn drop(&mut self) {
        // Ended with the table unlocked, as that takes a moment.
        let served = self.endpoints.open().remove(&self.uuid);
        drop(served);
    }
}
