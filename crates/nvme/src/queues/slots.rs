//! The commands of a queue that are under way. Their places are used again, so that a command needs no memory
//! of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use super::serve::{Command, Execute};

/// A command that is under way.
pub(crate) enum Running<Q> {
    /// The usual one, which [`Execute::poll`] looks after, and how many bytes it moves.
    Quick(Q, u64),
    Other(Pin<Box<dyn Future<Output = Command> + Send>>),
}

impl<Q> Running<Q> {
    pub(crate) fn new(command: impl Future<Output = Command> + Send + 'static) -> Self {
        Self::Other(Box::pin(command))
    }
}

/// Places that are kept though nothing is under way: some 30 KB of memory, which nobody is charged for.
const KEPT: usize = 64;

/// The commands of a queue that are under way.
pub(crate) struct Slots<E: Execute> {
    slots: Vec<Slot<E::Quick>>,
    free: Vec<usize>,
    woken: Arc<Woken>,
    /// Those that are looked at; empty in between.
    looked_at: Vec<usize>,
}

struct Slot<Q> {
    began: Instant,
    running: Option<Running<Q>>,
    waker: Waker,
    place: Arc<PlaceWaker>,
}

/// Which commands are to be looked at.
#[derive(Default)]
struct Woken {
    state: Mutex<WokenState>,
}

#[derive(Default)]
struct WokenState {
    /// In the order in which they were woken.
    places: Vec<usize>,
    /// The queue's task, if it waits.
    task: Option<Waker>,
}

/// Wakes a command, by its place.
struct PlaceWaker {
    woken: Arc<Woken>,
    place: usize,
    /// It is in the list.
    is_listed: AtomicBool,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_listed.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut state = lock(&self.woken.state);
        state.places.push(self.place);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<E: Execute> Slots<E> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), woken: Arc::default(), looked_at: Vec::new() }
    }

    /// How many commands are under way.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a command, which is looked at the first time by [`Slots::poll`]. Returns its place.
    pub(crate) fn add(&mut self, running: Running<E::Quick>, began: Instant) -> usize {
        if let Some(place) = self.free.pop() {
            let slot = &mut self.slots[place];
            (slot.running, slot.began) = (Some(running), began);
            return place;
        }
        let place = self.slots.len();
        let is_listed = AtomicBool::new(false);
        let waker = Arc::new(PlaceWaker { woken: self.woken.clone(), place, is_listed });
        let (running, waker, place_waker) = (Some(running), Waker::from(waker.clone()), waker);
        self.slots.push(Slot { began, running, waker, place: place_waker });
        place
    }

    /// Looks at a command, and adds it to `ended` if it has.
    pub(crate) fn poll(&mut self, execute: &E, place: usize, ended: &mut Vec<(Instant, Command)>) {
        let slot = &mut self.slots[place];
        let Some(running) = &mut slot.running else { return };
        let cx = &mut Context::from_waker(&slot.waker);
        let polled = match running {
            Running::Quick(quick, _) => execute.poll(quick, cx),
            Running::Other(command) => command.as_mut().poll(cx),
        };
        if let Poll::Ready(command) = polled {
            slot.running = None;
            self.free.push(place);
            ended.push((slot.began, command));
        }
    }

    /// Waits until commands have ended, and adds them to `ended`.
    pub(crate) async fn ended(&mut self, execute: &E, ended: &mut Vec<(Instant, Command)>) {
        std::future::poll_fn(|cx| self.poll_woken(execute, ended, cx)).await;
    }

    fn poll_woken(
        &mut self,
        execute: &E,
        ended: &mut Vec<(Instant, Command)>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        let mut places = std::mem::take(&mut self.looked_at);
        std::mem::swap(&mut lock(&self.woken.state).places, &mut places);
        for place in places.drain(..) {
            // What wakes it from here on lists it again.
            self.slots[place].place.is_listed.store(false, Ordering::SeqCst);
            self.poll(execute, place, ended);
        }
        self.looked_at = places;
        if !ended.is_empty() {
            return Poll::Ready(());
        }
        let mut state = lock(&self.woken.state);
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if !state.places.is_empty() {
            // Some were woken meanwhile, perhaps by themselves: others have their turn first.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Gives places back, if there are many; nothing is under way.
    pub(crate) fn shrink(&mut self) {
        if self.slots.len() > KEPT && self.is_empty() {
            *self = Self::new();
        }
    }
}
