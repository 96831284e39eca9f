//! The arguments of the commands that ask a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use uuid::Uuid;
use vfiod_control::view::Setting;

use super::asked::Daemon;
use super::complete;
use super::limit::Limits;
use super::namespace::Namespace;

/// Kinds of things in a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Everything that can be opened.
    Devices,
    /// Device sets: what is opened under one lock and reset together.
    Sets,
    /// Who has what open since when.
    Files,
    /// Parents of mediated devices.
    Parents,
    /// What the parents offer.
    Types,
    /// Mediated devices.
    Instances,
    /// Mediated devices that can be started.
    Definitions,
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RevokeKind {
    /// A file, by its number.
    File,
    /// Every file of a device, by its name.
    Device,
}

/// An attribute and its value, as `NAME=VALUE`.
fn setting(text: &str) -> Result<Setting, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(Setting { name: name.to_owned(), value: value.to_owned() })
        }
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// What becomes of an instance's users.
#[derive(Debug, Args)]
pub(crate) struct Users {
    /// Ask its users to close it, and wait until they have.
    #[arg(long, conflicts_with = "deadline")]
    pub wait: bool,

    /// Ask its users to close it, and revoke their files after this time, e.g. `5s`; `0`: at once.
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<String>,
}

/// A type of a parent, and what is to become of it.
#[derive(Debug, Args)]
pub(crate) struct What {
    /// The parent that makes it.
    #[arg(add = ArgValueCandidates::new(complete::parents))]
    pub parent: String,

    /// Its type (see the command `types`).
    #[arg(value_name = "TYPE", add = ArgValueCandidates::new(complete::types))]
    pub type_id: String,

    /// Its UUID; a random one otherwise.
    #[arg(long)]
    pub uuid: Option<Uuid>,

    /// An attribute, set before anybody can use it. May be given again and again.
    #[arg(long = "attribute", short = 'a', value_name = "NAME=VALUE", value_parser = setting)]
    pub attributes: Vec<Setting>,
}

