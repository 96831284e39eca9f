//! A sandbox that a process puts itself into: it keeps the directories and system calls that it
//! needs, and loses everything else for good.
//!
//! Three mechanisms of the kernel, none of which needs a privilege: *landlock* for files, TCP, abstract
//! sockets and signals; *seccomp* for system calls; no capabilities and no new privileges.
//! Where the kernel lacks one, the others still apply, and the [`Report`] says so.
//!
//! [`Rules::enter`] is called once, before the process starts a thread: landlock and capabilities
//! apply to the calling thread and to those that it starts.

mod capabilities;
mod confined;
mod enter;
mod error;
mod files;
mod helper;
mod report;
mod rules;
mod system_calls;

pub use self::confined::{
    Outside, allows_changing_owners, allows_mode, allows_system_call, check, hint, is_confined,
};
pub use self::error::EnterError;
pub use self::helper::{Helper, serve as serve_as_helper};
pub use self::report::Report;
pub use self::rules::Rules;
