//! Small programs of a few threads and sources.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vfiod_quota::{Ledger, Limit, Limits, Payer, Resource, Share, Size, User};
use vfiod_sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vfiod_sync::model::{join, join_all, spawn};
use vfiod_sync::{Condvar, Mutex, lock, wait};

use crate::gate::Gate;
use crate::pool::{Interest, Pool, Source, Watch, Worker};
use crate::serving::{self, Guarded, Next, Serving, Visit};

/// How often a client is served before it ends.
const WORK: usize = 2;

/// Something that threads wait for.
#[derive(Default)]
struct Count {
    value: Mutex<usize>,
    changed: Condvar,
}

impl Count {
    fn add(&self) {
        *lock(&self.value) += 1;
        self.changed.notify_all();
    }

    fn wait_for(&self, least: usize) {
        let mut value = lock(&self.value);
        while *value < least {
            value = wait(&self.changed, &self.value, value, Duration::MAX);
        }
    }
}

/// A source that is served behind a gate, until its work is done. It is always ready.
struct Client {
    /// Of no meaning here: the poller goes by keys.
    fd: OwnedFd,
    gate: Arc<Gate>,
    payer: Option<Payer>,
    /// How many threads the gate lets in.
    limit: usize,
    /// What it waits for, and is ready for.
    interest: Interest,
    serving: Serving,
    inside: Arc<AtomicUsize>,
    /// How often it must be served.
    work: AtomicUsize,
    done: Arc<Count>,
    /// It stalls inside until so many others are done.
    stalls_for: usize,
    /// It can do nothing before this is set.
    waits_for: Option<Arc<AtomicBool>>,
}

impl Source for Client {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        serving::serve(self, watch, worker);
    }
}

impl Guarded for Client {
    type End = End;

    fn serving(&self) -> &Serving {
        &self.serving
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn payer(&self) -> Option<&Payer> {
        self.payer.as_ref()
    }

    fn run(&self, _worker: &mut Worker) -> Result<Next, End> {
        if self.waits_for.as_ref().is_some_and(|woken| !woken.load(Ordering::SeqCst)) {
            return Ok(Next::Watch(Interest::HangUp));
        }
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(inside <= self.limit, "{inside} threads inside");
        self.done.wait_for(self.stalls_for);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        let left = self.work.fetch_sub(1, Ordering::SeqCst).checked_sub(1);
        let left = left.expect("a client is not served after its end");
        if left > 0 { Ok(Next::Watch(self.interest)) } else { Err(End) }
    }

    fn pump(&self) {
        unreachable!("no client of a scenario waits for messages");
    }

    fn ended(&self, _end: &End) {
        self.done.add();
    }
}

/// A client has done all of its work.
struct End;

impl From<Errno> for End {
    fn from(errno: Errno) -> Self {
        panic!("a client cannot be watched: {errno}")
    }
}

fn descriptor() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("there is room")
}

/// A pool of at most `threads`, and clients behind a gate for `limit`, all of them ready.
fn serve(threads: usize, limit: usize, clients: &[(Interest, usize)]) {
    let pool = Pool::new(threads).expect("starts");
    let (gate, done) = (Gate::new(limit), Arc::new(Count::default()));
    let inside = Arc::new(AtomicUsize::new(0));
    for (interest, stalls_for) in clients.iter().copied() {
        let (gate, inside, done) = (gate.clone(), inside.clone(), done.clone());
        let source: Arc<dyn Source> = Arc::new(Client {
            fd: descriptor(),
            gate,
            payer: None,
            limit,
            interest,
            serving: Serving::default(),
            inside,
            work: AtomicUsize::new(WORK),
            done,
            stalls_for,
            waits_for: None,
        });
        let watch = pool.reserve();
        watch.arm(&source, interest).expect("is watched");
        watch.set_ready(Some(interest));
    }
    done.wait_for(clients.len());
    pool.stop();
}

/// Two threads, and three clients that each do something at once.
fn every_client_is_served() {
    serve(2, 2, &[(Interest::Read, 0), (Interest::Read, 0), (Interest::Read, 0)]);
}

/// Two clients stall until the third was served: a third thread must be there.
fn stalled_clients_do_not_keep_the_threads() {
    serve(3, 3, &[(Interest::Read, 1), (Interest::Read, 1), (Interest::Read, 0)]);
}

/// One thread may be inside; the others wait for different things, and have nothing else to say.
fn waiting_at_the_gate_keeps_what_is_waited_for() {
    serve(3, 1, &[(Interest::Read, 0), (Interest::Write, 0), (Interest::Read, 0)]);
}

/// A source that waits for something else than its descriptor, which another thread brings about.
fn wake_of_a_source_that_parks_is_not_lost() {
    let pool = Pool::new(2).expect("starts");
    let (gate, done) = (Gate::new(1), Arc::new(Count::default()));
    let woken = Arc::new(AtomicBool::new(false));
    let client = Client { waits_for: Some(woken.clone()), ..client(&gate, &done) };
    let client = Arc::new(client);
    let watch = pool.reserve();
    watch.set_ready(Some(Interest::Read));
    let source: Arc<dyn Source> = client.clone();
    watch.arm(&source, Interest::Read).expect("is watched");
    let waker = {
        let watch = watch.clone();
        spawn(move || {
            woken.store(true, Ordering::SeqCst);
            serving::wake(&*client, &watch, Interest::Both);
        })
    };
    done.wait_for(1);
    join(waker);
    pool.stop();
}

