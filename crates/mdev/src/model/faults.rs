//! Each deliberate fault must be found.

use super::scenarios::*;
use crate::mutation::{self, Mutation, must_find};

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
    forgotten_early: ForgottenEarly in again, "two devices of one UUID";
    removal_unheard: RemovalUnheard in two_removers, "deadlock";
    door_shut_late: DoorShutLate in two_removers, "asked with the door open";
    counted_in_two_steps: CountedInTwoSteps in one_unit, "more instances than units";
    created_while_leaving: CreatedWhileLeaving in a_parent_against_creation, "a parent waits for this";
    creations_not_awaited: CreationsNotAwaited in a_parent_against_creation, "a parent waits for this";
    deadline_unheeded: DeadlineUnheeded in a_deadline_hurries, "deadlock";
}
