//! Futures that go on when nobody waits for them any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use vfiod_tasks::{Runtime, WeakRuntime};

use crate::request::Done;

/// A request of several steps. If it is dropped before its end, a task of the runtime does the rest:
/// what holds a lock or an error does so until the kernel is done.
pub(crate) struct Continued {
    runtime: WeakRuntime,
    rest: Option<Pin<Box<dyn Future<Output = Done> + Send>>>,
}

impl Continued {
    pub(crate) fn new(
        runtime: &WeakRuntime,
        steps: impl Future<Output = Done> + Send + 'static,
    ) -> Self {
        Self { runtime: runtime.clone(), rest: Some(Box::pin(steps)) }
    }
}

/// Lets a task of the runtime do the rest of something that was dropped before its end.
pub(crate) fn go_on(runtime: &WeakRuntime, rest: impl Future<Output = Done> + Send + 'static) {
    let runtime: Option<Runtime> = runtime.upgrade();
    if let Some(runtime) = runtime {
        runtime.spawn(rest).detach();
    }
}

impl Future for Continued {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let Some(rest) = &mut self.rest else { return Poll::Pending };
        let done = rest.as_mut().poll(cx);
        if done.is_ready() {
            self.rest = None;
        }
        done
    }
}

impl Drop for Continued {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            go_on(&self.runtime, rest);
        }
    }
}
