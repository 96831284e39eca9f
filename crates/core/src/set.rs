//! Device sets: devices whose first opens, last closes and resets never overlap.
//!
//! A set is idle, or one thread is opening, closing, resetting or saving a member of it. That thread
//! takes the lock, waits until the set is idle, marks it, and drops the lock: callbacks of devices
//! and waits happen with the mark and without the lock. So the lock is held for bookkeeping only,
//! and status can be read while a device is slow. Threads that wait have their turns in an order
//! (`turns.rs`): one that gives up its mark does not get it again before those that wait.
//!
//! | set is | open | release | reset of the set | join, leave | status |
//! | --- | --- | --- | --- | --- | --- |
//! | idle | → opening | → closing | → resetting | at once | at once |
//! | opening, closing, resetting, saving | waits until idle, at most two seconds: `EBUSY` | waits until idle | waits until idle, at most two seconds: `EBUSY` | waits until idle | at once |
//!
//! Every mark is given up by the destructor of its `Transition`. A thread that finds its own mark (it
//! runs tasks while it waits, `held.rs`) does not wait for it: an open, a reset, a save and a join fail
//! with `EBUSY`, a release and a leave are deferred until it has given up its mark.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::file_state::FileShared;
use crate::held::{self, Held};
use crate::ids::{FileId, IdSequence, Owner, SetId, SetNumber};
use crate::sync::{self, Condvar, Mutex, MutexGuard, lock};
use crate::timeout::Timeout;
use crate::turns::{Place, Purpose, Turns};

/// How long an open or a reset waits for another operation of the set. A request of a client has
/// four seconds in all.
pub(crate) const WAIT: Duration = Duration::from_secs(2);

/// What is being done to a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// A member is being opened.
    Opening,
    /// A file of a member is being released; after the last, the member is closed.
    Closing,
    /// All members are being reset.
    Resetting,
    /// A member is being saved.
    Saving,
}

impl Phase {
    fn purpose(self) -> Purpose {
        match self {
            Self::Resetting | Self::Saving => Purpose::Whole,
            Self::Idle | Self::Opening | Self::Closing => Purpose::Member,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            // Whoever waits for it is told so only where it is not its turn.
            Self::Idle => "wanted by others, who have waited longer",
            Self::Opening => "being opened",
            Self::Closing => "being closed",
            Self::Resetting => "being reset",
            Self::Saving => "being saved",
        })
    }
}

/// A device, as its set sees it.
pub(crate) trait SetDevice: Sized {
    /// The set that it has joined.
    fn set(&self) -> &Set<Self>;

    /// Its place in the set.
    fn slot(&self) -> usize;

    /// Whether it still needs the reset that [`SetGuard::needs_reset`] asked for: a client may have
    /// reset it meanwhile.
    fn needs_reset(&self) -> bool;
}

/// A live device set, of devices of type `D`.
pub(crate) struct Set<D> {
    /// `None`: the set of one device that named none.
    id: Option<(SetId, SetNumber)>,
    name: OnceLock<String>,
    state: Mutex<SetState<D>>,
    /// Signalled when it may be another thread's turn; used with `state`.
    idle: Condvar,
}

/// Everything that the set lock protects; see [`SetGuard`].
struct SetState<D> {
    phase: Phase,
    turns: Turns,
    members: Vec<Option<Member<D>>>,
    vacant: Vec<usize>,
    open_members: usize,
    needs_reset: BTreeSet<usize>,
    /// `SetCreated` has been emitted.
    announced: bool,
}

impl<D> Default for SetState<D> {
    fn default() -> Self {
        Self {
            phase: Phase::Idle,
            turns: Turns::default(),
            members: Vec::new(),
            vacant: Vec::new(),
            open_members: 0,
            needs_reset: BTreeSet::new(),
            announced: false,
        }
    }
}

/// What the set lock protects of one device.
pub(crate) struct Member<D> {
    pub(crate) device: Arc<D>,
    /// The files that count as open, also while `open` or `release` runs for them.
    pub(crate) files: BTreeMap<FileId, Arc<FileShared>>,
    /// Unregister has begun.
    pub(crate) leaving: bool,
    /// How many [`crate::OpenPause`]s there are.
    pub(crate) open_pauses: usize,
}

