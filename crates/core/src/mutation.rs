//! Faults to be switched on under a model checker, one or more for each invariant, to show that
//! the checks bite. In an ordinary build [`active`] is `false` at compile time.

/// Makes the list of a crate's faults, and what switches them on: `Mutation`, `active`, and for
/// model checks `select`, `ALL` and `must_find`. For the crates of this workspace.
#[doc(hidden)]
#[macro_export]
macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(dead_code)]
        pub(crate) enum Mutation {
            $($(#[$doc])* $name,)*
        }

        /// All of them.
        #[cfg(all(test, shuttle))]
        pub(crate) const ALL: &[Mutation] = &[$(Mutation::$name,)*];

        /// Whether a fault is switched on.
        #[cfg(not(any(shuttle, loom)))]
        #[inline(always)]
        pub(crate) const fn active(_: Mutation) -> bool {
            false
        }

        #[cfg(any(shuttle, loom))]
        pub(crate) use selected::*;

        #[cfg(any(shuttle, loom))]
        mod selected {
            use std::cell::Cell;

            use super::Mutation;

            // Both checkers run every task of a model on the thread that started it.
            std::thread_local! {
                static SELECTED: Cell<Option<Mutation>> = const { Cell::new(None) };
            }

            /// Whether a fault is switched on.
            pub(crate) fn active(mutation: Mutation) -> bool {
                SELECTED.get() == Some(mutation)
            }

            /// A check must fail with a fault, for the reason expected. It passes without: that
            /// is a test of its own.
            #[cfg(test)]
            pub(crate) fn must_find(mutation: Mutation, check: impl FnOnce(), reason: &str) {
                SELECTED.set(Some(mutation));
                let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
                SELECTED.set(None);
                let Err(payload) = found else { panic!("{mutation:?} was not found") };
                let said = payload.downcast_ref::<String>().map(String::as_str);
                let said = said.or(payload.downcast_ref::<&str>().copied());
                let said = said.unwrap_or("(no message)");
                assert!(
                    said.contains(reason),
                    "{mutation:?} was found by something else: {said}"
                );
                // For the table of `ci/model-checks.sh`.
                println!("FOUND {mutation:?}: {}", said.lines().next().unwrap_or_default());
            }
        }
    };
}

mutations! {
    /// Looks a set up and enters it in two steps: two joiners may make two sets of one id.
    SetMadeTwice,
    /// Leaves a set in the table when its last member has left.
    SetOutlivesMembers,
    /// Lets the set lock go around `open_device`.
    FirstOpenUnlocked,
    /// Lets the set lock go around `close_device`.
    LastCloseUnlocked,
    /// Calls `open_device` at every open.
    OpenDeviceEveryTime,
    /// Does not call `close_device` when the last open is undone.
    UndoneOpenNotClosed,
    /// Does not take an open that failed out of the count.
    FailedOpenStaysCounted,
    /// Opens devices that are being unregistered.
    OpenWhileLeaving,
    /// Looks whether a device is unused, and bars opens, in two steps.
    BarLooksFirst,
    /// Takes a file away without releasing it.
    RevokeWithoutRelease,
    /// Takes a file away that its holder is releasing.
    RevokeReleasesTwice,
    /// Takes a file away while it is being opened, and the opener does not notice.
    OpenMissesRevoke,
    /// Lets an access that has passed its checks go on after the release.
    AccessAfterRelease,
    /// Does not wake the unregister that waits for the last file.
    LastCloseUnheard,
    /// Takes the device lock before the set lock.
    DeviceLockFirst,
    /// Keeps a registry lock while `init` runs.
    InitUnderRegistryLock,
    /// Resets the set while a member is open.
    SetResetWhileOpen,
    /// Lets accesses go on during a hot reset.
    HotResetDoesNotStop,
    /// Does not look at who has the members open before it resets them.
    HotResetIgnoresOwners,
    /// Lets the set lock go between looking at the owners and the hot reset.
    HotResetUnlocked,
    /// Leaves the members stopped when one of them is busy.
    BusyHotResetStaysStopped,
    /// Leaves those members in use that a failed hot reset has reset.
    HotResetHalfDone,
    /// Does not restore shared pages after the last member's reset.
    HotResetKeepsPages,
    /// Delivers the doorbells that were rung during a hot reset.
    HotResetKeepsDoorbells,
    /// Unmasks by what was signalled before the end of a hot reset.
    HotResetKeepsUnmasks,
    /// Does not wake the accesses that wait for the end of a hot reset.
    ResumeUnheard,
    /// Says that an eventfd is gone while a signal to it is under way.
    IrqSignalAfterDisable,
    /// Decides whether to signal and masks in two steps.
    IrqAutomaskInTwoSteps,
}
