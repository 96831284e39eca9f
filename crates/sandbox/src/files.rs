//! Files, TCP ports, abstract sockets and signals: landlock.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::report::Files;
use crate::rules::Rules;

/// The newest version whose restrictions are asked for. An older kernel restricts what it knows.
const NEWEST: ABI = ABI::V9;

/// Restricts the calling thread and the threads that it starts.
///
/// # Errors
/// Errors of the kernel, but not that it has no landlock.
pub(crate) fn restrict(rules: &Rules) -> Result<Files, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    // Nothing that the daemon makes is to be executed, and device nodes are made by nobody here.
    let change = all & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let mut missing = Vec::new();
    let changeable = rules.changeable.iter().map(|path| (path, change));
    for (path, access) in changeable.chain(rules.readable.iter().map(|path| (path, read))) {
        match PathFd::new(path) {
            Ok(fd) => ruleset = ruleset.add_rule(beneath(fd, path.is_dir(), access))?,
            Err(_) => missing.push(path.clone()),
        }
    }
    let status = ruleset.restrict_self()?;
    let version = match status.landlock {
        LandlockStatus::Available { effective_abi, .. }
            if status.ruleset != RulesetStatus::NotEnforced =>
        {
            Some(effective_abi as i32)
        }
        _ => None,
    };
    Ok(Files { version, missing })
}

fn beneath(fd: PathFd, is_directory: bool, access: BitFlags<AccessFs>) -> PathBeneath<PathFd> {
    let access = if is_directory { access } else { access & AccessFs::from_file(NEWEST) };
    PathBeneath::new(fd, access)
}
