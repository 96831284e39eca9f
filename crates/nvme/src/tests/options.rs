//! Options: which are refused, and what a disk in a file keeps.

use std::io::Write as _;
use std::path::Path;

use vfiod_config::ConfiguredModel;
use vfiod_core::{DeviceSpec, Registry};
use vfiod_disk::test::TestDisk;
use vfiod_pci::Function;

use super::rig::{BASE, Command, DATA, Host, namespace, pattern, with_common};
use crate::common::Common;
use crate::controller::Nvme;
use crate::options::{IdentityOption, NvmeOptions};

fn options(text: &str) -> NvmeOptions {
    serde_json::from_str(text).unwrap()
}

fn file(path: &Path) -> NvmeOptions {
    NvmeOptions { file: Some(path.to_owned()), ..NvmeOptions::default() }
}

/// What the model is refused with: when it is made, or registered.
pub(super) fn refusal(options: NvmeOptions) -> String {
    match Nvme::configured(options) {
        Err(error) => error.to_string(),
        Ok(nvme) => {
            let device = Box::new(Function::new(nvme).unwrap());
            let spec = DeviceSpec { name: "disk".to_owned(), ..DeviceSpec::default() };
            match Registry::new().register(spec, device) {
                Err(error) => error.to_string(),
                Ok(_) => "accepted".to_owned(),
            }
        }
    }
}

