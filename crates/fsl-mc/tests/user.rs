//! A container as its user sees it: over a real socket, by commands written to its portal, the way
//! Linux's `fsl-mc` bus driver and DPAA2's user space do.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use vfiod_client::{Client, IrqAction, IrqData};
use vfiod_core::event::{Event, Observer};
use vfiod_core::{DeviceRef, DeviceSpec, Errno, Owner, Registration, Registry};
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice, PORTAL_SIZE};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};

const READY: u64 = 1 << 16;

/// A command's number and version in its place in the header.
const fn command(id: u64) -> u64 {
    (id << 4 | 1) << 48
}

const CLOSE: u64 = command(0x800);
const OPEN: u64 = command(0x805);
const OPEN_DPBP: u64 = command(0x804);
const API_VERSION: u64 = command(0xa05);
const DPMCP_VERSION: u64 = command(0xa0b);
const DPBP_VERSION: u64 = command(0xa04);
const DPCON_VERSION: u64 = command(0xa08);
const CONTAINER_ID: u64 = command(0x830);
const ATTRIBUTES: u64 = command(0x004);
const RESET: u64 = command(0x005);
const ENABLE: u64 = command(0x002);
const DISABLE: u64 = command(0x003);
const IS_ENABLED: u64 = command(0x006);
const SET_IRQ: u64 = command(0x010);
const IRQ_ENABLE: u64 = command(0x012);
const GET_IRQ_ENABLE: u64 = command(0x013);
const IRQ_MASK: u64 = command(0x014);
const GET_IRQ_MASK: u64 = command(0x015);
const IRQ_STATUS: u64 = command(0x016);
const CLEAR_IRQ_STATUS: u64 = command(0x017);
const OBJECT_COUNT: u64 = command(0x159);
const OBJECT: u64 = command(0x15a);
const OBJECT_REGION: u64 = command(0x15e);
const SET_OBJECT_IRQ: u64 = command(0x15f);
/// `DPRC_CMDID_RESET_CONT_V2`, which has options.
const RESET_V2: u64 = RESET + (1 << 48);
const NON_RECURSIVE: u64 = 1;

/// `mc_cmd_status`.
const AUTH_ERR: u8 = 3;
const CONFIG_ERR: u8 = 6;
const NO_RESOURCE: u8 = 8;
const UNSUPPORTED: u8 = 0xb;

struct Rig {
    registry: Registry,
    container: Arc<Container>,
    server: Server,
    directory: tempfile::TempDir,
    /// In the order in which they end: what is served, what is registered.
    served: Vec<Served>,
    registrations: Vec<Registration>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            registry: Registry::new(),
            container: Container::new(2),
            server: Server::new(ServerOptions::default()).unwrap(),
            directory: tempfile::tempdir().unwrap(),
            served: Vec::new(),
            registrations: Vec::new(),
        };
        let device = Box::new(ContainerDevice::new(&rig.container));
        rig.serve("dprc.2", device);
        rig
    }

    /// Connects to nothing: the last close of a container's file, which may come later than the
    /// client's drop, resets the container under whoever uses it by then.
    fn serve(&mut self, name: &str, device: Box<dyn vfiod_core::Device>) {
        let spec = DeviceSpec {
            name: name.to_owned(),
            set: Some(self.container.set()),
            ..DeviceSpec::default()
        };
        let registration = self.registry.register(spec, device).unwrap();
        let path = self.directory.path().join(name);
        let listener = Listener::bind(&path, SocketAccess::default()).unwrap();
        self.served.push(self.server.serve(listener, registration.device().clone()).unwrap());
        self.registrations.push(registration);
    }

    fn plug(&mut self, kind: Kind, id: u32) -> Client {
        let plugged = self.container.plug(kind, id).unwrap();
        let name = plugged.id().to_string();
        self.serve(&name, Box::new(ObjectDevice::new(plugged).unwrap()));
        self.client(&name)
    }

    /// A new connection, once the one before has been released.
    fn client(&self, name: &str) -> Client {
        let path = self.directory.path().join(name);
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            match Client::connect(&path) {
                Ok(client) => return client,
                Err(error) if error.remote_errno() == Some(22) => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("{name} stayed in use");
    }
}

