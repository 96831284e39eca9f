//! The API's document is valid OpenAPI 3.1, by the schema of the OpenAPI Initiative.
//!
//! `openapi-3.1.schema.json` is <https://spec.openapis.org/oas/3.1/schema/2022-10-07> (Apache-2.0).

use serde_json::Value;

fn schema() -> Value {
    serde_json::from_str(include_str!("openapi-3.1.schema.json")).unwrap()
}

fn document() -> Value {
    serde_json::to_value(vfiod_control::openapi()).unwrap()
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
