//! A request that a back end has started.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::backend::Done;
use crate::continued::Continued;
use crate::file::FileTransfer;

/// A request that has been started: a future of what becomes of it. Those that have ended already, and the
/// usual ones of an image, need no memory of their own.
#[must_use = "whoever starts a request waits for it"]
pub struct Pending(State);

enum State {
    /// It has ended. `None`: this was polled since.
    Ended(Option<Done>),
    /// The kernel has it.
    File(FileTransfer),
    Continued(Continued),
    Other(Pin<Box<dyn Future<Output = Done> + Send>>),
}

impl Pending {
    /// One that has ended when it was started.
    pub fn ended(done: Done) -> Self {
        Self(State::Ended(Some(done)))
    }

    /// One that ends as this does.
    pub fn new(future: impl Future<Output = Done> + Send + 'static) -> Self {
        Self(State::Other(Box::pin(future)))
    }

    pub(crate) fn file(transfer: FileTransfer) -> Self {
        Self(State::File(transfer))
    }
}

impl From<Continued> for Pending {
    fn from(continued: Continued) -> Self {
        Self(State::Continued(continued))
    }
}

impl Future for Pending {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        match &mut self.0 {
            State::Ended(done) => done.take().map_or(Poll::Pending, Poll::Ready),
            State::File(transfer) => Pin::new(transfer).poll(cx),
            State::Continued(rest) => Pin::new(rest).poll(cx),
            State::Other(future) => future.as_mut().poll(cx),
        }
    }
}