/// What a command ends with: the token in its header, and its parameters.
type Answered = Result<(u16, [u64; 7]), u8>;

/// Sends a command as `vfio-fsl-mc` does: 64 bytes at once, and reads the reply at once, too.
fn send(client: &mut Client, id: u64, token: u16, params: &[u64]) -> Answered {
    let mut words = [0; 8];
    words[0] = id | READY | u64::from(token) << 32;
    words[1..=params.len()].copy_from_slice(params);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    client.region_write(0, 0, &bytes).unwrap();
    let mut bytes = [0; 64];
    client.region_read(0, 0, &mut bytes).unwrap();
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    match (words[0] >> 16) as u8 {
        0 => Ok(((words[0] >> 32) as u16, words[1..].try_into().unwrap())),
        status => Err(status),
    }
}

fn text(words: &[u64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
}

fn name(kind: &str) -> [u64; 2] {
    let mut bytes = [0; 16];
    bytes[..kind.len()].copy_from_slice(kind.as_bytes());
    [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()))
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signals(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

#[test]
fn a_user_looks_around_and_is_told_of_what_comes_and_goes() {
    let mut rig = Rig::new();
    let _pool = rig.plug(Kind::Dpbp, 7);
    let mut dprc = rig.client("dprc.2");
    let info = dprc.device_info().unwrap();
    // VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_FSL_MC.
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (1 | 1 << 6, 1, 1));
    assert_eq!(dprc.region_info(0).unwrap().reply.info.size, PORTAL_SIZE);
    assert_eq!(dprc.irq_info(0).unwrap().count, 1);

    let (_, version) = send(&mut dprc, API_VERSION, 0, &[]).unwrap();
    // DPRC_MIN_VER_MAJOR.
    assert!(version[0] & 0xffff >= 6, "{version:?}");
    let (_, id) = send(&mut dprc, CONTAINER_ID, 0, &[]).unwrap();
    assert_eq!(id[0], 2);
    let (token, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    assert_ne!(token, 0);
    let (_, attributes) = send(&mut dprc, ATTRIBUTES, token, &[]).unwrap();
    assert_eq!(attributes[0] & 0xffff_ffff, 2);

    let (_, count) = send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap();
    assert_eq!(count[0] >> 32, 1);
    let (_, object) = send(&mut dprc, OBJECT, token, &[0]).unwrap();
    assert_eq!((object[0] >> 32, text(&object[3..5])), (7, "dpbp".to_owned()));
    // Freescale; one interrupt, no region; plugged and open, as its device is.
    assert_eq!(object[1], 0x1957 | 1 << 16 | 3 << 32);

    // The interrupt: where to (nothing here), whom for, when.
    let fd = event();
    dprc.set_irqs(0, 0, 1, IrqAction::Trigger, IrqData::EventFds(&[fd.as_fd()])).unwrap();
    send(&mut dprc, SET_IRQ, token, &[0, 0, 0]).unwrap();
    send(&mut dprc, IRQ_MASK, token, &[1]).unwrap();
    // What was there before the open is no event; what comes before it is enabled, is.
    assert_eq!(send(&mut dprc, IRQ_STATUS, token, &[0]).unwrap().1[0], 0);
    let early = rig.container.plug(Kind::Dpcon, 5).unwrap();
    assert_eq!(signals(&fd), 0);
    send(&mut dprc, IRQ_ENABLE, token, &[1]).unwrap();
    assert_eq!(send(&mut dprc, GET_IRQ_MASK, token, &[0]).unwrap().1[0], 1);
    assert_eq!(send(&mut dprc, GET_IRQ_ENABLE, token, &[0]).unwrap().1[0], 1);
    assert_eq!(signals(&fd), 1);
    assert_eq!(send(&mut dprc, IRQ_STATUS, token, &[0]).unwrap().1[0], 1);
    send(&mut dprc, CLEAR_IRQ_STATUS, token, &[1]).unwrap();
    assert_eq!(send(&mut dprc, IRQ_STATUS, token, &[0]).unwrap().1[0], 0);
    drop(early);
    send(&mut dprc, CLEAR_IRQ_STATUS, token, &[2]).unwrap();

    let portal = rig.plug(Kind::Dpmcp, 1);
    assert_eq!(signals(&fd), 1);
    assert_eq!(send(&mut dprc, IRQ_STATUS, token, &[0]).unwrap().1[0], 1);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap().1[0] >> 32, 2);
    let [first, second] = name("dpmcp");
    let (_, region) = send(&mut dprc, OBJECT_REGION, token, &[1, 0, 0, first, second]).unwrap();
    assert_eq!(region[2] & 0xffff_ffff, PORTAL_SIZE);

    // Removals are masked; the status tells of them nevertheless.
    drop(portal);
    drop((rig.served.pop(), rig.registrations.pop()));
    assert_eq!(signals(&fd), 0);
    assert_eq!(send(&mut dprc, IRQ_STATUS, token, &[0]).unwrap().1[0], 3);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap().1[0] >> 32, 1);
    send(&mut dprc, CLOSE, token, &[]).unwrap();
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]), Err(AUTH_ERR));
}

