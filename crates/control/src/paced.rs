//! A connection whose peer must take each reply in time.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A stream that fails with `TimedOut` where what is written is not taken within a time.
///
/// The time begins with the first write, and ends with the flush that follows the last one: hyper flushes
/// when all of a reply is written.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    /// How long a peer may take for a reply; `None`: as long as it likes.
    limit: Option<Duration>,
    /// When the reply that is being written began.
    began: Option<Instant>,
    /// Wakes whoever writes; there while the peer is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(crate) fn new(stream: S, limit: Option<Duration>) -> Self {
        Self { stream, limit, began: None, timer: None }
    }

    /// Waits with a write that is pending, no longer than the peer may take.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let began = *self.began.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(began + limit)));
        ready!(timer.as_mut().poll(cx));
        let what = format!("the peer has not taken a reply within {limit:?}");
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, what)))
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        if self.limit.is_some() {
            self.began.get_or_insert_with(Instant::now);
        }
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Pending => self.wait(cx),
            done => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
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
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.wait(cx),
            done => {
                (self.began, self.timer) = (None, None);
                done
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
