//! The program, watched by a client.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vfiod_client::Client;

#[test]
fn a_client_reads_the_count_of_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lines.sock");
    let mut program = Command::new(env!("CARGO_BIN_EXE_embedded"))
        .arg(&socket)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = program.stdin.take().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |done: &mut dyn FnMut() -> bool| {
        while !done() {
            assert!(Instant::now() < deadline, "it did not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let mut client = None;
    wait(&mut || {
        client = Client::connect(&socket).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    input.write_all(b"one\ntwo\nthree\n").unwrap();
    wait(&mut || {
        let mut count = [0; 4];
        client.region_read(0, 0, &mut count).unwrap();
        u32::from_le_bytes(count) == 3
    });
    drop(input);
    assert!(program.wait().unwrap().success());
    assert!(!socket.exists());
}
