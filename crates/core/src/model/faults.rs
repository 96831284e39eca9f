//! Each deliberate fault must be found.

use super::must_find;
use super::scenarios::*;
use super::scenarios_hot_reset::*;
use super::scenarios_irq::*;
use crate::mutation::{self, Mutation};

macro_rules! faults {
    ($($test:ident: $mutation:ident in $scenario:ident, $reason:literal;)*) => {
        $(#[test]
        fn $test() {
            must_find(Mutation::$mutation, || check($scenario, 20_000), $reason);
        })*

        #[test]
        fn every_fault_has_a_test() {
            assert_eq!(mutation::ALL, [$(Mutation::$mutation,)*]);
        }
    };
}

faults! {
    set_made_twice: SetMadeTwice in sets_come_and_go, "two live sets";
    set_outlives_members: SetOutlivesMembers in sets_come_and_go, "left behind";
    first_open_unlocked: FirstOpenUnlocked in two_members_of_one_set, "overlaps";
    last_close_unlocked: LastCloseUnlocked in two_members_of_one_set, "overlaps";
    open_device_every_time: OpenDeviceEveryTime in two_users_of_one_device, "while open";
    undone_open_not_closed: UndoneOpenNotClosed in opens_that_fail, "while open";
    failed_open_stays_counted: FailedOpenStaysCounted in opens_that_fail, "deadlock";
    open_while_leaving: OpenWhileLeaving in unregister_waits_for_the_user, "after unregister";
    bar_looks_first: BarLooksFirst in bar_against_open, "barred while open";
    revoke_without_release: RevokeWithoutRelease in files_are_revoked_at_once, "with files";
    revoke_releases_twice: RevokeReleasesTwice in files_are_revoked_at_once, "without open";
    open_misses_revoke: OpenMissesRevoke in files_are_revoked_at_once, "deadlock";
    access_after_release: AccessAfterRelease in files_are_revoked_at_once, "access after";
    last_close_unheard: LastCloseUnheard in unregister_waits_for_the_user, "deadlock";
    device_lock_first: DeviceLockFirst in two_users_of_one_device, "deadlock";
    init_under_registry_lock: InitUnderRegistryLock in init_registers_another, "deadlock";
    set_reset_while_open: SetResetWhileOpen in panics_stay_in_the_device, "member is open";
    hot_reset_does_not_stop: HotResetDoesNotStop in hot_reset_against_accesses, "amid a hot";
    hot_reset_ignores_owners: HotResetIgnoresOwners in hot_reset_against_another_owner, "another owner";
    hot_reset_unlocked: HotResetUnlocked in hot_reset_against_another_owner, "another owner";
    busy_hot_reset_stays_stopped: BusyHotResetStaysStopped in hot_reset_against_accesses, "deadlock";
    hot_reset_half_done: HotResetHalfDone in hot_reset_that_fails, "half reset";
    hot_reset_keeps_pages: HotResetKeepsPages in hot_reset_against_stores, "a store from before";
    hot_reset_keeps_doorbells: HotResetKeepsDoorbells in hot_reset_against_doorbells, "a doorbell from before";
    hot_reset_keeps_unmasks: HotResetKeepsUnmasks in hot_reset_against_unmasks, "an unmask from before";
    resume_unheard: ResumeUnheard in hot_reset_against_accesses, "deadlock";
    irq_signal_after_disable: IrqSignalAfterDisable in trigger_against_disable, "after the eventfd";
    irq_automask_in_two_steps: IrqAutomaskInTwoSteps in edges_of_an_automasked_line, "one signal";
}
