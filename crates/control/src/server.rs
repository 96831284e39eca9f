//! Serves the API: its thread, its socket, and who may use it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::{TcpListener, UnixListener};
use vfiod_config::UsageError;
use vfiod_manager::Manager;
use vfiod_server::Listener;

use crate::access::Access;
use crate::connections::{self, Limits};
use crate::places::Places;
use crate::routes;
use crate::service::Service;

/// The API, served. Dropping it ends it.
pub struct Control {
    // Before the socket's file is removed.
    _service: Service,
    /// Removes the socket when it is dropped.
    socket: Listener,
}

impl Control {
    /// Serves the API on a socket to those who may use it.
    ///
    /// # Errors
    /// Errors of the kernel: no thread or no descriptor left.
    pub fn start(
        manager: Arc<Manager>,
        socket: Listener,
        users: Vec<u32>,
        groups: Vec<u32>,
    ) -> anyhow::Result<Self> {
        // No request has any.
        vfiod_sockets::refuse_descriptors(&socket);
        let listener = StdListener::from(socket.as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let access = Access::new(users, groups);
        let limits = Limits::DEFAULT;
        let places = Places::by_user(limits.connections);
        let service = Service::start("control", |threads| {
            let router = routes::router(manager, threads, places.clone()).0;
            async move || match UnixListener::from_std(listener) {
                Ok(listener) => {
                    connections::serve((listener, access), router, places, limits).await;
                }
                Err(error) => tracing::error!(%error, "the control API cannot use its socket"),
            }
        })?;
        Ok(Self { _service: service, socket })
    }
}

impl Control {
    /// Gives the socket its name, if it has none yet.
    ///
    /// # Errors
    /// Errors of the kernel; somebody listens there since the socket was prepared.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        Ok(self.socket.publish()?)
    }
}

/// Metrics on a TCP address, for whoever reaches it. Dropping it ends it.
pub struct Metrics {
    _service: Service,
}

impl Metrics {
    /// Serves `/metrics`, and nothing else, at an address.
    ///
    /// # Errors
    /// No thread or no descriptor left.
    pub fn start(manager: Arc<Manager>, listener: StdTcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let limits = Limits::DEFAULT;
        let places = Places::by_host(limits.connections);
        let service = Service::start("metrics", |threads| {
            let router = routes::metrics_router(manager, threads, places.clone());
            async move || match TcpListener::from_std(listener) {
                Ok(listener) => connections::serve(listener, router, places, limits).await,
                Err(error) => tracing::error!(%error, "metrics cannot use their socket"),
            }
        })?;
        tracing::info!(%address, "metrics are served");
        Ok(Self { _service: service })
    }
}

/// Opens the socket of [`Metrics`], before a sandbox forbids that.
///
/// # Errors
/// The address cannot be used. [`UsageError`]: this machine does not have it.
pub fn listen_for_metrics(address: SocketAddr) -> anyhow::Result<StdTcpListener> {
    let listener = match StdTcpListener::bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            let what = format!("metrics.listen: this machine does not have the address {address}");
            return Err(UsageError(what).into());
        }
        bound => bound.with_context(|| format!("cannot serve metrics at {address}"))?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}
