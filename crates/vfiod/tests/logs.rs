//! The log: every message of a connection at the level `trace`, fields for programs, priorities for
//! the journal.

mod process;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use serde_json::Value;
use vfiod_client::{Client, GuestMemory, RawMessage};
use vfiod_wire::Command;
use vfiod_wire::payload::DmaAccess;
use zerocopy::{FromBytes, IntoBytes};

/// A daemon with the devices `a` and `b`, of the model `edu`, and `memory`, of the model `bench`.
fn serving(directory: &Path, arguments: &[&str]) -> Daemon {
    let at = |name: &str| directory.join(name);
    let device = |(name, model): (&str, &str)| {
        format!("[device.{name}]\nmodel = \"{model}\"\nsocket = {:?}\n", at(name))
    };
    let devices = [("a", "edu"), ("b", "edu"), ("memory", "bench")];
    std::fs::write(at("c.toml"), devices.map(device).concat()).unwrap();
    let mut command = vfiod(arguments);
    command.arg("serve").arg(at("c.toml"));
    Daemon::serving(command, &[&at("a"), &at("b"), &at("memory")])
}

/// Each line as an object.
fn objects(log: &str) -> Vec<Value> {
    let object = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    log.lines().map(object).collect()
}

/// The messages of a log after negotiation.
fn messages(log: &str) -> Vec<Value> {
    let is_message =
        |line: &Value| line["target"] == "vfiod_server::messages" && line["command"] != "VERSION";
    objects(log).into_iter().filter(is_message).collect()
}

#[test]
fn trace_has_every_message_with_its_fields() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let arguments = ["--log", "info,vfiod_server=trace", "--log-format", "json"];
    let daemon = serving(directory.path(), &arguments);
    // Its memory has no descriptor: the device reaches it by messages.
    let memory = GuestMemory::new(0x1000).unwrap();
    memory.attach(0x10_0000, memory.size(), 0);
    let options = process::options().memory(memory.clone());
    let mut client = Client::connect_with(at("a"), options).unwrap();
    client.dma_map(0x10_0000, memory.size(), None).unwrap();
    client.region_write(7, 4, &[6]).unwrap();
    client.region_write(0, 4, &0x1234_5678u32.to_le_bytes()).unwrap();
    let mut inverted = [0; 4];
    client.region_read(0, 4, &mut inverted).unwrap();
    client.region_post(0, 4, &[1, 0, 0, 0]).unwrap();
    client.region_read(0, 1 << 20, &mut [0; 4]).unwrap_err();
    // edu's DMA: 8 bytes from memory to the device.
    for (register, value) in [(0x80, 0x10_0000u64), (0x88, 0x40000), (0x90, 8), (0x98, 1)] {
        client.region_write(0, register, &value.to_le_bytes()).unwrap();
    }
    let busy = |client: &mut Client| {
        let mut command = [0; 8];
        client.region_read(0, 0x98, &mut command).unwrap();
        u64::from_le_bytes(command) & 1 != 0
    };
    until("the transfer", || !busy(&mut client));
    client.dma_unmap(0x10_0000, memory.size()).unwrap();
    client.reset().unwrap();
    client.call(Command::DeviceFeature, &[0; 3], &[]).unwrap_err();
    let mut other = process::connect(at("b")).unwrap();
    other.device_info().unwrap();
    drop((client, other));
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");

    let messages = messages(&log);
    let find = |command: &str, is: &dyn Fn(&Value) -> bool| -> Value {
        let found = messages.iter().find(|line| line["command"] == command && is(line));
        found.unwrap_or_else(|| panic!("no {command} in:\n{log}")).clone()
    };
    let has = |line: &Value, fields: &[(&str, Value)]| {
        for (name, value) in fields {
            assert_eq!(line[name], *value, "{name} of {line}");
        }
    };
    for line in &messages {
        assert_eq!(line["level"], "TRACE");
        let micros = line["micros"].as_f64();
        assert!(micros.is_some_and(|micros| micros > 0.0), "no field `micros`: {line}");
        assert!(line["connection"].is_u64(), "no field `connection`: {line}");
        assert!(line.get("span").is_none() && line.get("spans").is_none(), "{line}");
    }
    let any = |_: &Value| true;
    has(
        &find("DMA_MAP", &any),
        &[
            ("device", "a".into()),
            ("iova", "0x100000".into()),
            ("count", 0x1000.into()),
            ("with", "messages".into()),
            ("size", 48.into()),
            ("reply", 16.into()),
        ],
    );
    let written = find("REGION_WRITE", &|line| line["offset"] == "0x4" && line["region"] == 0);
    has(&written, &[("count", 4.into()), ("value", "0x12345678".into()), ("size", 36.into())]);
    assert!(written.get("errno").is_none() && written.get("posted").is_none(), "{written}");
    let value = format!("{:#010x}", u32::from_le_bytes(inverted));
    has(
        &find("REGION_READ", &|line| line["offset"] == "0x4"),
        &[("value", value.into()), ("count", 4.into()), ("reply", 36.into())],
    );
    let posted = find("REGION_WRITE", &|line| line["posted"] == true);
    has(&posted, &[("value", "0x00000001".into()), ("reply", 0.into())]);
    let refused = find("REGION_READ", &|line| line["errno"] == "EINVAL");
    has(&refused, &[("offset", "0x100000".into()), ("reply", 16.into())]);
    assert!(refused.get("value").is_none() && refused["error"].is_string(), "{refused}");
    has(
        &find("DMA_READ", &any),
        &[
            ("device", "a".into()),
            ("iova", "0x100000".into()),
            ("count", 8.into()),
            ("value", "0x0000000000000000".into()),
        ],
    );
    has(&find("DMA_UNMAP", &any), &[("iova", "0x100000".into()), ("count", 0x1000.into())]);
    has(&find("DEVICE_RESET", &any), &[("size", 16.into()), ("reply", 16.into())]);
    has(&find("DEVICE_FEATURE", &any), &[("errno", "EINVAL".into()), ("size", 19.into())]);
    has(&find("DEVICE_GET_INFO", &any), &[("device", "b".into()), ("reply", 32.into())]);

    // What is not at the level trace has its data in fields, too.
    let lines = objects(&log);
    let event = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("no line `{message}` in:\n{log}"))
    };
    has(
        event("refused"),
        &[
            ("level", "WARN".into()),
            ("device", "a".into()),
            ("command", "REGION_READ".into()),
            ("errno", "EINVAL".into()),
        ],
    );
    assert!(event("refused")["error"].is_string() && event("refused")["connection"].is_u64());
    assert!(event("connection ended")["reason"].is_string());
    assert!(event("connection opened")["dialect"] == "standard");
}

