//! The sockets of mediated devices: by their UUID, in one directory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use uuid::Uuid;
use vfiod_core::{DeviceRef, Result};
use vfiod_mdev::{Endpoint, NoEndpoint};
use vfiod_quota::{Resource, Usage};
use vfiod_server::{
    ConnectionInfo, ConnectionTotals, Departures, Listener, Publisher, Served, Site, SocketAccess,
};

use crate::sockets::{access_of, prepare};
use crate::stack::Stack;

/// The directory of the sockets, and the instances that are served.
pub(super) struct Endpoints {
    directory: Option<PathBuf>,
    access: SocketAccess,
    open: Mutex<Open>,
}

/// The instances that can be opened, or could be if the daemon served already.
#[derive(Default)]
struct Open {
    served: HashMap<Uuid, Served>,
    /// Until the daemon serves: their sockets, which have no names before they are published.
    prepared: Vec<(Uuid, Listener, DeviceRef)>,
    /// Whether sockets have their names.
    published: bool,
    serving: bool,
}

impl Open {
    fn take_prepared(&mut self, uuid: Uuid) -> Option<(Uuid, Listener, DeviceRef)> {
        let at = self.prepared.iter().position(|(prepared, ..)| *prepared == uuid)?;
        Some(self.prepared.swap_remove(at))
    }
}

impl Endpoints {
    /// Sockets in a directory, which is made if need be; without one, instances have none. Sockets
    /// of instances of a daemon that was killed are removed.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(super) fn new(
        directory: Option<PathBuf>,
        access: vfiod_config::SocketAccess,
    ) -> anyhow::Result<Arc<Self>> {
        if let Some(path) = &directory {
            check(path, access, Site::Free)?;
            let place = path.clone();
            vfiod_directories::in_directory(path, move || remove_left_behind(&place))?;
        }
        let access = access_of(access);
        Ok(Arc::new(Self { directory, access, open: Mutex::default() }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
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
        let mut listener = Listener::prepare(path, self.access, Site::Free)?;
        let mut open = self.open();
        if open.published {
            // Without the table's lock, and once for all: sockets stay published.
            drop(open);
            listener.publish()?;
            open = self.open();
        }
        if open.serving {
            let served = stack.server().serve(listener, device.clone())?;
            open.served.insert(uuid, served);
        } else {
            open.prepared.push((uuid, listener, device.clone()));
        }
        Ok(Box::new(SocketEndpoint { endpoints: self.clone(), uuid }))
    }

    /// Gives the sockets of all instances their names. Nobody is served yet.
    ///
    /// # Errors
    /// Errors of the kernel; somebody listens there since it was prepared.
    pub(super) fn publish(&self) -> Result<()> {
        let mut open = self.open();
        open.published = true;
        let listeners = open.prepared.iter().map(|(_, listener, _)| listener);
        let publishers: Vec<_> = listeners.filter_map(Listener::publisher).collect();
        drop(open);
        publishers.iter().try_for_each(Publisher::publish)
    }

    /// Serves every instance, and from now on each as soon as it is created.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub(super) fn serve(&self, stack: &Stack) -> Result<()> {
        let mut open = self.open();
        open.serving = true;
        for (uuid, listener, device) in std::mem::take(&mut open.prepared) {
            let served = stack.server().serve(listener, device)?;
            open.served.insert(uuid, served);
        }
        Ok(())
    }

    /// The connections to an instance.
    pub(super) fn clients(&self, uuid: Uuid) -> Vec<ConnectionInfo> {
        self.open().served.get(&uuid).map_or_else(Vec::new, Served::clients)
    }

    /// What an instance has of its share of a resource.
    pub(super) fn usage(&self, uuid: Uuid, resource: Resource) -> Option<Usage> {
        self.open().served.get(&uuid).map(|served| served.usage(resource))
    }

    /// The clients of an instance that have hung up.
    pub(super) fn departures(&self, uuid: Uuid) -> Option<Departures> {
        self.open().served.get(&uuid).map(Served::departures)
    }

    /// What was counted on all connections to an instance.
    pub(super) fn totals(&self, uuid: Uuid) -> ConnectionTotals {
        self.open().served.get(&uuid).map_or_else(ConnectionTotals::default, Served::totals)
    }
}

/// The socket of one instance.
struct SocketEndpoint {
    endpoints: Arc<Endpoints>,
    uuid: Uuid,
}

impl Endpoint for SocketEndpoint {
    fn stop_listening(&mut self) {
        // Dropped with the table unlocked: it may take a moment to remove a name.
        let mut open = self.endpoints.open();
        let prepared = open.take_prepared(self.uuid);
        let listening = open.served.get_mut(&self.uuid).and_then(Served::take_listening);
        drop(open);
        drop((prepared, listening));
    }
}

impl Drop for SocketEndpoint {
    fn drop(&mut self) {
        // Ended with the table unlocked, as that takes a moment.
        let mut open = self.endpoints.open();
        let prepared = open.take_prepared(self.uuid);
        let served = open.served.remove(&self.uuid);
        drop(open);
        drop((prepared, served));
    }
}

/// Checks that sockets can be made in a directory.
///
/// # Errors
/// Errors of the kernel; a directory that cannot be one is a `UsageError`.
pub(crate) fn check(
    directory: &Path,
    access: vfiod_config::SocketAccess,
    site: Site,
) -> anyhow::Result<()> {
    let path = directory.join(format!("{}.sock", Uuid::nil()));
    drop(prepare(&path, access, site).context("the sockets of instances")?);
    Ok(())
}

/// Removes the sockets of instances that nobody serves any more: their daemon was killed.
fn remove_left_behind(directory: &Path) {
    vfiod_sockets::remove_leftovers(directory);
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let uuid = name.to_str().and_then(|name| name.strip_suffix(".sock"));
        let is_ours = uuid.is_some_and(|uuid| Uuid::try_parse(uuid).is_ok());
        if is_ours && vfiod_sockets::remove_if_stale(&entry.path()) {
            tracing::info!(path = %entry.path().display(), "removed the socket of a dead daemon");
        }
    }
}
