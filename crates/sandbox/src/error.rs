//! Why a sandbox was not entered.

/// Why the sandbox was not entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The process keeps its capabilities.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    /// Files are not restricted.
    #[error("cannot restrict access to files (landlock)")]
    Files(#[from] landlock::RulesetError),
    /// System calls are not restricted.
    #[error("cannot restrict system calls (seccomp)")]
    SystemCalls(#[source] seccompiler::Error),
}
