//! Waiting for a future, for tests.

#[cfg(not(shuttle))]
use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Wake},
};

#[cfg(shuttle)]
pub(crate) use shuttle::future::block_on;

/// Blocks the thread until a future returns something.
#[cfg(not(shuttle))]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}
