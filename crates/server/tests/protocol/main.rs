//! The server against the specification, over real sockets: a file for each command or concern,
//! what must work and what must be refused.

mod completions;
mod containers;
mod control;
mod departing_owner;
mod device_feature;
mod device_reset;
mod dialects;
mod dirty_log;
mod dma_map;
mod dma_messages;
mod dma_unmap;
mod get_info;
mod hang_hunt;
mod hostility;
mod hot_reset;
mod isolation;
mod large_access;
mod lent;
mod lifecycle;
mod log_lines;
mod own_end;
mod pipelined;
mod posted;
mod reconnect;
mod region_access;
mod region_io_fds;
mod rig;
mod set_irqs;
mod space;
mod state_machine;
mod task_turns;
mod unread_replies;
mod version;
// Shared with the unit tests.
#[allow(dead_code)]
#[path = "../../src/testing.rs"]
mod testing;
