//! Several namespaces of one controller.

use std::io::Write as _;

use vfiod_config::ConfiguredModel;

use super::rig::{BASE, Command, DATA, Held, Host, namespace, pattern, with_common};
use crate::common::Common;
use crate::controller::Nvme;
use crate::options::NvmeOptions;

fn at(opcode: u8, namespace: u32) -> Command {
    Command::io(opcode, 3, 1, (DATA, 0)).namespace(namespace)
}

/// A host whose controller has namespaces 1 and 3, and their disks.
fn host() -> (Host, [std::sync::Arc<Held>; 2]) {
    let disks = [Held::new(), Held::new()];
    let namespaces = vec![namespace(1, disks[0].clone()), namespace(3, disks[1].clone())];
    let mut host = Host::new(with_common(Common::new(16, namespaces)));
    host.create_pair(1, 64, 1);
    (host, disks)
}

/// spdk#2067: the active list ends with zeroes, and what is not active is all zeroes.
#[test]
fn each_number_has_its_status() {
    let (mut host, _) = host();
    let controller = host.identify(1, 0).unwrap();
    assert_eq!(controller[516..520], 16_u32.to_le_bytes(), "NN");
    let list = |host: &mut Host, after| {
        let list = host.identify(2, after).unwrap();
        let number = |n: usize| u32::from_le_bytes(list[4 * n..4 * n + 4].try_into().unwrap());
        (0..1024).map(number).collect::<Vec<_>>()
    };
    for (after, active) in [(0, vec![1, 3]), (1, vec![3]), (2, vec![3]), (3, vec![]), (16, vec![])]
    {
        let mut expected = active;
        expected.resize(1024, 0);
        assert_eq!(list(&mut host, after), expected, "after {after}");
    }
    let (one, three) = (host.identify(0, 1).unwrap(), host.identify(0, 3).unwrap());
    assert_ne!(one[104..120], three[104..120], "NGUID");
    assert_ne!(host.identify(3, 1), host.identify(3, 3), "descriptors");
    for (id, is_active, status) in [
        (0, false, 0x0b),
        (1, true, 0),
        (2, false, 0x02),
        (3, true, 0),
        (16, false, 0x02),
        (17, false, 0x0b),
        (0xffff, false, 0x0b),
    ] {
        let outcome = if is_active { Ok(0) } else { Err(status) };
        for opcode in [0, 1, 2, 8, 12] {
            assert_eq!(host.perform(1, at(opcode, id)), outcome, "opcode {opcode}, {id}");
        }
        for cns in [0, 8] {
            let identified = host.identify(cns, id);
            match status {
                0 => assert!(identified.unwrap().iter().any(|byte| *byte != 0), "CNS {cns}, {id}"),
                0x02 => assert_eq!(identified, Ok(vec![0; 4096]), "CNS {cns}, {id}"),
                _ => assert_eq!(identified, Err(status), "CNS {cns}, {id}"),
            }
        }
    }
}

#[test]
fn each_namespace_has_its_own_blocks_and_a_broadcast_flush_is_for_all() {
    let (mut host, disks) = host();
    for id in [1, 3] {
        host.memory.put(DATA - BASE, &pattern(id.into(), 512));
        assert_eq!(host.perform(1, at(1, id)), Ok(0));
    }
    for id in [3, 1] {
        assert_eq!(host.perform(1, at(2, id)), Ok(0));
        assert_eq!(host.memory.get(DATA - BASE, 512), pattern(id.into(), 512), "namespace {id}");
    }
    disks.iter().for_each(|disk| drop(disk.seen()));
    assert_eq!(host.perform(1, Command::new(0).namespace(3)), Ok(0));
    assert_eq!(disks.each_ref().map(|disk| disk.seen()), [vec![], vec!["flush".to_owned()]]);
    assert_eq!(host.perform(1, Command::new(0).namespace(u32::MAX)), Ok(0));
    assert_eq!(
        disks.each_ref().map(|disk| disk.seen()),
        [(); 2].map(|()| vec!["flush".to_owned()])
    );
    assert_eq!(host.perform(1, at(2, u32::MAX)), Err(0x0b), "a read of all");
}

