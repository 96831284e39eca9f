//! Metrics: over the control socket, and over TCP where the operator names an address.

mod process;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use process::{Daemon, bad, until, vfiod};
use vfiod_client::{Client, GuestMemory};

/// What a server answers to a request for a path.
fn get(stream: impl Read + Write, path: &str) -> String {
    try_get(stream, path).unwrap()
}

/// What a server answers to a request for a path, or how the connection ends before that.
fn try_get(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn metrics_count_what_clients_do_by_device() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "[device.edu0]\nmodel = \"edu\"\nsocket = {:?}\n[device.edu1]\nmodel = \"edu\"\nsocket = {:?}\n\
         [control]\nsocket = {:?}\n[metrics]\nlisten = \"{free}\"\n",
        at("edu0"),
        at("edu1"),
        at("control"),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let mut command = vfiod(["serve"]);
    command.arg(at("c.toml"));
    // No client but the test's own connects to a device: connections are counted.
    let _daemon = Daemon::serving(command, &[&at("control")]);
    until("the device's socket", || at("edu0").exists());

    let control = || get(UnixStream::connect(at("control")).unwrap(), "/metrics");
    let has = |line: &str| control().lines().any(|known| known == line);
    let before = control();
    assert!(before.starts_with("HTTP/1.1 200 OK"), "{before}");
    assert!(before.contains("application/openmetrics-text"), "{before}");
    assert!(before.ends_with("# EOF\n") || before.contains("# EOF"), "{before}");

    // Its memory has no descriptor: the device reaches it by messages.
    let memory = GuestMemory::new(0x1000).unwrap();
    memory.attach(0x10_0000, memory.size(), 0);
    let options = process::options().memory(memory.clone());
    let mut client = Client::connect_with(at("edu0"), options).unwrap();
    client.reset().unwrap();
    client.dma_map(0x10_0000, memory.size(), None).unwrap();
    // Bus mastering; then edu's DMA: 16 bytes from memory to the device.
    client.region_write(7, 4, &[6]).unwrap();
    for (register, value) in [(0x80, 0x10_0000u64), (0x88, 0x40000), (0x90, 16), (0x98, 1)] {
        client.region_write(0, register, &value.to_le_bytes()).unwrap();
    }
    let outside = client.region_read(0, 1 << 20, &mut [0; 4]).unwrap_err();
    assert_eq!(outside.remote_errno(), Some(22));
    for line in [
        "vfiod_devices 2",
        "vfiod_open_files{device=\"edu0\"} 1",
        "vfiod_open_files{device=\"edu1\"} 0",
        "vfiod_connections{device=\"edu0\"} 1",
        "vfiod_opens_total{device=\"edu0\"} 1",
        "vfiod_first_opens_total{device=\"edu0\"} 1",
        "vfiod_resets_total{device=\"edu0\",kind=\"client\"} 1",
        "vfiod_failed{device=\"edu0\"} 0",
        "vfiod_dma_mappings{device=\"edu0\"} 1",
        "vfiod_interrupts_total{device=\"edu0\",kind=\"signalled\"} 0",
        "vfiod_quiesces_total{device=\"edu0\"} 1",
        "vfiod_quiesces_total{device=\"edu1\"} 0",
        "vfiod_accesses_total{device=\"edu0\"} 6",
        "vfiod_accesses_total{device=\"edu1\"} 0",
        "vfiod_errors_total{device=\"edu0\"} 1",
    ] {
        assert!(has(line), "{line} is not in:\n{}", control());
    }

    until("the transfer", || has("vfiod_dma_read_bytes_total{device=\"edu0\"} 16"));
    // What was counted on a connection stays when it has ended.
    drop(client);
    until("the end of the connection", || has("vfiod_connections{device=\"edu0\"} 0"));
    assert!(has("vfiod_accesses_total{device=\"edu0\"} 6"), "{}", control());
    assert!(control().contains("vfiod_quiesce_seconds_total{device=\"edu0\"} "));

    let tcp = |path: &str| get(TcpStream::connect(free).unwrap(), path);
    assert!(tcp("/metrics").contains("vfiod_opens_total{device=\"edu0\"} 1"));
    // Whoever reaches the address can read metrics, and nothing else.
    assert!(tcp("/api/v1/devices").starts_with("HTTP/1.1 404"));
}

#[test]
fn an_address_that_is_none_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let text = "[parent.p]\nmodel = \"edu\"\n[metrics]\nlisten = \"localhost\"\n";
    std::fs::write(&path, text).unwrap();
    let said = bad(2, [Path::new("serve"), Path::new("--check"), &path]);
    assert!(said.contains("c.toml:4:10: metrics.listen: `localhost` is no address"), "{said}");
    assert!(said.contains("help: write an IP address and a port"), "{said}");
}

/// Connects, and asks again and again without reading, until no more fits into the sockets.
fn take_no_replies(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: vfiod\r\n\r\n".repeat(1000);
    // It is full once the daemon does not read any more, as it cannot write: two looks in a row.
    let mut full = 0;
    while full < 2 {
        match stream.write(&request) {
            Ok(_) => full = 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                thread::sleep(Duration::from_millis(5));
            }
            // It had to leave for others.
            Err(_) => return stream,
        }
    }
    stream
}

#[test]
fn readers_that_take_nothing_keep_nobody_from_reading_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "[device.edu]\nmodel = \"edu\"\nsocket = {:?}\n[metrics]\nlisten = \"{free}\"\n",
        at("edu"),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let mut command = vfiod(["serve"]);
    command.arg(at("c.toml"));
    let daemon = Daemon::serving(command, &[&at("edu")]);
    let before = daemon.descriptors();
    let stuck = take_no_replies(free);
    // More than there are places, all of one host.
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(free).unwrap()).collect();
    for _ in 0..10 {
        let shown = try_get(TcpStream::connect(free).unwrap(), "/metrics");
        let is_whole =
            |page: &String| page.starts_with("HTTP/1.1 200 OK") && page.contains("# EOF");
        assert!(shown.as_ref().is_ok_and(is_whole), "a reader gets no metrics: {shown:?}");
    }
    let open = daemon.descriptors() - before;
    assert!(open <= 130, "one host has {open} connections");
    drop((stuck, silent));
}
