//! Images in the sandbox, which may use the directory of the image and nothing else.
//!
//! The process is in the sandbox for good, so each test is a process of its own.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use vfiod_disk::{
    Buffer, Channel, Disk, Image, ImageOptions, Metadata, MetadataOptions, Request, SYSTEM_CALLS,
};
use vfiod_sandbox::Rules;
use vfiod_tasks::{Runtime, Workers};

const IMAGE: &str = "VFIOD_TEST_IMAGE_IN_SANDBOX";

/// Not a test by itself: what the next one starts.
#[test]
fn program_in_the_sandbox() {
    let Some(path) = std::env::var_os(IMAGE) else { return };
    let path = Path::new(&path);
    let mut rules = Rules::new();
    rules.allow(path.parent().unwrap());
    for number in SYSTEM_CALLS {
        rules.allow_system_call(*number);
    }
    let _report = rules.enter().unwrap();
    assert!(File::open("/etc/passwd").is_err(), "there is no sandbox");
    for threads in [None, Some(2)] {
        let runtime = Runtime::new().unwrap();
        let _workers = Workers::start(&runtime, 2).unwrap();
        let image = Image::open(&ImageOptions { threads, ..ImageOptions::new(path) }).unwrap();
        let metadata = Metadata::open(&image, &MetadataOptions::default()).unwrap();
        let count = |stored: &mut vfiod_disk::Stored| {
            *stored.counters.entry("opened".into()).or_default() += 1;
        };
        metadata.change(count).unwrap();
        let disk = Disk::new(image);
        let channel = disk.connect(&runtime).unwrap();
        let limits = disk.limits();
        let mut requests = vec![
            Request::Write { offset: 0, buffer: Buffer::Own(vec![7; 8192]), durable: true },
            Request::Read { offset: 512, buffer: Buffer::Own(vec![0; 8192]) },
            Request::Zero { offset: 4096, len: 4096, deallocate: false, durable: false },
            Request::Flush,
        ];
        if limits.deallocate.is_some() {
            requests.push(Request::Deallocate { offset: 8192, len: 8192 });
        }
        for request in requests {
            let what = format!("{request:?}");
            let done = runtime.block_on(None, channel.start(request)).unwrap();
            assert!(done.result.is_ok(), "{what}: {:?}", done.result);
        }
    }
    // Nobody's process can be looked up here; what this one has it knows by itself.
    let _image = Image::open(&ImageOptions::new(path)).unwrap();
    let error = Image::open(&ImageOptions::new(path)).unwrap_err().to_string();
    assert!(error.contains("(this one) uses it"), "{error}");
    println!("all done");
}

#[test]
fn image_and_metadata_are_used_in_the_sandbox() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_in_the_sandbox", "--nocapture"])
        .env(IMAGE, &path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("all done"), "{told}{failed}");
    let image = Image::open(&ImageOptions::new(&path)).unwrap();
    let metadata = Metadata::open(&image, &MetadataOptions::default()).unwrap();
    assert_eq!(metadata.stored().counters["opened"], 2);
}
