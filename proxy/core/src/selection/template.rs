//! The templates of NSM's label selectors: `{{.nodeName}}` in the notation of Go's `text/template`, over the labels of a request.
//!
//! NSM evaluates a selector's value with the whole language; what selectors use of it are fields of the label map. So fields,
//! `index . "key"`, string literals, comments and the trim markers are understood here. A text that is anything else is taken
//! as it stands, which is what NSM does with a text that does not parse.

use std::collections::BTreeMap;

/// Longest text that is evaluated: label values have 63 characters in Kubernetes, and a template is not much longer.
const MAX_TEXT: usize = 4096;
/// What Go prints for a key that the map does not have.
const NO_VALUE: &str = "<no value>";

/// `text` with its fields replaced by the `labels`.
pub(super) fn evaluate(text: &str, labels: &BTreeMap<String, String>) -> String {
    if text.len() > MAX_TEXT || !text.contains("{{") {
        return text.to_owned();
    }
    render(text, labels).unwrap_or_else(|| text.to_owned())
}

fn render(text: &str, labels: &BTreeMap<String, String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut trim = false;
    while let Some((before, behind)) = rest.split_once("{{") {
        let literal = if trim { before.trim_start_matches(is_space) } else { before };
        let (action, after) = behind.split_once("}}")?;
        // A marker counts only with white space beside it: `{{-1}}` is a number.
        let (action, trims_left) = match action.strip_prefix('-') {
            Some(inner) if inner.starts_with(is_space) => (inner, true),
            _ => (action, false),
        };
        let (action, trims_right) = match action.strip_suffix('-') {
            Some(inner) if inner.ends_with(is_space) => (inner, true),
            _ => (action, false),
        };
        out.push_str(if trims_left { literal.trim_end_matches(is_space) } else { literal });
        out.push_str(value(action.trim_matches(is_space), labels)?);
        trim = trims_right;
        rest = after;
    }
    out.push_str(if trim { rest.trim_start_matches(is_space) } else { rest });
    Some(out)
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// What one action prints; `None` for what is not understood.
fn value<'a>(action: &'a str, labels: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let of = |key: &str| labels.get(key).map_or(NO_VALUE, String::as_str);
    if action.starts_with("/*") && action.ends_with("*/") && action.len() >= 4 {
        return Some("");
    }
    if let Some(field) = action.strip_prefix('.') {
        return is_identifier(field).then(|| of(field));
    }
    if let Some(arguments) = action.strip_prefix("index") {
        let key = arguments.strip_prefix(is_space)?.trim_start_matches(is_space).strip_prefix('.')?;
        // `index` of a missing key is the zero value of the map's type, an empty text.
        let key = literal(key.strip_prefix(is_space)?.trim_start_matches(is_space))?;
        return Some(labels.get(key).map_or("", String::as_str));
    }
    literal(action)
}

/// A quoted text without escapes.
fn literal(text: &str) -> Option<&str> {
    let quoted =
        |quote: char| text.strip_prefix(quote)?.strip_suffix(quote).filter(|t| !t.contains([quote, '\\']));
    quoted('"').or_else(|| quoted('`'))
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> BTreeMap<String, String> {
        [("nodeName", "n1"), ("app", "web"), ("a.b/c", "odd")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn fields_are_replaced_as_go_does_it() {
        let cases = [
            ("{{.nodeName}}", "n1"),
            ("{{ .nodeName }}-{{.app}}", "n1-web"),
            ("{{.missing}}", "<no value>"),
            ("x {{- .app -}} y", "xweby"),
            (r#"{{index . "a.b/c"}}"#, "odd"),
            (r#"{{ index . "missing" }}"#, ""),
            ("a{{/* why */}}b", "ab"),
            (r#"{{"plain"}}"#, "plain"),
            ("no template", "no template"),
        ];
        for (text, expected) in cases {
            assert_eq!(evaluate(text, &labels()), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_parse_is_taken_as_it_stands() {
        for text in [
            "{{.nodeName",
            "{{",
            "{{.node-name}}",
            "{{.app.x}}",
            "{{range .}}{{end}}",
            "{{}}",
            "{{-1}}",
            "{{.}}",
        ] {
            assert_eq!(evaluate(text, &labels()), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in r#"[{}. \-a"`/*]{0,24}"#) {
            let _no_panic = evaluate(&text, &labels());
        }
    }
}
