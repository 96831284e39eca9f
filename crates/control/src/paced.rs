//! A connection whose peer must take each reply in time, and whose end is seen while a request is served.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::caller::Pace;

/// How often a peer that sends no more is looked for while it waits for its reply.
const GLANCE: Duration = Duration::from_millis(100);

/// A connection's socket.
pub(crate) trait Socket: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static {
    /// Waits until something has arrived, or nothing more will.
    fn poll_arrival(&self, cx: &mut Context<'_>) -> Poll<Result<()>>;
}

impl Socket for UnixStream {
    fn poll_arrival(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_read_ready(cx)
    }
}

impl Socket for TcpStream {
    fn poll_arrival(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_read_ready(cx)
    }
}

/// A stream that fails with `TimedOut` where what is written is not taken within a time.
///
/// The time begins with the first write, and ends with the flush that follows the last one: hyper flushes
/// when all of a reply is written.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    /// Shared with its [`Line`], in one task: the lock is always free.
    stream: Arc<Mutex<S>>,
    /// How long a peer may take for a reply.
    limit: Duration,
    /// Whether it may take longer.
    pace: Pace,
    /// When the reply that is being written began.
    began: Option<Instant>,
    /// Wakes whoever writes; there while the peer is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// By which the end of a peer is seen while its connection is read by nobody.
#[derive(Debug)]
pub(crate) struct Line<S>(Arc<Mutex<S>>);

fn lock<S>(stream: &Mutex<S>) -> MutexGuard<'_, S> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Socket> Line<S> {
    /// Waits until the peer has closed its end. One that only sends no more still takes replies.
    pub(crate) async fn hung_up(&self) {
        loop {
            if std::future::poll_fn(|cx| lock(&self.0).poll_arrival(cx)).await.is_err()
                || has_hung_up(&*lock(&self.0))
            {
                return;
            }
            // What has arrived is not read while a request before it is served.
            sleep(GLANCE).await;
        }
    }
}

fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

impl<S: Socket> Paced<S> {
    pub(crate) fn new(stream: S, limit: Duration, pace: Pace) -> (Self, Line<S>) {
        let stream = Arc::new(Mutex::new(stream));
        let line = Line(stream.clone());
        (Self { stream, limit, pace, began: None, timer: None }, line)
    }

    /// Waits with a write that is pending, no longer than the peer may take.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if self.pace.is_free() {
            return Poll::Pending;
        }
        let limit = self.limit;
        let began = *self.began.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(began + limit)));
        ready!(timer.as_mut().poll(cx));
        let what = format!("the peer has not taken a reply within {limit:?}");
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, what)))
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        self.began.get_or_insert_with(Instant::now);
        let written = write(Pin::new(&mut *lock(&self.stream)), cx);
        match written {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }
}

impl<S: Socket> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut *lock(&self.stream)).poll_read(cx, buffer)
    }
}

impl<S: Socket> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.stream).is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut *lock(&self.stream)).poll_flush(cx);
        match flushed {
            Poll::Pending => self.wait(cx),
            done => {
                (self.began, self.timer) = (None, None);
                done
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut *lock(&self.stream)).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::caller::{Caller, may_take_its_time};
    use crate::places::Peer;

    #[test]
    fn reply_has_a_deadline_unless_it_has_no_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for is_free in [false, true] {
            runtime.block_on(async {
                let (ours, _theirs) = UnixStream::pair().unwrap();
                let pace = Pace::default();
                let (mut stream, _) = Paced::new(ours, Duration::from_secs(60), pace.clone());
                let peer = Peer::Host([127, 0, 0, 1].into());
                let begin = async || is_free.then(may_take_its_time);
                Caller::new(peer, pace).scope(begin()).await;
                while stream.write_all(&[0; 4096]).now_or_never().is_some() {}
                assert_eq!(stream.timer.is_none(), is_free);
            });
        }
    }
}