#[test]
fn every_portal_of_a_container_serves_it() {
    let mut rig = Rig::new();
    let _pool = rig.plug(Kind::Dpbp, 7);
    let mut portal = rig.plug(Kind::Dpmcp, 1);
    // Not a container: no reset by its user.
    assert_eq!(portal.device_info().unwrap().flags, 1 << 6);
    let (dpbp, _) = send(&mut portal, OPEN_DPBP, 0, &[7]).unwrap();
    send(&mut portal, ENABLE, dpbp, &[]).unwrap();
    assert_eq!(send(&mut portal, IS_ENABLED, dpbp, &[]).unwrap().1[0], 1);
    send(&mut portal, DISABLE, dpbp, &[]).unwrap();
    assert_eq!(send(&mut portal, IS_ENABLED, dpbp, &[]).unwrap().1[0], 0);
    let (_, attributes) = send(&mut portal, ATTRIBUTES, dpbp, &[]).unwrap();
    assert_eq!(attributes[0] >> 32, 7);
    // What a kind's attributes say of its version, its own command says.
    let (_, version) = send(&mut portal, DPBP_VERSION, 0, &[]).unwrap();
    assert_eq!(version[0], attributes[1]);
    for (command, major) in [(DPMCP_VERSION, 3), (DPCON_VERSION, 3), (API_VERSION, 6)] {
        let (_, version) = send(&mut portal, command, 0, &[]).unwrap();
        assert_eq!(version[0] & 0xffff, major);
    }
    // A command for containers, and one for nothing.
    assert_eq!(send(&mut portal, OBJECT_COUNT, dpbp, &[]), Err(UNSUPPORTED));
    assert_eq!(send(&mut portal, command(0x7ff), dpbp, &[]), Err(UNSUPPORTED));
    assert_eq!(send(&mut portal, command(0x805) + (1 << 48), 0, &[2]), Err(UNSUPPORTED));
    assert_eq!(send(&mut portal, OPEN_DPBP, 0, &[8]), Err(CONFIG_ERR));
    assert_eq!(send(&mut portal, OPEN, 0, &[3]), Err(CONFIG_ERR));
    assert_eq!(send(&mut portal, ENABLE, dpbp + 1, &[]), Err(AUTH_ERR));
    let (token, _) = send(&mut portal, OPEN, 0, &[2]).unwrap();
    assert_eq!(send(&mut portal, OBJECT, token, &[2]), Err(CONFIG_ERR));
    assert_eq!(send(&mut portal, IRQ_STATUS, token, &[1 << 32]), Err(CONFIG_ERR));
    assert_eq!(send(&mut portal, RESET, token, &[9]), Err(CONFIG_ERR));
    // Words one by one, the header last, as through a mapping.
    portal.region_write(0, 8, &2_u64.to_le_bytes()).unwrap();
    portal.region_write(0, 0, &(OPEN | READY).to_le_bytes()).unwrap();
    let mut header = [0; 8];
    portal.region_read(0, 0, &mut header).unwrap();
    assert_eq!(header[2], 0);
    for (offset, length) in [(4, 8), (0, 4), (1, 1), (8, 12)] {
        let error = portal.region_write(0, offset, &vec![0; length]).unwrap_err();
        assert_eq!(error.remote_errno(), Some(22), "{length} at {offset}");
    }
    portal.region_write(0, PORTAL_SIZE - 8, &[1; 8]).unwrap();
}