fn client(gate: &Arc<Gate>, done: &Arc<Count>) -> Client {
    Client {
        fd: descriptor(),
        gate: gate.clone(),
        payer: None,
        limit: 1,
        interest: Interest::Read,
        serving: Serving::default(),
        inside: Arc::default(),
        work: AtomicUsize::new(1),
        done: done.clone(),
        stalls_for: 0,
        waits_for: None,
    }
}

/// A source that waits for something else than its descriptor, which has happened while another one was
/// behind the gate.
fn wake_of_a_source_that_finds_the_gate_full_is_not_lost() {
    let pool = Pool::new(3).expect("starts");
    let (gate, done) = (Gate::new(1), Arc::new(Count::default()));
    let woken = Arc::new(AtomicBool::new(false));
    let busy = Arc::new(client(&gate, &done));
    let waiting = Arc::new(Client { waits_for: Some(woken.clone()), ..client(&gate, &done) });
    let watches = [(&busy, Interest::Read), (&waiting, Interest::Write)].map(|(client, ready)| {
        let watch = pool.reserve();
        watch.set_ready(Some(ready));
        let source: Arc<dyn Source> = client.clone();
        watch.arm(&source, Interest::Both).expect("is watched");
        watch
    });
    woken.store(true, Ordering::SeqCst);
    serving::wake(&*waiting, &watches[1], Interest::Both);
    done.wait_for(2);
    pool.stop();
}

/// A source that waits at a full gate is watched and woken once more, as by a timer, and ends in its turn:
/// nobody serves it after that.
fn source_that_is_woken_at_a_full_gate_is_served_once() {
    let pool = Pool::new(3).expect("starts");
    let (gate, done) = (Gate::new(1), Arc::new(Count::default()));
    let busy = Client { work: AtomicUsize::new(2), ..client(&gate, &done) };
    let clients = [Arc::new(busy), Arc::new(client(&gate, &done))];
    let [_, watch] = clients.each_ref().map(|client| {
        let watch = pool.reserve();
        watch.set_ready(Some(Interest::Read));
        let source: Arc<dyn Source> = client.clone();
        watch.arm(&source, Interest::Read).expect("is watched");
        watch
    });
    let waker = {
        let client = clients[1].clone();
        // An event that a thread has taken, and one for which it is watched.
        spawn(move || _ = watch.rearm(&*client, Interest::Both))
    };
    done.wait_for(2);
    join(waker);
    pool.stop();
    for client in clients {
        assert_eq!(Arc::strong_count(&client), 1, "nobody has it in a queue");
    }
}

/// Two devices of one user, who has one thread beyond their shares of one: each has two clients, and a
/// stranger's device one, which the others wait for.
fn user_takes_no_threads_of_a_stranger() {
    let mut limits = Limits::of_process(3);
    limits.set(Resource::Threads, Limit::new(Size::Common(2), Share::Demanded(1)));
    let ledger = Ledger::new(limits);
    let pool = Pool::new(2 + 3 + 2).expect("starts");
    let done = Arc::<Count>::default();
    for (user, clients, stalls_for) in [(1, 2, 1), (1, 2, 1), (2, 1, 0)] {
        let account = ledger.open("x").expect("its share").account;
        let payer = Some(Payer::new(account, User::Account(user)));
        let gate = Gate::new(2);
        for _ in 0..clients {
            let client =
                Client { payer: payer.clone(), limit: 2, stalls_for, ..client(&gate, &done) };
            let source: Arc<dyn Source> = Arc::new(client);
            let watch = pool.reserve();
            watch.arm(&source, Interest::Read).expect("is watched");
            watch.set_ready(Some(Interest::Read));
        }
    }
    done.wait_for(5);
    pool.stop();
    assert_eq!(ledger.usage(Resource::Threads).used, 0);
}

/// Work arrives for a source from two threads; the one that serves it leaves when there is none.
fn work_that_arrives_while_a_thread_leaves_is_done() {
    let serving = Arc::new(Serving::default());
    let (work, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let threads = [1, 2].map(|_| {
        let (serving, work, done) = (serving.clone(), work.clone(), done.clone());
        spawn(move || {
            work.fetch_add(1, Ordering::SeqCst);
            if serving.enter() != Visit::Serve {
                return;
            }
            serving.begin();
            loop {
                let taken = work.swap(0, Ordering::SeqCst);
                done.fetch_add(taken, Ordering::SeqCst);
                if serving.leave() {
                    return;
                }
            }
        })
    });
    join_all(threads);
    assert_eq!(done.load(Ordering::SeqCst), 2);
}

vfiod_sync::checks! {
    every_client_is_served: 500,
    stalled_clients_do_not_keep_the_threads: 500,
    waiting_at_the_gate_keeps_what_is_waited_for: 500,
    wake_of_a_source_that_parks_is_not_lost: 500,
    wake_of_a_source_that_finds_the_gate_full_is_not_lost: 500,
    source_that_is_woken_at_a_full_gate_is_served_once: 500,
    user_takes_no_threads_of_a_stranger: 300,
    work_that_arrives_while_a_thread_leaves_is_done: 500,
}