impl<D> Member<D> {
    pub(crate) fn owner(&self) -> Option<&Owner> {
        self.files.first_key_value().map(|(_, file)| &file.owner)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.files.len()).unwrap_or(u32::MAX)
    }
}

impl<D: SetDevice> Set<D> {
    fn new(id: Option<(SetId, SetNumber)>) -> Arc<Self> {
        let (state, idle) = (Mutex::new(SetState::default()), Condvar::new());
        Arc::new(Self { id, name: OnceLock::new(), state, idle })
    }

    /// The set of a device that named none. It is in no table, so no other device can join it.
    pub(crate) fn singleton() -> Arc<Self> {
        Self::new(None)
    }

    /// The set's name for people; a singleton is called like its device.
    pub(crate) fn name<'a>(&'a self, device: &'a str) -> &'a str {
        match &self.id {
            Some((id, _)) => self.name.get_or_init(|| id.name()),
            None => device,
        }
    }

    /// The set's number; `None`: it is the set of one device that named none.
    pub(crate) fn number(&self) -> Option<SetNumber> {
        self.id.as_ref().map(|(_, number)| *number)
    }

    /// Takes the set lock. No registry lock and no device lock may be held.
    pub(crate) fn lock(&self) -> SetGuard<'_, D> {
        SetGuard { set: self, state: Some(lock(&self.state)) }
    }

    /// Takes the set lock at a moment when the set is idle, in the calling thread's turn. The thread must
    /// not have marked it.
    pub(crate) fn lock_idle(&self) -> SetGuard<'_, D> {
        let Ok(guard) = self.lock_in_turn(Purpose::Member, |_| Ok::<_, Infallible>(Duration::MAX));
        guard
    }

    /// Takes the set lock when the set is idle and it is the calling thread's turn. `wait` gets what the set
    /// is busy with, and says how long to wait from now on, or why not.
    fn lock_in_turn<E>(
        &self,
        purpose: Purpose,
        mut wait: impl FnMut(Phase) -> Result<Duration, E>,
    ) -> Result<SetGuard<'_, D>, E> {
        let mut guard = self.lock();
        if guard.state().phase == Phase::Idle && guard.state().turns.is_empty() {
            return Ok(guard);
        }
        let place = guard.state().turns.enter(purpose);
        let outcome = loop {
            if guard.is_turn_of(place) {
                break Ok(());
            }
            match wait(guard.state().phase) {
                Ok(time) => guard.wait(&self.idle, time),
                Err(error) => break Err(error),
            }
        };
        guard.state().turns.leave(place);
        // The next one has its turn at once if this one does not mark the set.
        if !guard.state().turns.is_empty() {
            self.idle.notify_all();
        }
        outcome.map(|()| guard)
    }

    /// Whether the calling thread has marked the set.
    pub(crate) fn is_mine(&self) -> bool {
        held::is_held(self)
    }

    /// Marks the set as soon as it is idle, however long that takes. The calling thread must not have
    /// marked it.
    pub(crate) fn begin(&self, phase: Phase) -> Transition<'_, D> {
        debug_assert!(!self.is_mine(), "waits for its own mark");
        self.lock_idle().state().phase = phase;
        Transition { set: self, held: Some(Held::new(self)) }
    }

    /// Takes the set lock to open a member, at a moment when the set is idle, if the calling thread has its
    /// turn within [`WAIT`]. Otherwise returns what the set is busy with; at once, if the thread itself has
    /// marked it.
    pub(crate) fn try_lock_idle(&self) -> Result<SetGuard<'_, D>, Phase> {
        self.try_lock_idle_within(&mut Timeout::new(WAIT))
    }

    /// Takes the set lock as [`Set::try_lock_idle`], but waits no longer than `timeout`.
    pub(crate) fn try_lock_idle_within(
        &self,
        timeout: &mut Timeout,
    ) -> Result<SetGuard<'_, D>, Phase> {
        self.try_lock_in_turn(Purpose::Member, timeout)
    }

    fn try_lock_in_turn(
        &self,
        purpose: Purpose,
        timeout: &mut Timeout,
    ) -> Result<SetGuard<'_, D>, Phase> {
        self.lock_in_turn(purpose, |phase| {
            // In a model no time passes, and only a deadlock is too long.
            let time = if cfg!(any(loom, shuttle)) { Some(Duration::MAX) } else { timeout.left() };
            time.filter(|_| !self.is_mine()).ok_or(phase)
        })
    }

    /// Marks the set, or not, as [`Set::try_lock_idle`].
    pub(crate) fn try_begin(&self, phase: Phase) -> Result<Transition<'_, D>, Phase> {
        self.try_begin_within(phase, &mut Timeout::new(WAIT))
    }

    /// Marks the set, or not, as [`Set::try_lock_idle_within`].
    pub(crate) fn try_begin_within(
        &self,
        phase: Phase,
        timeout: &mut Timeout,
    ) -> Result<Transition<'_, D>, Phase> {
        Ok(self.try_lock_in_turn(phase.purpose(), timeout)?.mark(phase))
    }
}

