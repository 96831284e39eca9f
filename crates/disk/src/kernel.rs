//! A read or write that the kernel has, with the request's own buffer, and who does what is left of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use vfiod_dma::Result;
use vfiod_io::Transfer;
use vfiod_tasks::WeakRuntime;

use crate::continued::{Continued, go_on};
use crate::request::{Buffer, Done};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What a request was for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) direction: Direction,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    pub(crate) durable: bool,
}

/// Does what is left of requests when the kernel has returned, and has not done all of it as it is.
pub(crate) trait AfterKernel: Send + Sync {
    /// Where that is done.
    fn runtime(&self) -> &WeakRuntime;

    /// Does what is left of one, for which the kernel has returned this.
    fn finish(self: Arc<Self>, asked: Asked, result: Result<usize>, buffer: Buffer) -> Continued;
}

/// A read or write that the kernel has, with its own buffer. If it is dropped before its end, a task of the
/// runtime does what is left.
pub(crate) struct KernelTransfer(State);

enum State {
    /// `None`: it has ended.
    Kernel(Option<(Transfer, Asked, Arc<dyn AfterKernel>)>),
    /// The kernel has not done it as it is.
    Rest(Continued),
}

impl KernelTransfer {
    /// One that the kernel has been given.
    pub(crate) fn begun(transfer: Transfer, asked: Asked, after: Arc<dyn AfterKernel>) -> Self {
        Self(State::Kernel(Some((transfer, asked, after))))
    }
}

impl Future for KernelTransfer {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let state = &mut self.0;
        if let State::Kernel(in_kernel) = state {
            let Some((transfer, ..)) = in_kernel else { return Poll::Pending };
            let (result, buffer) = ready!(Pin::new(transfer).poll(cx));
            let Some((_, asked, after)) = in_kernel.take() else { return Poll::Pending };
            let buffer = Buffer::of_io(buffer);
            if matches!(result, Ok(moved) if moved == asked.len) && !asked.durable {
                return Poll::Ready(Done { result: Ok(()), buffer: Some(buffer) });
            }
            *state = State::Rest(after.finish(asked, result, buffer));
        }
        match state {
            State::Kernel(_) => Poll::Pending,
            State::Rest(rest) => Pin::new(rest).poll(cx),
        }
    }
}

impl Drop for KernelTransfer {
    fn drop(&mut self) {
        if let State::Kernel(in_kernel) = &mut self.0
            && let Some((transfer, asked, after)) = in_kernel.take()
        {
            let runtime = after.runtime().clone();
            go_on(&runtime, async move {
                let (result, buffer) = transfer.await;
                after.finish(asked, result, Buffer::of_io(buffer)).await
            });
        }
    }
}
