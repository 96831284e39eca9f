//! Keeping a device's panic within the device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic said.
#[derive(Debug, thiserror::Error)]
#[error("panic: {0}")]
pub struct Panicked(String);

/// Runs foreign code; a panic in it becomes an error.
///
/// Whatever the code was working on may be half done. Callers hand it nothing but the device
/// itself, which the core does not touch again before a reset.
#[inline]
pub fn contain<R>(code: impl FnOnce() -> R) -> Result<R, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(caught)
}

#[cold]
fn caught(payload: Box<dyn Any + Send>) -> Panicked {
    // A model checker takes threads down by panics of its own, and a failed assertion of a
    // model must fail the model.
    #[cfg(any(shuttle, loom))]
    if !payload.is::<DeviceBug>() {
        std::panic::resume_unwind(payload);
    }
    let said = if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "(no message)".to_owned()
    };
    // The payload is foreign code too: its drop may panic.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    Panicked(said)
}

/// The panic of a device under a model checker; any other is the model's own.
#[cfg(any(shuttle, loom))]
#[allow(dead_code)]
pub(crate) struct DeviceBug;

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[test]
    fn tells_what_a_panic_said() {
        assert_eq!(contain(|| 7).unwrap(), 7);
        assert_eq!(contain(|| panic!("plain")).unwrap_err().0, "plain");
        assert_eq!(contain(|| panic!("number {}", 5)).unwrap_err().0, "number 5");
        assert_eq!(contain(|| std::panic::panic_any(5)).unwrap_err().0, "(no message)");
    }

    #[test]
    fn survives_a_payload_that_panics_when_dropped() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("payload");
            }
        }
        assert_eq!(contain(|| std::panic::panic_any(Bomb)).unwrap_err().0, "(no message)");
    }
}
