//! Faults to be switched on under the model checker, to show that the checks bite.

vfiod_core::mutations! {
    /// Gives the UUID and the units back before the instance has ended.
    ForgottenEarly,
    /// Does not wake those who wait for a removal.
    RemovalUnheard,
    /// Shuts the door only after the users were asked and have gone.
    DoorShutLate,
    /// Looks whether there is a unit left and takes it in two steps.
    CountedInTwoSteps,
    /// Makes instances for a parent that is leaving.
    CreatedWhileLeaving,
    /// Unregisters a parent without waiting for what is on its way in.
    CreationsNotAwaited,
    /// Does not make a removal hurry that waits.
    DeadlineUnheeded,
}
