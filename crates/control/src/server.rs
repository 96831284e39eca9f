//! Serves the API: its thread, its socket, and who may use it.

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use vfiod_manager::Manager;
use vfiod_server::Listener;

use crate::access::Access;
use crate::handler::WORKERS;
use crate::problem::Problem;
use crate::routes;
use crate::service::Service;

/// Threads that collect metrics.
const METRICS_WORKERS: usize = 1;
/// How long a rejected peer has to read its 403.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How many rejected peers get a 403 at the same time. Further ones are disconnected at once, so that
/// they cannot use up the daemon's descriptors.
const MAX_REJECTIONS: usize = 64;

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
        let service = Service::start("control", WORKERS, async move || {
            let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
            match UnixListener::from_std(listener) {
                Ok(listener) => {
                    let listener = Admitted { listener, access, rejections };
                    let _ = axum::serve(listener, routes::router(manager).0).await;
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
        let service =
            Service::start("metrics", METRICS_WORKERS, async move || match TcpListener::from_std(
                listener,
            ) {
                Ok(listener) => _ = axum::serve(listener, routes::metrics_router(manager)).await,
                Err(error) => tracing::error!(%error, "metrics cannot use their socket"),
            })?;
        tracing::info!(%address, "metrics are served");
        Ok(Self { _service: service })
    }
}

/// Opens the socket of [`Metrics`], before a sandbox forbids that.
///
/// # Errors
/// The address cannot be used.
pub fn listen_for_metrics(address: SocketAddr) -> anyhow::Result<StdTcpListener> {
    let listener = StdTcpListener::bind(address)
        .with_context(|| format!("cannot serve metrics at {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets in those who may.
struct Admitted {
    listener: UnixListener,
    access: Access,
    rejections: Arc<Semaphore>,
}

impl axum::serve::Listener for Admitted {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // Out of descriptors, it waits a moment and tries again.
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            match self.access.check(&stream) {
                Ok(()) => return (stream, address),
                Err(peer) => {
                    let Ok(place) = self.rejections.clone().try_acquire_owned() else { continue };
                    tracing::warn!(peer, "the control API was refused to a peer");
                    tokio::spawn(async move {
                        let _ =
                            tokio::time::timeout(REJECTION_TIMEOUT, turn_away(stream, peer)).await;
                        drop(place);
                    });
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

async fn turn_away(mut stream: UnixStream, peer: String) {
    let detail = format!(
        "{peer} may not use the control API; the configuration's `users` and `groups` under \
         [control] say who may"
    );
    let problem = Problem::new(axum::http::StatusCode::FORBIDDEN, detail);
    let Ok(body) = serde_json::to_string(&problem) else { return };
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Read the request before replying, and go on reading until the reply is taken: closing a socket
    // with unread data resets the connection, and the client would lose the reply.
    let mut said = [0; 4096];
    let _ = stream.read(&mut said).await;
    let _ = stream.write_all((head + &body).as_bytes()).await;
    let _ = stream.shutdown().await;
    while stream.read(&mut said).await.is_ok_and(|count| count > 0) {}
}
