//! The commands of a queue that are under way. Their places are used again, so that a command needs no memory
//! of its own.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use super::execute::{Command, Execute, Running};
use vfiod_nvme_spec::Submission;

/// Places that are kept though nothing is under way: some 30 KB of memory, which are charged with the queue.
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
    command: Submission,
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
    pub(crate) fn add(
        &mut self,
        command: Submission,
        running: Running<E::Quick>,
        began: Instant,
    ) -> usize {
        if let Some(place) = self.free.pop() {
            let slot = &mut self.slots[place];
            (slot.command, slot.running, slot.began) = (command, Some(running), began);
            return place;
        }
        let place = self.slots.len();
        let is_listed = AtomicBool::new(false);
        let waker = Arc::new(PlaceWaker { woken: self.woken.clone(), place, is_listed });
        let (running, waker, place_waker) = (Some(running), Waker::from(waker.clone()), waker);
        self.slots.push(Slot { command, began, running, waker, place: place_waker });
        place
    }

    /// Ends the wait for all commands, and says which they are and when they began.
    pub(crate) fn give_up(&mut self) -> Vec<(Instant, Submission)> {
        let running = self.slots.iter().filter(|slot| slot.running.is_some());
        let commands = running.map(|slot| (slot.began, slot.command)).collect();
        *self = Self::new();
        commands
    }

    /// Has a command looked at by [`Slots::ended`].
    pub(crate) fn wake(&self, place: usize) {
        self.slots[place].waker.wake_by_ref();
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

#[cfg(test)]
mod tests {
    use futures_util::task::{ArcWake, waker};

    use super::*;
    use crate::counters::{Counters, QueueCounters};

    /// Commands that are polled by themselves alone.
    struct Nothing;

    impl Execute for Nothing {
        type Quick = ();

        fn begin(&self, _: &[Submission], _: &mut dyn FnMut(Running<()>)) -> usize {
            unreachable!("commands are added by the test")
        }

        fn poll(&self, (): &mut (), _: &mut Context<'_>) -> Poll<Command> {
            unreachable!("no command is of this kind")
        }

        fn counters(&self) -> (&Counters, &QueueCounters) {
            unreachable!("nothing is counted")
        }
    }

    /// A queue's task, as its runtime sees it.
    #[derive(Default)]
    struct QueueTask(AtomicBool);

    impl ArcWake for QueueTask {
        fn wake_by_ref(task: &Arc<Self>) {
            task.0.store(true, Ordering::SeqCst);
        }
    }

    /// The commands of a queue, and its task.
    struct Rig {
        slots: Slots<Nothing>,
        task: Arc<QueueTask>,
        ended: Vec<(Instant, Command)>,
    }

    impl Rig {
        fn new() -> Self {
            Self { slots: Slots::new(), task: Arc::default(), ended: Vec::new() }
        }

        /// Adds a command that ends when it has been looked at `looks` times more, after each of which it is
        /// woken by `wake`.
        fn add(&mut self, mut looks: u32, wake: impl Fn(&Waker) + Send + 'static) {
            let command = std::future::poll_fn(move |cx| {
                if looks == 0 {
                    let command = Submission::new([0; 64]);
                    return Poll::Ready(Command::with(&command, Ok(0)));
                }
                looks -= 1;
                wake(cx.waker());
                Poll::Pending
            });
            let none = Submission::new([0; 64]);
            let place = self.slots.add(none, Running::new(command), Instant::now());
            self.slots.poll(&Nothing, place, &mut self.ended);
        }

        /// Runs the task until it waits. Returns how many commands have ended.
        fn run(&mut self) -> usize {
            let waker = waker(self.task.clone());
            let mut count = 0;
            while !self.slots.is_empty() {
                let cx = &Context::from_waker(&waker);
                self.task.0.store(false, Ordering::SeqCst);
                if self.slots.poll_woken(&Nothing, &mut self.ended, cx).is_ready() {
                    count += self.ended.drain(..).count();
                } else if !self.task.0.load(Ordering::SeqCst) {
                    break;
                }
            }
            count
        }
    }

    /// As one of another thread that comes while the task looks at the command.
    #[test]
    fn wake_while_a_command_is_looked_at_is_not_lost() {
        let mut rig = Rig::new();
        rig.add(3, Waker::wake_by_ref);
        rig.add(1, Waker::wake_by_ref);
        rig.add(0, |_| {});
        assert_eq!(rig.ended.drain(..).count(), 1, "what does not wait ends at once");
        assert_eq!(rig.run(), 2, "a command waits that was woken");
    }

    #[test]
    fn each_wake_of_a_task_that_waits_wakes_it() {
        let mut rig = Rig::new();
        let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
        for _ in 0..2 {
            let wakers = wakers.clone();
            rig.add(2, move |waker| lock(&wakers).push(waker.clone()));
        }
        for ends in [0, 2] {
            assert_eq!(rig.run(), 0, "nobody has woken any");
            // Merged into one, and after its place was looked at once more.
            let all = std::mem::take(&mut *lock(&wakers));
            assert_eq!(all.len(), 2);
            all.iter().for_each(Waker::wake_by_ref);
            all.into_iter().for_each(Waker::wake);
            assert!(rig.task.0.load(Ordering::SeqCst), "the task sleeps though it was woken");
            assert_eq!(rig.run(), ends);
        }
    }
}