/// The mark on a set: no other thread opens, closes, resets or saves a member. The set is idle again
/// when this is dropped.
pub(crate) struct Transition<'a, D: SetDevice> {
    set: &'a Set<D>,
    /// Taken by the destructor.
    held: Option<Held>,
}

impl<D: SetDevice> Transition<'_, D> {
    /// Takes the set lock, for bookkeeping.
    pub(crate) fn lock(&self) -> SetGuard<'_, D> {
        self.set.lock()
    }
}

impl<D: SetDevice> Drop for Transition<'_, D> {
    fn drop(&mut self) {
        let is_awaited = {
            let mut guard = self.set.lock();
            let state = guard.state();
            if std::mem::take(&mut state.phase).purpose() == Purpose::Whole {
                state.turns.whole_is_over();
            }
            !state.turns.is_empty()
        };
        // Signalling costs a system call even if no thread waits.
        if is_awaited {
            self.set.idle.notify_all();
        }
        // The set is idle, so that what was deferred can mark it.
        drop(self.held.take());
    }
}

/// The set lock, held. Functions that need it held take it as a parameter.
pub(crate) struct SetGuard<'a, D: SetDevice> {
    set: &'a Set<D>,
    /// `None` only while [`SetGuard::wait`] sleeps.
    state: Option<MutexGuard<'a, SetState<D>>>,
}

impl<'a, D: SetDevice> SetGuard<'a, D> {
    /// Marks the set, which is idle, and drops the lock.
    pub(crate) fn mark(mut self, phase: Phase) -> Transition<'a, D> {
        self.state().phase = phase;
        Transition { set: self.set, held: Some(Held::new(self.set)) }
    }

    fn state(&mut self) -> &mut SetState<D> {
        self.state.as_mut().expect("the set lock is held outside of wait()")
    }

    /// Enters a device, made for the slot that it gets.
    pub(crate) fn join(&mut self, make: impl FnOnce(usize) -> Arc<D>) -> Arc<D> {
        let state = self.state();
        let slot = state.vacant.pop().unwrap_or(state.members.len());
        let device = make(slot);
        let (files, leaving, open_pauses) = (BTreeMap::new(), false, 0);
        let member = Member { device: device.clone(), files, leaving, open_pauses };
        if slot == state.members.len() {
            state.members.push(Some(member));
        } else {
            state.members[slot] = Some(member);
        }
        device
    }

    /// Whether this is the first call for the set.
    pub(crate) fn is_new(&mut self) -> bool {
        !std::mem::replace(&mut self.state().announced, true)
    }

    /// Whether [`SetGuard::is_new`] was called.
    pub(crate) fn is_announced(&mut self) -> bool {
        self.state().announced
    }

    /// Removes a device. It must have no files left.
    pub(crate) fn leave(&mut self, device: &D) {
        let state = self.state();
        let member = state.members[device.slot()].take();
        debug_assert!(member.is_some_and(|member| member.files.is_empty()));
        state.vacant.push(device.slot());
        state.needs_reset.remove(&device.slot());
    }

    /// What the lock protects of a device, which must be a member.
    pub(crate) fn member(&mut self, device: &D) -> &mut Member<D> {
        debug_assert!(std::ptr::eq(self.set, device.set()), "the guard of another set");
        self.state().members[device.slot()]
            .as_mut()
            .expect("a device is a member until it has left")
    }

    /// What the lock protects of a device, or `None` if it has left the set.
    pub(crate) fn find(&mut self, device: &D) -> Option<&mut Member<D>> {
        debug_assert!(std::ptr::eq(self.set, device.set()), "the guard of another set");
        let member = self.state().members.get_mut(device.slot())?.as_mut()?;
        std::ptr::eq(&raw const *member.device, device).then_some(member)
    }

    /// All members.
    pub(crate) fn members(&mut self) -> impl Iterator<Item = &Member<D>> {
        self.state().members.iter().flatten()
    }

    /// Counts a member that was opened.
    pub(crate) fn device_opened(&mut self) {
        self.state().open_members += 1;
    }

    /// Uncounts a member that was closed.
    pub(crate) fn device_closed(&mut self) {
        self.state().open_members -= 1;
    }

    /// Remembers that a device is to be reset as soon as no member is open.
    pub(crate) fn needs_reset(&mut self, device: &D) {
        self.state().needs_reset.insert(device.slot());
    }

    /// Takes the devices that are to be reset, if no member is open.
    pub(crate) fn take_resets(&mut self) -> Vec<Arc<D>> {
        let state = self.state();
        if state.open_members > 0 || state.needs_reset.is_empty() {
            return Vec::new();
        }
        let slots = std::mem::take(&mut state.needs_reset);
        let members = slots.into_iter().filter_map(|slot| state.members[slot].as_ref());
        // A client may have reset it meanwhile.
        let failed = members.map(|member| &member.device).filter(|d| d.needs_reset());
        failed.cloned().collect()
    }

    fn is_turn_of(&mut self, place: Place) -> bool {
        let state = self.state();
        state.phase == Phase::Idle && state.turns.is_next(place)
    }

    /// The places of the threads that wait for a member.
    #[cfg(all(test, shuttle))]
    pub(crate) fn waiting(&mut self) -> Vec<Place> {
        self.state().turns.members().collect()
    }

    /// Drops the lock until `signal`, or for a time ([`Duration::MAX`]: for ever).
    pub(crate) fn wait(&mut self, signal: &Condvar, time: Duration) {
        let state = self.state.take().expect("the set lock is held outside of wait()");
        self.state = Some(sync::wait(signal, &self.set.state, state, time));
    }
}

