//! Device models, and parents of mediated devices, as a configuration file names them.
//!
//! A model says in its type what its options are ([`ConfiguredModel::Options`]). Their help comes
//! from that structure: the doc comment of a field is its summary, its type gives the values that
//! may be written, and [`Default`] the default.

use schemars::{Schema, SchemaGenerator};
use serde::Serialize;
use vfiod_mdev::{Parent, ParentSpec};
use vfiod_pci::Model;

use crate::examined::{Claim, Finding};
use crate::options::ModelOptions;

/// A PCI model that a configuration file can name.
pub trait ConfiguredModel: Model + 'static {
    /// The options of the model.
    type Options: ModelOptions;

    /// What the model is, in a line: no capital at the start and no full stop.
    const SUMMARY: &'static str;

    /// What the model needs of the kernel beyond what every device may do.
    const NEEDS: Needs = Needs::NONE;

    /// The schema of what the model reports of itself ([`vfiod_core::Report::Status`]), for the document of
    /// the API. `None`: it reports nothing.
    fn status_schema(_generator: &mut SchemaGenerator) -> Option<Schema> {
        None
    }

    /// What the options name outside of the program, such as an image, that the device takes for itself or shares
    /// with others. What cannot be found is left out. Changes nothing. A path that somebody may hold up is reached by
    /// a thread that may be lost (`vfiod_directories`).
    fn claims(_options: &Self::Options) -> Vec<Claim> {
        Vec::new()
    }

    /// Looks at what the options name outside of the program: what would keep the device from being registered.
    /// Changes nothing and registers nothing. Paths are reached as by [`ConfiguredModel::claims`].
    fn examine(_options: &Self::Options) -> Vec<Finding> {
        Vec::new()
    }

    /// Makes the model. The options have been read and are each within the range of their type.
    ///
    /// # Errors
    /// Options that contradict each other; what the model needs and does not get.
    fn configured(options: Self::Options) -> vfiod_core::Result<Self>
    where
        Self: Sized;
}

/// A parent of mediated devices that a configuration file can name.
pub trait ConfiguredParent {
    /// The options of the parent.
    type Options: ModelOptions;

    /// What the parent offers, in a line: no capital at the start and no full stop.
    const SUMMARY: &'static str;

    /// What the instances need of the kernel beyond what every device may do.
    const NEEDS: Needs = Needs::NONE;

    /// Makes a parent of this name.
    ///
    /// # Errors
    /// Options that contradict each other.
    fn configured(
        name: &str,
        options: Self::Options,
    ) -> vfiod_core::Result<(ParentSpec, Box<dyn Parent>)>;
}

/// What a model needs of the kernel beyond what every device may do. A daemon that serves the model
/// allows this in its sandbox.
///
/// Files that an option names need not be here: an option whose field has
/// an `x-path` is a path ([`ModelOptions`]), and the daemon allows its directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// System calls by number, such as `libc::SYS_io_uring_setup`.
    pub system_calls: &'static [i64],
    /// Files and directories, which are read, written and changed.
    pub paths: &'static [&'static str],
}

impl Needs {
    /// Nothing.
    pub const NONE: Self = Self { system_calls: &[], paths: &[] };
}

/// The options of a model that has none.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}
