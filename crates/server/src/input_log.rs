//! The feature by which a capture collects a device's input from outside ([`vfiod_wire::input`]).

use rustix::io::Errno;
use vfiod_core::{Error, File, InputPlace, Result};
use vfiod_wire::input::{INPUT_LOG, Input, InputLog, InputWhen};

/// Whether an index is this one, and the device has it: (get, set).
pub(crate) fn probe(file: &File, index: u16) -> Option<(bool, bool)> {
    let has = file.device().input_log().has_source();
    (index == INPUT_LOG).then_some((has, has))
}

/// Gets what was recorded.
pub(crate) fn get(file: &File, index: u16) -> Option<Result<Vec<u8>>> {
    (index == INPUT_LOG).then(|| {
        let recorded = log_of(file)?.take_recorded();
        let input = |entry: vfiod_core::InputEntry| Input {
            when: match entry.place {
                InputPlace::Before => InputWhen::Before,
                InputPlace::After(call) => InputWhen::After(call),
                InputPlace::Within(call) => InputWhen::Within(call),
            },
            bytes: entry.bytes,
        };
        let inputs = recorded.entries.into_iter().map(input).collect();
        Ok(InputLog { calls: recorded.calls, lost: recorded.lost, inputs }.encode())
    })
}

/// Begins to record.
pub(crate) fn set(file: &File, index: u16, data: &[u8]) -> Option<Result<()>> {
    (index == INPUT_LOG).then(|| {
        if !data.is_empty() {
            return Err(Error::new(Errno::INVAL, "the start of an input log with data"));
        }
        log_of(file)?.start_recording();
        Ok(())
    })
}

fn log_of(file: &File) -> Result<&vfiod_core::InputLog> {
    let log = file.device().input_log();
    let none = || Error::new(Errno::NOTTY, "the device has no input from outside");
    log.has_source().then_some(log).ok_or_else(none)
}
