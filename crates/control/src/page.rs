//! A page that many may ask for, and that is costly to write: it is written about once a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::sync::Mutex;

use crate::problem::Problem;

/// How long a page is shown before it is written anew.
const FRESH: Duration = Duration::from_secs(1);

/// The page as it was written last. Whoever reads it slowly keeps the same memory as everybody else.
#[derive(Debug, Default)]
pub(crate) struct Page(Mutex<Option<(Instant, Bytes)>>);

impl Page {
    /// The page for one who asks at `now`, written anew if it was written a second before that. Whoever
    /// asks meanwhile waits for it. What has begun goes on if the one who asked has gone.
    ///
    /// # Errors
    /// What `write` says; the next one who asks has it written again.
    pub(crate) async fn text(
        self: &Arc<Self>,
        now: Instant,
        write: impl Future<Output = Result<String, Problem>> + Send + 'static,
    ) -> Result<Bytes, Problem> {
        let this = self.clone();
        let shown = tokio::spawn(async move {
            let mut last = this.0.lock().await;
            if let Some((written, text)) = &*last
                && now.saturating_duration_since(*written) < FRESH
            {
                return Ok(text.clone());
            }
            let text = Bytes::from(write.await?);
            // From now on, so that a page that takes long to write is not written without a pause.
            *last = Some((Instant::now(), text.clone()));
            Ok(text)
        });
        shown.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn page_is_written_once_for_all_who_ask_within_a_second() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (page, count) = (Arc::<Page>::default(), Arc::<AtomicUsize>::default());
        let now = Instant::now();
        let ask = |at: Instant| {
            let (page, count) = (page.clone(), count.clone());
            async move {
                let write = async move {
                    let count = count.fetch_add(1, Ordering::Relaxed) + 1;
                    tokio::task::yield_now().await;
                    Ok(format!("page {count}"))
                };
                page.text(at, write).await.unwrap()
            }
        };
        runtime.block_on(async {
            let all: Vec<_> = (0..50).map(|_| tokio::spawn(ask(now))).collect();
            // One that has gone meanwhile.
            tokio::spawn(ask(now)).abort();
            for one in all {
                assert_eq!(&*one.await.unwrap(), b"page 1", "what all get who ask at once");
            }
            assert_eq!(&*ask(now).await, b"page 1");
            assert_eq!(&*ask(Instant::now() + FRESH).await, b"page 2");
        });
    }
}
