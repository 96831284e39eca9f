//! A doorbell: an index that the host moves. It does so by the register (PCIe transport 3.1.2) and, once
//! there are shadow doorbells (5.11, B.5), by its entry of a page of its own memory as well.
//!
//! The register may be memory that the host maps. Then what a message says is there, too: it is the value,
//! and the message says that it has changed.
//!
//! With shadow doorbells both ways mean one value. A host writes its page first, and the register only if it has passed the
//! *event index*, which the controller keeps in a second page. The register's message may arrive late, when
//! the page is further on already: then it says nothing new. Some hosts leave the page out on some queues
//! (Linux and SPDK on the admin queue), or at some times: then the register is ahead, and the page is made
//! to say the same. What tells the two apart is where the register was written last, and how far the newest value
//! is past that, in rounds, too: messages come in the order of the writes, so the register has moved to the next
//! place where it has this value. Up to the newest value it is late, behind that it is ahead. What is late must
//! never pass for ahead, as old entries of the queue would be taken for new commands.
//!
//! Limit: a host that has moved a queue by more than its size through the page alone, and then writes the
//! register alone, may not be heard until it stores to the page again. To make this rare, the event index
//! follows at least twice in each round, after which a host writes the register.

use std::sync::Arc;

use vfiod_core::dma::{Attachment, Batch, Reach};
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::atomic::{Ordering, fence};
use vfiod_tasks::event_index::{SharedIndex, ask};

use super::page::MappedPage;

/// Bytes of a doorbell, and of an entry of either page (CAP.DSTRD is 0).
const ENTRY: u64 = 4;
/// A lag that does not come: a host writes the register in each round.
pub(crate) const FAR: u32 = 1 << 30;

/// Where the page of shadow doorbells is, and that of the event indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) doorbells: u64,
    pub(crate) events: u64,
}

impl Pages {
    fn entry(self, bell: usize) -> Shadow {
        let offset = bell as u64 * ENTRY;
        let (at, event_at) = (self.doorbells + offset, self.events + offset);
        Shadow { at, event_at, seen: 0, event: None, since_event: 0 }
    }
}

/// Where the host moves doorbells besides, or instead of, by messages.
#[derive(Clone, Debug)]
pub(crate) enum DoorbellPlace {
    /// Shadow doorbells.
    Shadow(Pages),
    /// The registers are BAR 0's memory, which the host maps.
    Mapped(Arc<MappedPage>),
}

/// What became of what a host has written to a doorbell. It may have stored several values meanwhile: one that is
/// none of the queue says nothing about those before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// There is a new value.
    pub(crate) moved: bool,
    /// A value was none of the queue, and changes nothing.
    pub(crate) invalid: bool,
}

/// A doorbell.
#[derive(Clone, Debug)]
pub(crate) struct Doorbell {
    /// Entries of the queue.
    entries: u32,
    value: u32,
    /// How far the value is past the last one that was written to the register, below [`FAR`].
    lag: u32,
    shadow: Option<Shadow>,
    mapped: Option<Mapped>,
    /// The host has stored a value that is none of the queue, of which it was not told.
    invalid: bool,
}

/// A doorbell's entries of the two pages.
#[derive(Clone, Debug)]
struct Shadow {
    at: u64,
    event_at: u64,
    /// What was there last.
    seen: u32,
    /// The event index; `None`: unknown.
    event: Option<u32>,
    /// How far the value has moved since the event index was stored.
    since_event: u32,
}

/// A register that the host maps.
#[derive(Clone, Debug)]
struct Mapped {
    page: Arc<MappedPage>,
    bell: usize,
}

/// What is saved of a doorbell besides its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) lag: u32,
    pub(crate) seen: u32,
}

fn by_message() -> Error {
    Error::new(Errno::OPNOTSUPP, "shadow doorbells are reached by message now")
}

impl Doorbell {
    pub(crate) fn new(entries: u32, value: u32) -> Self {
        Self { entries, value, lag: 0, shadow: None, mapped: None, invalid: false }
    }