/// The live sets that have an id, by the id's address. A set is here exactly as long as it has
/// members; the count is kept here and not in the set, so that no thread waits for a set lock with a
/// shard's lock held.
pub(crate) struct SetTable<D> {
    shards: Box<[Shard<D>]>,
    numbers: IdSequence,
}

type Shard<D> = Mutex<HashMap<usize, Live<D>>>;

struct Live<D> {
    set: Arc<Set<D>>,
    members: usize,
}

impl<D: SetDevice> SetTable<D> {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Mutex::default()).collect();
        Self { shards, numbers: IdSequence::new() }
    }

    /// The numbers of sets.
    pub(crate) fn numbers(&self) -> &IdSequence {
        &self.numbers
    }

    fn shard(&self, id: &SetId) -> &Shard<D> {
        // Objects are at least 16 bytes apart; spread by a multiplicative hash.
        let hash = (id.address() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.shards[hash as usize % self.shards.len()]
    }

    /// Counts a member of an id's set, and makes the set for the first. Returns the set, and whether it
    /// is new.
    pub(crate) fn join(&self, id: &SetId) -> (Arc<Set<D>>, bool) {
        let mut sets = lock(self.shard(id));
        if let Some(live) = sets.get_mut(&id.address()) {
            live.members += 1;
            return (live.set.clone(), false);
        }
        let number = match id.number() {
            Some(number) => {
                self.numbers.continue_after(number.0);
                number
            }
            None => SetNumber(self.numbers.take()),
        };
        let set = Set::new(Some((id.clone(), number)));
        sets.insert(id.address(), Live { set: set.clone(), members: 1 });
        (set, true)
    }

    /// Uncounts a member. If it was the last, removes the set, and returns what `last` returns, which
    /// is called before another set of the same id can be made.
    pub(crate) fn leave<R>(&self, set: &Set<D>, last: impl FnOnce() -> R) -> Option<R> {
        let Some((id, _)) = &set.id else { return Some(last()) };
        let mut sets = lock(self.shard(id));
        let live = sets.get_mut(&id.address())?;
        live.members -= 1;
        if live.members > 0 {
            return None;
        }
        let last = last();
        let removed = sets.remove(&id.address());
        drop(sets);
        // Drops the id's object, perhaps, which runs foreign code: no lock is held here.
        drop(removed);
        Some(last)
    }
}
