//! Records of JSON, one a line.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::items::{BOM, Item, Part};
use crate::files::open_regular;
use crate::{Error, Result};

/// Bytes read at a time; few of them under a fuzzer, whose records are short.
const CHUNK: usize = if cfg!(fuzzing) { 13 } else { 1 << 20 };
/// Longest record: above it the file is not what it claims to be.
const MAX_RECORD: u64 = 256 << 20;

/// A JSON object a line.
pub struct Records {
    path: PathBuf,
    reader: BufReader<File>,
    field: String,
    line: u64,
    read: u64,
}

impl Records {
    pub fn open(path: &Path, field: &str) -> Result<Records> {
        let reader = BufReader::with_capacity(CHUNK, open_regular(path)?.0);
        Ok(Records { path: path.into(), reader, field: field.into(), line: 0, read: 0 })
    }

    pub fn next(&mut self) -> Result<Option<Item>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = (&mut self.reader).take(MAX_RECORD + 1).read_until(b'\n', &mut bytes);
            let read = read.map_err(Error::io("read", &self.path))? as u64;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read > MAX_RECORD {
                let wanted = format!("records of at most {MAX_RECORD} bytes");
                return Err(Error::input(&self.path, format!("line {}", self.line), "a longer one", wanted));
            }
            let line = if self.read == 0 { bytes.strip_prefix(BOM).unwrap_or(&bytes) } else { &bytes };
            self.read += read;
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let at = |what: &str| format!("line {}: {what}", self.line);
            let bad = |what: &str, found: String, wanted: &str| {
                Item::Unusable(Error::input(&self.path, at(what), found, wanted))
            };
            return Ok(Some(match text_of(line, &self.field) {
                Ok(Found::Text(text)) if text.is_empty() => Item::Empty,
                Ok(Found::Text(text)) => Item::Part(Part { text, begins: true, read: self.read }),
                Ok(Found::Null) => Item::Empty,
                Ok(Found::Nothing) => bad(&self.field, "no such field".into(), "a string"),
                Ok(Found::Other) => bad(&self.field, "no text".into(), "a string"),
                Err(e) => bad("JSON", e.to_string(), "an object"),
            }));
        }
    }
}

/// What a record has in the field asked for.
#[derive(Debug, PartialEq)]
enum Found {
    Text(String),
    Null,
    Other,
    Nothing,
}

/// The field `field` of a JSON object; as in Python, the last of several counts. Other fields are skipped unread.
fn text_of(line: &[u8], field: &str) -> serde_json::Result<Found> {
    let line = without_constants(line);
    let mut json = serde_json::Deserializer::from_slice(&line);
    let found = json.deserialize_map(Field(field))?;
    json.end()?;
    Ok(found)
}

/// Python's `json` writes `NaN`, `Infinity` and `-Infinity`, which are no JSON: `null` outside strings.
fn without_constants(line: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < line.len() {
        match line[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let names: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
                if let Some(name) = names.into_iter().find(|name| line[at..].starts_with(name)) {
                    out.extend_from_slice(&line[copied..at]);
                    out.extend_from_slice(b"null");
                    at += name.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(line);
    }
    out.extend_from_slice(&line[copied..]);
    Cow::Owned(out)
}

struct Field<'a>(&'a str);

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::Nothing;
        // A name may hold what a string cannot (a lone surrogate): then it is not the one asked for.
        while let Some(wanted) = map.next_key_seed(Is(self.0))? {
            if wanted {
                found = map.next_value_seed(Value)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a name is the one asked for.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<bool, D::Error> {
        // As bytes: serde_json lets lone surrogates pass there.
        name.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<bool, E> {
        Ok(name == self.0.as_bytes())
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// The value of the field asked for.
struct Value;

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Found, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Found, E> {
        Ok(Found::Text(text))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_field_asked_for_is_judged() {
        // Right values: json.loads of CPython 3.11.
        let text = |s: &str| Found::Text(s.into());
        let deep = format!("{{\"x\": {}{}, \"text\": \"a\"}}", "[".repeat(5000), "]".repeat(5000));
        for (line, wanted) in [
            (r#"{"text": "a"}"#, text("a")),
            (
                r#"{"x": NaN, "y": [Infinity, -Infinity], "text": "NaN -Infinity \" NaN"}"#,
                text("NaN -Infinity \" NaN"),
            ),
            (r#"{"x": 1e999, "y": 123456789012345678901234567890, "text": "a"}"#, text("a")),
            (r#"{"x": "\ud800", "\udfff": 1, "text": "a"}"#, text("a")),
            (r#"{"x": "\\", "y": NaN, "text": "\u00e9"}"#, text("é")),
            (&deep, text("a")),
            (r#"{"text": "a", "text": "b"}"#, text("b")),
            (r#"{"te\u0078t": "a"}"#, text("a")),
            (r#"{"text": null}"#, Found::Null),
            (r#"{"text": NaN}"#, Found::Null),
            (r#"{"text": 3}"#, Found::Other),
            (r#"{"text": ["a"]}"#, Found::Other),
            (r#"{"text": {"a": "b"}}"#, Found::Other),
            (r#"{"Text": "a"}"#, Found::Nothing),
        ] {
            assert_eq!(text_of(line.as_bytes(), "text").unwrap(), wanted, "{line:.80}");
        }
        for bad in [
            r#"{"text": "\ud800"}"#,
            r#"{"text": "a"} x"#,
            "[1]",
            "3",
            r#"{"text""#,
            r#"{"x": nan, "text": "a"}"#,
        ] {
            assert!(text_of(bad.as_bytes(), "text").is_err(), "{bad}");
        }
    }
}
