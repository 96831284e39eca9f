//! The API's document: what the routes say, and what the models of the program report.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use vfiod_config::Models;

/// The document, with the schemas of what models report of themselves as those of a device's
/// `model_status`.
pub(crate) fn with_statuses(document: &OpenApi, models: &Models) -> Value {
    let mut document = json!(document);
    let (mut statuses, definitions) = models.status_schemas();
    let Some(schemas) = document["components"]["schemas"].as_object_mut() else { return document };
    for (name, schema) in definitions {
        debug_assert!(!schemas.contains_key(&name), "two schemas are called {name}");
        schemas.insert(name, schema);
    }
    if statuses.is_empty() {
        return document;
    }
    statuses.push(json!({ "type": "null" }));
    let status = &mut schemas["Device"];
    // What a device's summary has and what it has beyond that are two parts.
    let parts = status["allOf"].as_array_mut().into_iter().flatten();
    for part in parts.filter(|part| !part["properties"]["model_status"].is_null()) {
        part["properties"]["model_status"]["anyOf"] = statuses.clone().into();
    }
    document
}
