//! Makes generated messages keep the fields that they do not know.
//!
//! prost drops them, and a proxy that drops what a newer program says to another newer one breaks both. prost's derive has no
//! place for them, so each message gets a field more, and its `Message` is written here instead of derived, with prost's own
//! functions for each kind of field. What prost-build wrote about a field (`#[prost(...)]`) says all that is needed.

use std::{error::Error, fmt::Write, iter::Peekable, str::Lines};

const DERIVE: &str = ", ::prost::Message)]";
const STRUCT: &str = "pub struct ";

/// The generated `source`, with unknown fields kept.
///
/// # Errors
/// A field is of a kind that no message had so far.
pub(crate) fn keep(source: &str) -> Result<String, Box<dyn Error>> {
    let mut kept = String::with_capacity(2 * source.len());
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        if line.ends_with(DERIVE) {
            message(&mut kept, &mut lines)?;
        } else {
            writeln!(kept, "{line}")?;
        }
    }
    Ok(kept)
}

/// One message, from the line after its derive.
fn message(kept: &mut String, lines: &mut Peekable<Lines<'_>>) -> Result<(), Box<dyn Error>> {
    // What holds octets is not `Copy`.
    writeln!(kept, "#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]")?;
    let head = lines.next().unwrap_or_default();
    let name = head.strip_prefix(STRUCT).and_then(|rest| rest.split(' ').next());
    let name = name.ok_or_else(|| format!("no message begins with {head:?}"))?;
    let mut fields = Vec::new();
    if head.ends_with("{}") {
        writeln!(kept, "{STRUCT}{name} {{")?;
    } else {
        writeln!(kept, "{head}")?;
        for line in lines.by_ref().take_while(|line| *line != "}") {
            let inner = line.trim();
            if let Some(kind) = inner.strip_prefix("#[prost(").and_then(|rest| rest.strip_suffix(")]")) {
                fields.push((kind.to_owned(), None));
                continue;
            }
            if let (Some(field), Some((_, field_name @ None))) =
                (inner.strip_prefix("pub "), fields.last_mut())
            {
                *field_name = field.split_once(": ").map(|(name, _)| name.to_owned());
            }
            writeln!(kept, "{line}")?;
        }
    }
    writeln!(kept, "    /// What a newer program said besides.")?;
    writeln!(kept, "    pub unknown_fields: crate::UnknownFields,\n}}")?;
    let fields = fields.into_iter().map(|(kind, field)| {
        let field = field.ok_or_else(|| format!("a field of {name} has no name"))?;
        Field::of(&kind, &field)
            .ok_or_else(|| format!("{name}.{field}: no messages had a field of {kind:?} so far").into())
    });
    implementation(kept, name, &fields.collect::<Result<Vec<_>, Box<dyn Error>>>()?)
}

/// What `Message` does for one field.
struct Field {
    tag: String,
    name: String,
    /// A statement.
    encode: String,
    /// Expressions.
    length: String,
    merge: String,
    /// Methods of the message: an enum is held as a number.
    methods: String,
}

