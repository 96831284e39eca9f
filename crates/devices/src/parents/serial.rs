//! The serial card as a mediated device: the kernel's mtty, with its types and its 24 ports.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_config::{ConfiguredParent, Needs};
use vfiod_core::{Errno, Error, Result};
use vfiod_mdev::{
    AttributeInfo, Attributes, Capacity, NewInstance, Parent, ParentSpec, TypeInfo, Uuid,
};

use super::function;
use crate::catalogue::TERMINALS;
use crate::serial::{Backend, Backends, Ports, Serial, SerialOptions};

/// Options of the parent.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SerialParentOptions {
    /// How many ports all instances have together.
    ports: u32,
    /// What the ports of new instances are connected to.
    backend: Backend,
    /// Symbolic links to pseudo-terminals, UUID.0 and UUID.1.
    #[schemars(extend("x-values" = "a directory", "x-path" = "directory"))]
    links: Option<PathBuf>,
}

impl Default for SerialParentOptions {
    fn default() -> Self {
        Self { ports: 24, backend: Backend::default(), links: None }
    }
}

pub(crate) struct SerialParent(SerialParentOptions);

fn kinds() -> Vec<TypeInfo> {
    let terminal = |port: &str, name: &str| AttributeInfo {
        name: name.to_owned(),
        values: "a path".to_owned(),
        summary: format!("the {port} port's pseudo-terminal, while there is one"),
        writable: false,
    };
    let backend = AttributeInfo {
        name: "backend".to_owned(),
        values: Backend::NAMES.to_owned(),
        summary: "what the ports are connected to; not while the card is in use".to_owned(),
        writable: true,
    };
    let mdev_type = |id: &str, name: &str, takes, attributes| TypeInfo {
        id: id.to_owned(),
        name: name.to_owned(),
        description: format!("{name}: a PCI card with 16550A ports"),
        device_api: "vfio-pci".to_owned(),
        takes,
        attributes,
    };
    let (first, second) = (terminal("first", "pty0"), terminal("second", "pty1"));
    vec![
        mdev_type("mtty-1", "Single port serial", 1, vec![backend.clone(), first.clone()]),
        mdev_type("mtty-2", "Dual port serial", 2, vec![backend, first, second]),
    ]
}

impl ConfiguredParent for SerialParent {
    type Options = SerialParentOptions;

    const SUMMARY: &'static str = "the kernel's mtty: serial cards; types mtty-1 and mtty-2";
    const NEEDS: Needs = TERMINALS;

    fn configured(
        name: &str,
        options: SerialParentOptions,
    ) -> Result<(ParentSpec, Box<dyn Parent>)> {
        let (name, capacity) = (name.to_owned(), Capacity::Shared(options.ports));
        Ok((ParentSpec { name, types: kinds(), capacity }, Box::new(Self(options))))
    }
}

impl Parent for SerialParent {
    fn check_attribute(&self, _type_id: &str, _name: &str, value: &str) -> Result<()> {
        value.trim().parse::<Backend>().map(drop)
    }

    fn create(&self, type_id: &str, uuid: Uuid) -> Result<NewInstance> {
        let ports = match type_id {
            "mtty-1" => Ports::One,
            "mtty-2" => Ports::Two,
            _ => return Err(Error::new(Errno::INVAL, format!("no type `{type_id}`"))),
        };
        let SerialParentOptions { ports: _, backend, links } = &self.0;
        let link = |port| Some(links.as_ref()?.join(format!("{uuid}.{port}")));
        let options = SerialOptions { ports, backend: *backend, link0: link(0), link1: link(1) };
        let card = Serial::new(options);
        let attributes: Arc<dyn Attributes> = Arc::new(BackendAttributes(card.backends()));
        Ok(NewInstance { device: function(card)?, attributes: Some(attributes) })
    }
}

/// The attributes of an instance: its backend, and where its terminals are.
struct BackendAttributes(Arc<Backends>);

impl Attributes for BackendAttributes {
    fn get(&self, name: &str) -> Result<String> {
        let port = match name {
            "pty0" => 0,
            "pty1" => 1,
            _ => return Ok(self.0.backend().to_string()),
        };
        let path = self.0.terminal(port);
        Ok(path.map_or_else(String::new, |path| path.display().to_string()))
    }

    fn set(&self, _name: &str, value: &str) -> Result<()> {
        self.0.set_backend(value.trim().parse()?)
    }
}
