//! The API at work: its thread, its socket, and who may use it.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use vfiod_manager::Manager;
use vfiod_server::Listener;

use crate::access::Access;
use crate::problem::Problem;
use crate::routes;

/// Threads for what waits: as many as there can be slow operations at the same time.
const WORKERS: usize = 32;
/// How long a peer that may not has for taking note of it.
const FAREWELL: Duration = Duration::from_secs(1);
/// How many of them are told at the same time; further ones are disconnected without a word, so that
/// they cannot take up the daemon's descriptors.
const FAREWELLS: usize = 64;
/// How long operations that are running have when the daemon ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// The API at work. Dropping it ends it.
pub struct Control {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Removes the socket when it is dropped.
    _socket: Listener,
}

impl Control {
    /// Serves the API on a socket to those who may use it.
    ///
    /// # Errors
    /// What the kernel says to a thread or a descriptor more.
    pub fn start(
        manager: Arc<Manager>,
        socket: Listener,
        users: Vec<u32>,
        groups: Vec<u32>,
    ) -> anyhow::Result<Self> {
        use std::os::fd::AsFd;
        let listener = StdListener::from(socket.as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(WORKERS)
            .thread_name("control")
            .build()
            .context("cannot start the control API")?;
        let (stop, stopped) = oneshot::channel();
        let access = Access::new(users, groups);
        let serve = move || {
            runtime.block_on(async {
                let listener = match UnixListener::from_std(listener) {
                    Ok(listener) => {
                        let farewells = Arc::new(Semaphore::new(FAREWELLS));
                        Admitted { listener, access, farewells }
                    }
                    Err(error) => {
                        tracing::error!(%error, "the control API cannot use its socket");
                        return;
                    }
                };
                let serving = axum::serve(listener, routes::router(manager).0);
                tokio::select! {
                    _ = serving => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(PATIENCE);
        };
        let thread = std::thread::Builder::new().name("control".into()).spawn(serve)?;
        Ok(Self { stop: Some(stop), thread: Some(thread), _socket: socket })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets in those who may.
struct Admitted {
    listener: UnixListener,
    access: Access,
    farewells: Arc<Semaphore>,
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
                    let Ok(place) = self.farewells.clone().try_acquire_owned() else { continue };
                    tracing::warn!(peer, "the control API was refused to a peer");
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(FAREWELL, turn_away(stream, peer)).await;
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
    // A client takes an answer to what it has asked for, and none that a reset came after: what it
    // asks is read, and what it says until it has the answer.
    let mut said = [0; 4096];
    let _ = stream.read(&mut said).await;
    let _ = stream.write_all((head + &body).as_bytes()).await;
    let _ = stream.shutdown().await;
    while stream.read(&mut said).await.is_ok_and(|count| count > 0) {}
}
