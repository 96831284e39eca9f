//! The other end of the API: what the command line asks the daemon with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::problem::Problem;
use crate::view::Record;

/// What need not be encoded in a part of a path.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

const GONE: &str = "the daemon went away";

/// How long a daemon has for a reply, unless it is asked to wait for somebody. A daemon gives up itself
/// before, and shows a watcher that it is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the longest reply, far more than a daemon with ten thousand devices has to say.
const LONGEST: usize = 64 << 20;
/// Bytes of the longest event.
const LONGEST_EVENT: usize = 1 << 20;

/// Why the daemon did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// There is no daemon at the socket.
    NoDaemon(PathBuf, io::Error),
    /// Whoever listens at the socket does not reply.
    Silent(PathBuf, Duration),
    /// It says more than any daemon.
    TooLong(usize),
    /// It refuses.
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Why, in its words.
        detail: String,
        /// The kernel's name for it, e.g. `ENOSPC`.
        errno: Option<String>,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(path, error) => write!(
                f,
                "no daemon answers at {}: {error}; start one with a [control] section in its \
                 configuration, or name its socket with --control",
                path.display()
            ),
            Self::Silent(path, time) => write!(
                f,
                "the daemon at {} did not reply within {} s: it is stopped, or has too much to do",
                path.display(),
                time.as_secs_f32()
            ),
            Self::TooLong(limit) => write!(
                f,
                "a reply of more than {} MiB: what listens at the socket is no vfiod",
                limit >> 20
            ),
            Self::Refused { detail, errno: Some(errno), .. } => write!(f, "{detail} ({errno})"),
            Self::Refused { detail, .. } => f.write_str(detail),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// The exit code that stands for this failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon(..) | Self::Silent(..) => 5,
            Self::TooLong(_) => 1,
            Self::Refused { status, .. } => match *status {
                StatusCode::NOT_FOUND => 3,
                StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => 4,
                StatusCode::FORBIDDEN => 6,
                StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST => 2,
                _ => 1,
            },
        }
    }

    /// Whether what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// A path of the API, made of parts that are encoded where they need it.
pub fn path<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    parts
        .into_iter()
        .fold(crate::handler::PREFIX.to_owned(), |path, part| format!("{path}/{}", encoded(part)))
}

/// A word as it goes into a path or a query.
pub fn encoded(word: &str) -> String {
    utf8_percent_encode(word, PLAIN).to_string()
}

/// A connection to a daemon.
pub struct Client {
    socket: PathBuf,
    patience: Duration,
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the daemon that listens at a path.
    ///
    /// # Errors
    /// [`Failure::NoDaemon`].
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket)
                .await
                .map_err(|error| Failure::NoDaemon(socket.to_owned(), error))?;
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            // Ends with the sender, which gets its errors.
            tokio::spawn(connection);
            anyhow::Ok(sender)
        })?;
        Ok(Self { socket: socket.to_owned(), patience: PATIENCE, runtime, sender })
    }

    /// Gives the daemon so much time for each reply, instead of 30 s. What it is asked to wait for is not
    /// limited.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends a request, and reads the reply. An empty reply is read as `()`.
    ///
    /// # Errors
    /// [`Failure::Refused`], or the daemon closed the connection.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let body = body.map(serde_json::to_string).transpose()?;
        let bytes = self.bytes(method, path, body)?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes)
            .context("the daemon's reply is not what this version expects")
    }

    /// Sends a request without a body, as [`Client::call`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn send<T: DeserializeOwned>(&mut self, method: Method, path: &str) -> anyhow::Result<T> {
        self.call(method, path, None::<&()>)
    }

    fn bytes(&mut self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<Bytes> {
        // Who waits for users says so in the query, and for how long.
        let waits = method != Method::GET && path.contains('?');
        let Self { socket, patience, runtime, sender } = self;
        runtime.block_on(async {
            let reply = async {
                let response = ask(sender, method, path, body).await?;
                whole(response.into_body()).await
            };
            if waits {
                return reply.await;
            }
            let silent = |_| Failure::Silent(socket.clone(), *patience);
            timeout(*patience, reply).await.map_err(silent)?
        })
    }

    /// What is there, as the daemon sent it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn fetch(&mut self, path: &str) -> anyhow::Result<Bytes> {
        self.bytes(Method::GET, path, None)
    }

    /// What is there.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path)
    }

    /// Hands what there is, and every event from now on, to `each`, until that fails or the daemon
    /// ends. `query` chooses events, e.g. `?device=NAME`; empty: all.
    ///
    /// # Errors
    /// As [`Client::call`]; what `each` says.
    pub fn watch(
        &mut self,
        query: &str,
        mut each: impl FnMut(Record) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Self { socket, patience, runtime, sender } = self;
        runtime.block_on(async {
            let silent = |_| Failure::Silent(socket.clone(), *patience);
            let path = path(["events"]) + query;
            let asked = ask(sender, Method::GET, &path, None);
            let response = timeout(*patience, asked).await.map_err(silent)??;
            let mut body = response.into_body();
            let mut partial = Vec::new();
            // An empty line now and then shows that the daemon is there.
            while let Some(frame) = timeout(*patience, body.frame()).await.map_err(silent)? {
                // The daemon's end, in order or not, is the end of the stream.
                let Ok(frame) = frame else { break };
                let Ok(data) = frame.into_data() else { continue };
                partial.extend_from_slice(&data);
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = partial.drain(..=end).collect();
                    if line.len() > 1 {
                        each(serde_json::from_slice(&line).context("an event is no JSON")?)?;
                    }
                }
                if partial.len() > LONGEST_EVENT {
                    return Err(Failure::TooLong(LONGEST_EVENT).into());
                }
            }
            Ok(())
        })
    }
}

