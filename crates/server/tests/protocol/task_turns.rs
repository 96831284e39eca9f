//! Where the task runs that a doorbell wakes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vfiod_client::Client;
use vfiod_core::region::Doorbell;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, Errno, Error, Features,
    Quiesce, Region, RegionIndex, Registration, Registry, ResetCause, Result, Why, Worker,
};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::Workers;
use vfiod_wire::payload::{RegionAccess, feature_flag};
use vfiod_wire::{Command, Header};
use zerocopy::IntoBytes;

use crate::rig::{FEATURE, connect, eventually, registry};

/// A doorbell; what is behind it waits until the task has taken the ring.
const BELL: u64 = 0;
const AWAIT_TASK: u64 = 8;
/// The value of the ring that is waited for.
const LAST: u64 = u64::MAX;
/// How long a call of the device waits for its task. No test comes to the end of it.
const LIMIT: Duration = Duration::from_secs(20);

/// What the task has done.
#[derive(Default)]
struct Done {
    /// The newest value of the doorbell that it has taken.
    value: Mutex<u64>,
    changed: Condvar,
    /// How often it ran on a thread of the server.
    on_server: AtomicUsize,
    /// How long it takes each time, in microseconds.
    takes: AtomicU64,
}

impl Done {
    /// Waits until the task has taken the last ring. Returns whether it has.
    fn wait(&self) -> bool {
        let taken = self.value.lock().unwrap();
        let (taken, _) =
            self.changed.wait_timeout_while(taken, LIMIT, |taken| *taken != LAST).unwrap();
        *taken == LAST
    }

    fn value(&self) -> u64 {
        *self.value.lock().unwrap()
    }
}

struct Waits {
    context: Option<Context>,
    done: Arc<Done>,
}

impl Device for Waits {
    fn describe(&self) -> Description {
        let doorbells = vec![Doorbell::message(BELL, 8)];
        let registers = Region { doorbells, ..Region::registers(64) };
        Description { flags: DeviceFlags::RESET, regions: vec![registers], irqs: Vec::new() }
    }
    fn init(&mut self, context: &Context) -> Result<()> {
        self.context = Some(context.clone());
        Ok(())
    }
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }
    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }
    fn as_features(&mut self) -> Option<&mut dyn Features> {
        Some(self)
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        data.fill(if offset == AWAIT_TASK { self.done.wait().into() } else { 0 });
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

impl Worker for Waits {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        Quiesce::Cancel
    }
    fn resume(&mut self) {
        let Some(context) = &self.context else { return };
        let done = self.done.clone();
        let serve = |task: DeviceTask<Self>| async move {
            loop {
                let Some(value) = task.bell(0).await.value else { continue };
                let thread = std::thread::current();
                let is_server = thread.name().is_some_and(|name| name.starts_with("vfio-user"));
                done.on_server.fetch_add(is_server.into(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(done.takes.load(Ordering::SeqCst)));
                *done.value.lock().unwrap() = value;
                done.changed.notify_all();
            }
        };
        DeviceTask::spawn(context, "serve", serve).unwrap();
    }
}

impl Features for Waits {
    fn probe(&mut self, index: u16) -> (bool, bool) {
        (index == FEATURE, false)
    }
    fn get(&mut self, _: u16, _: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![self.done.wait().into()])
    }
    fn set(&mut self, _: u16, _: &[u8]) -> Result<()> {
        Err(Error::new(Errno::NOTTY, "cannot be set"))
    }
}

struct Rig {
    done: Arc<Done>,
    client: Client,
    _served: Served,
    _server: Server,
    _registration: Registration,
    _registry: Registry,
    _workers: Workers,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waits.sock");
        let (registry, workers) = registry();
        let done = Arc::new(Done::default());
        let device = Waits { context: None, done: done.clone() };
        let spec = DeviceSpec { name: "waits".to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).unwrap();
        let server = Server::new(ServerOptions::default()).unwrap();
        let listener = Listener::bind(&path, SocketAccess::default()).unwrap();
        let served = server.serve(listener, registration.device().clone()).unwrap();
        let client = connect(&path).unwrap();
        Self {
            done,
            client,
            _served: served,
            _server: server,
            _registration: registration,
            _registry: registry,
            _workers: workers,
            _dir: dir,
        }
    }

    fn ring_and_wait(&mut self, value: u64) {
        self.client.region_post(0, BELL, &value.to_ne_bytes()).unwrap();
        eventually("the task takes the ring", || self.done.value() == value);
    }

    /// Rings until the connection's thread runs the task, as it will with the next ring.
    fn ring_until_it_runs_on_the_server(&mut self) {
        for value in 1.. {
            let before = self.done.on_server.load(Ordering::SeqCst);
            self.ring_and_wait(value);
            if self.done.on_server.load(Ordering::SeqCst) > before {
                return;
            }
        }
    }

    /// Rings, and sends what follows together with that, so that both arrive at once. Returns the reply's payload.
    fn ring_and(&mut self, command: Command, payload: &[u8]) -> Vec<u8> {
        self.ring_until_it_runs_on_the_server();
        let ring = RegionAccess { offset: BELL, region: 0, count: 8 };
        let ring = [ring.as_bytes(), &LAST.to_ne_bytes()].concat();
        let mut bytes = Vec::new();
        for (command, payload, posted) in
            [(Command::RegionWrite, &ring[..], true), (command, payload, false)]
        {
            bytes.extend_from_slice(Header::command(77, command, payload.len(), posted).as_bytes());
            bytes.extend_from_slice(payload);
        }
        self.client.socket().send(&bytes, &[]).unwrap();
        let reply = self.client.socket().receive_message().unwrap();
        assert_eq!(reply.header.id, 77);
        reply.payload
    }
}

#[test]
fn thread_that_hears_a_doorbell_runs_the_task() {
    let mut rig = Rig::new();
    (1..=200).for_each(|value| rig.ring_and_wait(value));
    let on_server = rig.done.on_server.load(Ordering::SeqCst);
    assert!(on_server > 0, "no worker had to be woken for 200 doorbells, and one was each time");
}

#[test]
fn task_that_takes_long_is_left_to_the_workers() {
    let mut rig = Rig::new();
    rig.done.takes.store(2000, Ordering::SeqCst);
    (1..=200).for_each(|value| rig.ring_and_wait(value));
    // 8 turns are left out after the first time, 16 after the second and so on.
    let on_server = rig.done.on_server.load(Ordering::SeqCst);
    assert!(on_server < 10, "{on_server} of 200 tasks have held up the connection");
}

#[test]
fn access_behind_a_doorbell_may_wait_for_its_task() {
    let mut rig = Rig::new();
    let read = RegionAccess { offset: AWAIT_TASK, region: 0, count: 1 };
    let reply = rig.ring_and(Command::RegionRead, read.as_bytes());
    assert_eq!(reply.last(), Some(&1), "the task waits for the access behind its doorbell");
}

#[test]
fn feature_behind_a_doorbell_may_wait_for_its_task() {
    let mut rig = Rig::new();
    let get = [64, feature_flag::GET | u32::from(FEATURE)];
    let reply = rig.ring_and(Command::DeviceFeature, get.as_bytes());
    assert_eq!(reply.last(), Some(&1), "the task waits for the request behind its doorbell");
}
