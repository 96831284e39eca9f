//! What is kept beside an image: counters that SMART shows, and saved features.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use vfiod_config::ConfiguredModel;
use vfiod_pci::ModelRef;
use vfiod_testing::{Driver, eventually};

use super::rig::{Command, DATA, ENABLE, Held, Host, namespace_of, with};
use crate::controller::Nvme;
use crate::options::NvmeOptions;
use vfiod_nvme_spec::registers::{SHUT_DOWN, SHUTDOWN};

const WRITE: u8 = 1;
const READ: u8 = 2;
const SAVE: u32 = 1 << 31;

/// An image of 1 MiB in a directory of its own.
fn image() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    (place, path)
}

fn nvme(image: &Path) -> Nvme {
    let file = Some(image.to_owned());
    Nvme::configured(NvmeOptions { file, torn_writes: true, ..NvmeOptions::default() }).unwrap()
}

/// The number of 8 bytes at a place of the SMART log.
fn smart(host: &mut Host, at: usize) -> u64 {
    let page = host.log(2, 512).unwrap();
    u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
}

/// Power cycles and unsafe shutdowns.
fn life(host: &mut Host) -> (u64, u64) {
    (smart(host, 112), smart(host, 144))
}

fn shut_down(host: &Host) {
    host.device.write32(0, 0x14, ENABLE | 1 << 14);
    host.await_status(SHUTDOWN, SHUT_DOWN);
}

#[test]
fn counters_last_across_restarts_and_tell_shutdowns_from_losses_of_power() {
    let (_place, path) = image();
    let mut host = Host::new(nvme(&path));
    assert_eq!(life(&mut host), (1, 0));
    host.create_pair(1, 8, 1);
    // 1024 blocks are more than one data unit, which is 1000.
    for block in (0..1024).step_by(16) {
        let command = Command::io(WRITE, block, 16, (DATA, DATA + 4096));
        assert_eq!(host.perform(1, command), Ok(0));
    }
    assert_eq!(host.perform(1, Command::io(READ, 0, 1, (DATA, 0))), Ok(0));
    let counted = [(32, 1), (48, 2), (64, 1), (80, 64)];
    for (at, expected) in counted {
        assert_eq!(smart(&mut host, at), expected, "byte {at}");
    }
    shut_down(&host);
    drop(host);
    // The next one ends without a shutdown, and the one after it is used by nobody.
    let mut host = Host::new(nvme(&path));
    assert_eq!(life(&mut host), (2, 0));
    for (at, expected) in counted {
        assert_eq!(smart(&mut host, at), expected, "byte {at} after a restart");
    }
    drop(host);
    drop(Host::disabled(nvme(&path)));
    let mut host = Host::new(nvme(&path));
    assert_eq!(life(&mut host), (3, 1), "nobody saw the third time that it was open");
    // One that is enabled again after its shutdown, as by a reboot.
    shut_down(&host);
    host.disable();
    host.enable();
    drop(host);
    let mut host = Host::new(nvme(&path));
    assert_eq!(life(&mut host), (4, 2));
}

/// A daemon that was killed leaves what it has kept while the controller was in use.
#[test]
fn controller_that_was_in_use_when_its_daemon_died_had_an_unsafe_shutdown() {
    let (place, path) = image();
    let kept = place.path().join("disk.img.vfiod");
    let mut host = Host::new(nvme(&path));
    host.create_pair(1, 8, 1);
    host.perform(1, Command::io(WRITE, 0, 8, (DATA, 0))).unwrap();
    // The next time that counters are kept, while the controller is open.
    let text = || std::fs::read_to_string(&kept).unwrap_or_default();
    let is_kept = || text().contains("written_bytes\": 4096") && text().contains("in_use\": 1");
    eventually("counters are kept", is_kept);
    let amid = std::fs::read(&kept).unwrap();
    shut_down(&host);
    drop(host);
    assert!(text().contains("in_use\": 0"), "{}", text());
    std::fs::write(&kept, amid).unwrap();
    let mut host = Host::new(nvme(&path));
    assert_eq!(life(&mut host), (2, 1));
    assert_eq!(smart(&mut host, 48), 1);
}

