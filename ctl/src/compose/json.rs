//! A node as JSON, for the `x-` fields of a service: plain scalars by the YAML 1.2 core schema.

use serde_json::{Map, Number, Value as Json};

use super::{
    units,
    yaml::{Node, Value},
};

pub(super) fn value(node: &Node) -> Json {
    match &node.value {
        Value::Null | Value::Told => Json::Null,
        Value::Scalar { text, plain: true } => scalar(text),
        Value::Scalar { text, plain: false } => Json::String(text.clone()),
        Value::Sequence(items) => Json::Array(items.iter().map(value).collect()),
        Value::Mapping(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), value(&entry.value))).collect::<Map<_, _>>())
        }
    }
}

fn scalar(text: &str) -> Json {
    match text {
        "true" | "True" | "TRUE" => return Json::Bool(true),
        "false" | "False" | "FALSE" => return Json::Bool(false),
        _ => {}
    }
    let integer = units::integer(text).and_then(Number::from_i128);
    let is_decimal = text.contains(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
    let float = || text.parse::<f64>().ok().filter(|_| is_decimal).and_then(Number::from_f64);
    integer.or_else(float).map_or_else(|| Json::String(text.to_owned()), Json::Number)
}