/// Has edu transfer 8 bytes at 0x10_0000 of memory: to its buffer, or from there with `to_memory`.
fn transfer(client: &mut Client, to_memory: bool) {
    let command = if to_memory { 3 } else { 1 };
    let buffer = 0x40000;
    let (from, to) = if to_memory { (buffer, 0x10_0000) } else { (0x10_0000, buffer) };
    for (register, value) in [(0x80, from), (0x88, to), (0x90, 8u64)] {
        client.region_write(0, register, &value.to_le_bytes()).unwrap();
    }
    // Nothing is received while this is sent: the next message is the device's.
    client.region_post(0, 0x98, &u64::to_le_bytes(command)).unwrap();
}

fn until_register(client: &mut Client, register: (u32, u64), is: impl Fn(u64) -> bool) {
    let mut value = [0; 8];
    until("the value of a register", || {
        client.region_read(register.0, register.1, &mut value).unwrap();
        is(u64::from_le_bytes(value))
    });
}

#[test]
fn each_transfer_by_message_is_one_line_with_its_outcome() {
    const VALUE: u64 = 0x0123_4567_89ab_cdef;
    let edu_is_done = |value: u64| value & 1 == 0;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let arguments = ["--log", "info,vfiod_server=trace", "--log-format", "json"];
    let daemon = serving(directory.path(), &arguments);

    // Read, written back, and refused by a client without memory.
    let memory = GuestMemory::new(0x1000).unwrap();
    memory.write(0, &VALUE.to_le_bytes()).unwrap();
    memory.attach(0x10_0000, memory.size(), 0);
    let mut client = Client::connect_with(at("a"), process::options().memory(memory)).unwrap();
    client.region_write(7, 4, &[6]).unwrap();
    client.dma_map(0x10_0000, 0x1000, None).unwrap();
    for to_memory in [false, true] {
        transfer(&mut client, to_memory);
        until_register(&mut client, (0, 0x98), edu_is_done);
    }
    let mut without_memory = process::connect(at("b")).unwrap();
    without_memory.region_write(7, 4, &[6]).unwrap();
    without_memory.dma_map(0x10_0000, 0x1000, None).unwrap();
    transfer(&mut without_memory, true);
    until_register(&mut without_memory, (0, 0x98), edu_is_done);
    drop((client, without_memory));

    // Never replied to. On a second socket, so that the device's registers can be read meanwhile.
    let mut silent = None;
    until("the device", || {
        silent = Client::connect_with(at("b"), process::options().twin_socket()).ok();
        silent.is_some()
    });
    let mut silent = silent.unwrap();
    silent.region_write(7, 4, &[6]).unwrap();
    silent.dma_map(0x10_0000, 0x1000, None).unwrap();
    transfer(&mut silent, false);
    let unanswered = silent.twin().unwrap().receive_message().unwrap();
    assert_eq!(unanswered.header.command, Command::DmaRead as u16);
    // Each look is a line of the log, which nobody reads before the end: they must be few.
    until_register(&mut silent, (0, 0x98), |value| {
        std::thread::sleep(Duration::from_millis(50));
        edu_is_done(value)
    });

    // In four messages, as the client takes a page with each.
    let mut options = process::options().twin_socket();
    options.capabilities.max_data_xfer_size = Some(0x1000);
    let mut paged = Client::connect_with(at("memory"), options).unwrap();
    paged.region_write(7, 4, &[6]).unwrap();
    paged.dma_map(0x10_0000, 0x10_0000, None).unwrap();
    for (register, value) in
        [(0x08, 1u64), (0x10, 0x10_0000), (0x18, 0x4000), (0x20, 1), (0x28, 0x4000)]
    {
        paged.region_write(2, register, &value.to_le_bytes()).unwrap();
    }
    // The bench device's operation starts. As above, nothing is received meanwhile.
    paged.region_post(2, 0, &3u64.to_le_bytes()).unwrap();
    let twin = paged.twin().unwrap();
    let mut asked = 0;
    while asked < 0x4000 {
        let RawMessage { header, payload, .. } = twin.receive_message().unwrap();
        let count = DmaAccess::read_from_bytes(&payload).unwrap().count;
        assert_eq!(count, 0x1000);
        let data = [payload, vec![0; count as usize]].concat();
        twin.send(&[header.reply(data.len()).as_bytes(), &data].concat(), &[]).unwrap();
        asked += count;
    }
    until_register(&mut paged, (2, 0x48), |running| running == 0);
    drop((silent, paged));
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");

    let is_transfer = |line: &Value| {
        line["command"].as_str().unwrap().starts_with("DMA_READ")
            || line["command"].as_str().unwrap().starts_with("DMA_WRITE")
    };
    let field = |line: &Value, name: &str| line.get(name).cloned().unwrap_or(Value::Null);
    let lines: Vec<_> = messages(&log)
        .iter()
        .filter(|line| is_transfer(line))
        .map(|line| ["device", "command", "count", "value", "errno"].map(|name| field(line, name)))
        .collect();
    let value: Value = format!("{VALUE:#018x}").into();
    let zero: Value = format!("{:#018x}", 0).into();
    let line = |device: &str, command: &str, count: u64, value: &Value, errno: Option<&str>| {
        [device.into(), command.into(), count.into(), value.clone(), errno.into()]
    };
    let expected = [
        line("a", "DMA_READ", 8, &value, None),
        line("a", "DMA_WRITE", 8, &value, None),
        line("b", "DMA_WRITE", 8, &zero, Some("EFAULT")),
        line("b", "DMA_READ", 8, &Value::Null, Some("ETIMEDOUT")),
        line("memory", "DMA_READ", 0x4000, &Value::Null, None),
    ];
    assert_eq!(lines, expected, "{log}");
}

