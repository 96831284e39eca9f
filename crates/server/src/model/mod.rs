//! Model checks of how sources get threads. `ci/model-checks.sh` runs them.
//!
//! | invariant | watched by |
//! | --- | --- |
//! | a source with an event is served, however many others stall | [`scenarios`], the checker (deadlock) |
//! | a source that waits at the gate has its turn, whatever it waits for | [`scenarios`], the checker (deadlock) |
//! | a source is in a gate's queue once, and in none when it has ended | [`scenarios`] |
//! | no more threads are inside the gate than it lets in | [`scenarios`] |
//! | a user's threads leave a device's share to others, and none who waits for one is forgotten | [`scenarios`], the checker (deadlock) |
//! | what happens while a thread leaves a source is not missed | [`scenarios`] |
//! | the threads of a pool end when it is stopped | the checker (deadlock) |

mod scenarios;
