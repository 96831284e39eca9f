//! DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE.

use vfiod_wire::Command;
use vfiod_wire::payload::{Feature, feature_flag};
use zerocopy::IntoBytes;

use crate::rig::*;

#[test]
fn features_are_probed_got_and_set() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.feature_probe(FEATURE, true, true).unwrap();
    client.feature_probe(FEATURE, false, false).unwrap();
    assert_eq!(client.feature_get(FEATURE, &[]).unwrap(), b"initial");
    client.feature_set(FEATURE, b"changed").unwrap();
    assert_eq!(client.feature_get(FEATURE, &[]).unwrap(), b"changed");
}

#[test]
fn an_unknown_feature_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    for index in [0, 1, 2, 5, 9, u16::MAX] {
        assert_eq!(refused(client.feature_probe(index, true, false)), ENOTTY);
        assert_eq!(refused(client.feature_get(index, &[])), ENOTTY);
        assert_eq!(refused(client.feature_set(index, &[0; 8])), ENOTTY);
    }
}

#[test]
fn invalid_feature_flags_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let index = u32::from(FEATURE);
    for flags in [index, index | feature_flag::GET | feature_flag::SET, index | 1 << 19] {
        let feature = Feature { argsz: 64, flags };
        let refusal = refused(client.call(Command::DeviceFeature, feature.as_bytes(), &[]));
        assert_eq!(refusal, EINVAL, "{flags:#x}");
    }
    let small = Feature { argsz: 7, flags: index | feature_flag::GET };
    assert_eq!(refused(client.call(Command::DeviceFeature, small.as_bytes(), &[])), EINVAL);
    assert_eq!(refused(client.call(Command::DeviceFeature, &[0; 7], &[])), EINVAL);
}

#[test]
fn too_small_an_argsz_gets_the_size() {
    let rig = Rig::new();
    let mut client = rig.client();
    let feature = Feature { argsz: 8, flags: u32::from(FEATURE) | feature_flag::GET };
    let reply = client.call(Command::DeviceFeature, feature.as_bytes(), &[]).unwrap();
    assert_eq!(reply.payload, Feature { argsz: 15, ..feature }.as_bytes());
}

#[test]
fn migration_data_is_refused_and_the_connection_lives() {
    let rig = Rig::new();
    let mut client = rig.client();
    let read = [16u32, 8];
    assert_eq!(refused(client.call(Command::MigDataRead, read.as_bytes(), &[])), EOPNOTSUPP);
    let write = [[12u32, 4].as_bytes(), &[0; 4]].concat();
    assert_eq!(refused(client.call(Command::MigDataWrite, &write, &[])), EOPNOTSUPP);
    assert_eq!(refused(client.call(Command::MigDataRead, &[0; 7], &[])), EINVAL);
    assert_eq!(refused(client.call(Command::MigDataWrite, &write[..11], &[])), EINVAL);
    client.device_info().unwrap();
}
