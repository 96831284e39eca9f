//! Begins the commands that were read.

use std::time::Instant;

use super::execute::{Command, Execute, Running};
use super::fetch::BATCH;
use super::slots::Slots;
use vfiod_nvme_spec::Submission;

/// Bytes that commands move which are begun together. What they come to is posted before the next ones are
/// begun: where the disk is memory, the host works on these while others are copied. Smaller ones cost a host that
/// rings by messages more of these.
pub(super) const GROUP: u64 = 1 << 20;
/// The same of a host that neither rings by messages nor waits for interrupts.
pub(super) const SMALL_GROUP: u64 = 16 << 10;

/// Begins commands until they move [`GROUP`] bytes, or those that wait for nothing `group` bytes, and returns those
/// that are left. Those that have ended already are added to `ended`.
pub(super) fn begin<'a, E: Execute>(
    execute: &E,
    commands: &'a [Submission],
    (running, began): (&mut Slots<E>, Instant),
    group: u64,
    ended: &mut Vec<(Instant, Command)>,
) -> &'a [Submission] {
    let at_once = execute.at_once(commands, group, &mut |command| ended.push((began, command)));
    if at_once > 0 {
        return &commands[at_once..];
    }
    let (mut quick, mut others) = (Places::default(), Places::default());
    let (mut done, mut bytes) = (0, 0);
    let mut begin = || {
        while done < commands.len() && bytes < GROUP {
            let mut begun = commands[done..].iter();
            done += execute.begin(&commands[done..], &mut |command| {
                let places = match command {
                    Running::Quick(_, moves) => {
                        bytes += moves;
                        &mut quick
                    }
                    Running::Other(_) => &mut others,
                };
                // In their order.
                if let Some(of) = begun.next() {
                    places.add(running.add(*of, command, began));
                }
            });
        }
        // Those that were read together are under way together.
        others.all().iter().for_each(|place| running.poll(execute, *place, ended));
    };
    if commands.len() > 1 {
        execute.gather(&mut begin)
    } else {
        begin()
    }
    // What was handed over together has ended by now where the disk is memory.
    quick.all().iter().for_each(|place| running.poll(execute, *place, ended));
    &commands[done..]
}

/// Places of commands that were read together.
#[derive(Default)]
struct Places {
    places: [usize; BATCH as usize],
    count: usize,
}

impl Places {
    fn add(&mut self, place: usize) {
        self.places[self.count] = place;
        self.count += 1;
    }

    fn all(&self) -> &[usize] {
        &self.places[..self.count]
    }
}
