//! Connections that join another connection's address space.

use std::path::PathBuf;

use vfiod_client::{Client, GuestMemory};
use vfiod_core::{DeviceSpec, OpenPolicy, Registration};
use vfiod_server::{Served, Server};
use vfiod_tasks::Workers;
use vfiod_wire::payload::SpaceOf;
use vfiod_wire::space::SPACE;
use zerocopy::IntoBytes;

use crate::hot_reset::Stranger;
use crate::rig::*;

const IOVA: u64 = 0x10_0000;
const PAGE: u64 = 4096;
const ENOENT: u32 = 2;

/// Devices of one registry, each with a socket.
struct Devices {
    paths: Vec<PathBuf>,
    _devices: Vec<(Registration, Served)>,
    _server: Server,
    _workers: Workers,
    _dir: tempfile::TempDir,
}

impl Devices {
    fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(server_options()).unwrap();
        let (registry, workers) = registry();
        let paths: Vec<_> = (0..count).map(|n| dir.path().join(n.to_string())).collect();
        let device = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let spec = DeviceSpec { name, open: OpenPolicy::Multi, ..DeviceSpec::default() };
            serve(&registry, &server, spec, path)
        };
        let devices = paths.iter().map(device).collect();
        Self { paths, _devices: devices, _server: server, _workers: workers, _dir: dir }
    }

    fn client(&self, device: usize) -> Client {
        connect(&self.paths[device]).unwrap()
    }

    /// A client of a device whose last connection was closed, in whose new space nothing is mapped at
    /// `iova`. The server may still be closing the device; a client that comes before the end of that
    /// finds the space as it was.
    fn reopened(&self, device: usize, iova: u64) -> Client {
        let mut client = None;
        eventually("the device has a space of its own", || {
            client = None;
            !reaches(client.insert(self.client(device)), iova)
        });
        client.unwrap()
    }
}

fn map(client: &mut Client, iova: u64) -> GuestMemory {
    let memory = GuestMemory::new(PAGE).unwrap();
    client.dma_map(iova, PAGE, Some((memory.fd(), 0))).unwrap();
    memory
}

fn reaches(client: &mut Client, iova: u64) -> bool {
    match dma(client, DMA_WRITE, iova, 16) {
        0 => true,
        errno => {
            assert_eq!(errno, EFAULT);
            false
        }
    }
}

#[test]
fn devices_that_share_a_space_reach_what_either_client_maps() {
    let devices = Devices::new(2);
    let (mut a, mut b) = (devices.client(0), devices.client(1));
    let _first = map(&mut a, IOVA);
    assert!(!reaches(&mut b, IOVA));
    let of_a = a.space().unwrap();
    b.join_space(of_a).unwrap();
    assert!(reaches(&mut b, IOVA));
    let memory = map(&mut b, IOVA + PAGE);
    b.region_write(PLAIN, 0, b"from the device!").unwrap();
    assert!(reaches(&mut b, IOVA + PAGE));
    let mut seen = [0; 16];
    rustix::io::pread(memory.fd(), &mut seen, 0).unwrap();
    assert_eq!(&seen, b"from the device!");
    assert!(reaches(&mut a, IOVA + PAGE));
    // There is one space, with its rules: no overlap, and either client unmaps everything.
    let again = b.dma_map(IOVA, PAGE, Some((memory.fd(), 0)));
    assert_eq!(refused(again), EEXIST);
    b.join_space(of_a).unwrap();
    a.dma_unmap_all().unwrap();
    assert!(!reaches(&mut b, IOVA + PAGE));
}

#[test]
fn mapping_in_a_joined_space_goes_with_the_connection_that_made_it() {
    let devices = Devices::new(2);
    let (mut a, mut b) = (devices.client(0), devices.client(1));
    let _first = map(&mut a, IOVA);
    b.join_space(a.space().unwrap()).unwrap();
    let _second = map(&mut b, IOVA + PAGE);
    drop(b);
    eventually("the mapping is gone", || !reaches(&mut a, IOVA + PAGE));
    assert!(reaches(&mut a, IOVA));
    // The device that has been closed has a space of its own again.
    let mut b = devices.reopened(1, IOVA);
    b.join_space(a.space().unwrap()).unwrap();
    let _second = map(&mut b, IOVA + PAGE);
    drop(a);
    eventually("the other mapping is gone", || !reaches(&mut b, IOVA));
    assert!(reaches(&mut b, IOVA + PAGE));
}

