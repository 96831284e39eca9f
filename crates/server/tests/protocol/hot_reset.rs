//! Device sets over the socket: who is reset together, and the hot reset.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;

use vfiod_client::{Client, Error};
use vfiod_core::{DeviceSpec, OpenPolicy, Registration, SetId, SetObject, StatePolicy};
use vfiod_server::{Served, Server};
use vfiod_tasks::Workers;
use vfiod_wire::Command;
use vfiod_wire::payload::{Feature, feature_flag};
use vfiod_wire::set::{HOT_RESET, HOT_RESET_INFO, SetMember};
use zerocopy::IntoBytes;

use crate::rig::*;

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

/// Two racks in one slot.
pub(crate) struct Pair {
    pub(crate) paths: [PathBuf; 2],
    pub(crate) devices: [(Registration, Served); 2],
    _server: Server,
    _workers: Workers,
    _dir: tempfile::TempDir,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ((registry, workers), slot) = (registry(), Arc::new(Slot));
        let server = Server::new(server_options()).unwrap();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let devices = [0, 1].map(|function| {
            let spec = DeviceSpec {
                name: ["a", "b"][function].to_owned(),
                id: None,
                set: Some(SetId::of(&slot)),
                open: OpenPolicy::Multi,
                state: StatePolicy::Retain,
                location: [Some("0000:01:02.0".to_owned()), None][function].clone(),
                token: None,
            };
            serve(&registry, &server, spec, &paths[function])
        });
        Self { paths, devices, _server: server, _workers: workers, _dir: dir }
    }

    pub(crate) fn client(&self, device: usize) -> Client {
        connect(&self.paths[device]).unwrap()
    }

    fn both(&self) -> [Client; 2] {
        [self.client(0), self.client(1)]
    }

    fn member(&self, device: usize) -> SetMember {
        let device = self.devices[device].0.device();
        SetMember {
            device: device.id().0,
            name: device.name().to_owned(),
            location: device.location().map(str::to_owned),
            ..SetMember::default()
        }
    }
}

/// Another process, and so another owner, that holds a device until this is dropped.
pub(crate) struct Stranger(Child);

impl Stranger {
    pub(crate) fn holding(path: &Path) -> Self {
        Self::doing(path, "")
    }

    /// With the device amid an access, until the stall is dropped.
    pub(crate) fn stalling(path: &Path, stall: &Stall) -> Self {
        let stranger = Self::doing(path, &stall.number().to_string());
        stall.await_begin();
        stranger
    }

    fn doing(path: &Path, stall: &str) -> Self {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "hot_reset::holds_for_another_test", "--nocapture"])
            .env("VFIOD_TEST_HOLDS", path)
            .env("VFIOD_TEST_STALL", stall)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The harness has something to say before.
        assert!(lines.any(|line| line.unwrap().ends_with("holding")), "it does not hold");
        Self(child)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: what [`Stranger`] does.
#[test]
fn holds_for_another_test() {
    let Some(path) = std::env::var_os("VFIOD_TEST_HOLDS") else { return };
    let mut client = connect(path).unwrap();
    if let Ok(stall) = std::env::var("VFIOD_TEST_STALL").unwrap().parse() {
        client.submit(Command::RegionWrite, &stall_payload(stall), &[]).unwrap();
    }
    println!("holding");
    let _ = std::io::stdin().lines().next();
    drop(client);
}

pub(crate) fn fill(client: &mut Client) {
    client.region_write(PLAIN, 0, &[0xff; 16]).unwrap();
    client.region_write(SPARSE, 0, &[0xff; 16]).unwrap();
}

pub(crate) fn is_clear(client: &mut Client) -> bool {
    try_is_clear(client).unwrap()
}