#[test]
fn images_are_namespaces_with_identifiers_of_their_own_that_last() {
    let place = tempfile::tempdir().unwrap();
    let path = |n: u8| place.path().join(format!("disk-{n}.img"));
    for n in 1..=3 {
        let mut image = std::fs::File::create(path(n)).unwrap();
        image.write_all(&[n; 1 << 20]).unwrap();
    }
    let options = NvmeOptions {
        file: Some(path(1)),
        files: vec![path(2), path(3)],
        namespaces: Some(3),
        ..NvmeOptions::default()
    };
    let names = || {
        let mut host = Host::new(Nvme::configured(options.clone()).unwrap());
        host.create_pair(1, 64, 1);
        assert_eq!(host.identify(1, 0).unwrap()[516..520], 3_u32.to_le_bytes(), "NN");
        for n in 1..=3 {
            assert_eq!(host.perform(1, at(2, n)), Ok(0));
            assert_eq!(host.memory.get(DATA - BASE, 512), [n as u8; 512]);
        }
        assert_eq!(host.identify(0, 4), Err(0x0b));
        let names = [1, 2, 3].map(|n| host.identify(3, n).unwrap()[4..20].to_vec());
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
        names
    };
    assert_eq!(names(), names());
    // An image that is named twice, whether it is locked or not.
    for locks in [None, Some(false)] {
        let twice = NvmeOptions { files: vec![path(2), path(2)], locks, ..options.clone() };
        let error = super::options::refusal(twice);
        assert!(error.contains("namespace"), "{error}");
    }
}

/// Error Recovery (NVM command set 4.1.3.2): each namespace has a value of its own.
#[test]
fn error_recovery_is_that_of_a_namespace() {
    let (mut host, _) = host();
    let get = |id| Command::new(10).set(10, 0x05).namespace(id);
    let set = |id, value| Command::new(9).set(10, 0x05).set(11, value).namespace(id);
    assert_eq!(host.admin(set(1, 5)), Ok(0));
    assert_eq!(host.admin(set(3, 7)), Ok(0));
    assert_eq!([1, 3].map(|id| host.admin(get(id))), [Ok(5), Ok(7)]);
    // All at once are set, and not read.
    assert_eq!(host.admin(set(u32::MAX, 9)), Ok(0));
    assert_eq!([1, 3].map(|id| host.admin(get(id))), [Ok(9), Ok(9)]);
    assert_eq!(host.admin(get(u32::MAX)), Err(0x0b));
    for (id, status) in [(0, 0x0b), (2, 0x02), (16, 0x02), (17, 0x0b)] {
        assert_eq!(host.admin(get(id)), Err(status), "{id}");
        assert_eq!(host.admin(set(id, 1)), Err(status), "{id}");
    }
    assert_eq!(host.admin(set(1, 1 << 16 | 3)), Err(0x02), "DULBE");
    // The temperature is the controller's.
    assert_eq!(host.admin(Command::new(9).set(10, 0x04).set(11, 350).namespace(3)), Err(0x10f));
    host.disable();
    host.enable();
    assert_eq!([1, 3].map(|id| host.admin(get(id))), [Ok(0), Ok(0)], "after a reset");
}

/// What is saved of it is kept with the image, whichever number that has.
#[test]
fn saved_error_recovery_goes_with_its_image() {
    let place = tempfile::tempdir().unwrap();
    let image = |name: &str| {
        let path = place.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    };
    let options =
        NvmeOptions { file: Some(image("a")), files: vec![image("b")], ..NvmeOptions::default() };
    let get = |id, select: u32| Command::new(10).set(10, 0x05 | select << 8).namespace(id);
    let set = |id, value| Command::new(9).set(10, 1 << 31 | 0x05).set(11, value).namespace(id);
    let mut host = Host::new(Nvme::configured(options.clone()).unwrap());
    assert_eq!([set(1, 5), set(2, 7)].map(|set| host.admin(set)), [Ok(0), Ok(0)]);
    assert_eq!(host.admin(set(2, 7).set(10, 0x05).set(11, 8)), Ok(0));
    assert_eq!([0, 1, 2].map(|select| host.admin(get(2, select))), [Ok(8), Ok(0), Ok(7)]);
    host.disable();
    host.enable();
    let current = [1, 2].map(|id| host.admin(get(id, 0)));
    assert_eq!(current, [Ok(5), Ok(7)], "after a controller reset");
    drop(host);
    let options = NvmeOptions { numbers: vec![4], ..options };
    let mut host = Host::new(Nvme::configured(options).unwrap());
    assert_eq!([1, 4].map(|id| host.admin(get(id, 0))), [Ok(5), Ok(7)], "after a restart");
    assert_eq!(host.admin(get(2, 0)), Err(0x02));
}
