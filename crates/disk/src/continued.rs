//! Futures that go on when nobody waits for them any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use vfiod_tasks::{Runtime, WeakRuntime};

use crate::backend::{Done, Pending};

/// A request of several steps. If it is dropped before its end, a task of the runtime does the rest:
/// what holds a lock or an error does so until the kernel is done.
pub(crate) struct Continued {
    runtime: WeakRuntime,
    rest: Option<Pending>,
}

impl Continued {
    pub(crate) fn pending(
        runtime: &WeakRuntime,
        steps: impl Future<Output = Done> + Send + 'static,
    ) -> Pending {
        Box::pin(Self { runtime: runtime.clone(), rest: Some(Box::pin(steps)) })
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
        let runtime: Option<Runtime> = self.runtime.upgrade();
        if let (Some(rest), Some(runtime)) = (self.rest.take(), runtime) {
            runtime.spawn(rest).detach();
        }
    }
}
