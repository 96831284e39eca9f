//! The API's document is valid OpenAPI 3.1, by the schema of the OpenAPI Initiative.
//!
//! `openapi-3.1.schema.json` is <https://spec.openapis.org/oas/3.1/schema/2022-10-07> (Apache-2.0).

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};
use vfiod_config::{ConfiguredModel, Models, NoOptions};
use vfiod_pci::prelude::*;

fn schema() -> Value {
    serde_json::from_str(include_str!("openapi-3.1.schema.json")).unwrap()
}

fn document() -> Value {
    vfiod_control::openapi(&Models::new().model::<Reporting>("reporting"))
}

/// A model that reports something of itself.
struct Reporting;

#[derive(JsonSchema)]
#[expect(dead_code, reason = "for its schema")]
struct ReportingStatus {
    lines: Vec<Line>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "for its schema")]
struct Line {
    level: Option<u8>,
}

impl Model for Reporting {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 1)
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self, _cx: &Cx<Self>) {}
}

impl ConfiguredModel for Reporting {
    type Options = NoOptions;

    const SUMMARY: &'static str = "a model for this test";

    fn status_schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<ReportingStatus>())
    }

    fn configured(_options: NoOptions) -> vfiod_core::Result<Self> {
        Ok(Self)
    }
}

#[test]
fn status_of_a_model_has_its_schema() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["ReportingStatus"]["properties"]["lines"]["type"], "array");
    assert_eq!(schemas["Line"]["properties"]["level"]["type"], json!(["integer", "null"]));
    let text = schemas["Device"].to_string();
    let expected =
        r##"{"anyOf":[{"$ref":"#/components/schemas/ReportingStatus"},{"type":"null"}]"##;
    assert!(text.contains(&expected[1..]), "{text}");
}

#[test]
fn document_is_valid() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let document = document();
    let errors: Vec<_> = validator
        .iter_errors(&document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// A response without a description is what it had wrong.
#[test]
fn response_without_a_description_is_invalid() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut document = document();
    let response = document.pointer_mut("/paths/~1api~1v1~1devices/get/responses/200").unwrap();
    response.as_object_mut().unwrap().remove("description").unwrap();
    assert!(!validator.is_valid(&document));
}

/// Every `$ref` names something that is there.
#[test]
fn references_resolve() {
    fn check(document: &Value, value: &Value, found: &mut usize) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    let pointer = reference.strip_prefix('#').expect("within the document");
                    assert!(document.pointer(pointer).is_some(), "{reference} is nowhere");
                    *found += 1;
                }
                members.values().for_each(|value| check(document, value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| check(document, value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = 0;
    check(&document, &document, &mut found);
    assert!(found > 50, "{found}");
}