    /// A doorbell that has come so far, the `bell`th, and where it is besides.
    pub(crate) fn restored(
        (entries, value): (u32, u32),
        moved: Moved,
        (place, bell): (Option<&DoorbellPlace>, usize),
    ) -> Self {
        let mut doorbell = Self { lag: moved.lag, ..Self::new(entries, value) };
        match place {
            Some(DoorbellPlace::Shadow(pages)) => {
                doorbell.shadow = Some(Shadow { seen: moved.seen, ..pages.entry(bell) });
            }
            Some(DoorbellPlace::Mapped(page)) => {
                page.restore(bell, moved.seen);
                doorbell.mapped = Some(Mapped { page: page.clone(), bell });
            }
            None => {}
        }
        doorbell
    }

    pub(crate) fn moved(&self) -> Moved {
        let shadow = self.shadow.as_ref().map(|shadow| shadow.seen);
        let mapped = self.mapped.as_ref().map(|Mapped { page, bell }| page.taken(*bell));
        let seen = shadow.or(mapped);
        Moved { lag: self.lag, seen: seen.unwrap_or(0) }
    }

    /// The newest value.
    pub(crate) fn value(&self) -> u32 {
        self.value
    }

    /// From now on it is there, too. What is there gets the newest value: the host has not used it.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn set_place(
        &mut self,
        dma: &Attachment,
        place: &DoorbellPlace,
        bell: usize,
    ) -> Result<()> {
        match place {
            DoorbellPlace::Shadow(pages) => {
                let mut shadow = pages.entry(bell);
                let mut batch = dma.batch()?;
                for at in [shadow.at, shadow.event_at] {
                    store(&mut batch, at, self.value)?;
                }
                (shadow.seen, shadow.event) = (self.value, Some(self.value));
                (self.lag, self.shadow) = (0, Some(shadow));
            }
            DoorbellPlace::Mapped(page) => {
                page.set(bell, self.value)?;
                self.mapped = Some(Mapped { page: page.clone(), bell });
            }
        }
        Ok(())
    }

    /// What is there is the host's again: it is neither read nor written any more.
    pub(crate) fn end_place(&mut self) {
        if let Some(Mapped { page, bell }) = &self.mapped {
            // What the host has stored until now was for this queue, and is no doorbell of none.
            _ = page.take(*bell);
        }
        (self.shadow, self.mapped, self.lag) = (None, None, 0);
    }

    /// Whether it is in memory, where the host can be ahead of what it has told.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.shadow.is_some() || self.mapped.is_some()
    }

    /// Whether the register is memory that the host maps.
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// Whether the host can be asked to write the register.
    pub(crate) fn is_shadowed(&self) -> bool {
        self.shadow.is_some()
    }

    /// Whether the host has stored a value that is none of the queue, since this was asked last.
    pub(crate) fn take_invalid(&mut self) -> bool {
        std::mem::take(&mut self.invalid)
    }

    /// How far a value is ahead of the newest one.
    fn ahead(&self, value: u32) -> u32 {
        (value + self.entries - self.value) % self.entries
    }

    /// The host has written the register. The value can be at most `limit` ahead; one that is further ahead, or past
    /// the end, is invalid.
    pub(crate) fn write(&mut self, dma: &Attachment, value: u32, limit: u32) -> Heard {
        let before = self.value;
        // What the host has stored before. Where its page cannot be read, the queue's task finds that out. A register
        // that is mapped has this value, or one that the host has stored since.
        _ = self.look(dma, limit);
        if self.mapped.is_none() {
            let left = limit - (self.value + self.entries - before) % self.entries;
            self.invalid |= !self.move_register(dma, value, left);
        }
        Heard { moved: self.value != before, invalid: self.take_invalid() }
    }

    /// The register has this value, at most `limit` ahead. Returns whether that can be.
    fn move_register(&mut self, dma: &Attachment, value: u32, limit: u32) -> bool {
        if value >= self.entries {
            return false;
        }
        let step = self.register_step(value);
        if step <= self.lag {
            self.lag -= step;
            return true;
        }
        let ahead = step - self.lag;
        if ahead > limit {
            return false;
        }
        (self.value, self.lag) = (value, 0);
        self.tell_page(dma, ahead);
        true
    }

    /// How far the register has moved that has this value now.
    fn register_step(&self, value: u32) -> u32 {
        let register = (self.value + self.entries - self.lag % self.entries) % self.entries;
        (value + self.entries - register) % self.entries
    }

    /// The value is further past the register.
    fn outrun_register(&mut self, ahead: u32) {
        self.lag += ahead;
        if self.lag >= FAR {
            // Whole rounds less: the register's value is still known.
            self.lag -= FAR / 2 / self.entries * self.entries;
        }
    }

    /// The register alone was written: the page says the same, unless the host has stored something since.
    fn tell_page(&mut self, dma: &Attachment, ahead: u32) {
        let Some(shadow) = &mut self.shadow else { return };
        shadow.since_event += ahead;
        let (old, new) = (shadow.seen.to_le(), self.value.to_le());
        // It fails only where the page cannot be reached, which the queue's task finds out.
        let was = dma.batch().and_then(|mut batch| batch.compare_exchange(shadow.at, old, new));
        if was.is_ok_and(|was| was == old) {
            shadow.seen = self.value;
        }
    }

    /// Looks whether the host has stored something. The value can be at most `limit` ahead. Returns whether there is a new one.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn look(&mut self, dma: &Attachment, limit: u32) -> Result<bool> {
        if let Some(Mapped { page, bell }) = &self.mapped {
            let taken = page.take(*bell)?;
            return Ok(taken.is_some_and(|now| self.advance(now, limit)));
        }
        let Some(shadow) = &self.shadow else { return Ok(false) };
        let mut batch = dma.batch()?;
        let now = load(&mut batch, shadow.at)?;
        self.judge(&mut batch, now, limit)
    }

    /// Asks to be told when the host moves past `event`, and looks once more. Returns whether there is a
    /// new value: if not, the host writes the register when it moves past `event`, or what it stores is polled.
    ///
    /// # Errors
    /// Those of the memory.
    pub(crate) fn ask(&mut self, dma: &Attachment, event: u32, limit: u32) -> Result<bool> {
        let Some(shadow) = &mut self.shadow else { return self.look(dma, limit) };
        let mut batch = dma.batch()?;
        if shadow.event == Some(event) && shadow.since_event == 0 {
            // It asks for that already.
            fence(Ordering::SeqCst);
            let now = load(&mut batch, shadow.at)?;
            return self.judge(&mut batch, now, limit);
        }
        let now = ask(&mut InPage { batch: &mut batch, shadow }, event)?;
        self.judge(&mut batch, now, limit)
    }

    /// What the page of shadow doorbells says.
    fn judge(&mut self, batch: &mut Batch<'_>, now: u32, limit: u32) -> Result<bool> {
        let before = self.value;
        let Some(shadow) = &mut self.shadow else { return Ok(false) };
        if now == std::mem::replace(&mut shadow.seen, now) {
            return Ok(false);
        }
        let moved = self.advance(now, limit);
        let ahead = (self.value + self.entries - before) % self.entries;
        let Some(shadow) = &mut self.shadow else { return Ok(false) };
        shadow.since_event += ahead;
        if moved && shadow.since_event >= self.entries / 2 {
            // The host has moved it, also where the page of event indices cannot be reached for now: the next one who
            // asks finds that out.
            _ = InPage { batch, shadow }.publish(now);
        }
        self.outrun_register(ahead);
        Ok(moved)
    }

    /// The host has stored a value. Returns whether it is a new one of the queue.
    fn advance(&mut self, now: u32, limit: u32) -> bool {
        let ahead = if now < self.entries { self.ahead(now) } else { u32::MAX };
        if ahead > limit {
            self.invalid = true;
            return false;
        }
        self.value = now;
        ahead > 0
    }
}