#[test]
fn next_user_of_a_device_does_not_map_into_the_space_that_others_joined() {
    let devices = Devices::new(2);
    let (mut a, mut b) = (devices.client(0), devices.client(1));
    let of_a = a.space().unwrap();
    b.join_space(of_a).unwrap();
    let _kept = map(&mut b, IOVA);
    drop(a);
    eventually("the connection is gone", || refused_join(&mut b, of_a) == Some(ENOENT));
    let mut next = devices.reopened(0, IOVA);
    let _secret = map(&mut next, IOVA + PAGE);
    assert!(!reaches(&mut b, IOVA + PAGE));
    assert!(reaches(&mut b, IOVA));
}

/// The errno of a join, or `None` if it succeeded.
fn refused_join(client: &mut Client, other: SpaceOf) -> Option<u32> {
    client.join_space(other).err().map(|error| error.remote_errno().unwrap())
}

#[test]
fn join_that_would_lose_mappings_is_refused_until_they_are_unmapped() {
    let devices = Devices::new(3);
    let (mut a, mut b, mut c) = (devices.client(0), devices.client(1), devices.client(2));
    let _memory = map(&mut b, IOVA);
    let (of_a, of_c) = (a.space().unwrap(), c.space().unwrap());
    assert_eq!(refused_join(&mut b, of_a), Some(EBUSY));
    assert!(reaches(&mut b, IOVA), "nothing has changed");
    // Those of another connection of the device count, too.
    let mut other = devices.client(1);
    assert_eq!(refused_join(&mut other, of_a), Some(EBUSY));
    b.dma_unmap(IOVA, PAGE).unwrap();
    other.join_space(of_a).unwrap();
    let _of_a = map(&mut a, IOVA);
    assert!(reaches(&mut b, IOVA));
    // From a joined space on to a third, and to the first one again.
    b.join_space(of_c).unwrap();
    assert!(!reaches(&mut b, IOVA));
    for _ in 0..100 {
        b.join_space(of_a).unwrap();
        b.join_space(of_c).unwrap();
    }
    assert!(reaches(&mut a, IOVA));
    let _of_c = map(&mut c, IOVA);
    assert!(reaches(&mut b, IOVA));
}

#[test]
fn space_of_another_owner_is_refused() {
    let devices = Devices::new(2);
    let mut a = devices.client(0);
    let _memory = map(&mut a, IOVA);
    let own = a.space().unwrap();
    let stranger = Stranger::holding(&devices.paths[1]);
    // The numbers of a registry are counted up.
    let other = SpaceOf { device: own.device + 1, file: own.file + 1 };
    a.dma_unmap(IOVA, PAGE).unwrap();
    assert_eq!(refused_join(&mut a, other), Some(EACCES));
    drop(stranger);
    eventually("the stranger is gone", || refused_join(&mut a, other) == Some(ENOENT));
}

#[test]
fn unknown_numbers_and_malformed_data_are_refused() {
    let devices = Devices::new(2);
    let (mut a, mut b) = (devices.client(0), devices.client(1));
    let (own, other) = (a.space().unwrap(), b.space().unwrap());
    assert_ne!(own, other);
    a.feature_probe(SPACE, true, true).unwrap();
    a.join_space(own).unwrap();
    for (device, file) in [
        (other.device, own.file),
        (own.device, other.file),
        (u64::MAX, other.file),
        (other.device, u64::MAX),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(refused_join(&mut a, SpaceOf { device, file }), Some(ENOENT));
    }
    let data = other.as_bytes();
    for data in [&[][..], &data[..15], &[data, &[0]].concat()] {
        assert_eq!(refused(a.feature_set(SPACE, data)), EINVAL, "{data:?}");
    }
    a.join_space(other).unwrap();
}

/// Both join each other while connections come, map and go: nobody hangs.
#[test]
fn joins_against_each_other_end() {
    let devices = Devices::new(2);
    let holders = [devices.client(0), devices.client(1)];
    let [first, second] = holders.map(|mut client| (client.space().unwrap(), client));
    std::thread::scope(|scope| {
        for (device, other) in [(0, second.0), (1, first.0), (0, second.0), (1, first.0)] {
            let devices = &devices;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut client = devices.client(device);
                    let errno = refused_join(&mut client, other);
                    assert!(matches!(errno, None | Some(EBUSY)), "{errno:?}");
                    let memory = GuestMemory::new(PAGE).unwrap();
                    let _ = client.dma_map(IOVA, PAGE, Some((memory.fd(), 0)));
                }
            });
        }
    });
    let (mut a, mut b) = (devices.client(0), devices.client(1));
    eventually("no mapping is left", || !reaches(&mut a, IOVA) && !reaches(&mut b, IOVA));
}