fn try_is_clear(client: &mut Client) -> Result<bool, Error> {
    for region in [PLAIN, SPARSE] {
        let mut data = [1; 16];
        client.region_read(region, 0, &mut data)?;
        if data != [0; 16] {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn hot_reset_info_has_the_members_and_whether_it_is_allowed() {
    let pair = Pair::new();
    let mut a = pair.client(0);
    let info = a.hot_reset_info().unwrap();
    assert!(info.allowed);
    let mine = SetMember { itself: true, open: true, owned: true, ..pair.member(0) };
    assert_eq!(info.members, [mine.clone(), pair.member(1)]);
    assert_eq!(mine.location.as_deref(), Some("0000:01:02.0"));

    let stranger = Stranger::holding(&pair.paths[1]);
    let info = a.hot_reset_info().unwrap();
    assert!(!info.allowed);
    assert_eq!(info.members, [mine.clone(), SetMember { open: true, ..pair.member(1) }]);
    drop(stranger);
    eventually("the other one is gone", || a.hot_reset_info().unwrap().allowed);

    let mut b = pair.client(1);
    let info = b.hot_reset_info().unwrap();
    assert!(info.allowed);
    let [a, b] = [0, 1].map(|at| SetMember { open: true, owned: true, ..pair.member(at) });
    assert_eq!(info.members, [a, SetMember { itself: true, ..b }]);
}

#[test]
fn a_hot_reset_resets_every_member() {
    let pair = Pair::new();
    let [mut a, mut b] = pair.both();
    [&mut a, &mut b].into_iter().for_each(fill);
    a.hot_reset().unwrap();
    assert!(is_clear(&mut a) && is_clear(&mut b));
    // Open or not.
    fill(&mut b);
    drop(b);
    a.hot_reset().unwrap();
    assert!(is_clear(&mut pair.client(1)));
}

#[test]
fn hot_reset_is_refused_while_another_owner_has_a_member() {
    let pair = Pair::new();
    let mut a = pair.client(0);
    fill(&mut a);
    let stranger = Stranger::holding(&pair.paths[1]);
    assert_eq!(refused(a.hot_reset()), EINVAL);
    assert!(!is_clear(&mut a), "nothing was reset");
    drop(stranger);
    eventually("the other one is gone", || a.hot_reset_info().unwrap().allowed);
    a.hot_reset().unwrap();
    assert!(is_clear(&mut a));
}

#[test]
fn accesses_during_a_hot_reset_wait_and_succeed() {
    let pair = Pair::new();
    let [mut a, mut b] = pair.both();
    let feature = Feature { argsz: 16, flags: u32::from(HOT_RESET) | feature_flag::SET };
    let payload = [feature.as_bytes(), &[0; 8]].concat();
    let mut all_succeed = || {
        fill(&mut b);
        write_u64(&mut a, KNOBS, SLOW_RESET_MS, 50);
        let reset = a.submit(Command::DeviceFeature, &payload, &[]).unwrap();
        // Each of these is before or after the reset, and none is refused.
        let mut refused = None;
        eventually("the reset is done", || match try_is_clear(&mut b) {
            Ok(is_clear) => is_clear,
            Err(error) => {
                refused = Some(error);
                true
            }
        });
        a.complete(reset).unwrap();
        refused.is_none_or(|error| {
            assert_eq!(error.remote_errno(), Some(EBUSY), "{error}");
            false
        })
    };
    // An access waits for a second. A machine that stands still for so long looks the same, but not again
    // and again.
    assert!((0..3).any(|_| all_succeed()), "accesses are refused");
}

#[test]
fn doorbell_rung_before_a_hot_reset_is_dropped() {
    let pair = Pair::new();
    let [mut a, mut b] = pair.both();
    let (_, bells) = b.region_io_fds(KNOBS).unwrap();
    for _ in 0..50 {
        rustix::io::write(&bells[0], &1u64.to_ne_bytes()).unwrap();
        a.hot_reset().unwrap();
        assert_eq!(read_u64(&mut b, KNOBS, RINGS), 0);
    }
    rustix::io::write(&bells[0], &1u64.to_ne_bytes()).unwrap();
    eventually("the next one is", || read_u64(&mut b, KNOBS, RINGS) == 1);
}

#[test]
fn hot_reset_gives_up_on_a_busy_member() {
    let pair = Pair::new();
    let [mut a, mut b] = pair.both();
    let stall = Stall::new();
    let stalling = b.submit(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    assert_eq!(refused(a.hot_reset()), EBUSY);
    fill(&mut a);
    assert!(!is_clear(&mut a), "it goes on");
    drop(stall);
    b.complete(stalling).unwrap();
    a.hot_reset().unwrap();
    assert!(is_clear(&mut a));
}

#[test]
fn hot_reset_repairs_a_member_that_panicked() {
    let pair = Pair::new();
    let [mut a, mut b] = pair.both();
    assert_eq!(refused(b.region_write(KNOBS, PANIC, &1u64.to_ne_bytes())), EIO);
    a.hot_reset().unwrap();
    assert!(is_clear(&mut b));
}

#[test]
fn hot_reset_is_probed_and_malformed_requests_are_refused() {
    let pair = Pair::new();
    let mut a = pair.client(0);
    a.feature_probe(HOT_RESET_INFO, true, false).unwrap();
    a.feature_probe(HOT_RESET, false, true).unwrap();
    assert_eq!(refused(a.feature_probe(HOT_RESET_INFO, false, true)), ENOTTY);
    assert_eq!(refused(a.feature_probe(HOT_RESET, true, false)), ENOTTY);
    assert_eq!(refused(a.feature_get(HOT_RESET, &[])), ENOTTY);
    assert_eq!(refused(a.feature_set(HOT_RESET_INFO, &[])), ENOTTY);
    for data in [&[][..], &[0; 4], &[0; 7], &[0; 9], &[1, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8]] {
        assert_eq!(refused(a.feature_set(HOT_RESET, data)), EINVAL, "{data:?}");
    }
    let feature = Feature { argsz: 8, flags: u32::from(HOT_RESET_INFO) | feature_flag::GET };
    let reply = a.call(Command::DeviceFeature, feature.as_bytes(), &[]).unwrap();
    let needed = a.hot_reset_info().unwrap().encode().len() as u32 + 8;
    assert_eq!(reply.payload, Feature { argsz: needed, ..feature }.as_bytes());
    // A device that is alone is a set of one.
    let rig = Rig::new();
    let mut alone = rig.client();
    assert_eq!(alone.hot_reset_info().unwrap().members.len(), 1);
    fill(&mut alone);
    alone.hot_reset().unwrap();
    assert!(is_clear(&mut alone));
}

/// The owner's connection is taken away while another resets: nobody hangs.
#[test]
fn hot_resets_work_while_members_are_opened_and_closed() {
    let pair = Pair::new();
    let mut a = pair.client(0);
    std::thread::scope(|scope| {
        let others = [0; 2].map(|_| {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut b = pair.client(1);
                    fill(&mut b);
                }
            })
        });
        for _ in 0..100 {
            a.hot_reset().unwrap();
        }
        for other in others {
            other.join().unwrap();
        }
    });
    pair.devices[1].0.device().revoke_all();
    a.hot_reset().unwrap();
    assert!(is_clear(&mut a));
}
