use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}}, "capabilities": []}}"#;

/// A monitor that does this with its connection, and then keeps it open until the other side ends it.
fn peer(
    serve: impl FnOnce(&mut UnixStream) -> io::Result<()> + Send + 'static,
) -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        if serve(&mut peer).is_ok() {
            _ = io::copy(&mut peer, &mut io::sink());
        }
    });
    (path, directory)
}

/// The identifier of the next command.
fn id_of_next(peer: &mut UnixStream) -> io::Result<Value> {
    let mut line = String::new();
    // A command is sent only once the one before has its reply: nothing is read beyond it.
    BufReader::new(peer).read_line(&mut line)?;
    Ok(serde_json::from_str::<Value>(&line)?["id"].take())
}

/// Greets, and lets a client negotiate.
fn greet(peer: &mut UnixStream) -> io::Result<()> {
    write!(peer, "{GREETING}\r\n")?;
    let id = id_of_next(peer)?;
    write!(peer, "{}\r\n", json!({ "return": {}, "id": id }))
}

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(60);

/// What a command comes to at a monitor.
fn command(
    patience: Duration,
    serve: impl FnOnce(&mut UnixStream) -> io::Result<()> + Send + 'static,
) -> Result<Value, Failure> {
    let (path, _directory) = peer(serve);
    Monitor::connect(&path, patience)?.command("query-pci", &json!({}))
}

#[test]
fn reply_is_told_from_events_and_from_replies_to_others() {
    let result = command(LONG, |peer| {
        greet(peer)?;
        let id = id_of_next(peer)?;
        let event = json!({ "event": "RTC_CHANGE", "data": { "offset": 1 } });
        let others = json!({ "return": "another's", "id": "vfiod-1" });
        let pretty = serde_json::to_string_pretty(&json!({ "return": [1, {"a": 2}], "id": id }))?;
        // Whatever the pieces are in which they come.
        for byte in format!("{event}\r\n{others}\r\n{{\"return\": 0}}\r\n{pretty}\r\n").bytes() {
            peer.write_all(&[byte])?;
        }
        Ok(())
    });
    assert_eq!(result.unwrap(), json!([1, {"a": 2}]));
}

#[test]
fn refusal_has_the_reason_of_qemu() {
    let result = command(LONG, |peer| {
        greet(peer)?;
        let id = id_of_next(peer)?;
        let error = json!({ "class": "GenericError", "desc": "Bus 'a' not found" });
        write!(peer, "{}\r\n", json!({ "error": error, "id": id }))
    });
    let text = result.unwrap_err().to_string();
    assert_eq!(text, "QEMU refuses query-pci: Bus 'a' not found");
}

#[test]
fn monitor_that_does_not_reply_is_given_up() {
    type Serve = fn(&mut UnixStream) -> io::Result<()>;
    let silent: [(&str, Serve); 5] = [
        ("says nothing", |_| Ok(())),
        ("does not finish its greeting", |peer| write!(peer, "{{\"QMP\": ")),
        ("only greets", |peer| write!(peer, "{GREETING}\r\n")),
        ("negotiates, and then says nothing", greet),
        ("has events without end", |peer| {
            loop {
                peer.write_all(b"{\"event\": \"A\"}\r\n")?;
            }
        }),
    ];
    for (what, serve) in silent {
        let error = command(SHORT, serve).unwrap_err();
        let expected = matches!(error, Failure::Silent(..) | Failure::NotQmp(..));
        assert!(expected, "who {what}: {error}");
        let text = error.to_string();
        let says = text.contains("did not reply within 0.1 s") || text.contains("does not greet");
        assert!(says, "{text}");
    }
    // Events for ever behind a greeting.
    let error = command(SHORT, |peer| {
        greet(peer)?;
        loop {
            peer.write_all(b"{\"event\": \"A\"}\r\n")?;
        }
    });
    assert!(matches!(error.unwrap_err(), Failure::Silent(..)));
}

/// Also if what it says has arrived long ago.
#[test]
fn deadline_counts_for_messages_that_were_received_before() {
    let (path, _directory) = peer(|peer| {
        write!(peer, "{GREETING}\r\n")?;
        let id = id_of_next(peer)?;
        let events = "{\"event\": \"A\"}\r\n".repeat(100);
        write!(peer, "{}\r\n{events}", json!({ "return": {}, "id": id }))
    });
    let mut monitor = Monitor::connect(&path, LONG).unwrap();
    monitor.message(Instant::now() + LONG).unwrap();
    let error = monitor.message(Instant::now()).unwrap_err();
    assert!(matches!(error, Failure::Silent(..)), "{error}");
}

/// A line as long as a message may be, of the smallest messages there are, is no work that grows with its square:
/// this would not end within the monitor's deadline.
#[test]
fn many_messages_in_one_line_are_taken_one_by_one() {
    let result = command(LONG, |peer| {
        greet(peer)?;
        let id = id_of_next(peer)?;
        let reply = json!({ "return": 5, "id": id });
        write!(peer, "{}{reply}\r\n", "{}".repeat(1 << 20))
    });
    assert_eq!(result.unwrap(), json!(5));
    let error = command(LONG, |peer| {
        greet(peer)?;
        id_of_next(peer)?;
        writeln!(peer, "{}", "0 ".repeat(1 << 21))
    });
    let text = error.unwrap_err().to_string();
    assert!(text.ends_with("a message that is no object"), "{text}");
}

#[test]
fn monitor_whose_queue_is_full_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let error = Monitor::connect(&path, SHORT).unwrap_err();
    assert!(matches!(error, Failure::Silent(..)), "{error}");
}

#[test]
fn message_that_does_not_end_is_given_up() {
    for part in [&[b'1'; 1 << 16][..], &[b' '; 1 << 16]] {
        let error = command(LONG, move |peer| {
            loop {
                peer.write_all(part)?;
            }
        });
        let text = error.unwrap_err().to_string();
        assert!(text.ends_with("a message that does not end"), "{text}");
    }
}

#[test]
fn what_is_no_qmp_is_said_to_be_none() {
    let nested = "[".repeat(1 << 16);
    for said in [
        "HTTP/1.1 400 Bad Request\r\n",
        "{}\r\n",
        "{HTTP",
        "[]\n",
        "7\n",
        "\"\u{1b}[2J\"\n",
        &nested,
    ] {
        let text = format!("{said}\r\n");
        let error = command(LONG, move |peer| peer.write_all(text.as_bytes()));
        assert!(matches!(error.unwrap_err(), Failure::NotQmp(..)), "{said:.20}");
    }
    let error = command(LONG, |peer| {
        greet(peer)?;
        let id = id_of_next(peer)?;
        write!(peer, "{}\r\n", json!({ "error": 1, "id": id }))
    });
    assert!(matches!(error.unwrap_err(), Failure::NotQmp(..)));
}

#[test]
fn end_of_the_connection_is_told() {
    for begins in ["", "{\"QMP\": {}", "{\"QMP\": {}}\r\n"] {
        let error = command(LONG, move |peer| {
            peer.write_all(begins.as_bytes())?;
            peer.shutdown(std::net::Shutdown::Both)
        });
        assert!(matches!(error.unwrap_err(), Failure::Closed(..)), "{begins:?}");
    }
    let absent = Monitor::connect(Path::new("/nowhere/qmp"), LONG).unwrap_err();
    assert!(absent.to_string().contains("`-qmp unix:PATH,server=on,wait=off`"), "{absent}");
}

#[test]
fn version_is_that_of_the_greeting() {
    let (path, _directory) = peer(greet);
    assert_eq!(Monitor::connect(&path, LONG).unwrap().version(), "11.1");
}
