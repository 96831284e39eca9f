//! The features that every device has because the core does them: its set, and the set's reset
//! ([`vfiod_wire::set`]).

use rustix::io::Errno;
use vfiod_core::{Error, File, Result, SetMember};
use vfiod_protocol::{Request, Time};
use vfiod_wire::FeatureOp;
use vfiod_wire::set::{self, HOT_RESET, HOT_RESET_INFO, SetInfo};

use crate::clock::now;

/// Whether an index is one of these: (get, set).
pub(crate) fn probe(index: u16) -> Option<(bool, bool)> {
    match index {
        HOT_RESET_INFO => Some((true, false)),
        HOT_RESET => Some((false, true)),
        _ => None,
    }
}

/// Whether a request is a hot reset.
pub(crate) fn is_asked_by<D>(request: &Request<'_, D>) -> bool {
    matches!(request, Request::DeviceFeature { index: HOT_RESET, op: FeatureOp::Set, .. })
}

/// Gets one of these.
pub(crate) fn get(file: &File, index: u16) -> Option<Result<Vec<u8>>> {
    match index {
        HOT_RESET_INFO => Some(file.set_members().map(|members| info(file, &members).encode())),
        HOT_RESET => Some(Err(Error::new(Errno::NOTTY, "a hot reset is set, not got"))),
        _ => None,
    }
}

/// Sets one of these.
pub(crate) fn set(file: &File, index: u16, data: &[u8], deadline: Time) -> Option<Result<()>> {
    match index {
        HOT_RESET => Some(match set::check_hot_reset(data) {
            Ok(()) => file.reset_set_within(deadline.left(now())),
            Err(error) => Err(Error::new(Errno::INVAL, error.what).because(error)),
        }),
        HOT_RESET_INFO => {
            Some(Err(Error::new(Errno::NOTTY, "hot reset information cannot be set")))
        }
        _ => None,
    }
}

fn info(file: &File, members: &[SetMember]) -> SetInfo {
    let member = |member: &SetMember| set::SetMember {
        device: member.device.id().0,
        name: member.device.name().to_owned(),
        location: member.device.location().map(str::to_owned),
        open: member.files > 0,
        owned: member.owned,
        itself: member.device.id() == file.device().id(),
    };
    SetInfo {
        allowed: members.iter().all(|member| member.allowed),
        members: members.iter().map(member).collect(),
    }
}