/// A thread that keeps counters every now and then has looked, and writes after the end of the controller.
#[test]
fn counters_of_before_a_shutdown_are_not_kept_after_those_of_its_end() {
    let (place, path) = image();
    let host = Host::new(nvme(&path));
    let device = ModelRef::<Nvme>::of(host.device.device()).unwrap();
    let common = device.step(|nvme, _| nvme.common.clone()).unwrap();
    let before = common.snapshot();
    shut_down(&host);
    common.keep_now();
    common.keep_snapshot(before);
    let kept = std::fs::read_to_string(place.path().join("disk.img.vfiod")).unwrap();
    assert!(kept.contains("in_use\": 0"), "{kept}");
}

fn get(feature: u32, select: u32) -> Command {
    Command::new(10).set(10, feature | select << 8).namespace(namespace_of(feature))
}

fn set(feature: u32, value: u32) -> Command {
    Command::new(9).set(10, feature).set(11, value).namespace(namespace_of(feature))
}

/// Features that can be saved, by what is read of them: identifier, dword 11 to read it, its default, and
/// dword 11 to set it.
const SAVEABLE: [(u32, u32, u32, u32); 7] = [
    (0x01, 0, 0, 0x0102_0304),
    (0x04, 0, 343, 350),
    (0x04, 1 << 20, 0, 1 << 20 | 200),
    (0x05, 0, 0, 17),
    (0x06, 0, 1, 0),
    (0x08, 0, 0, 0x0a0b),
    (0x0a, 0, 0, 1),
];

/// The value that is set by dword 11.
fn value(dword: u32, select: u32) -> u32 {
    if select == 1 << 20 { dword & 0xffff } else { dword }
}

fn read(host: &mut Host, feature: u32, part: u32, select: u32) -> u32 {
    host.admin(get(feature, select).set(11, part)).unwrap()
}

#[test]
fn saved_features_are_current_after_resets_and_restarts() {
    let (_place, path) = image();
    let mut host = Host::new(nvme(&path));
    for (feature, part, default, dword) in SAVEABLE {
        assert_eq!(read(&mut host, feature, part, 2), default, "{feature:#x} was not saved");
        assert_eq!(host.admin(set(feature, dword).set(10, feature | SAVE)), Ok(0), "{feature:#x}");
    }
    // Current, and not saved.
    assert_eq!(host.admin(set(0x05, 99)), Ok(0));
    assert_eq!(read(&mut host, 0x05, 0, 0), 99);
    let check = |host: &mut Host, when: &str| {
        for (feature, part, default, dword) in SAVEABLE {
            let found = [0, 1, 2].map(|select| read(host, feature, part, select));
            let saved = value(dword, part);
            assert_eq!(found, [saved, default, saved], "feature {feature:#x} after {when}");
        }
    };
    host.disable();
    host.enable();
    check(&mut host, "a controller reset");
    host.device.reset();
    host.forget_queues();
    host.device.enable();
    host.enable();
    check(&mut host, "a reset of the device");
    drop(host);
    let mut host = Host::new(nvme(&path));
    check(&mut host, "a restart");
    // Saved anew as the default.
    for (feature, part, default, _) in SAVEABLE {
        let command = set(feature, default | part).set(10, feature | SAVE);
        assert_eq!(host.admin(command), Ok(0), "{feature:#x}");
    }
    drop(host);
    let mut host = Host::new(nvme(&path));
    for (feature, part, default, _) in SAVEABLE {
        assert_eq!(read(&mut host, feature, part, 0), default, "{feature:#x}");
    }
}

