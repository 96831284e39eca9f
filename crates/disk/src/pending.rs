//! A request that a back end has started.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::continued::Continued;
use crate::kernel::KernelTransfer;
use crate::request::Done;

/// A request that has been started: a future of what becomes of it. Those that have ended already, and the
/// usual ones of an image, need no memory of their own.
#[must_use = "whoever starts a request waits for it"]
pub struct Pending(State);

enum State {
    /// It has ended. `None`: this was polled since.
    Ended(Option<Done>),
    /// The kernel has it.
    Kernel(KernelTransfer),
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
}

impl From<KernelTransfer> for Pending {
    fn from(transfer: KernelTransfer) -> Self {
        Self(State::Kernel(transfer))
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
            State::Kernel(transfer) => Pin::new(transfer).poll(cx),
            State::Continued(rest) => Pin::new(rest).poll(cx),
            State::Other(future) => future.as_mut().poll(cx),
        }
    }
}
