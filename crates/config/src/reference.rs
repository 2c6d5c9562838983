//! The schema and the reference page, both derived from the raw types.

use std::{collections::BTreeMap, fmt::Write};

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use crate::{
    MAX_BYTES, MAX_DEPTH,
    cursor::join,
    raw::RawConfig,
    structure::{kinds, resolve, words},
};

/// The JSON schema (draft 2020-12) of `carrick.yaml`, for editors.
pub fn schema() -> Json {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RawConfig>().to_value()
}

/// A file that shows the most common keys.
const EXAMPLE: &str = include_str!("../../../deploy/examples/cloud.yaml");

/// The text of `docs/reference/config.md`: the keys and what is said of them come from the schema.
pub fn reference_markdown() -> String {
    let schema = schema();
    let mut page = format!(
        "# carrick.yaml\n\n\
         <!-- Generated from crates/config/src/raw.rs: CARRICK_BLESS=1 cargo test -p carrick-config -->\n\n\
         One YAML document of at most {} MiB, at most {MAX_DEPTH} levels deep. `carrick check -c FILE` reports all that is \
         wrong with it at once, with line and column, and starts nothing. A key without a value counts as left out. \
         Anchors and aliases work; merge keys (`<<`) and tags do not. Quote \
         addresses and patterns: to YAML `:`, `*`, `[`, `{{` and `#` mean something.\n\n\
         ```yaml config\n{EXAMPLE}```\n\n\
         ## Reload\n\n\
         `SIGHUP`, or a change of the file, applies new, changed and removed entries of `exports`, `imports`, `trust`, \
         `peers`, `registry.admit` and `registry.show`, and leaves alone what did not change. All other keys take a restart; the log names them. A file with \
         faults is reported and changes nothing.\n\n\
         ## Forms of values\n\n| form | example |\n|---|---|\n",
        MAX_BYTES >> 20,
    );
    let mut forms = BTreeMap::new();
    collect_forms(&schema, &mut forms);
    for (form, example) in forms {
        push(&mut page, format_args!("| {} | `{example}` |\n", cell(form)));
    }
    page.push_str("\n## Top of the file\n");
    table(&mut page, &schema, "");
    sections(&mut page, &schema, "");
    page
}

/// The tables of what is below the map at `path`, each map followed by those in it.
fn sections(page: &mut String, schema: &Json, path: &str) {
    for (key, property) in sorted(schema) {
        if let Some((section, list)) = section(property) {
            let path = join(path, key);
            let brackets = if list { "[]" } else { "" };
            push(page, format_args!("\n## {path}{brackets}\n\n{}\n", paragraph(section)));
            table(page, section, &path);
            sections(page, section, &path);
        }
    }
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = page.write_fmt(text);
}

fn table(page: &mut String, schema: &Json, path: &str) {
    page.push_str("\n| key | value | default | meaning |\n|---|---|---|---|\n");
    for (key, property) in sorted(schema) {
        let default = default(schema, key, property);
        let said = paragraph(property) + &words_said(resolve(property));
        push(
            page,
            format_args!(
                "| `{key}` | {} | {default} | {} |\n",
                kind(&join(path, key), property),
                cell(&said)
            ),
        );
    }
}

/// The keys of a map: those that are needed first, then by the alphabet.
fn sorted(schema: &Json) -> Vec<(&str, &Json)> {
    let mut properties: Vec<_> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    properties.sort_by_key(|(key, _)| (!required(schema, key), *key));
    properties
}

fn required(schema: &Json, key: &str) -> bool {
    schema["required"].as_array().is_some_and(|keys| keys.iter().any(|required| required == key))
}

/// The schema behind a key that has a table of its own, and whether the key is a list of such.
fn section(property: &Json) -> Option<(&Json, bool)> {
    let property = resolve(property);
    let item = resolve(&property["items"]);
    [(property, false), (item, true)].into_iter().find(|(schema, _)| schema["properties"].is_object())
}

fn kind(path: &str, property: &Json) -> String {
    // A heading's anchor has no dots.
    let anchor = path.replace('.', "");
    match section(property) {
        Some((_, true)) => return format!("list of [maps](#{anchor})"),
        Some((_, false)) => return format!("[map](#{anchor})"),
        None => {}
    }
    let schema = resolve(property);
    if let Some(words) = words(schema) {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    match (kinds(schema).first().copied(), schema["format"].as_str()) {
        _ if kinds(schema) == ["string", "array"] => {
            let one = kind(path, &schema["items"]);
            format!("{one}, or a list of {one}")
        }
        (Some("array"), _) => format!("list of {}", kind(path, &schema["items"])),
        (Some("object"), _) => "map of texts".to_owned(),
        (Some("integer"), _) => format!("{} to {}", schema["minimum"], schema["maximum"]),
        (_, Some(form)) => cell(form),
        _ => "text".to_owned(),
    }
}

fn default(schema: &Json, key: &str, property: &Json) -> String {
    match &property["default"] {
        _ if required(schema, key) => "needed".to_owned(),
        Json::Array(_) => "empty".to_owned(),
        Json::Object(map) if section(property).is_none() && map.is_empty() => "empty".to_owned(),
        Json::Null | Json::Object(_) => String::new(),
        Json::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// What is said of each word of a closed set.
fn words_said(schema: &Json) -> String {
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    choices
        .filter_map(|choice| Some(format!(" `{}`: {}", choice["const"].as_str()?, paragraph(choice))))
        .collect()
}

/// Forms of texts, each with an example.
fn collect_forms<'s>(schema: &'s Json, forms: &mut BTreeMap<&'s str, &'s str>) {
    match schema {
        Json::Object(map) => {
            if let (Some(form), Some(example)) = (schema["format"].as_str(), schema["examples"][0].as_str()) {
                forms.insert(form, example);
            }
            map.values().for_each(|below| collect_forms(below, forms));
        }
        Json::Array(list) => list.iter().for_each(|below| collect_forms(below, forms)),
        _ => {}
    }
}

/// The description, on one line.
fn paragraph(schema: &Json) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text as it can stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained() {
        fn walk(schema: &Json, path: &str) {
            for (key, property) in sorted(schema) {
                let path = format!("{path}.{key}");
                assert!(!paragraph(property).is_empty(), "{path} has no description");
                if let Some((section, _)) = section(property) {
                    walk(section, &path);
                }
            }
        }
        walk(&schema(), "");
    }
}
