//! One command after the other.

use vfiod_nvme_driver::{Command, Controller, Data, Error, Options, Waiting, opcode};

use crate::rig::{BLOCKS, Rig, content, options, pattern};

#[test]
fn controller_says_what_it_is() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let info = controller.info();
    assert_eq!((info.version, info.max_transfer, info.queues), (0x2_0000, Some(1 << 20), 64));
    assert!(info.model.contains("vfiod") && !info.serial.is_empty(), "{info:?}");
    assert_eq!(controller.namespaces().unwrap(), [1]);
    let disk = controller.namespace(1).unwrap();
    assert_eq!((disk.id, disk.blocks, disk.block_size), (1, BLOCKS, 512));
    assert!(matches!(controller.namespace(2), Err(Error::Status(_) | Error::Unsupported(_))));
}

/// Data of every number of pages and at odd offsets, with both ways of waiting, and with memory that the
/// server reaches by messages.
#[test]
fn what_was_written_is_read() {
    let rig = Rig::new();
    for (shared_memory, waiting) in [
        (true, Waiting::Polling),
        (true, Waiting::Interrupts),
        (false, Waiting::Polling),
        (false, Waiting::Interrupts),
    ] {
        let mut options = options();
        options.shared_memory = shared_memory;
        let mut controller = Controller::connect(&rig.socket, &options).unwrap();
        let disk = controller.namespace(1).unwrap();
        let mut queue = controller.create_queue(16, waiting).unwrap();
        for (blocks, offset) in
            [(1, 0), (1, 4), (8, 0), (9, 512), (16, 4092), (17, 0), (1024, 8), (2048, 0)]
        {
            let len = blocks * 512;
            let what = format!("{shared_memory} {waiting:?}: {blocks} blocks, offset {offset}");
            let buffer = controller.memory().allocate(len + offset).unwrap();
            let data = || Data::part(&buffer, offset..offset + len);
            let bytes = pattern(blocks as u64 + 7, len);
            buffer.write(offset, &bytes);
            queue.write(&disk, 5, data()).expect(&what);
            buffer.write(offset, &vec![0; len]);
            queue.read(&disk, 5, data()).expect(&what);
            assert!(content(&buffer)[offset..] == bytes, "{what}");
        }
        queue.flush(&disk).unwrap();
        controller.close().unwrap();
    }
}

#[test]
fn refused_commands_have_their_status() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    let mut queue = controller.create_queue(16, Waiting::Polling).unwrap();
    let refused = queue.perform(Command::new(0x7f).namespace(1), None).unwrap_err();
    let status = refused.status().unwrap();
    assert_eq!((status.code(), status.do_not_retry()), (1, true));
    let buffer = controller.memory().allocate(512).unwrap();
    let past = Command::new(opcode::READ).namespace(1).blocks(BLOCKS, 1);
    let refused = queue.perform(past, Some(Data::of(&buffer))).unwrap_err();
    assert_eq!(refused.status().map(|status| status.code()), Some(0x80));
    let disk = controller.namespace(1).unwrap();
    let odd = controller.memory().allocate(513).unwrap();
    assert!(matches!(queue.read(&disk, 0, Data::of(&odd)), Err(Error::Unsupported(_))));
}

#[test]
fn device_that_is_no_controller_is_refused() {
    use vfiod_core::{DeviceSpec, Registry};
    use vfiod_pci::Function;
    use vfiod_pci::prelude::*;
    use vfiod_server::{Listener, Server, ServerOptions, SocketAccess};

    struct Other;
    impl Model for Other {
        type State = CannotSave;
        fn spec(&self) -> FunctionSpec {
            FunctionSpec::new(0x1234, 1).class(0x02_00_00).bar(0, Bar::memory32(8192))
        }
        fn read(&mut self, _: &Cx<Self>, _: u8, _: u64, data: &mut [u8]) {
            data.fill(0);
        }
        fn write(&mut self, _: &Cx<Self>, _: u8, _: u64, _: &[u8]) {}
        fn reset(&mut self, _: &Cx<Self>) {}
    }
    impl Unsaved for Other {
        const WHY: &'static str = "a test";
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let registry = Registry::new();
    let spec = DeviceSpec { name: "other".to_owned(), ..DeviceSpec::default() };
    let device = registry.register(spec, Box::new(Function::new(Other).unwrap())).unwrap();
    let server = Server::new(ServerOptions::default()).unwrap();
    let listener = Listener::bind(&socket, SocketAccess::default()).unwrap();
    let served = server.serve(listener, device.device().clone()).unwrap();
    let refused = Controller::connect(&socket, &Options::default()).unwrap_err();
    assert!(refused.to_string().contains("is no NVMe controller"), "{refused}");
    drop(served);
}
