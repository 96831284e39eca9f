//! The control API: HTTP and JSON over a UNIX socket, the way Firecracker and Cloud Hypervisor
//! have theirs. A thread of its own runs it; what may wait is done by others.
//!
//! ```text
//! curl --unix-socket /run/vfiod/control.sock http://vfiod/api/v1/devices
//! ```
//!
//! `GET /api/v1/openapi.json` describes everything. A peer that may not use it gets 403 and is
//! disconnected, whatever it asks for.

mod access;
mod body;
mod caller;
mod changes;
pub mod client;
mod connections;
mod document;
mod events;
mod handler;
mod look;
mod metrics;
mod operations;
mod paced;
mod page;
mod places;
mod problem;
mod query;
mod releases;
mod removal;
pub mod request;
mod routes;
mod server;
mod service;
mod shares;
mod states;
mod threads;
pub mod view;
mod words;

pub use self::access::load_accounts;
pub use self::server::{Control, Metrics, listen_for_metrics};

/// Where a daemon's control socket is unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vfiod/control.sock";

/// The API's document (OpenAPI 3.1) of a program with these models.
pub fn openapi(models: &vfiod_config::Models) -> serde_json::Value {
    document::with_statuses(&routes::document(), models)
}
