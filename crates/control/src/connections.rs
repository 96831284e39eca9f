//! Connections to the API: how many there are, and how long one may be idle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use vfiod_quota::Lines;

use crate::access::{Access, Identified};
use crate::caller::{Caller, Pace};
use crate::paced::{Paced, Socket};
use crate::places::{Peer, Places};
use crate::problem::Problem;

/// Memory for what a connection receives: for the longest head of a request.
const BUFFER: usize = 16 << 10;
/// How long to wait where the kernel has no descriptor, or no memory, for a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a rejected peer has to read why.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How many rejected peers are told why at the same time; they have places as connections have. Further
/// ones are disconnected at once, so that they cannot use up the daemon's descriptors.
const MAX_REJECTIONS: usize = 64;

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at the same time, of all users.
    pub(crate) connections: usize,
    /// How long a connection may be without a request before it is closed. The head of a request must
    /// have arrived within this time. A reply may take longer, and a watch has no end.
    pub(crate) idle: Duration,
    /// How long a peer may take to read a reply that is no watch.
    pub(crate) reply: Duration,
}

impl Limits {
    pub(crate) const DEFAULT: Self =
        Self { connections: 256, idle: Duration::from_secs(30), reply: Duration::from_secs(30) };
}

/// Where connections come from.
pub(crate) trait Listener {
    type Stream: Socket;

    async fn accept(&self) -> std::io::Result<Self::Stream>;
    /// Who is at the other end of the connection of this number, and whether they may use the API.
    fn identify(&self, stream: &Self::Stream, connection: u64) -> Identified;
}

impl Listener for (UnixListener, Access) {
    type Stream = UnixStream;

    async fn accept(&self) -> std::io::Result<UnixStream> {
        Ok(self.0.accept().await?.0)
    }

    fn identify(&self, stream: &UnixStream, connection: u64) -> Identified {
        self.1.identify(stream, connection)
    }
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Ok(TcpListener::accept(self).await?.0)
    }

    fn identify(&self, stream: &Self::Stream, _: u64) -> Identified {
        // One that is gone already has no address.
        let address = stream.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip());
        Identified { peer: Peer::Host(host(address)), refused: None }
    }
}

/// What stands for a host: its address, of version 6 the network's part, as hosts choose the rest.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Serves whoever connects and gets a place, without end.
pub(crate) async fn serve(listener: impl Listener, router: Router, places: Places, limits: Limits) {
    let rejections = Places::by_user(MAX_REJECTIONS);
    let refusals = Lines::default();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.idle).max_buf_size(BUFFER);
    // Who sends no more, as `nc -N` does behind its request, still waits for the reply.
    http.half_close(true);
    let reject = |stream, peer, problem| {
        let Ok(place) = rejections.take(peer) else { return };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(REJECTION_TIMEOUT, turn_away(stream, problem)).await;
            drop(place);
        });
    };
    for number in 0.. {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or somebody who has gone again.
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Identified { peer, refused } = listener.identify(&stream, number);
        if let Some(name) = refused {
            if let Some(suppressed) = refusals.pass(0) {
                tracing::warn!(peer = name, suppressed, "the control API was refused to a peer");
            }
            let detail = format!(
                "{name} may not use the control API; the configuration's `users` and `groups` under \
                 [control] say who may"
            );
            reject(stream, peer, Problem::new(StatusCode::FORBIDDEN, detail));
            continue;
        }
        let mut place = match places.take(peer) {
            Ok(place) => place,
            Err(full) => {
                reject(stream, peer, full.into());
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let pace = Pace::default();
        let (stream, line) = Paced::new(stream, limits.reply, pace.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let serving = async move {
            tokio::select! {
                // What has arrived is begun, also if its sender has gone.
                biased;
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "a connection has ended");
                },
                () = line.hung_up() => tracing::debug!("a connection has ended: its peer has gone"),
                () = place.lost() => {
                    tracing::debug!("a connection has ended: another one needs its place");
                }
            }
            drop(place);
        };
        tokio::spawn(Caller::new(peer, pace).scope(serving));
    }
}

