//! Capabilities: all dropped, or all but one.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Drops every capability of the calling thread, and the ways to get one back. Returns the names of
/// those that are left.
///
/// # Errors
/// Errors of the kernel.
pub(crate) fn drop_all(keep_chown: bool) -> Result<String, Errno> {
    set_no_new_privs(true)?;
    let keep = if keep_chown { CapabilitySet::CHOWN } else { CapabilitySet::empty() };
    for capability in CapabilitySet::all().difference(keep).iter() {
        match remove_capability_from_bounding_set(capability) {
            // EPERM: without CAP_SETPCAP, and then no_new_privs does the same. EINVAL: the kernel is
            // older than the capability.
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    match clear_ambient_capability_set() {
        // EINVAL: the kernel has no ambient set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let left = capabilities(None)?.permitted & keep;
    let sets =
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(if left.is_empty() { "none".to_owned() } else { "CAP_CHOWN".to_owned() })
}