/// A disk that is new with each start keeps what was saved as long as it is there; and it acts.
#[test]
fn disk_without_an_image_keeps_saved_features_as_long_as_it_is_there() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    assert_eq!(host.admin(set(0x06, 0).set(10, 0x06 | SAVE)), Ok(0));
    host.disable();
    host.enable();
    host.create_pair(1, 8, 1);
    disk.seen();
    host.perform(1, Command::io(WRITE, 0, 1, (DATA, 0))).unwrap();
    assert_eq!(
        disk.seen(),
        ["write 0 512 false", "flush"],
        "without a write cache writes are durable"
    );
    let mut host = Host::new(with(disk));
    assert_eq!(read(&mut host, 0x06, 0, 0), 1);
}

/// Makes that nothing can be kept any more: what the file is written as first cannot be made. Returns what is
/// in the way.
fn obstruct(directory: &Path) -> std::path::PathBuf {
    let obstacle = directory.join("disk.img.vfiod.new");
    // Counters may be written at this moment.
    eventually("an obstacle", || std::fs::create_dir(&obstacle).is_ok());
    obstacle
}

#[test]
fn feature_that_cannot_be_saved_has_not_changed() {
    let (place, path) = image();
    let mut host = Host::new(nvme(&path));
    let obstacle = obstruct(place.path());
    assert_eq!(host.admin(set(0x05, 17).set(10, 0x05 | SAVE)), Err(0x06));
    assert_eq!([0, 2].map(|select| read(&mut host, 0x05, 0, select)), [0, 0]);
    std::fs::remove_dir(obstacle).unwrap();
    assert_eq!(host.admin(set(0x05, 17).set(10, 0x05 | SAVE)), Ok(0));
    assert_eq!([0, 2].map(|select| read(&mut host, 0x05, 0, select)), [17, 17]);
}

/// Counts warnings.
struct Lines(AtomicUsize);

impl tracing::Subscriber for &'static Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn host_that_saves_and_formats_in_vain_does_not_fill_the_log() {
    static LINES: Lines = Lines(AtomicUsize::new(0));
    let (place, path) = image();
    let mut host = Host::without_interrupts(Driver::without_workers(nvme(&path)));
    obstruct(place.path());
    let start = std::time::Instant::now();
    tracing::subscriber::with_default(&LINES, || {
        host.enable();
        for round in 0..100 {
            let save = set(0x05, 1 + round).set(10, 0x05 | SAVE);
            let format = Command::new(0x80).namespace(1).set(10, 1);
            // More saves have their turns once a second.
            let saves = (round < 8).then_some(save);
            for command in saves.into_iter().chain([format]) {
                let id = host.submit(0, command);
                eventually("it completes", || {
                    host.device.settle();
                    host.peek(0).is_some()
                });
                let entry = host.poll(0).unwrap();
                host.release(0);
                assert_eq!((entry.id, entry.status), (id, 0x06));
            }
        }
    });
    let most = start.elapsed().as_secs() as usize + 2;
    let lines = LINES.0.load(Ordering::SeqCst);
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}");
}

/// What a host causes again and again is written once a second at most; what is left is written when the controller
/// ends.
#[test]
fn counters_of_a_host_that_is_in_a_hurry_are_written_later() {
    let (place, path) = image();
    let kept = place.path().join("disk.img.vfiod");
    let text = || std::fs::read_to_string(&kept).unwrap_or_default();
    let host = Host::new(nvme(&path));
    eventually("it is in use", || text().contains("in_use\": 1"));
    let device = ModelRef::<Nvme>::of(host.device.device()).unwrap();
    let common = device.step(|nvme, _| nvme.common.clone()).unwrap();
    // The turns of the next minute are taken.
    let later = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while common.keeping.pace.ask(later).is_ok() {}
    shut_down(&host);
    eventually("it waits for its turn", || common.keeping.rests.load(Ordering::SeqCst));
    assert!(text().contains("in_use\": 1"), "written at once");
    drop((common, device));
    drop(host);
    assert!(text().contains("in_use\": 0"), "not written at the end");
}
