//! What every PCI device must do, whatever it is: a crate applies it to its model with one line.
//!
//! ```ignore
//! vfiod_testing::conformance!(Mine::new());
//! // With a name, where a model is checked with several options:
//! vfiod_testing::conformance!(two_ports, Mine::with_ports(2));
//! // Places (BAR, offset) that change by themselves and are no registers, so that the model's
//! // register map cannot declare them volatile. They are left out where states are compared:
//! vfiod_testing::conformance!(busy, Mine::new(), unstable = [(0, 0x8), (0, 0xc)]);
//! ```
//!
//! Each check is a test of its own. It runs the device in a registry of its own, through the
//! same [`vfiod_core::File`] that a connection holds. Random operations are the same in each run.
//! States are compared by reading everything; a register whose read changes something must say so
//! in its register map, one whose value depends on time must declare the bits volatile.
//!
//! | module | what is checked |
//! | --- | --- |
//! | `configuration` | header, capabilities, sizes of BARs, read-only bits |
//! | `accesses` | every size and alignment, and places without registers |
//! | `resets` | that resets, closes and revokes leave nothing behind |
//! | `saved` | that a restored device cannot be told from the saved one; that damage is refused |
//! | `surroundings` | random operations while memory, interrupts and masks come and go |

mod accesses;
mod configuration;
mod resets;
mod saved;
mod subject;
mod surroundings;

pub use subject::Subject;

/// Applies the suite to a model: `conformance!(model)`, `conformance!(name, model)`, either with
/// `unstable = [(bar, offset), …]`. The model is an expression, evaluated for each check.
#[macro_export]
macro_rules! conformance {
    ($model:expr, unstable = [$($place:expr),* $(,)?]) => {
        $crate::conformance!(conformance, $model, unstable = [$($place),*]);
    };
    ($name:ident, $model:expr, unstable = [$($place:expr),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::conformance::Subject;

            $crate::conformance!(@tests $model, [$($place),*],
                header capabilities bar_sizes read_only_bits interrupts_agree
                any_access outside
                reset_restores function_reset_restores opens_again gone_when_unregistered
                random_operations dma_without_memory memory_comes_and_goes interrupts_masked
                restored_device_goes_on hostile_state_is_refused);

            #[test]
            fn golden_files_can_be_restored() {
                let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
                let subject = Subject { make: || $model, unstable: &[$($place),*] };
                subject.golden_files_can_be_restored(directory.as_ref());
            }
        }
    };
    ($name:ident, $model:expr) => {
        $crate::conformance!($name, $model, unstable = []);
    };
    ($model:expr) => {
        $crate::conformance!(conformance, $model, unstable = []);
    };
    (@tests $model:expr, $places:tt, $($name:ident)*) => {
        $($crate::conformance!(@test $model, $places, $name);)*
    };
    (@test $model:expr, $places:tt, $name:ident) => {
        #[test]
        fn $name() {
            Subject { make: || $model, unstable: &$places }.$name();
        }
    };
}
