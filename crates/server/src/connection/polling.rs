//! What a connection's thread does while it waits for the next message: it polls, if so configured, and does what
//! workers would have to be woken for.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use vfiod_tasks::{Keeper, hand_over};

use super::Connection;
use crate::descriptor::State;
use crate::task_runs::LONG;
use crate::transport::{Received, Wait};

/// How a poll has ended.
enum Polled {
    /// Something has arrived.
    Received(Received),
    /// The thread has run tasks.
    Ran,
    /// Nothing has come.
    Nothing,
}

impl Connection {
    /// Receives: polls for a while if so configured, then sleeps for as long as `wait` allows.
    pub(super) fn receive(
        &self,
        state: &mut State,
        chunk: usize,
        wait: Wait,
        resident: bool,
    ) -> Result<Received, Errno> {
        let time = self.clients.poll;
        // The right is asked for anew each time, as others may wait for it.
        while !time.is_zero()
            && let Some(_polling) = self.watch.pool().poll()
        {
            match self.poll(state, chunk, wait, time)? {
                Polled::Received(received) => return Ok(received),
                Polled::Ran if self.is_needed() => return self.fill(state, chunk, Wait::No),
                Polled::Ran => {}
                Polled::Nothing => break,
            }
        }
        if resident || wait == Wait::No {
            return self.fill(state, chunk, wait);
        }
        let lingering = self.watch.pool().linger();
        let wait = if lingering.is_some() { wait } else { Wait::No };
        self.fill(state, chunk, wait)
    }

    /// Polls for so long. What has completed meanwhile is taken, and tasks that this makes ready are run: the
    /// thread is awake, and they would have to wait for a worker, or for this thread's processor.
    fn poll(
        &self,
        state: &mut State,
        chunk: usize,
        wait: Wait,
        time: Duration,
    ) -> Result<Polled, Errno> {
        let session =
            self.session.get().filter(|_| wait == Wait::Linger && self.task_runs.were_short());
        let file = session.map(|session| &session.opened.file);
        let looks = file.and_then(|file| Some((file, file.keeper()?)));
        if looks.is_none() && self.watch.pool().has_one_processor() {
            // The workers, to whom the tasks are left, need it.
            return Ok(Polled::Nothing);
        }
        let start = Instant::now();
        while start.elapsed() < time {
            match self.fill(state, chunk, Wait::No)? {
                Received::Nothing => {}
                received => return Ok(Polled::Received(received)),
            }
            if let Some((file, keeper)) = &looks {
                file.look(keeper);
                if keeper.holds() {
                    self.run_kept(keeper);
                    return Ok(Polled::Ran);
                }
            }
            std::hint::spin_loop();
        }
        Ok(Polled::Nothing)
    }

    /// Runs the tasks that a doorbell, or what has completed, has made ready, so that no worker has to wake up for
    /// them; not where others need the thread by now, and not for long.
    pub(super) fn run_kept(&self, keeper: &Keeper<'_>) {
        if self.is_needed() {
            return hand_over();
        }
        let start = Instant::now();
        while start.elapsed() < LONG && keeper.run() {}
        hand_over();
        self.task_runs.ran_for(start.elapsed());
    }

    /// Whether others wait for a thread.
    fn is_needed(&self) -> bool {
        self.clients.gate.is_crowded() || self.watch.pool().is_saturated()
    }
}
