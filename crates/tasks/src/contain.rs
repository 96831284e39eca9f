//! Contains the panics of devices' code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic, with its message.
#[derive(Debug, thiserror::Error)]
#[error("panic: {0}")]
pub struct Panicked(String);

/// Runs a device's code and returns its panic as an error.
///
/// What the code was changing may be half changed. Callers hand it nothing but the device itself,
/// which nobody uses again before a reset.
#[inline]
pub fn contain<R>(code: impl FnOnce() -> R) -> Result<R, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(caught)
}

#[cold]
fn caught(payload: Box<dyn Any + Send>) -> Panicked {
    // A model checker ends threads by panics of its own, and a failed assertion must fail the
    // model check.
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
    // The payload belongs to the device, too: its drop may panic.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    Panicked(said)
}

/// The payload of a device's panic in a model check. Any other payload fails the check.
#[cfg(any(shuttle, loom))]
pub struct DeviceBug;

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[test]
    fn error_has_the_message_of_the_panic() {
        assert_eq!(contain(|| 7).unwrap(), 7);
        assert_eq!(contain(|| panic!("plain")).unwrap_err().0, "plain");
        assert_eq!(contain(|| panic!("number {}", 5)).unwrap_err().0, "number 5");
        assert_eq!(contain(|| std::panic::panic_any(5)).unwrap_err().0, "(no message)");
    }

    #[test]
    fn payload_that_panics_when_dropped_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("payload");
            }
        }
        assert_eq!(contain(|| std::panic::panic_any(Bomb)).unwrap_err().0, "(no message)");
    }
}