#[test]
fn filter_can_name_one_device() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let arguments = ["--log", "info,[message{device=b}]=trace", "--log-format", "json"];
    let daemon = serving(directory.path(), &arguments);
    for name in ["a", "b", "memory"] {
        process::connect(at(name)).unwrap().device_info().unwrap();
    }
    let (_, log) = daemon.terminate(Signal::TERM);
    let devices: BTreeSet<_> =
        messages(&log).iter().map(|line| line["device"].as_str().unwrap().to_owned()).collect();
    assert_eq!(devices, BTreeSet::from(["b".to_owned()]), "{log}");
    let is_there = messages(&log).iter().any(|line| line["command"] == "DEVICE_GET_INFO");
    assert!(is_there, "{log}");
}

#[test]
fn messages_are_not_logged_unless_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = serving(directory.path(), &["--log", "debug", "--log-format", "json"]);
    process::connect(directory.path().join("a")).unwrap().device_info().unwrap();
    let (_, log) = daemon.terminate(Signal::TERM);
    assert!(messages(&log).is_empty(), "{log}");
}

#[test]
fn large_data_is_not_logged() {
    const MARK: &[u8; 8] = b"secret.."; // as bytes and as a number
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for format in ["text", "json"] {
        let arguments = ["--log", "trace", "--log-format", format];
        let daemon = serving(directory.path(), &arguments);
        let mut client = process::connect(at("memory")).unwrap();
        let mut data = MARK.repeat((1 << 20) / MARK.len());
        for len in [9, 4096, 1 << 20] {
            client.region_write(0, 0, &data[..len]).unwrap();
            client.region_read(0, 0, &mut data[..len]).unwrap();
        }
        drop(client);
        let (_, log) = daemon.terminate(Signal::TERM);
        assert!(log.contains("1048576") && log.contains("REGION_READ"), "{log}");
        let longest = log.lines().map(str::len).max().unwrap();
        assert!(longest < 1000, "a line of {longest} bytes");
        let numbers = [u64::from_le_bytes(*MARK), u64::from_be_bytes(*MARK)];
        let hex = numbers.map(|number| format!("{number:x}"));
        assert!(!log.contains("secret") && !hex.iter().any(|hex| log.contains(hex)), "{log}");
        assert!(!log.contains("115, 101, 99"), "{log}");
    }
}

