//! The control API, spoken by hand: nothing of the program under test is used for it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// Sends a request; the status and the answer, `null` for nothing.
pub(crate) fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> io::Result<(u16, Value)> {
    let kind = if body.is_some() { "content-type: application/json\r\n" } else { "" };
    let body = body.unwrap_or_default();
    let request = format!(
        "{method} /api/v1/{path} HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n{kind}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw(socket, request.as_bytes())
}

/// Sends bytes that may be a request.
pub(crate) fn raw(socket: &Path, request: &[u8]) -> io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    // Who is turned away may be so before all is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // The server did not read all that it was sent; the answer came before.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
        other => drop(other?),
    }
    let answer = String::from_utf8(answer).map_err(io::Error::other)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no whole answer"));
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("no status"))?;
    // Nothing here is longer than what comes in one piece, but lists.
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        chunks(body)
    } else {
        body.to_owned()
    };
    let value = if body.is_empty() { Value::Null } else { serde_json::from_str(&body)? };
    Ok((status, value))
}

fn chunks(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}
