//! The program, from `serve` to `show`, as its operator and a driver use it.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vfiod_client::{Client, GuestMemory, IrqAction, IrqData};

/// The daemon. Killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn checksumd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksumd"));
    command.args(args).stdin(Stdio::null());
    command
}

fn good(args: &[&str]) -> String {
    let output = checksumd(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn serve(directory: &Path) -> (Daemon, String) {
    let at = |name: &str| directory.join(name);
    let (device, control) = (at("sum.sock"), at("control.sock"));
    let text = format!(
        "[device.sum]\nmodel = \"checksum\"\noptions.limit = 8192\nsocket = {device:?}\n\
         [control]\nsocket = {control:?}\n"
    );
    let file = at("checksumd.toml").display().to_string();
    std::fs::write(&file, text).unwrap();
    assert_eq!(good(&["serve", "--check", &file]), "the configuration is right: 1 device\n");
    let daemon = Daemon(checksumd(&["serve", &file]).stderr(Stdio::null()).spawn().unwrap());
    let control = control.display().to_string();
    until("the daemon", || {
        let list = checksumd(&["list", "--control", &control]).output().unwrap();
        list.status.success()
    });
    (daemon, control)
}

fn register(client: &mut Client, offset: u64) -> u32 {
    let mut data = [0; 4];
    client.region_read(0, offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

#[test]
fn from_serve_to_show() {
    let directory = tempfile::tempdir().unwrap();
    let (_daemon, control) = serve(directory.path());

    let mut client = Client::connect(directory.path().join("sum.sock")).unwrap();
    let memory = GuestMemory::new(8192).unwrap();
    memory.write(100, &[1, 2, 3, 250]).unwrap();
    client.dma_map(0x10000, 8192, Some((memory.fd(), 0))).unwrap();
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let interrupt = eventfd(0, flags).unwrap();
    let interrupted =
        || until("the interrupt", || rustix::io::read(&interrupt, &mut [0; 8]).is_ok());
    let fds = [interrupt.as_fd()];
    client.set_irqs(1, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
    client.region_write(7, 4, &4_u16.to_le_bytes()).unwrap(); // bus master

    client.region_write(0, 0, &0x10064_u64.to_le_bytes()).unwrap();
    client.region_write(0, 8, &4_u32.to_le_bytes()).unwrap();
    interrupted();
    assert_eq!((register(&mut client, 0xc), register(&mut client, 0x10)), (2, 256));
    client.region_write(0, 0xc, &[0; 4]).unwrap();
    client.region_write(0, 8, &9000_u32.to_le_bytes()).unwrap();
    interrupted();
    assert_eq!(register(&mut client, 0xc), 3, "longer than the option allows");

    let shown = good(&["show", "sum", "--json", "--control", &control]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["model"], "checksum");
    assert_eq!(shown["state"], "open");
    assert_eq!(shown["interrupts"][1]["signalled"], 2);
    let tree = good(&["show", "sum", "--control", &control]);
    assert!(tree.contains("├─ model: checksum\n"), "{tree}");

    let more = directory.path().join("more.sock").display().to_string();
    let added = ["add", "more", "--device", "checksum", "--socket-path", &more];
    good(&[&added[..], &["--control", &control]].concat());
    assert!(Path::new(&more).exists());
}

/// A session that a user recorded is played to the program's own model.
#[test]
fn captured_session_replays_without_a_difference() {
    let directory = tempfile::tempdir().unwrap();
    let (_daemon, _control) = serve(directory.path());
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (file, listen) = (at("sum.capture"), at("captured.sock"));
    let args = ["capture", &at("sum.sock"), &file, "--listen", &listen];
    let mut capture = Daemon(checksumd(&args).stderr(Stdio::null()).spawn().unwrap());
    until("the capture", || Path::new(&listen).exists());
    let mut client = Client::connect(&listen).unwrap();
    client.region_write(7, 4, &4_u16.to_le_bytes()).unwrap(); // bus master
    client.region_write(0, 0, &0x10064_u64.to_le_bytes()).unwrap();
    client.region_write(0, 8, &4_u32.to_le_bytes()).unwrap(); // nothing is mapped there
    until("the end of the sum", || register(&mut client, 0xc) == 3);
    drop(client);
    assert!(capture.0.wait().unwrap().success());

    for more in [&[][..], &["--rebuild"]] {
        let args = ["replay", &file, "--device", "checksum", "--option", "limit=8192"];
        let said = good(&[&args[..], more].concat());
        assert!(said.contains("no difference"), "{said}");
    }
}

#[test]
fn help_comes_from_the_options() {
    let help = good(&["devices"]);
    assert_eq!(
        help.split("\n\n").next().unwrap(),
        "checksum\n    adds up guest memory\n    limit = a number from 0 to 4294967295\n        \
         bytes that one request may have [default: 0x100000]"
    );
}