#[test]
fn text_of_a_refused_client_is_cut_at_every_level() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = serving(directory.path(), &["--log", "trace", "--log-format", "json"]);
    let json = format!(r#"{{"capabilities": {{"max_msg_fds": "{}"}}}}"#, "x".repeat(3900));
    let mut message = vec![0, 0, 1, 0];
    message.extend((16 + 4 + json.len() as u32 + 1).to_le_bytes());
    message.extend([0; 8 + 4]);
    message.extend(json.as_bytes());
    message.push(0);
    let mut client = UnixStream::connect(directory.path().join("a")).unwrap();
    client.write_all(&message).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    let (_, log) = daemon.terminate(Signal::TERM);
    let traced = |line: &str| line.contains("TRACE") && line.contains("\"errno\":\"EINVAL\"");
    assert!(log.lines().any(traced), "{log}");
    assert!(log.contains(&"x".repeat(100)), "{log}");
    assert!(!log.contains(&"x".repeat(300)), "the text is not cut: {log}");
}

#[test]
fn tokens_are_not_logged() {
    const TOKEN: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    let directory = tempfile::tempdir().unwrap();
    let daemon = serving(directory.path(), &["--log", "trace", "--log-format", "json"]);
    let options = process::options().vf_token(TOKEN);
    // A device that is no virtual function refuses it.
    let refused = Client::connect_with(directory.path().join("a"), options).is_err();
    let (_, log) = daemon.terminate(Signal::TERM);
    assert!(refused && log.contains("VERSION"), "{log}");
    let plain = TOKEN.replace('-', "");
    assert!(!log.contains(TOKEN) && !log.contains(&plain), "{log}");
    assert!(!log.contains(&plain[..16]) && !log.contains("131, 184, 244"), "{log}");
}

#[test]
fn lines_for_the_journal_have_priorities() {
    let directory = tempfile::tempdir().unwrap();
    let log = |name: &str, right: bool, arguments: &[&str]| {
        let path = directory.path().join(name);
        let file = File::create(&path).unwrap();
        let stat = file.metadata().unwrap();
        let inode = if right { stat.ino() } else { stat.ino() + 1 };
        let mut command = vfiod(arguments);
        command.env("JOURNAL_STREAM", format!("{}:{inode}", stat.dev()));
        let output = command.stdin(Stdio::null()).stderr(file).output().unwrap();
        (output.status.code(), std::fs::read_to_string(path).unwrap())
    };
    // A warning, and then the failure: somebody listens there.
    let config = directory.path().join("c.toml");
    let socket = directory.path().join("taken");
    let _taken = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let device = format!("[device.a]\nmodel = \"edu\"\nsocket = {socket:?}\n");
    std::fs::write(&config, device + "[sandbox]\nenabled = false\n").unwrap();
    let serve = ["--log", "info", "serve", config.to_str().unwrap()];
    let (code, text) = log("right", true, &serve);
    assert_ne!(code, Some(0), "{text}");
    let levels: BTreeSet<_> = text.lines().map(|line| line.get(..3).unwrap_or(line)).collect();
    let expected = BTreeSet::from(["<3>", "<4>"]);
    assert_eq!(levels, expected, "priorities of a warning and of the failure: {text}");
    assert!(text.contains("<4> WARN vfiod_"), "the journal has its own time: {text}");
    // Standard error is another file by now.
    let (_, text) = log("wrong", false, &serve);
    assert!(!text.contains("<4>") && !text.is_empty(), "priorities in a file: {text}");
}