/// A doorbell's entries, reached.
struct InPage<'a, 'b> {
    batch: &'a mut Batch<'b>,
    shadow: &'a mut Shadow,
}

impl SharedIndex for InPage<'_, '_> {
    type Error = Error;

    fn publish(&mut self, event: u32) -> Result<()> {
        store(self.batch, self.shadow.event_at, event)?;
        (self.shadow.event, self.shadow.since_event) = (Some(event), 0);
        Ok(())
    }

    fn load(&mut self) -> Result<u32> {
        load(self.batch, self.shadow.at)
    }
}

fn load(batch: &mut Batch<'_>, at: u64) -> Result<u32> {
    batch.load(at)?.map(u32::from_le).ok_or_else(by_message)
}

fn store(batch: &mut Batch<'_>, at: u64, value: u32) -> Result<()> {
    match batch.store(at, value.to_le(), Ordering::SeqCst)? {
        Reach::Mapped => Ok(()),
        Reach::Message => Err(by_message()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use vfiod_core::dma::{Backing, MapRequest, Perm, Space};
    use vfiod_core::memory::SharedMemory;

    use super::*;

    const PAGES: DoorbellPlace = DoorbellPlace::Shadow(Pages { doorbells: 0, events: 4096 });

    /// The pages of a host, the doorbells first.
    fn pages() -> (OwnedFd, Attachment) {
        let memory = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 8192).unwrap();
        let space = Space::default();
        let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
        let request = MapRequest { iova: 0, size: 8192, perm: Perm::READ | Perm::WRITE, backing };
        space.map(None, request).unwrap();
        (memory, Attachment::new(&space))
    }

    /// What a host does, or the controller.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The host stores to the page.
        Page(u32),
        /// It writes the register.
        Register(u32),
        /// The controller looks.
        Look,
        Ask,
    }
    use Step::{Ask, Look, Page, Register};

    /// The values after each step; `None`: it was none of the queue.
    fn play(steps: &[Step]) -> Vec<Option<u32>> {
        let (memory, dma) = pages();
        let mut bell = Doorbell::new(8, 5);
        bell.set_place(&dma, &PAGES, 3).unwrap();
        let mut values = Vec::new();
        for step in steps {
            let valid = match *step {
                Page(value) => {
                    rustix::io::pwrite(&memory, &value.to_le_bytes(), 12).unwrap();
                    continue;
                }
                Register(value) => !bell.write(&dma, value, 7).invalid,
                Look => bell.look(&dma, 7).is_ok(),
                Ask => bell.ask(&dma, bell.value(), 7).is_ok(),
            };
            values.push((valid && !bell.take_invalid()).then_some(bell.value()));
        }
        values
    }

    #[test]
    fn register_and_page_mean_one_value() {
        let rows: &[(&str, &[Step], &[u32])] = &[
            ("by the page", &[Page(6), Look, Page(1), Look], &[6, 1]),
            ("late register", &[Page(6), Look, Page(1), Look, Register(6), Look], &[6, 1, 1, 1]),
            (
                "two late registers",
                &[Page(6), Page(7), Page(2), Look, Register(6), Register(7), Page(3), Ask],
                &[2, 2, 2, 3],
            ),
            ("always both", &[Page(6), Register(6), Page(7), Look, Register(7)], &[6, 7, 7]),
            (
                "register again",
                &[Register(6), Register(6), Page(7), Look, Register(6)],
                &[6, 6, 7, 7],
            ),
            (
                "register alone",
                &[Register(7), Look, Register(1), Ask, Page(2), Look],
                &[7, 7, 1, 1, 2],
            ),
            (
                "the page left out",
                &[Page(6), Look, Register(0), Look, Page(1), Look, Register(3), Page(4), Ask],
                &[6, 0, 0, 1, 3, 4],
            ),
            ("register that is ahead of the page", &[Page(6), Register(0), Look], &[0, 0]),
            (
                "registers that are late by more than a round",
                &[
                    Page(1),
                    Look,
                    Page(5),
                    Look,
                    Page(1),
                    Look,
                    Register(1),
                    Register(5),
                    Register(1),
                    Register(2),
                ],
                &[1, 5, 1, 1, 1, 1, 2],
            ),
        ];
        for (what, steps, values) in rows {
            let expected: Vec<Option<u32>> = values.iter().copied().map(Some).collect();
            assert_eq!(play(steps), expected, "{what}");
        }
        assert_eq!(play(&[Page(8), Look, Look, Page(6), Look]), [None, Some(5), Some(6)]);
        assert_eq!(play(&[Register(8), Page(6), Look]), [None, Some(6)]);
    }

    #[test]
    fn value_of_a_register_that_is_mapped_is_what_the_page_has() {
        let (_, dma) = pages();
        let memory = SharedMemory::new("bar", 0x2000).unwrap();
        let mut bell = Doorbell::new(8, 5);
        bell.set_place(&dma, &DoorbellPlace::Mapped(MappedPage::new(memory.clone())), 3).unwrap();
        let page = |value: u32| memory.store(0x100c, value, Ordering::SeqCst).unwrap();
        assert_eq!(memory.load::<u32>(0x100c).unwrap(), 5);
        // Messages 6 and 7, and a store of 1 before the first of them is delivered.
        page(1);
        let (moved, invalid) = (true, true);
        assert_eq!(bell.write(&dma, 6, 7), Heard { moved, invalid: false });
        assert_eq!((bell.value(), bell.write(&dma, 7, 7)), (1, Heard::default()));
        page(9);
        assert_eq!(bell.write(&dma, 9, 7), Heard { moved: false, invalid });
        assert_eq!(bell.write(&dma, 9, 7), Heard::default(), "it was told of");
        page(2);
        assert!(bell.look(&dma, 7).unwrap());
        assert_eq!((bell.value(), bell.is_shadowed()), (2, false));
        bell.end_place();
        page(3);
        assert!(!bell.look(&dma, 7).unwrap());
        assert_eq!(bell.value(), 2, "the page is the host's again");
    }

    /// The host has stored a value that is none of the queue, which was found but not told of, or writes one now: what
    /// is valid counts all the same.
    #[test]
    fn valid_value_beside_an_invalid_one_counts() {
        let (_, dma) = pages();
        let memory = SharedMemory::new("bar", 0x2000).unwrap();
        let mut bell = Doorbell::new(8, 5);
        bell.set_place(&dma, &DoorbellPlace::Mapped(MappedPage::new(memory.clone())), 3).unwrap();
        let page = |value: u32| memory.store(0x100c, value, Ordering::SeqCst).unwrap();
        page(9);
        assert!(!bell.look(&dma, 7).unwrap());
        page(6);
        assert_eq!(bell.write(&dma, 6, 7), Heard { moved: true, invalid: true });
        assert_eq!(bell.value(), 6);
        // By the page of shadow doorbells, and then the register.
        let (memory, dma) = pages();
        let mut bell = Doorbell::new(8, 5);
        bell.set_place(&dma, &PAGES, 3).unwrap();
        let page = |value: u32| rustix::io::pwrite(&memory, &value.to_le_bytes(), 12).unwrap();
        page(6);
        assert_eq!(bell.write(&dma, 8, 7), Heard { moved: true, invalid: true });
        page(8);
        assert_eq!(bell.write(&dma, 7, 7), Heard { moved: true, invalid: true });
        assert_eq!((bell.value(), bell.take_invalid()), (7, false));
    }

    #[test]
    fn page_and_event_index_begin_with_the_value_and_follow_it() {
        let (memory, dma) = pages();
        let words = || {
            [12, 4096 + 12].map(|at| {
                let mut bytes = [0; 4];
                rustix::io::pread(&memory, &mut bytes, at).unwrap();
                u32::from_le_bytes(bytes)
            })
        };
        let mut bell = Doorbell::new(8, 5);
        bell.set_place(&dma, &PAGES, 3).unwrap();
        assert_eq!(words(), [5, 5]);
        assert!(bell.write(&dma, 7, 7).moved);
        assert_eq!(words(), [7, 5], "the page says what the register says");
        assert!(!bell.ask(&dma, 7, 7).unwrap());
        assert_eq!(words(), [7, 7]);
        bell.end_place();
        bell.write(&dma, 1, 7);
        assert!(!bell.ask(&dma, 1, 7).unwrap());
        assert_eq!(words(), [7, 7], "the pages are the host's again");
    }
}
