//! JSON from strangers: bounded in size, without duplicate keys, read field by field so that an error names the field.

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fmt;
use std::path::Path;

use super::quoted;
use crate::error::{Error, Result};
use crate::files::read_limited;

/// Of one file. Twice the largest index of a published model.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// Values in one file. A value in memory is far larger than its shortest spelling (`0,`), so bytes alone do not bound
/// the memory.
const MAX_VALUES: usize = 1 << 20;

/// Reads a file that holds one JSON object.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    parse_object(path, &read_limited(path, MAX_BYTES)?)
}

/// [`read_object`] of bytes already in memory; `path` is only named in errors.
pub(super) fn parse_object(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    let budget = Cell::new(MAX_VALUES);
    let mut input = serde_json::Deserializer::from_slice(text);
    let value = Strict(&budget).deserialize(&mut input).and_then(|value| input.end().map(|()| value));
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::input(path, "JSON", brief(&other), "an object")),
        Err(error) => Err(Error::input(path, "JSON", error, "a well-formed object without duplicate keys")),
    }
}

/// Builds a [`Value`], but refuses duplicate keys and more values than the budget.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            None => return Err(D::Error::custom(format!("more than {MAX_VALUES} values"))),
        }
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = input.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = input.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate key {}", quoted(&key))));
            }
            let value = input.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A value cut to a length that fits into an error message.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
        _ => value.to_string(),
    }
}

/// One object of a file. `null` counts as absent, as it does in Hugging Face configurations.
pub(super) struct Fields<'a> {
    pub file: &'a Path,
    /// `""`, or the object's own name and a dot.
    prefix: String,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: String::new(), map }
    }

    /// The error for a field of this object.
    pub fn bad(&self, key: &str, found: impl fmt::Display, wanted: impl fmt::Display) -> Error {
        Error::input(self.file, format!("{}{}", self.prefix, shown(key)), found, wanted)
    }

    /// The field's value; `None` for an absent one and for `null`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The field as `read` understands it, which says what it wants by `wanted`.
    pub fn maybe<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.bad(key, brief(value), wanted))
    }

    /// [`Fields::maybe`] of a field that must be there.
    pub fn need<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<T> {
        self.maybe(key, wanted, read)?.ok_or_else(|| self.bad(key, "nothing", wanted))
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        self.need(key, "a whole number, 0 or more", as_size)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.maybe(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<&'a str> {
        self.need(key, "a text", Value::as_str)
    }

    /// A field that is an object itself.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let map = self.maybe(key, "an object", Value::as_object)?;
        let prefix = format!("{}{}.", self.prefix, shown(key));
        Ok(map.map(|map| Fields { file: self.file, prefix, map }))
    }

    /// Refuses every key that is not in `known`.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.bad(key, "an unknown field", format!("one of {}", known.join(", ")))),
            None => Ok(()),
        }
    }
}

/// A key as an error message shows it: escaped and, like [`quoted`] texts, cut.
fn shown(key: &str) -> String {
    let text = quoted(key);
    match text.strip_suffix('…') {
        Some(cut) => format!("{}…", &cut[1..cut.len() - 1]),
        None => text[1..text.len() - 1].into(),
    }
}

pub(super) fn as_size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// A finite number in the range of f32.
pub(super) fn as_f32(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

/// A type that deserialises from one scalar, for example an enum of names.
pub(super) fn as_type<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse_object(Path::new("x.json"), text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn refuses_what_serde_json_alone_would_take() {
        assert!(error(r#"{"a":1,"b":{"c":1,"c":2}}"#).contains("duplicate key \"c\""));
        assert!(error("[1]").contains("a list of 1"));
        assert!(error("{} x").contains("x.json: JSON"));
        assert!(error(r#"{"a":NaN}"#).contains("x.json: JSON"));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(error(&deep).contains("recursion limit"));
        let wide = format!("{{\"a\":[0{}]}}", ",0".repeat(MAX_VALUES));
        assert!(error(&wide).contains("more than 1048576 values"));
    }

    #[test]
    fn numbers_are_judged() {
        let map =
            parse_object(Path::new("x"), br#"{"a":-1,"b":1.5,"c":1e300,"d":18446744073709551616,"e":"7"}"#);
        let map = map.unwrap();
        let f = Fields::new(Path::new("x"), &map);
        for key in ["a", "b", "c", "d", "e", "f"] {
            let message = f.size(key).unwrap_err().to_string();
            assert!(message.starts_with(&format!("x: {key}: found ")), "{message}");
        }
        assert!(f.maybe("c", "a number", as_f32).is_err());
        assert_eq!(f.need("b", "a number", as_f32).unwrap(), 1.5);
    }
}
