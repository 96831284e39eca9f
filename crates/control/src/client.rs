//! The other end of the API: what the command line asks the daemon with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::problem::Problem;
use crate::view::Record;

/// What need not be encoded in a part of a path.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

const GONE: &str = "the daemon went away";

/// Why the daemon did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// There is no daemon at the socket.
    NoDaemon(PathBuf, io::Error),
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
            Self::NoDaemon(..) => 5,
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
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the daemon that listens at a path.
    ///
    /// # Errors
    /// [`Failure::NoDaemon`].
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
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
        Ok(Self { runtime, sender })
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
        let Self { runtime, sender } = self;
        runtime.block_on(async {
            let response = ask(sender, method, path, body).await?;
            Ok(response.into_body().collect().await.context(GONE)?.to_bytes())
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
        let Self { runtime, sender } = self;
        runtime.block_on(async {
            let response = ask(sender, Method::GET, &(path(["events"]) + query), None).await?;
            let mut body = response.into_body();
            let mut partial = Vec::new();
            while let Some(frame) = body.frame().await {
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
            }
            Ok(())
        })
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
    let bytes = response.into_body().collect().await.context(GONE)?.to_bytes();
    let problem: Option<Problem> = serde_json::from_slice(&bytes).ok();
    let errno = problem.as_ref().and_then(|problem| problem.errno.clone());
    let detail = problem.map_or_else(|| status.to_string(), |problem| problem.detail);
    Err(Failure::Refused { status, detail, errno }.into())
}