/// Commands that ask a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Manage {
    /// List what a daemon has: devices, or another kind of things.
    List {
        /// What to list.
        #[arg(value_enum, default_value_t = Kind::Devices)]
        kind: Kind,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Show all that there is to know of one thing, or of the daemon itself.
    Show {
        /// A device, a set, a parent, an instance's or definition's UUID, a file's number.
        #[arg(add = ArgValueCandidates::new(complete::anything))]
        name: Option<String>,
        /// Which kind of thing is meant, where several have this name.
        #[arg(long, value_enum, requires = "name")]
        kind: Option<Kind>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// List the types of mediated devices, and how many of each there can still be.
    Types {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Create a mediated device; prints its UUID.
    Create {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Remove a mediated device; one that is in use only if told what becomes of its users.
    #[command(visible_alias = "stop")]
    Remove {
        /// Its UUID.
        #[arg(add = ArgValueCandidates::new(complete::instances))]
        uuid: Uuid,
        #[command(flatten)]
        users: Users,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Define a mediated device, so that it outlasts the daemon; prints its UUID. Starts nothing.
    Define {
        /// The parent that makes it. Without parent and type, --uuid names an instance, which is
        /// defined as it is.
        #[arg(requires = "type_id", required_unless_present = "uuid",
            add = ArgValueCandidates::new(complete::parents))]
        parent: Option<String>,
        /// Its type (see the command `types`).
        #[arg(value_name = "TYPE", add = ArgValueCandidates::new(complete::types))]
        type_id: Option<String>,
        /// Its UUID; with parent and type a random one otherwise.
        #[arg(long, add = ArgValueCandidates::new(complete::instances))]
        uuid: Option<Uuid>,
        /// An attribute, set when it starts. May be given again and again.
        #[arg(long = "attribute", short = 'a', value_name = "NAME=VALUE", value_parser = setting, requires = "parent")]
        attributes: Vec<Setting>,
        /// Start it with the daemon.
        #[arg(long)]
        auto: bool,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Remove a definition; an instance of it stays until it is removed.
    Undefine {
        /// Its UUID.
        #[arg(add = ArgValueCandidates::new(complete::definitions))]
        uuid: Uuid,
        /// Its parent, where several have a definition of this UUID.
        #[arg(long)]
        parent: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Create the mediated device that is defined.
    Start {
        /// Its UUID.
        #[arg(add = ArgValueCandidates::new(complete::definitions))]
        uuid: Uuid,
        /// Its parent, where several have a definition of this UUID.
        #[arg(long)]
        parent: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Change a definition, or an instance that there is.
    Modify {
        /// Its UUID.
        #[arg(add = ArgValueCandidates::new(complete::anything))]
        uuid: Uuid,
        /// An attribute to set. May be given again and again.
        #[arg(long = "attribute", short = 'a', value_name = "NAME=VALUE", value_parser = setting)]
        attributes: Vec<Setting>,
        /// An attribute that the definition is not to set any more.
        #[arg(long, value_name = "NAME", conflicts_with = "live")]
        unset: Vec<String>,
        /// Start it with the daemon.
        #[arg(long, conflicts_with_all = ["manual", "live"])]
        auto: bool,
        /// Start it when asked for.
        #[arg(long, conflicts_with = "live")]
        manual: bool,
        /// Set the attributes of the instance, and leave its definition as it is.
        #[arg(long, requires = "attributes")]
        live: bool,
        /// Its parent, where several have a definition of this UUID.
        #[arg(long, conflicts_with = "live")]
        parent: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Add a device to the running daemon. It stays until it is removed or the daemon ends.
    Add {
        /// Its name.
        name: String,
        /// Its model (see the command `devices`).
        #[arg(long, value_name = "MODEL")]
        device: String,
        /// Where it listens.
        #[arg(long, value_name = "PATH")]
        socket_path: PathBuf,
        /// The socket's permission bits, octal.
        #[arg(long, value_name = "MODE")]
        socket_mode: Option<String>,
        /// An option of the model, e.g. `inputs=3`; as many as there are.
        #[arg(long = "option", value_name = "KEY=VALUE", value_parser = setting)]
        options: Vec<Setting>,
        /// Take one connection at a time, or any number.
        #[arg(long, value_name = "POLICY", value_parser = ["single", "multi"])]
        open: Option<String>,
        /// Reset at the first open, or keep the state for a client of the same user that comes back.
        #[arg(long, value_name = "POLICY", value_parser = ["reset", "retain"])]
        state: Option<String>,
        /// The slot of the configuration that it is in.
        #[arg(long)]
        slot: Option<String>,
        /// Its function number in the slot.
        #[arg(long, requires = "slot", value_name = "N")]
        function: Option<u16>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Remove a device from the running daemon. One of the file comes back with a reload.
    Del {
        /// Its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        name: String,
        /// Ask its users to close it, and revoke their files after this time, e.g. `5s`.
        #[arg(long, value_name = "TIME", conflicts_with = "wait")]
        deadline: Option<String>,
        /// Ask its users to close it, again and again, and wait until they have.
        #[arg(long)]
        wait: bool,
        /// How long to wait at most, e.g. `30s`; the device stays if it is still in use then.
        #[arg(long, value_name = "TIME", requires = "wait")]
        timeout: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Let a device do what its model offers (see the command `devices`), while it runs.
    Operate {
        /// Its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        name: String,
        /// The operation.
        operation: String,
        /// An argument of it, e.g. `size=4096`; as many as it has.
        #[arg(value_name = "KEY=VALUE", value_parser = setting)]
        arguments: Vec<Setting>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Add, remove or resize the namespaces of an NVMe controller that runs.
    Namespace {
        #[command(subcommand)]
        what: Namespace,
    },
    /// Limit the I/O of an NVMe controller that runs, also of commands that wait; prints the limits that hold.
    Limit {
        #[command(flatten)]
        what: Limits,
    },
    /// Read the configuration file again: add, remove and change what differs.
    Reload {
        /// Ask users of what is to be removed to close it, and revoke their files after this time.
        /// Without it, nothing is changed if something to be removed is in use.
        #[arg(long, value_name = "TIME")]
        deadline: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Print the configuration that runs, as a file that makes it again.
    Config {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Reset a device set: all its members at once.
    #[command(group(clap::ArgGroup::new("target").required(true).args(["device", "set"])))]
    Reset {
        /// The set to which this device belongs; often the device is its only member.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        device: Option<String>,
        /// The set of this name.
        #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::sets))]
        set: Option<String>,
        /// Reset even if members are in use, without asking their users.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Save the state of a device to a file. The device goes on.
    ///
    /// The file has what the device has, and nothing of its clients: no guest memory, nor what a disk contains.
    Save {
        /// The device, by its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        device: String,
        /// The file, which only its owner can read; `-`: the standard output.
        file: PathBuf,
        /// Replace the file if it is there.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Restore a state that was saved to a device of the same model, which nobody has open.
    ///
    /// Whoever opens the device next finds the state, once, instead of a reset. A state that does not fit is
    /// refused, and nothing is changed.
    Restore {
        /// The device, by its name, which may be another one than when it was saved.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        device: String,
        /// The file; `-`: the standard input.
        file: PathBuf,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Revoke a file, or every file of a device: its user gets ENODEV from then on.
    Revoke {
        /// The file's number (see `list files`), or the device's name.
        #[arg(value_name = "FILE|DEVICE", add = ArgValueCandidates::new(complete::devices))]
        what: String,
        /// Which kind of thing is meant, where a file and a device have this number.
        #[arg(long, value_enum)]
        kind: Option<RevokeKind>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Give a running QEMU a device, by its monitor: `-qmp unix:SOCKET,server=on,wait=off`.
    Attach {
        /// The socket of QEMU's monitor.
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// The device: its name, or the path of its socket (with a slash in it), which no daemon is asked
        /// for.
        #[arg(value_name = "DEVICE|PATH", add = ArgValueCandidates::new(complete::devices))]
        device: String,
        /// What it is called in QEMU; otherwise as here.
        #[arg(long)]
        id: Option<String>,
        /// The bus that it is plugged into, such as a PCIe root port; otherwise the first port that is free.
        #[arg(long, value_name = "PORT")]
        bus: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Take a device from a running QEMU, by its monitor. Refused for a device with MSI-X: QEMU would abort.
    Detach {
        /// The socket of QEMU's monitor.
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// The device's name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        device: String,
        /// What it is called in QEMU; otherwise as here.
        #[arg(long)]
        id: Option<String>,
        /// How long the guest has to give it back.
        #[arg(long, value_name = "TIME", default_value = "30s")]
        timeout: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Print what there is, then the events of the daemon as they happen.
    Watch {
        /// Only those about this device, by its name or number.
        #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::devices))]
        device: Option<String>,
        /// Only these kinds, e.g. `file-opened,file-released`.
        #[arg(long = "event", value_name = "KIND", value_delimiter = ',')]
        kinds: Vec<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
}
