//! A request to a disk that has been started.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::continued::{Continued, go_on};
use crate::in_flight::InFlight;
use crate::interest::Interest;
use crate::pending::Pending;
use crate::ranges::RangeLock;
use crate::request::Done;

/// A request to a disk that has been started: a future of what becomes of it. What has begun goes on when
/// this is dropped, and has its range until it has ended.
#[must_use = "whoever starts a request waits for it"]
pub struct Started(State);

enum State {
    /// The back end does it in one step. `None`: it has ended.
    Step(Option<Step>),
    Other(Pending),
}

/// What the back end does in one step, and what it is that is done.
pub(crate) struct Step {
    pub(crate) pending: Pending,
    pub(crate) lock: RangeLock,
    /// It is to be durable, as long as this lasts.
    pub(crate) durable: Option<Interest>,
    pub(crate) in_flight: InFlight,
}

impl Step {
    /// Does what is left when the back end has ended its part.
    async fn finish(self, done: Option<Done>) -> Done {
        let Self { pending, lock, durable, mut in_flight } = self;
        let done = match done {
            Some(done) => done,
            None => pending.await,
        };
        drop(lock);
        in_flight.sync_if(durable, done).await
    }
}

impl Started {
    pub(crate) fn step(step: Step) -> Self {
        Self(State::Step(Some(step)))
    }

    pub(crate) fn ended(done: Done) -> Self {
        Self(State::Other(Pending::ended(done)))
    }
}

impl From<Pending> for Started {
    fn from(pending: Pending) -> Self {
        Self(State::Other(pending))
    }
}

impl Future for Started {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        if let State::Step(place) = &mut self.0 {
            let Some(step) = place else { return Poll::Pending };
            let done = ready!(Pin::new(&mut step.pending).poll(cx));
            let Some(step) = place.take() else { return Poll::Pending };
            if step.durable.is_none() || done.result.is_err() {
                return Poll::Ready(done);
            }
            let runtime = step.in_flight.parts().runtime.clone();
            let rest = Continued::new(&runtime, step.finish(Some(done)));
            self.0 = State::Other(rest.into());
        }
        match &mut self.0 {
            State::Step(_) => Poll::Pending,
            State::Other(pending) => Pin::new(pending).poll(cx),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let State::Step(step) = &mut self.0
            && let Some(step) = step.take()
        {
            let runtime = step.in_flight.parts().runtime.clone();
            go_on(&runtime, step.finish(None));
        }
    }
}