/// A reply's body, if it is no longer than any is.
async fn whole(body: Incoming) -> anyhow::Result<Bytes> {
    match Limited::new(body, LONGEST).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::TooLong(LONGEST).into()),
        Err(error) => Err(anyhow::Error::msg(error.to_string()).context(GONE)),
    }
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Option<String>,
) -> anyhow::Result<Response<Incoming>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "vfiod");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map_or_else(Bytes::new, Bytes::from);
    sender.ready().await.context(GONE)?;
    let response = sender.send_request(request.body(Full::new(body))?).await.context(GONE)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = whole(response.into_body()).await?;
    let problem: Option<Problem> = serde_json::from_slice(&bytes).ok();
    let errno = problem.as_ref().and_then(|problem| problem.errno.clone());
    let detail = problem.map_or_else(|| status.to_string(), |problem| problem.detail);
    Err(Failure::Refused { status, detail, errno }.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A client of something at whose socket `head` is said in reply to each request, and then `rest` as
    /// long as it is read.
    fn client_of(head: &'static str, rest: Vec<u8>) -> (Client, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            _ = peer.read(&mut request);
            _ = peer.write_all(head.as_bytes());
            while !rest.is_empty() && peer.write_all(&rest).is_ok() {}
            // Its end, and not ours, ends the connection.
            while peer.read(&mut request).is_ok_and(|count| count > 0) {}
        });
        (Client::connect(&path).unwrap(), directory)
    }

    fn failure(result: anyhow::Result<()>) -> (String, u8) {
        let error = result.unwrap_err();
        let failure: &Failure = error.downcast_ref().unwrap_or_else(|| panic!("{error:#}"));
        (failure.to_string(), failure.exit_code())
    }

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    fn chunk() -> Vec<u8> {
        [b"100000\r\n".as_slice(), &vec![b'['; 1 << 20], b"\r\n"].concat()
    }

    #[test]
    fn daemon_that_does_not_reply_is_given_up() {
        let said = [
            "",
            "HTTP/1.1 200 OK\r\n",
            CHUNKED,
            "HTTP/1.1 409 Conflict\r\ncontent-length: 9\r\n\r\n",
        ];
        for head in said {
            let (client, _directory) = client_of(head, Vec::new());
            let mut client = client.with_patience(Duration::from_millis(50));
            let (text, code) = failure(client.get("/api/v1/devices"));
            assert!(
                text.ends_with("did not reply within 0.05 s: it is stopped, or has too much to do")
            );
            assert_eq!(code, 5, "{head:?}");
        }
        let (client, _directory) = client_of(CHUNKED, Vec::new());
        let mut client = client.with_patience(Duration::from_millis(50));
        assert_eq!(failure(client.watch("", |_| Ok(()))).1, 5);
    }

    #[test]
    fn reply_that_does_not_end_is_given_up() {
        for head in [CHUNKED, "HTTP/1.1 409 Conflict\r\ntransfer-encoding: chunked\r\n\r\n"] {
            let (mut client, _directory) = client_of(head, chunk());
            let (text, code) = failure(client.get("/api/v1/devices"));
            assert!(text.starts_with("a reply of more than 64 MiB"), "{text}");
            assert_eq!(code, 1);
        }
        let (mut client, _directory) = client_of(CHUNKED, chunk());
        assert!(failure(client.watch("", |_| Ok(()))).0.starts_with("a reply of more than 1 MiB"));
    }
}