#[test]
fn sessions_run_out() {
    let rig = Rig::new();
    let mut dprc = rig.client("dprc.2");
    let mut count = 0;
    let end = loop {
        match send(&mut dprc, OPEN, 0, &[2]) {
            Ok(_) => count += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((count, end), (1024, NO_RESOURCE));
    // A reset by the user closes them.
    dprc.reset().unwrap();
    send(&mut dprc, OPEN, 0, &[2]).unwrap();
}

/// Who has one portal can neither keep others from opening sessions, nor leave any behind.
#[test]
fn sessions_of_one_portal_leave_those_of_others_and_end_with_it() {
    let mut rig = Rig::new();
    // Its first open resets the container.
    let mut dprc = rig.client("dprc.2");
    let (mut greedy, mut other) = (rig.plug(Kind::Dpmcp, 1), rig.plug(Kind::Dpmcp, 2));
    let open_all = |portal: &mut Client| {
        (0..).map_while(|_| send(portal, OPEN, 0, &[2]).ok()).map(|(token, _)| token).collect()
    };
    let left: Vec<u16> = open_all(&mut greedy);
    let tokens: Vec<u16> = open_all(&mut other);
    let own: Vec<u16> = open_all(&mut dprc);
    assert_eq!([left.len(), tokens.len(), own.len()], [341; 3]);
    // Each serves at every portal, as long as there is somebody at the one where it was opened.
    send(&mut other, OBJECT_COUNT, left[0], &[]).unwrap();
    drop(greedy);
    let mut greedy = rig.client("dpmcp.1");
    for token in left {
        assert_eq!(send(&mut other, OBJECT_COUNT, token, &[]), Err(AUTH_ERR), "{token}");
    }
    send(&mut greedy, OBJECT_COUNT, tokens[0], &[]).unwrap();
    assert_eq!(open_all(&mut greedy).len(), 341);
}

#[test]
fn closing_a_container_resets_it() {
    let mut rig = Rig::new();
    let mut portal = rig.plug(Kind::Dpmcp, 1);
    let (left_over, _) = send(&mut portal, OPEN, 0, &[2]).unwrap();
    let mut dprc = rig.client("dprc.2");
    let (token, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    send(&mut dprc, IRQ_MASK, token, &[3]).unwrap();
    send(&mut dprc, IRQ_ENABLE, token, &[1]).unwrap();
    drop(dprc);
    let mut dprc = rig.client("dprc.2");
    // All handles of the container are closed, also those that another portal had opened.
    assert_eq!(send(&mut portal, OBJECT_COUNT, left_over, &[]), Err(AUTH_ERR));
    let (token, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    assert_eq!(send(&mut dprc, GET_IRQ_MASK, token, &[0]).unwrap().1[0], 0);
    assert_eq!(send(&mut dprc, GET_IRQ_ENABLE, token, &[0]).unwrap().1[0], 0);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap().1[0] >> 32, 1, "they stay");
}

#[test]
fn a_container_in_a_container() {
    let rig = Rig::new();
    let child = Container::new(3);
    let object = child.plug(Kind::Dpcon, 1).unwrap();
    let plugged = rig.container.plug_container(&child).unwrap();
    assert_eq!(rig.container.plug_container(&child).unwrap_err().errno(), Errno::EXIST);
    assert_ne!(child.set(), rig.container.set());
    let mut dprc = rig.client("dprc.2");
    let (token, _) = send(&mut dprc, OPEN, 0, &[3]).unwrap();
    assert_eq!(send(&mut dprc, ATTRIBUTES, token, &[]).unwrap().1[0] & 0xffff_ffff, 3);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap().1[0] >> 32, 1);
    let (own, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    send(&mut dprc, RESET, own, &[3]).unwrap();
    drop((object, plugged, child));
    // DPRC gone: its token stands for nothing.
    assert!(send(&mut dprc, OBJECT_COUNT, token, &[]).is_err());
}

#[test]
fn a_container_that_was_taken_out_is_out_of_reach() {
    let rig = Rig::new();
    let child = Container::new(3);
    let plugged = rig.container.plug_container(&child).unwrap();
    let mut dprc = rig.client("dprc.2");
    let (token, _) = send(&mut dprc, OPEN, 0, &[3]).unwrap();
    send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap();
    // It lives on, with users of its own perhaps.
    drop(plugged);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]), Err(AUTH_ERR));
    assert_eq!(send(&mut dprc, OPEN, 0, &[3]), Err(CONFIG_ERR));
    // Another of that number is not what the old token was for.
    let _other = rig.container.plug_container(&Container::new(3)).unwrap();
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]), Err(AUTH_ERR));
}

