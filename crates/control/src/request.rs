//! The bodies of requests.

use serde::{Deserialize, Serialize};
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