impl Field {
    /// `kind` is what prost-build says: `string, repeated, tag = "4"`.
    fn of(kind: &str, name: &str) -> Option<Self> {
        let (kind, tag) = kind.split_once(", tag = \"")?;
        let tag = tag.strip_suffix('"')?;
        let this = format!("self.{name}");
        let prost = "::prost::encoding";
        let scalar = |module: &str, zero: &str| Self {
            tag: tag.to_owned(),
            name: name.to_owned(),
            encode: format!("if {this} != {zero} {{ {prost}::{module}::encode({tag}, &{this}, buf); }}"),
            length: format!(
                "if {this} == {zero} {{ 0 }} else {{ {prost}::{module}::encoded_len({tag}, &{this}) }}"
            ),
            merge: format!("{prost}::{module}::merge(wire_type, &mut {this}, buf, ctx)"),
            methods: String::new(),
        };
        let repeated = |module: &str| Self {
            encode: format!("{prost}::{module}::encode_repeated({tag}, &{this}, buf);"),
            length: format!("{prost}::{module}::encoded_len_repeated({tag}, &{this})"),
            merge: format!("{prost}::{module}::merge_repeated(wire_type, &mut {this}, buf, ctx)"),
            ..scalar(module, "")
        };
        let map = |module: &str| {
            let of = |function: &str| format!("{prost}::string::{function}, {prost}::{module}::{function}");
            let both = format!(
                "{prost}::string::encode, {prost}::string::encoded_len, {prost}::{module}::encode, {prost}::{module}::encoded_len"
            );
            Self {
                encode: format!("{prost}::btree_map::encode({both}, {tag}, &{this}, buf);"),
                length: format!("{prost}::btree_map::encoded_len({}, {tag}, &{this})", of("encoded_len")),
                merge: format!("{prost}::btree_map::merge({}, &mut {this}, buf, ctx)", of("merge")),
                ..scalar(module, "")
            }
        };
        let enumeration = |of: &str| Self {
            methods: format!(
                "    /// The value, or the default when it is not known.\n    \
                 pub fn {name}(&self) -> {of} {{ {of}::try_from({this}).unwrap_or_default() }}\n    \
                 /// Sets the value.\n    \
                 pub fn set_{}(&mut self, value: {of}) {{ {this} = value.into(); }}\n",
                name.trim_start_matches("r#")
            ),
            ..scalar("int32", "0")
        };
        Some(match kind {
            "string" => scalar("string", "\"\""),
            "bool" => scalar("bool", "false"),
            "uint32" | "int32" => scalar(kind, "0"),
            "string, repeated" => repeated("string"),
            "message, repeated" => repeated("message"),
            "message, optional" => Self {
                encode: format!(
                    "if let Some(value) = &{this} {{ {prost}::message::encode({tag}, value, buf); }}"
                ),
                length: format!(
                    "{this}.as_ref().map_or(0, |value| {prost}::message::encoded_len({tag}, value))"
                ),
                merge: format!(
                    "{prost}::message::merge(wire_type, {this}.get_or_insert_with(Default::default), buf, ctx)"
                ),
                ..scalar("message", "")
            },
            "btree_map = \"string, string\"" => map("string"),
            "btree_map = \"string, message\"" => map("message"),
            _ => enumeration(kind.strip_prefix("enumeration = \"")?.strip_suffix('"')?),
        })
    }
}

fn implementation(kept: &mut String, name: &str, fields: &[Field]) -> Result<(), Box<dyn Error>> {
    writeln!(kept, "impl ::prost::Message for {name} {{")?;
    writeln!(kept, "    fn encode_raw(&self, buf: &mut impl ::prost::bytes::BufMut) {{")?;
    for field in fields {
        writeln!(kept, "        {}", field.encode)?;
    }
    writeln!(kept, "        self.unknown_fields.encode_raw(buf);\n    }}")?;
    writeln!(
        kept,
        "    fn merge_field(&mut self, tag: u32, wire_type: ::prost::encoding::WireType, buf: &mut impl ::prost::bytes::Buf, \
         ctx: ::prost::encoding::DecodeContext) -> ::core::result::Result<(), ::prost::DecodeError> {{"
    )?;
    writeln!(kept, "        match tag {{")?;
    for Field { tag, name: field, merge, .. } in fields {
        let told = format!("|mut error| {{ error.push({name:?}, {field:?}); error }}");
        writeln!(kept, "            {tag} => {merge}.map_err({told}),")?;
    }
    writeln!(
        kept,
        "            _ => self.unknown_fields.merge_field(tag, wire_type, buf, ctx),\n        }}\n    }}"
    )?;
    writeln!(kept, "    fn encoded_len(&self) -> usize {{\n        self.unknown_fields.encoded_len()")?;
    for field in fields {
        writeln!(kept, "            + ({})", field.length)?;
    }
    writeln!(kept, "    }}\n    fn clear(&mut self) {{\n        *self = Self::default();\n    }}\n}}")?;
    let methods: String = fields.iter().map(|field| field.methods.as_str()).collect();
    if !methods.is_empty() {
        writeln!(kept, "impl {name} {{\n{methods}}}")?;
    }
    Ok(())
}