#[test]
fn a_reset_enters_containers_unless_told_not_to() {
    let rig = Rig::new();
    let (child, grandchild) = (Container::new(3), Container::new(4));
    let _child = rig.container.plug_container(&child).unwrap();
    let _grandchild = child.plug_container(&grandchild).unwrap();
    let registry = Registry::new();
    let spec = DeviceSpec { name: "dprc.3".to_owned(), ..DeviceSpec::default() };
    let inner = registry.register(spec, Box::new(ContainerDevice::new(&child))).unwrap();
    let inner = inner.device().open(Owner::in_process("test")).unwrap();
    let mut dprc = rig.client("dprc.2");
    let masks = |dprc: &mut Client| {
        let (child, _) = send(dprc, OPEN, 0, &[3]).unwrap();
        let child = send(dprc, GET_IRQ_MASK, child, &[0]).unwrap().1[0];
        // The grandchild is opened by its own parent.
        let mut words = [OPEN | READY, 4, 0, 0, 0, 0, 0, 0];
        let region = vfiod_core::RegionIndex(0);
        let answer = |words: &mut [u64; 8]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            inner.write(region, 0, &bytes).unwrap();
            inner.read(region, 0, &mut bytes).unwrap();
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().unwrap());
            }
        };
        answer(&mut words);
        let token = words[0] & 0xffff << 32;
        words = [GET_IRQ_MASK | READY | token, 0, 0, 0, 0, 0, 0, 0];
        answer(&mut words);
        (child, words[1], token)
    };
    let set = |dprc: &mut Client| {
        let (token, _) = send(dprc, OPEN, 0, &[3]).unwrap();
        send(dprc, IRQ_MASK, token, &[3]).unwrap();
        let (_, _, grandchild) = masks(dprc);
        let words = [IRQ_MASK | READY | grandchild, 3, 0, 0, 0, 0, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        inner.write(vfiod_core::RegionIndex(0), 0, &bytes).unwrap();
        let (child, grandchild, _) = masks(dprc);
        assert_eq!((child, grandchild), (3, 3));
    };
    set(&mut dprc);
    let (own, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    send(&mut dprc, RESET_V2, own, &[2 | NON_RECURSIVE << 32]).unwrap();
    assert_eq!(masks(&mut dprc).0, 3, "only the container itself");
    let (own, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    send(&mut dprc, RESET_V2, own, &[3 | NON_RECURSIVE << 32]).unwrap();
    let (child, grandchild, _) = masks(&mut dprc);
    assert_eq!((child, grandchild), (0, 3), "only the one in it");
    set(&mut dprc);
    // The first version has no options: what is where they would be means nothing.
    send(&mut dprc, RESET, own, &[2 | NON_RECURSIVE << 32]).unwrap();
    let (child, grandchild, _) = masks(&mut dprc);
    assert_eq!((child, grandchild), (0, 0));
    // A user's own reset, like the last close, does not enter them, as the kernel has it.
    set(&mut dprc);
    dprc.reset().unwrap();
    let (child, grandchild, _) = masks(&mut dprc);
    assert_eq!((child, grandchild), (3, 3));
}

#[test]
fn the_device_of_a_container_inside_another() {
    let mut rig = Rig::new();
    let child = Container::new(3);
    let device = Box::new(ContainerDevice::inside(&child, &rig.container).unwrap());
    let busy = ContainerDevice::inside(&child, &Container::new(9)).unwrap_err();
    assert_eq!(busy.errno(), Errno::BUSY);
    let registry = Registry::new();
    let set = Some(child.set());
    let spec = DeviceSpec { name: "dprc.3".to_owned(), set, ..DeviceSpec::default() };
    let inner = registry.register(spec, device).unwrap();
    let mut dprc = rig.client("dprc.2");
    let (token, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    let state = |dprc: &mut Client| {
        let (_, object) = send(dprc, OBJECT, token, &[0]).unwrap();
        assert_eq!((object[0] >> 32, text(&object[3..5])), (3, "dprc".to_owned()));
        object[1] >> 32
    };
    assert_eq!(state(&mut dprc), 2, "plugged");
    let file = inner.device().open(Owner::in_process("test")).unwrap();
    assert_eq!(state(&mut dprc), 3, "plugged and open");
    drop(file);
    assert_eq!(state(&mut dprc), 2);
    drop(inner);
    assert_eq!(send(&mut dprc, OBJECT_COUNT, token, &[]).unwrap().1[0] >> 32, 0);
    rig.served.clear();
}

#[test]
fn containers_are_a_tree() {
    let [a, b, c] = [1, 2, 3].map(Container::new);
    let _a_b = a.plug_container(&b).unwrap();
    let b_c = b.plug_container(&c).unwrap();
    let error = a.plug_container(&c).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY);
    assert!(error.to_string().contains("dprc.3 is in dprc.2"), "{error}");
    let error = c.plug_container(&a).unwrap_err();
    assert_eq!(error.errno(), Errno::LOOP);
    assert!(error.to_string().contains("dprc.1 has dprc.3 in it"), "{error}");
    let error = a.plug_container(&a).unwrap_err();
    assert_eq!(error.errno(), Errno::EXIST);
    drop(b_c);
    // A refusal left nothing behind.
    let _a_c = a.plug_container(&c).unwrap();
}

#[test]
fn an_objects_interrupt_is_configured_through_its_container() {
    let mut rig = Rig::new();
    let _pool = rig.plug(Kind::Dpbp, 7);
    let mut dprc = rig.client("dprc.2");
    let (token, _) = send(&mut dprc, OPEN, 0, &[2]).unwrap();
    let [first, second] = name("dpbp");
    let configure = |index: u64, id: u64| [index << 32, 0xfee0_0000, id << 32, first, second];
    send(&mut dprc, SET_OBJECT_IRQ, token, &configure(0, 7)).unwrap();
    assert_eq!(send(&mut dprc, SET_OBJECT_IRQ, token, &configure(1, 7)), Err(CONFIG_ERR));
    assert_eq!(send(&mut dprc, SET_OBJECT_IRQ, token, &configure(0, 8)), Err(CONFIG_ERR));
    let nothing = [0, 0, 7 << 32, 0, 0];
    assert_eq!(send(&mut dprc, SET_OBJECT_IRQ, token, &nothing), Err(CONFIG_ERR));
    let (object, _) = send(&mut dprc, OPEN_DPBP, 0, &[7]).unwrap();
    assert_eq!(send(&mut dprc, SET_OBJECT_IRQ, object, &configure(0, 7)), Err(UNSUPPORTED));
}

#[test]
fn what_is_there_cannot_be_plugged_again() {
    let container = Container::new(2);
    let first = container.plug(Kind::Dpmcp, 1).unwrap();
    let _other = container.plug(Kind::Dpbp, 1).unwrap();
    let error = container.plug(Kind::Dpmcp, 1).unwrap_err();
    assert_eq!(error.errno(), Errno::EXIST);
    assert!(error.to_string().contains("dprc.2 has dpmcp.1 already"), "{error}");
    drop(first);
    container.plug(Kind::Dpmcp, 1).unwrap();
    assert_eq!(container.plug(Kind::Dprc, 5).unwrap_err().errno(), Errno::INVAL);
    let child = Container::new(4);
    let plugged = container.plug_container(&child).unwrap();
    assert_eq!(ObjectDevice::new(plugged).unwrap_err().errno(), Errno::INVAL);
}

/// Holds the first open of one device, which happens under its set's lock.
struct Hold {
    device: &'static str,
    reached: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Observer for Hold {
    fn event(&self, event: &Event<'_>) {
        if let Event::DeviceOpened(subject) = event
            && subject.name == self.device
        {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
    }
}

/// The set-id table's row: a container and its children share a lock, and nobody else does.
#[test]
fn who_shares_a_lock_with_whom() {
    let (reached, has_reached) = channel();
    let (go_on, may_go_on) = channel();
    let hold = Hold { device: "dprc.2", reached, go_on: Mutex::new(may_go_on) };
    let registry = Registry::with_observer(Arc::new(hold));
    let (container, nested) = (Container::new(2), Container::new(3));
    let register = |name: &str, container: &Arc<Container>, device| {
        let set = Some(container.set());
        let spec = DeviceSpec { name: name.to_owned(), set, ..DeviceSpec::default() };
        registry.register(spec, device).unwrap()
    };
    let object = |container: &Arc<Container>, id| {
        let plugged = container.plug(Kind::Dpmcp, id).unwrap();
        Box::new(ObjectDevice::new(plugged).unwrap())
    };
    let dprc = register("dprc.2", &container, Box::new(ContainerDevice::new(&container)));
    let child = register("dpmcp.1", &container, object(&container, 1));
    let _plugged = container.plug_container(&nested).unwrap();
    let inner = register("dprc.3", &nested, Box::new(ContainerDevice::new(&nested)));
    let grandchild = register("dpmcp.9", &nested, object(&nested, 9));

    let key = |registration: &Registration| registration.device().set_key();
    assert_eq!(key(&dprc), key(&child));
    assert_eq!(key(&inner), key(&grandchild));
    assert_ne!(key(&dprc), key(&inner));

    let open = |device: &DeviceRef| device.open(Owner::in_process("test")).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| open(dprc.device()));
        has_reached.recv().unwrap();
        // Another container's first opens go on meanwhile.
        drop((open(inner.device()), open(grandchild.device())));
        // The child's waits for the lock.
        let second = scope.spawn(|| open(child.device()));
        thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        go_on.send(()).unwrap();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(first.set_members().unwrap().len(), 2);
        drop(second);
    });
}

proptest! {
    /// Whatever words come, the portal answers with a status, and never panics.
    #[test]
    fn any_command_is_answered(
        commands in proptest::collection::vec((any::<[u64; 8]>(), 0_u8..28, 0_u16..4), 1..40),
    ) {
        const KNOWN: [u64; 23] = [
            CLOSE, OPEN, OPEN_DPBP, API_VERSION, CONTAINER_ID, ATTRIBUTES, RESET, ENABLE, SET_IRQ,
            IRQ_ENABLE, GET_IRQ_ENABLE, IRQ_MASK, GET_IRQ_MASK, IRQ_STATUS, CLEAR_IRQ_STATUS,
            OBJECT_COUNT, OBJECT, OBJECT_REGION, SET_OBJECT_IRQ, RESET_V2,
            DISABLE, IS_ENABLED, DPBP_VERSION,
        ];
        let registry = Registry::new();
        let container = Container::new(2);
        let _object = container.plug(Kind::Dpbp, 1).unwrap();
        let spec = DeviceSpec { name: "dprc.2".to_owned(), ..DeviceSpec::default() };
        let device = Box::new(ContainerDevice::new(&container));
        let registration = registry.register(spec, device).unwrap();
        let file = registration.device().open(Owner::in_process("test")).unwrap();
        let region = vfiod_core::RegionIndex(0);
        for (mut words, known, token) in commands {
            if let Some(command) = KNOWN.get(usize::from(known)) {
                words[0] = command | READY | u64::from(token) << 32;
                words[1] %= 3;
            }
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.write(region, 0, &bytes).unwrap();
            let mut header = [0; 8];
            file.read(region, 0, &mut header).unwrap();
            let ready = words[0] >> 16 & 0xff == 1;
            prop_assert!(!ready || header[2] != 1, "not carried out: {words:x?}");
        }
        prop_assert!(!registration.device().status().failed);
    }
}