async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin, problem: Problem) {
    let Ok(body) = serde_json::to_string(&problem) else { return };
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        problem.status,
        problem.title,
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use tokio::io::{AsyncBufReadExt, BufReader};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use vfiod_config::{Config, Models};
    use vfiod_manager::Manager;

    use super::*;
    use crate::routes;
    use crate::threads::Threads;

    /// Runs a test beside an API with limits.
    fn with_api<F: Future>(limits: Limits, test: impl FnOnce(std::path::PathBuf) -> F) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let manager = Manager::start(Config::default(), &Models::new(), None).unwrap();
        let places = Places::by_user(limits.connections);
        let router = routes::router(Arc::new(manager), Threads::default(), places.clone()).0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let access = Access::new(Vec::new(), Vec::new());
            tokio::spawn(serve((listener, access), router, places, limits));
            let limit = Duration::from_secs(60);
            tokio::time::timeout(limit, test(path.clone())).await.expect("it hangs");
        });
    }

    /// Sends a request. Returns the status of its reply and the connection. A connection that ends
    /// without a reply was idle for too long, as where the machine stood still: then it is sent again.
    async fn ask(path: &Path, request: &str) -> (String, BufReader<UnixStream>) {
        let request = format!("GET /api/v1/{request} HTTP/1.1\r\nhost: vfiod\r\n\r\n");
        loop {
            let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
            let mut status = String::new();
            if stream.write_all(request.as_bytes()).await.is_ok()
                && stream.read_line(&mut status).await.is_ok_and(|count| count > 0)
            {
                return (status, stream);
            }
        }
    }

    async fn rest(stream: &mut BufReader<UnixStream>) -> String {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        rest
    }

    /// Refuses everybody; who that was is told.
    struct RefusesAll(UnixListener, tokio::sync::mpsc::UnboundedSender<u64>);

    impl Listener for RefusesAll {
        type Stream = UnixStream;

        async fn accept(&self) -> std::io::Result<UnixStream> {
            Ok(self.0.accept().await?.0)
        }

        fn identify(&self, _: &UnixStream, number: u64) -> Identified {
            self.1.send(number).unwrap();
            Identified { peer: Peer::Host(Ipv4Addr::LOCALHOST.into()), refused: Some("x".into()) }
        }
    }

    /// Counts lines of the log, and those that they say were suppressed.
    #[derive(Clone, Default)]
    struct Log(Arc<(AtomicU64, AtomicU64)>);

    impl tracing::field::Visit for Log {
        fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
            assert_eq!(field.name(), "suppressed");
            self.0.1.fetch_add(value, Ordering::SeqCst);
        }
        fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
    }

    impl<S: tracing::Subscriber> Layer<S> for Log {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let metadata = event.metadata();
            if metadata.target() == "vfiod_control::connections"
                && *metadata.level() == tracing::Level::WARN
            {
                self.0.0.fetch_add(1, Ordering::SeqCst);
                event.record(&mut self.clone());
            }
        }
    }

    #[test]
    fn peers_that_may_not_use_the_api_do_not_fill_the_log() {
        const PEERS: u64 = 2000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let log = Log::default();
        let _log =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let start = Instant::now();
        runtime.block_on(async {
            let (told, mut refused) = tokio::sync::mpsc::unbounded_channel();
            let listener = RefusesAll(UnixListener::bind(&path).unwrap(), told);
            tokio::spawn(serve(listener, Router::new(), Places::by_user(8), Limits::DEFAULT));
            for peer in 0..PEERS {
                drop(UnixStream::connect(&path).await.unwrap());
                assert_eq!(refused.recv().await, Some(peer));
            }
        });
        let (lines, suppressed) = (log.0.0.load(Ordering::SeqCst), log.0.1.load(Ordering::SeqCst));
        // Twenty in each second of which there was a part.
        assert!(lines <= 20 * (start.elapsed().as_secs() + 2), "{lines} lines");
        assert!(lines > 0 && lines + suppressed <= PEERS, "{lines} and {suppressed}");
    }

    #[test]
    fn idle_connection_is_closed_and_a_watch_lives() {
        let limits = Limits { idle: Duration::from_millis(500), ..Limits::DEFAULT };
        with_api(limits, async |path| {
            let (status, mut watch) = ask(&path, "events").await;
            assert!(status.contains("200"), "{status}");
            // One that says nothing, one with half a request, and one whose request was answered.
            let silent = UnixStream::connect(&path).await.unwrap();
            rest(&mut BufReader::new(silent)).await;
            let mut half = UnixStream::connect(&path).await.unwrap();
            half.write_all(b"GET /api/v1/devices HTTP/1.1\r\nhost").await.unwrap();
            rest(&mut BufReader::new(half)).await;
            let (status, mut answered) = ask(&path, "devices").await;
            assert!(status.contains("200"), "{status}");
            assert!(rest(&mut answered).await.contains("[]"));
            // The line of a watch in which nothing happens comes later than all that.
            let mut line = String::new();
            while line != "\n" {
                line.clear();
                assert_ne!(watch.read_line(&mut line).await.unwrap(), 0, "it has ended");
            }
        });
    }

    #[test]
    fn peer_that_sends_no_more_gets_its_reply() {
        with_api(Limits::DEFAULT, async |path| {
            for _ in 0..20 {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                stream
                    .write_all(b"GET /api/v1/devices HTTP/1.1\r\nhost: vfiod\r\n\r\n")
                    .await
                    .unwrap();
                stream.shutdown().await.unwrap();
                let reply = rest(&mut BufReader::new(stream)).await;
                assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("[]"), "{reply}");
            }
        });
    }

    #[test]
    fn watch_whose_peer_has_gone_ends_whether_or_not_it_had_stopped_sending() {
        let limits = Limits { connections: 8, ..Limits::DEFAULT };
        with_api(limits, async |path| {
            // So often that seeing it by what is written to them would take too long.
            for sends_no_more in [false, true].repeat(5) {
                // Until the end of each one before has been seen.
                let mut watches = loop {
                    let mut watches = Vec::new();
                    while let (status, watch) = ask(&path, "events").await
                        && status.contains("200")
                    {
                        watches.push(watch);
                    }
                    if watches.len() == 5 {
                        break watches;
                    }
                };
                if sends_no_more {
                    for watch in &mut watches {
                        watch.shutdown().await.unwrap();
                    }
                }
                drop(watches);
            }
        });
    }

    #[test]
    fn peer_that_takes_no_replies_is_disconnected_in_time() {
        let (reply, idle) = (Duration::from_millis(100), Duration::from_millis(500));
        let limits = Limits { reply, idle, ..Limits::DEFAULT };
        with_api(limits, async |path| {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let request = b"GET /api/v1/openapi.json HTTP/1.1\r\nhost: vfiod\r\n\r\n";
            // The replies fill the socket, and then nothing is read any more.
            while stream.write_all(request).await.is_ok() {}
            // Who reads may take longer, in all, than each reply may take.
            let (status, mut reader) = ask(&path, "devices").await;
            assert!(status.contains("200"), "{status}");
            assert!(rest(&mut reader).await.contains("[]"));
        });
    }

    #[test]
    fn hosts_are_told_apart_by_what_they_cannot_choose() {
        let host = |address: &str| host(address.parse().unwrap()).to_string();
        assert_eq!(host("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(host("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(host("192.0.2.77"), "192.0.2.77");
    }

    #[test]
    fn beyond_its_places_a_user_gets_a_503_with_a_sentence() {
        // One for operators, of whom this process is one, and four of the other seven.
        let limits = Limits { connections: 8, ..Limits::DEFAULT };
        with_api(limits, async |path| {
            let mut watches = Vec::new();
            for _ in 0..5 {
                let (status, watch) = ask(&path, "events").await;
                assert!(status.contains("200"), "{status}");
                watches.push(watch);
            }
            let (status, mut refused) = ask(&path, "devices").await;
            assert!(status.contains("503"), "{status}");
            let told = rest(&mut refused).await;
            assert!(told.contains("has 4 connections, as many as one user may have"), "{told}");
            assert!(told.contains("EAGAIN"), "{told}");
            drop(watches.remove(0));
            // Its end is seen soon.
            while !ask(&path, "devices").await.0.contains("200") {}
            let mut line = String::new();
            assert_ne!(watches[0].read_line(&mut line).await.unwrap(), 0, "it has ended");
        });
    }
}
