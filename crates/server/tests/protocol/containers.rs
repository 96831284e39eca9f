//! Clients in other namespaces.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::rig::*;

/// A server in a container does not see the process ids of those outside.
#[test]
fn a_client_outside_of_the_servers_pid_namespace_is_served() {
    const NAME: &str = "containers::a_client_outside_of_the_servers_pid_namespace_is_served";
    if std::env::var_os("VFIOD_TEST_CONTAINER").is_some() {
        return serve_one();
    }
    let mut server = Command::new("unshare")
        .args(["--map-root-user", "--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("VFIOD_TEST_CONTAINER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    let path = loop {
        line.clear();
        if std::io::BufRead::read_line(&mut out, &mut line).unwrap() == 0 {
            server.wait().unwrap();
            eprintln!("skipped: no new pid namespace can be made here (unshare)");
            return;
        }
        if let Some(path) = line.trim().strip_prefix("serving ") {
            break path.to_owned();
        }
    };
    let mut client = connect(path).unwrap();
    client.device_info().unwrap();
    drop(server.stdin.take());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(server.wait().unwrap().success(), "{rest}");
}

fn serve_one() {
    let rig = Rig::new();
    println!("\nserving {}", rig.path.display());
    // Until the client has what it wants.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let clients = rig.served.as_ref().unwrap().clients();
    let pids: Vec<_> = clients.iter().map(|c| c.owner.credentials().map(|c| c.pid)).collect();
    assert_eq!(pids, [Some(0)], "{clients:?}");
}
