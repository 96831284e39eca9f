//! Block devices and a file system that is full, which root can make.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfiod_disk::{
    Backend, Buffer, Channel, DirectIo, Disk, FailureKind, Image, ImageOptions, Metadata,
    MetadataOptions, Request,
};
use vfiod_dma::Errno;
use vfiod_tasks::Runtime;

/// A process that another test starts has the descriptors of all until it executes its program.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Loop {
    device: PathBuf,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Loop {
    /// A device with sectors of this size; `None`, and said so, where none can be made.
    fn new(sector: u32) -> Option<Self> {
        Self::in_directory(sector, tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    /// One whose file is here.
    fn in_directory(sector: u32, directory: tempfile::TempDir) -> Option<Self> {
        let file = directory.path().join("disk.img");
        File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(&file);
        let made = command.output().ok().filter(|output| output.status.success());
        let Some(output) = made else {
            eprintln!("SKIPPED: loop devices cannot be made here");
            return None;
        };
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Some(Self { device, file, _directory: directory })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

fn options(path: &Path, block: u32) -> ImageOptions {
    ImageOptions { block, ..ImageOptions::new(path) }
}

/// Writes and reads neighbouring blocks.
fn check(image: std::sync::Arc<Image>, block: usize) {
    let runtime = Runtime::new().unwrap();
    let disk = Disk::new(image);
    let channel = disk.connect(&runtime).unwrap();
    let run = |request| {
        let done = runtime.block_on(None, channel.start(request)).unwrap();
        done.result.unwrap();
        done.buffer
    };
    for n in 0..16usize {
        let (offset, buffer) = ((n * block) as u64, Buffer::Own(vec![n as u8 + 1; block]));
        run(Request::Write { offset, buffer, durable: n % 4 == 0 });
    }
    let (offset, len) = (4 * block as u64, 4 * block as u64);
    run(Request::Zero { offset, len, deallocate: false, durable: true });
    if disk.limits().deallocate.is_some() {
        let (offset, len) = (8 * block as u64, 4 * block as u64);
        run(Request::Deallocate { offset, len });
    }
    for n in 0..16usize {
        let buffer = Buffer::Own(vec![0xee; block]);
        let read = run(Request::Read { offset: (n * block) as u64, buffer });
        let Some(Buffer::Own(read)) = read else { panic!("no buffer") };
        let zero =
            (4..8).contains(&n) || (disk.limits().deallocate.is_some() && (8..12).contains(&n));
        let expected = if zero { 0 } else { n as u8 + 1 };
        assert!(read.iter().all(|byte| *byte == expected), "block {n}: {}", read[0]);
    }
}

/// cloud-hypervisor#7720, #8051: sectors of 4 KiB, and blocks of 512 bytes.
#[test]
fn device_is_used_directly_where_its_sectors_are_as_small_as_the_blocks() {
    let _alone = alone();
    for (sector, block, direct) in [(512, 512, true), (4096, 4096, true), (4096, 512, false)] {
        let Some(device) = Loop::new(sector) else { return };
        let image = Image::open(&options(&device.device, block)).unwrap();
        assert_eq!(image.is_direct(), direct, "{sector} {block}: {}", image.how());
        let limits = image.limits();
        assert_eq!((limits.capacity, limits.atomic_write), (16 << 20, sector));
        assert_eq!(limits.block, if direct { sector } else { 512 });
        assert!(limits.deallocate.is_some(), "a loop device on a file punches holes");
        check(image, block as usize);
        let required =
            ImageOptions { direct: DirectIo::Required, ..options(&device.device, block) };
        match Image::open(&required) {
            Ok(image) => assert!(direct && image.is_direct()),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !direct && text.contains("blocks of 4096 bytes, and the disk's have 512"),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn device_that_another_program_has_is_refused() {
    let _alone = alone();
    let Some(device) = Loop::new(512) else { return };
    let image = Image::open(&options(&device.device, 512)).unwrap();
    for read_only in [false, true] {
        let options = ImageOptions { read_only, ..options(&device.device, 512) };
        let error = Image::open(&options).unwrap_err();
        assert_eq!(error.errno(), Errno::BUSY, "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    drop(image);
    Image::open(&options(&device.device, 512)).unwrap();
}

/// As a mount has it, or the kernel's own users of a device: these know nothing of locks of bytes.
fn exclusively(device: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(rustix::fs::OFlags::EXCL.bits() as i32).open(device)
}

#[test]
fn device_is_ours_alone_also_against_those_who_know_no_locks() {
    let _alone = alone();
    let Some(device) = Loop::new(512) else { return };
    for read_only in [false, true] {
        let options = ImageOptions { read_only, ..options(&device.device, 512) };
        let other = exclusively(&device.device).unwrap();
        let error = Image::open(&options).expect_err("another one has the device for itself");
        assert_eq!(error.errno(), Errno::BUSY, "{error}");
        assert!(
            error.to_string().contains("mounted, or another program has the device"),
            "{error}"
        );
        drop(other);
        let image = Image::open(&options).unwrap();
        let error = exclusively(&device.device).expect_err("it is ours alone");
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}");
        drop(image);
    }
    exclusively(&device.device).unwrap();
}

#[test]
fn identity_of_a_device_is_kept_where_the_operator_says() {
    let _alone = alone();
    let Some(device) = Loop::new(512) else { return };
    let image = Image::open(&options(&device.device, 512)).unwrap();
    let error = Metadata::open(&image, &MetadataOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`metadata = FILE` says where"), "{error}");
    let path = device.file.with_extension("metadata");
    let at = MetadataOptions { path: Some(path), ..MetadataOptions::default() };
    let made = Metadata::open(&image, &at).unwrap().identity();
    assert_eq!(Metadata::open(&image, &at).unwrap().identity(), made);
}

/// A mount that ends with the test.
struct Mount(PathBuf);

impl Mount {
    /// `None`, and said so, where nothing can be mounted.
    fn tmpfs(at: &Path, size: &str) -> Option<Self> {
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_owned()));
        }
        eprintln!("SKIPPED: only root can make a file system that is full");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn writes_go_on_when_a_full_file_system_has_space_again() {
    let _alone = alone();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(_mount) = Mount::tmpfs(directory.path(), "1M") else { return };
    let path = directory.path().join("disk.img");
    let other = directory.path().join("other");
    for threads in [None, Some(2)] {
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        std::fs::write(&other, vec![1; 768 << 10]).unwrap();
        let runtime = Runtime::new().unwrap();
        let options = ImageOptions { threads, ..options(&path, 512) };
        let disk = Disk::new(Image::open(&options).unwrap());
        let channel = disk.connect(&runtime).unwrap();
        let run = |request| {
            let done = runtime.block_on(None, channel.start(request)).unwrap();
            (done.result.err().map(|failure| failure.kind), done.buffer.is_some())
        };
        let write = |offset: u64| {
            let buffer = Buffer::Own(vec![5; 640 << 10]);
            run(Request::Write { offset, buffer, durable: false })
        };
        assert_eq!(write(0), (Some(FailureKind::NoSpace), true));
        std::fs::remove_file(&other).unwrap();
        assert_eq!(write(0).0, None);
        assert_eq!(write(1 << 20).0, Some(FailureKind::NoSpace));
        // What the guest gives back is there again.
        let deallocate = Request::Deallocate { offset: 0, len: 2 << 20 };
        assert_eq!(run(deallocate).0, None);
        assert_eq!(write(1 << 20).0, None);
        assert_eq!(run(Request::Flush).0, None);
        assert!(disk.sync_failure().is_none());
    }
}

/// firecracker#2172: a flush is a sync of the image, and completes when that has returned. What the kernel has
/// taken into its cache cannot be written to this device; it tells so when it is asked to sync, and then only.
#[test]
fn flush_is_a_sync_of_the_image() {
    let _alone = alone();
    for threads in [None, Some(2)] {
        for durable in [false, true] {
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let Some(_mount) = Mount::tmpfs(directory.path(), "1M") else { return };
            let Some(device) = Loop::in_directory(512, directory) else { return };
            let runtime = Runtime::new().unwrap();
            let image =
                ImageOptions { threads, direct: DirectIo::Off, ..options(&device.device, 512) };
            let disk = Disk::new(Image::open(&image).unwrap());
            let channel = disk.connect(&runtime).unwrap();
            let run = |request| {
                let done = runtime.block_on(None, channel.start(request)).unwrap();
                done.result.err().map(|failure| failure.kind)
            };
            let write = |durable| {
                let buffer = Buffer::Own(vec![5; 4 << 20]);
                run(Request::Write { offset: 0, buffer, durable })
            };
            if durable {
                assert_eq!(write(true), Some(FailureKind::SyncFailed));
            } else {
                assert_eq!(write(false), None);
                assert_eq!(run(Request::Flush), Some(FailureKind::SyncFailed));
            }
            // And never again is one reported that would cover what was lost.
            assert_eq!(run(Request::Flush), Some(FailureKind::SyncFailed));
            assert_eq!(write(false), Some(FailureKind::SyncFailed));
        }
    }
}
