//! The bodies of requests.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::view::{Setting, Start};

/// An instance to be created.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The parent that makes it.
    pub parent: String,
    /// Its type among those of the parent.
    #[serde(rename = "type")]
    pub type_id: String,
    /// Its UUID; a random one if none is given.
    pub uuid: Option<Uuid>,
    /// Attributes to be set before anybody can use it, in this order.
    #[serde(default)]
    pub attributes: Vec<Setting>,
}

/// Attributes to be set of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeInstance {
    /// In this order; those before one that is refused are set.
    pub attributes: Vec<Setting>,
}

/// A definition to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Define {
    /// The parent that makes it.
    pub parent: String,
    /// Its type among those of the parent.
    #[serde(rename = "type")]
    pub type_id: String,
    /// Its UUID; a random one if none is given.
    pub uuid: Option<Uuid>,
    /// When it starts; `manual` if nothing is given.
    pub start: Option<Start>,
    /// Attributes to be set when it starts, in this order.
    #[serde(default)]
    pub attributes: Vec<Setting>,
}

/// A definition to be made of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefineInstance {
    /// When it starts; `manual` if nothing is given.
    pub start: Option<Start>,
}

/// What is to be changed of a definition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Modify {
    /// When it starts from now on.
    pub start: Option<Start>,
    /// Attributes to be set, new ones after those that there are.
    #[serde(default)]
    pub set: Vec<Setting>,
    /// Attributes to be left out.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// A device to be added: a name, and what a section `[device.NAME]` of a configuration file has.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Where clients connect: a path, or a structure with mode, owner and group.
    pub socket: Socket,
    /// The model's options.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub options: Map<String, Value>,
    /// `single` (the default) or `multi`: how many connections it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<String>,
    /// `reset` (the default) or `retain`: what happens to its state between its users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The slot of the configuration that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Its function number in the slot, or among the virtual functions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<u16>,
    /// The SR-IOV physical function that it is a virtual function of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_function: Option<String>,
    /// The VF token that is presented for clients that present none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf_token: Option<String>,
}

/// An operation of a device: an object with one key, its name, whose value is an object of its arguments.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(value_type = Object)]
pub struct Operation(pub Map<String, Value>);

/// Where clients connect.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a path, or an object of `path`, `mode`, `owner` and `group`")]
pub enum Socket {
    /// A path to listen at.
    #[schema(value_type = String)]
    Path(PathBuf),
    /// A path to listen at, and who may connect.
    Access {
        /// The path.
        #[schema(value_type = String)]
        path: PathBuf,
        /// Permission bits, e.g. `0660`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
        /// The user who owns it, by name or number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// The group that it belongs to, by name or number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
}

impl Default for Socket {
    fn default() -> Self {
        Self::Path(PathBuf::new())
    }
}

impl AddDevice {
    /// Its name, and the keys of its section.
    pub fn section(self) -> (String, Map<String, Value>) {
        let Ok(Value::Object(mut section)) = serde_json::to_value(&self) else {
            return (self.name, Map::new());
        };
        section.shift_remove("name");
        (self.name, section)
    }
}
