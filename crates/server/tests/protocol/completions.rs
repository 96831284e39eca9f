//! Who takes what has completed while a connection is polled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, Persistence, Quiesce,
    Region, RegionIndex, Registration, Registry, ResetCause, Result, Why, Worker,
};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::{Completions, Poll, Waiters, Workers};

use crate::rig::{connect, eventually, registry};

/// How long a connection is polled. No test comes to the end of it.
const POLL: Duration = Duration::from_secs(100);

/// Where requests complete, which tells nobody when one does.
#[derive(Default)]
struct Requests {
    /// One has completed, and was not taken yet.
    completed: AtomicBool,
    /// As soon as one was taken, the next one has completed.
    storm: AtomicBool,
    /// One was taken, and the task has yet to look.
    taken: AtomicBool,
    waiters: Waiters,
    /// What the task has seen, and how much of that on a thread of the server.
    seen: AtomicUsize,
    on_server: AtomicUsize,
}

impl Poll for Requests {
    fn poll(&self) {
        if self.completed.swap(self.storm.load(Ordering::SeqCst), Ordering::SeqCst) {
            self.taken.store(true, Ordering::SeqCst);
            self.waiters.wake_all();
        }
    }
}

struct Disk {
    context: Option<Context>,
    requests: Arc<Requests>,
}

impl Device for Disk {
    fn describe(&self) -> Description {
        let regions = vec![Region::registers(64)];
        Description { flags: DeviceFlags::RESET, regions, irqs: Vec::new() }
    }
    fn init(&mut self, context: &Context) -> Result<()> {
        self.context = Some(context.clone());
        Ok(())
    }
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }
    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: RegionIndex, _: u64, data: &mut [u8]) -> Result<()> {
        data.fill(7);
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

impl Worker for Disk {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        Quiesce::Cancel
    }
    fn resume(&mut self) {
        let Some(context) = &self.context else { return };
        let requests = self.requests.clone();
        let serve = |_: DeviceTask<Self>| async move {
            loop {
                let taken = || requests.taken.swap(false, Ordering::SeqCst).then_some(());
                requests.waiters.wait_for(taken).await;
                let thread = std::thread::current();
                let is_server = thread.name().is_some_and(|name| name.starts_with("vfio-user"));
                requests.on_server.fetch_add(is_server.into(), Ordering::SeqCst);
                requests.seen.fetch_add(1, Ordering::SeqCst);
            }
        };
        DeviceTask::spawn(context, "serve", serve).unwrap();
    }
}

struct Rig {
    requests: Arc<Requests>,
    client: vfiod_client::Client,
    _completions: Completions,
    _served: Served,
    _server: Server,
    _registration: Registration,
    _registry: Registry,
    _workers: Workers,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// A client whose connection is polled.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let (registry, workers) = registry();
        let requests = Arc::new(Requests::default());
        let silent = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let completions = registry.runtime().completions(Arc::new(silent), requests.clone());
        let device = Disk { context: None, requests: requests.clone() };
        let spec = DeviceSpec { name: "disk".to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).unwrap();
        let server = Server::new(ServerOptions { poll: POLL, ..ServerOptions::default() }).unwrap();
        let listener = Listener::bind(&path, SocketAccess::default()).unwrap();
        let served = server.serve(listener, registration.device().clone()).unwrap();
        let mut rig = Self {
            requests,
            client: connect(&path).unwrap(),
            _completions: completions.unwrap(),
            _served: served,
            _server: server,
            _registration: registration,
            _registry: registry,
            _workers: workers,
            _dir: dir,
        };
        rig.read();
        rig
    }

    fn read(&mut self) {
        let mut data = [0];
        self.client.region_read(0, 0, &mut data).unwrap();
        assert_eq!(data, [7]);
    }

    fn seen(&self) -> usize {
        self.requests.seen.load(Ordering::SeqCst)
    }
}

#[test]
fn thread_that_polls_takes_what_has_completed_and_runs_the_task() {
    let mut rig = Rig::new();
    for number in 1..=200 {
        rig.requests.completed.store(true, Ordering::SeqCst);
        // After a task that took long the workers have their turns for some messages.
        eventually("the completion is taken", || {
            rig.read();
            rig.seen() == number
        });
    }
    let on_server = rig.requests.on_server.load(Ordering::SeqCst);
    assert!(on_server > 0, "a worker was woken for each of 200 completions");
}

#[test]
fn storm_of_completions_starves_no_register_access() {
    let mut rig = Rig::new();
    rig.requests.storm.store(true, Ordering::SeqCst);
    rig.requests.completed.store(true, Ordering::SeqCst);
    let storm = rig.requests.clone();
    let reads = std::thread::spawn(move || {
        (0..200).for_each(|_| rig.read());
        rig
    });
    eventually("200 reads are answered in a storm of completions", || reads.is_finished());
    assert!(reads.join().is_ok());
    // There was one, and it was not over.
    assert!(storm.seen.load(Ordering::SeqCst) > 0 && storm.completed.load(Ordering::SeqCst));
}
