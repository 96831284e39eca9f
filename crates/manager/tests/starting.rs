//! Instances that are made while the daemon starts.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vfiod_config::{Document, Models};
use vfiod_manager::{Manager, NewInstance, PassedSockets};

/// Whoever made it may connect at once, and is served in the end.
#[test]
fn instance_made_between_the_names_and_the_service_has_a_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("vfiod.toml");
    let sockets = directory.path().join("sockets");
    let text = format!("[parent.p]\nmodel = \"edu\"\n[mdev]\nsockets = {sockets:?}\n");
    std::fs::write(&file, text).expect("writes");
    let models: Models = vfiod_devices::catalogue();
    let document = Document::load(&file, &models, Vec::new()).expect("a configuration");
    let manager = Manager::prepare(document, &models, None, PassedSockets::default());
    let manager = manager.expect("is prepared");
    let create = || {
        let (parent, type_id) = ("p".to_owned(), "edu-1".to_owned());
        let wanted = NewInstance { parent, type_id, uuid: None, attributes: vec![] };
        let instance = manager.create(wanted).expect("is made");
        sockets.join(format!("{}.sock", instance.uuid()))
    };
    let before = create();
    assert!(!before.exists());
    manager.publish().expect("gets names");
    assert!(before.exists());
    let between = create();
    UnixStream::connect(&between).expect("it has a name");
    manager.serve().expect("is served");
    let after = create();
    for socket in [before, between, after] {
        UnixStream::connect(&socket).expect("it has a name");
    }
    manager.stop(Duration::ZERO);
}
