//! The daemon is killed while what is kept beside an image changes: a host saves features and formats, the
//! operator changes the size of a namespace. What a restart finds is what was there before a change, or after it.

mod process;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use process::nvme::connect;
use process::random::Random;
use process::{Daemon, at, until, vfiod};
use rustix::process::Signal;
use vfiod_nvme_driver::{Command, Controller, Error, opcode};

/// How often it is killed; `VFIOD_KILLS` says otherwise.
const KILLS: u64 = 4;
const MIB: u64 = 1 << 20;
/// The feature Temperature Threshold, and the bit that saves it.
const TEMPERATURE_THRESHOLD: u32 = 0x04;
const SAVE: u32 = 1 << 31;
const FORMAT: u8 = 0x80;

/// What is kept of a disk, as its host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    threshold: u32,
    block_size: u32,
    bytes: u64,
}

impl Kept {
    fn of(controller: &mut Controller) -> Self {
        let get = Command::new(opcode::GET_FEATURES).dword(10, TEMPERATURE_THRESHOLD);
        let threshold = controller.admin(get, None).unwrap();
        let disk = controller.namespace(1).unwrap();
        let bytes = disk.blocks * u64::from(disk.block_size);
        Self { threshold, block_size: disk.block_size, bytes }
    }

    /// What it is after one change.
    fn changed(self, random: &mut Random) -> Self {
        match random.below(4) {
            // The next one: never what it was.
            0 | 1 => Self { threshold: 200 + (self.threshold + 1) % 400, ..self },
            2 => Self { block_size: 512 + 4096 - self.block_size, ..self },
            _ => Self { bytes: 3 * MIB - self.bytes, ..self },
        }
    }
}

/// How far the changes have come.
struct Shared {
    /// The last one whose end was told.
    told: Mutex<Kept>,
    /// The one that is under way, or is the same.
    next: Mutex<Kept>,
    killed: AtomicBool,
    changes: Mutex<u64>,
}

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn serve(&self) -> Daemon {
        let command = vfiod(["--log", "error", "serve", self.at("c.toml").to_str().unwrap()]);
        Daemon::serving(command, &[&self.at("control"), &self.at("disk.sock")])
    }

    /// Makes one change; whether its end was told.
    fn change(&self, controller: &mut Controller, from: Kept, to: Kept) -> bool {
        let command = match () {
            () if to.threshold != from.threshold => Command::new(opcode::SET_FEATURES)
                .dword(10, TEMPERATURE_THRESHOLD | SAVE)
                .dword(11, to.threshold),
            () if to.block_size != from.block_size => {
                Command::new(FORMAT).namespace(1).dword(10, u32::from(to.block_size == 4096))
            }
            () => return self.resize(to.bytes),
        };
        match controller.admin(command, None) {
            Ok(_) => true,
            Err(Error::Client(_)) => false,
            Err(error) => panic!("{from:?} does not become {to:?}: {error}"),
        }
    }

    /// Changes the size of the namespace, with the program; whether its end was told.
    fn resize(&self, bytes: u64) -> bool {
        let size = bytes.to_string();
        let args = ["namespace", "resize", "disk", "1", "--size", &size, "--force"];
        vfiod(at(&self.at("control"), &args)).output().unwrap().status.success()
    }

    /// Changes what is kept until the daemon has ended.
    fn work(&self, shared: &Shared, controller: &mut Controller, random: &mut Random) {
        loop {
            let from = *shared.told.lock().unwrap();
            let to = from.changed(random);
            *shared.next.lock().unwrap() = to;
            if !self.change(controller, from, to) {
                assert!(shared.killed.load(Ordering::SeqCst), "{from:?} does not become {to:?}");
                return;
            }
            *shared.told.lock().unwrap() = to;
            *shared.changes.lock().unwrap() += 1;
        }
    }
}

#[test]
fn kill_amid_a_change_of_what_is_kept_leaves_the_old_or_the_new() {
    let kills = std::env::var("VFIOD_KILLS").ok();
    let kills = kills.map_or(KILLS, |kills| kills.parse().expect("VFIOD_KILLS is a number"));
    let rig = Arc::new(Rig { directory: tempfile::tempdir().unwrap() });
    std::fs::File::create(rig.at("disk.img")).unwrap().set_len(MIB).unwrap();
    let text = format!(
        "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
         options = {{ file = {:?}, torn_writes = true }}\n[control]\nsocket = {:?}\n",
        rig.at("disk.sock"),
        rig.at("disk.img"),
        rig.at("control"),
    );
    std::fs::write(rig.at("c.toml"), text).unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut daemon = rig.serve();
    let mut controller = connect(&rig.at("disk.sock"));
    let names = controller.identify(3, 1).unwrap();
    let first = Kept::of(&mut controller);
    let shared = Arc::new(Shared {
        told: Mutex::new(first),
        next: Mutex::new(first),
        killed: AtomicBool::new(false),
        changes: Mutex::new(0),
    });
    let changes = || *shared.changes.lock().unwrap();
    let (mut old, mut new) = (0, 0);
    for round in 0..kills {
        let end = {
            let (rig, shared) = (rig.clone(), shared.clone());
            let mut random = Random(random.below(u64::MAX - 1) + 1);
            std::thread::spawn(move || rig.work(&shared, &mut controller, &mut random))
        };
        let enough = changes() + 1 + random.below(8);
        until("changes", || end.is_finished() || changes() >= enough);
        shared.killed.store(true, Ordering::SeqCst);
        let (status, said) = daemon.terminate(Signal::KILL);
        assert!(!status.success() && said.is_empty(), "{said}");
        end.join().unwrap();
        shared.killed.store(false, Ordering::SeqCst);

        daemon = rig.serve();
        controller = connect(&rig.at("disk.sock"));
        let (told, next) = (*shared.told.lock().unwrap(), *shared.next.lock().unwrap());
        let found = Kept::of(&mut controller);
        assert!(
            found == told || found == next,
            "round {round}: {found:?}, which is neither the old nor the new: {told:?}, {next:?}"
        );
        *(if found == next { &mut new } else { &mut old }) += 1;
        assert!(names == controller.identify(3, 1).unwrap(), "round {round}: it is another disk");
        *shared.told.lock().unwrap() = found;
    }
    let left = std::fs::read_dir(rig.directory.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.len() <= 6, "files were left: {left:?}");
    println!("{kills} kills amid {} changes: {old} found the old, {new} the new", changes());
    drop(daemon);
}
