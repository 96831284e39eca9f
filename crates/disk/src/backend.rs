//! What a disk's controller asks of what keeps the disk's bytes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use vfiod_dma::{Errno, Error, Result};
use vfiod_quota::CurrentPayer;
use vfiod_tasks::Runtime;

use crate::bytes::AtOnce;
use crate::limits::Limits;
use crate::pending::Pending;
use crate::request::Request;

/// Keeps the bytes of one disk. Several controllers may use it at once: what one has written and
/// completed, another one reads, and a flush by one covers what the others had completed before.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What it can do. The capacity may change while it is used ([`Backend::limits`] is asked again
    /// when the operator says so); all else stays.
    fn limits(&self) -> Limits;

    /// What it is, for the operator.
    fn about(&self) -> About {
        About::default()
    }

    /// Where a controller whose tasks run in `runtime` starts its requests. Called at the first
    /// command of an opening; the result is dropped when the controller is closed or removed.
    ///
    /// # Errors
    /// `EMFILE` and the like: no descriptors are left.
    fn connect(self: Arc<Self>, runtime: &Runtime) -> Result<Arc<dyn Channel>>;

    /// Gives it a size, where that can be chosen. What is cut off is lost, what is added reads as zeroes. No
    /// request is under way behind the new end. May block.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: its size cannot be changed here.
    fn set_size(&self, _bytes: u64) -> Result<()> {
        let what = "its size cannot be changed here; change it where it is kept";
        Err(Error::new(Errno::OPNOTSUPP, what))
    }

    /// Lets others use what keeps the bytes, before the last user has dropped this. No request comes any more.
    fn release(&self) {}
}

/// What a back end is, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// In a word: `file`, `block device`, `memory`, `null`. Empty: it does not say.
    pub kind: &'static str,
    /// Where its bytes are, if that is a path.
    pub path: Option<PathBuf>,
    /// Whether the page cache is passed by, where there is one.
    pub direct: Option<bool>,
    /// Whether it is locked against other programs, where it can be.
    pub locked: Option<bool>,
}

/// One controller's way to a back end. Requests may be started from any thread, in any number.
pub trait Channel: fmt::Debug + Send + Sync + 'static {
    /// Starts a request. It has begun when this returns, and goes on whether or not the future is
    /// polled or dropped: what it owns is dropped when it has completed, never before. The future
    /// wakes its task by its waker. Requests may complete in any order; who needs an order waits.
    ///
    /// Does not block.
    fn start(&self, request: Request) -> Pending;

    /// Who does the requests, for the operator: `io_uring`, `threads`. `None`: they are done at once.
    fn engine(&self) -> Option<&'static str> {
        None
    }

    /// Charges whoever pays from now on for the memory that requests need. Called once, before the first request, if
    /// at all.
    fn charge_to(&self, _payer: &CurrentPayer) {}

    /// Calls `start`, which starts several requests: they may be handed to the kernel together.
    fn gather(&self, start: &mut dyn FnMut()) {
        start();
    }

    /// The same back end, if its reads and writes wait for nothing.
    fn at_once(&self) -> Option<&dyn AtOnce> {
        None
    }
}