#[test]
fn options_that_cannot_be_name_what_is_wrong() {
    for (text, expected) in [
        (r#"{"file": "a", "memory": 512}"#, "`file`, `memory` and `null`"),
        (r#"{"memory": 512, "null": 512}"#, "`file`, `memory` and `null`"),
        (r#"{"null": 100}"#, "`null` is 100; must be a multiple of 512"),
        (r#"{"null": 1099511627776}"#, "accepted"),
        (r#"{"readonly": true}"#, "`file`"),
        (r#"{"locks": false}"#, "`file`"),
        (r#"{"direct": true}"#, "`file`"),
        (r#"{"identity": "new"}"#, "`file`"),
        (r#"{"metadata": "a"}"#, "`file`"),
        (r#"{"file": "a", "readonly": true, "identity": "new"}"#, "readonly"),
        (r#"{"shared": true}"#, "`file` names the first one"),
        (r#"{"memory": 1048576, "shared": true}"#, "`file` names the first one"),
        (r#"{"files": ["a"]}"#, "`file` names the first one"),
        (r#"{"namespaces": 0}"#, "1 to 1024"),
        (r#"{"namespaces": 1025}"#, "1 to 1024"),
        (r#"{"file": "a", "files": ["b", "c"], "namespaces": 2}"#, "3 namespaces"),
        (r#"{"commands": 0}"#, "1 to 65536"),
        (r#"{"buffers": 1}"#, "at least 65536"),
        (r#"{"iops_burst": 1}"#, "`iops` sets it"),
        (r#"{"bandwidth": 0, "bandwidth_burst": 1}"#, "`bandwidth` sets it"),
        (r#"{"iops": 1, "iops_burst": 0}"#, "must be at least 1"),
        (r#"{"iops": 18446744073709551615, "bandwidth": 0}"#, "accepted"),
        (r#"{"block_size": 520}"#, "512 or 4096"),
        (r#"{"memory": 0}"#, "`memory` is 0; must be a multiple of 512"),
        (r#"{"memory": 512, "block_size": 4096}"#, "must be a multiple of 4096"),
        (r#"{"memory": 8192, "block_size": 4096}"#, "accepted"),
        (r#"{"serial": ""}"#, "printable ASCII"),
        (r#"{"serial": "123456789012345678901"}"#, "20"),
        (r#"{"serial": "ß"}"#, "printable ASCII"),
        (r#"{"uuid": "none"}"#, "UUID"),
        (r#"{"file": "/nowhere/disk.img"}"#, "/nowhere/disk.img"),
        (r#"{"file": "/dev/null"}"#, "neither a regular file nor a block device"),
    ] {
        let error = refusal(options(text));
        assert!(error.contains(expected), "{text}: {error}");
    }
    let place = tempfile::tempdir().unwrap();
    let empty = tempfile::NamedTempFile::new_in(&place).unwrap();
    assert!(refusal(file(empty.path())).contains("truncate"), "an empty image");
    empty.as_file().set_len(1000).unwrap();
    assert!(refusal(file(empty.path())).contains("multiple of the block size"));
    empty.as_file().set_len(1 << 20).unwrap();
    assert_eq!(refusal(file(empty.path())), "accepted");
}

/// Serial number, subsystem and namespace identifiers, as the host sees them.
fn names(options: NvmeOptions) -> Vec<u8> {
    let mut host = Host::new(Nvme::configured(options).unwrap());
    let controller = host.identify(1, 0).unwrap();
    let ids = host.identify(3, 1).unwrap();
    [&controller[4..24], &controller[768..1024], &ids[4..20], &ids[24..40]].concat()
}

/// A disk has its names for ever, and a copy of its image other ones.
#[test]
fn names_are_kept_beside_the_image_and_a_copy_has_its_own() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("disk.img"), vec![0; 1 << 20]).unwrap();
    let first = names(file(&at("disk.img")));
    assert_eq!(names(file(&at("disk.img"))), first);
    // Moved with what is kept beside it.
    std::fs::rename(at("disk.img"), at("moved.img")).unwrap();
    std::fs::rename(at("disk.img.vfiod"), at("moved.img.vfiod")).unwrap();
    assert_eq!(names(file(&at("moved.img"))), first);
    // Copied with it.
    std::fs::copy(at("moved.img"), at("copy.img")).unwrap();
    std::fs::copy(at("moved.img.vfiod"), at("copy.img.vfiod")).unwrap();
    let copy = names(file(&at("copy.img")));
    let different = |n: usize, len: usize| assert_ne!(copy[n..n + len], first[n..n + len]);
    different(0, 20);
    different(20, 256);
    different(276, 16);
    different(292, 16);
    let new = NvmeOptions { identity: IdentityOption::New, ..file(&at("copy.img")) };
    assert_ne!(names(new), copy);
    // What an option says is kept.
    let named = NvmeOptions { serial: Some("DISK-7".to_owned()), ..file(&at("moved.img")) };
    let named = names(named);
    assert!(named.starts_with(b"DISK-7 ") && named[20..] == first[20..]);
    assert_eq!(names(file(&at("moved.img"))), named);
}

#[test]
fn stored_format_that_differs_is_refused_and_otherwise_used() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let large = NvmeOptions { block_size: Some(4096), torn_writes: true, ..file(&path) };
    let size = |options: NvmeOptions| {
        let namespace = Host::new(Nvme::configured(options).unwrap()).identify(0, 1).unwrap();
        namespace[130 + 4 * usize::from(namespace[26])]
    };
    assert_eq!(size(large.clone()), 12);
    assert_eq!(size(NvmeOptions { block_size: None, ..large.clone() }), 12);
    let error = refusal(NvmeOptions { block_size: Some(512), ..large });
    assert!(error.contains("blocks of 4096 bytes, not 512"), "{error}");
}

#[test]
fn image_keeps_what_was_written_and_is_used_once() {
    let place = tempfile::tempdir().unwrap();
    let image = tempfile::NamedTempFile::new_in(&place).unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let named = NvmeOptions {
        serial: Some("DISK 1".to_owned()),
        uuid: Some("6d3a4e0c-5f4b-4d57-9a3e-0f6f6c1d2b7a".to_owned()),
        ..file(image.path())
    };
    let data = pattern(3, 8192);
    for round in 0..2 {
        let mut host = Host::new(Nvme::configured(named.clone()).unwrap());
        let error = refusal(file(image.path()));
        assert!(error.contains("in use"), "{error}");
        let controller = host.identify(1, 0).unwrap();
        assert_eq!(controller[4..24], *b"DISK 1              ");
        assert_eq!(host.identify(0, 1).unwrap()[104..108], [0x6d, 0x3a, 0x4e, 0x0c]);
        host.create_pair(1, 64, 1);
        if round == 0 {
            host.memory.put(DATA - BASE, &data);
            assert_eq!(host.perform(1, Command::io(1, 9, 16, (DATA, DATA + 4096))), Ok(0));
            assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0));
        } else {
            assert_eq!(host.perform(1, Command::io(2, 9, 16, (DATA, DATA + 4096))), Ok(0));
            assert_eq!(host.memory.get(DATA - BASE, 8192), data);
        }
    }
    // Raw from the first block on, for any other tool.
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!(bytes[9 * 512..9 * 512 + 8192], data);
    assert_eq!(bytes.len(), 1 << 20);
}

#[test]
fn read_only_image_is_read_and_not_written() {
    let mut image = tempfile::NamedTempFile::new().unwrap();
    let bytes = pattern(5, 1 << 20);
    image.write_all(&bytes).unwrap();
    let options = NvmeOptions { readonly: true, ..file(image.path()) };
    let mut host = Host::new(Nvme::configured(options).unwrap());
    assert_eq!(host.identify(0, 1).unwrap()[99], 1, "write protected");
    assert_eq!(host.log(2, 512).unwrap()[0], 8, "read-only");
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, Command::io(2, 3, 1, (DATA, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 512), bytes[1536..2048]);
    assert_eq!(host.perform(1, Command::io(1, 3, 1, (DATA, 0))), Err(0x20));
    assert_eq!(host.perform(1, Command::io(8, 3, 1, (0, 0))), Err(0x20));
    assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0));
    assert!(std::fs::read(image.path()).unwrap() == bytes);
}

/// Blocks that the disk does not write whole when power fails are refused, unless the operator says what is
/// given up; what Identify promises is what the disk keeps.
#[test]
fn blocks_that_a_power_failure_may_tear_are_refused() {
    let disk = |atomic| {
        let disk = TestDisk::new(1 << 20);
        disk.set_limits(|limits| limits.atomic_write = atomic);
        disk
    };
    let large = NvmeOptions { block_size: Some(4096), ..NvmeOptions::default() };
    let error = Nvme::with_backend(&large, disk(512)).unwrap_err().to_string();
    assert!(error.contains("only 512 bytes whole") && error.contains("`torn_writes`"), "{error}");
    let torn = NvmeOptions { torn_writes: true, ..large.clone() };
    let small = NvmeOptions::default();
    // Options and what the disk writes whole; blocks that are written whole, 0's based; LBADS of both formats.
    for (options, atomic, blocks, formats) in [
        (&torn, 512, 0, [9, 12]),
        (&large, 4096, 0, [9, 12]),
        (&small, 512, 0, [9, 0]),
        (&small, 4096, 7, [9, 12]),
    ] {
        let mut host = Host::new(Nvme::with_backend(options, disk(atomic)).unwrap());
        let (controller, namespace) = (host.identify(1, 0).unwrap(), host.identify(0, 1).unwrap());
        // AWUN and AWUPF; NAWUN, NAWUPF and NACWU, which NSFEAT says are there.
        assert_eq!([526, 528].map(|at| controller[at]), [blocks; 2], "{options:?}, {atomic}");
        assert_eq!([34, 36, 38].map(|at| namespace[at]), [blocks; 3], "{options:?}, {atomic}");
        assert_eq!([130, 134].map(|at| namespace[at]), formats, "{options:?}, {atomic}");
        let format = Command::new(0x80).namespace(1).set(10, 1);
        let outcome = if formats[1] == 0 { Err(0x10a) } else { Ok(0) };
        assert_eq!(host.admin(format), outcome, "{options:?}, {atomic}");
    }
    // Of several namespaces the least is promised.
    let namespaces =
        [4096, 512].into_iter().zip(1..).map(|(atomic, id)| namespace(id, disk(atomic)));
    let mut host = Host::new(with_common(Common::new(16, namespaces.collect())));
    assert_eq!([526, 528].map(|at| host.identify(1, 0).unwrap()[at]), [0; 2]);
}
