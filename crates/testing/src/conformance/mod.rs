//! What every PCI device must do, whatever it is: a crate applies it to its model with one line.
//!
//! ```ignore
//! vfiod_testing::conformance!(Mine::new());
//! // With a name, where a model is checked with several options:
//! vfiod_testing::conformance!(two_ports, Mine::with_ports(2));
//! // What the suite must know of a model is said after it, in this order:
//! vfiod_testing::conformance!(
//!     busy,
//!     Mine::new(),
//!     // Places (BAR, offset) that change by themselves and are no registers, so that the model's
//!     // register map cannot declare them volatile. They are left out where states are compared.
//!     unstable = [(0, 0x8), (0, 0xc)],
//!     // Fields of the saved state that are measured: they differ from run to run.
//!     measured = ["/figures/nanoseconds"],
//!     // How a driver starts DMA to or from address 0: a model that has DMA must say it.
//!     dma = |device| device.write32(0, START, 1),
//! );
//! ```
//!
//! Each check is a test of its own. It runs the device in a registry of its own, through the
//! same [`vfiod_core::File`] that a connection holds. Random operations are the same in each run.
//! States are compared by reading everything; a register whose read changes something must say so
//! in its register map, one whose value depends on time must declare the bits volatile.
//!
//! A model that is saved has a golden file of each version of its state, `tests/golden/KIND-VERSION.json`
//! in its crate. With `VFIOD_GOLDEN=write` in the environment the suite writes the current one.
//!
//! | module | what is checked |
//! | --- | --- |
//! | `configuration` | header, capabilities, sizes of BARs, read-only bits |
//! | `accesses` | every size and alignment, and places without registers |
//! | `portable` | that the next user of a device finds what was restored from a file; that damage is refused |
//! | `quiesce` | that the device stops and resumes while its DMA waits for the client |
//! | `resets` | that resets, closes and revokes leave nothing behind |
//! | `saved` | that a restored device cannot be told from the saved one; that damage is refused |
//! | `surroundings` | random operations while memory, interrupts and masks come and go |

mod accesses;
mod configuration;
mod portable;
mod quiesce;
mod resets;
mod saved;
mod subject;
mod surroundings;

pub use subject::Subject;

/// Applies the suite to a model: `conformance!(model)` or `conformance!(name, model)`, then what
/// must be known of it; see the [module](mod@crate::conformance). The model is an expression, evaluated
/// for each check.
#[macro_export]
macro_rules! conformance {
    (
        $name:ident, $model:expr
        $(, unstable = [$($place:expr),* $(,)?])?
        $(, measured = [$($field:expr),* $(,)?])?
        $(, dma = $dma:expr)? $(,)?
    ) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::conformance!(
                @tests
                ($model) (.unstable(&[$($($place),*)?]).measured(&[$($($field),*)?]) $(.dma($dma))?)
                header capabilities bar_sizes read_only_bits interrupts_agree
                any_access outside
                reset_restores function_reset_restores opens_again gone_when_unregistered
                quiesces_while_it_works quiesces_while_dma_waits
                random_operations dma_without_memory memory_comes_and_goes interrupts_masked
                restored_device_goes_on hostile_state_is_refused
                next_user_finds_what_was_saved hostile_portable_state_is_refused
            );

            #[test]
            fn golden_files_can_be_restored() {
                let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
                let subject = $crate::Subject::new(|| $model);
                subject.golden_files_can_be_restored(directory.as_ref());
            }
        }
    };
    (
        $model:expr
        $(, unstable = [$($place:expr),* $(,)?])?
        $(, measured = [$($field:expr),* $(,)?])?
        $(, dma = $dma:expr)? $(,)?
    ) => {
        $crate::conformance!(
            conformance, $model, unstable = [$($($place),*)?], measured = [$($($field),*)?]
            $(, dma = $dma)?
        );
    };
    (@tests $model:tt $known:tt $($name:ident)*) => {
        $($crate::conformance!(@test $model $known $name);)*
    };
    (@test ($model:expr) ($($known:tt)*) $name:ident) => {
        #[test]
        fn $name() {
            $crate::Subject::new(|| $model)$($known)*.$name();
        }
    };
}
