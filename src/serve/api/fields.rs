//! Fields of a JSON object from a stranger: absent ones have a default, wrong ones are named, unknown ones ignored.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// An object, and where it stands in the request.
#[derive(Clone)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    at: String,
}

impl<'a> Fields<'a> {
    /// The request itself.
    pub fn of(value: &'a Value) -> Result<Self> {
        let wanted = "an object";
        let object = value.as_object().ok_or_else(|| ApiError::field("body", shown(value), wanted))?;
        Ok(Self { object, at: String::new() })
    }

    /// An object inside of it.
    pub fn inside(value: &'a Value, at: impl Into<String>) -> Result<Self> {
        let at = at.into();
        let object = value.as_object().ok_or_else(|| ApiError::field(&at, shown(value), "an object"))?;
        Ok(Self { object, at })
    }

    pub fn object(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// A field's full name.
    pub fn name(&self, field: &str) -> String {
        if self.at.is_empty() { field.to_string() } else { format!("{}.{field}", self.at) }
    }

    /// A value that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub fn need(&self, field: &str, wanted: &str) -> Result<&'a Value> {
        self.get(field).ok_or_else(|| ApiError::field(self.name(field), "nothing", wanted))
    }

    pub fn wrong(&self, field: &str, wanted: impl Display) -> ApiError {
        let found = self.object.get(field).map_or("nothing".to_string(), shown);
        ApiError::field(self.name(field), found, wanted)
    }

    /// The field as `read` understands it, which says what it wants by `wanted`.
    pub fn maybe<T>(
        &self,
        field: &str,
        wanted: impl Display,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(field, wanted))
    }

    pub fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let (low, high) = (range.start(), range.end());
        let read = |value: &Value| value.as_f64().filter(|x| range.contains(x));
        self.maybe(field, format_args!("a number from {low} to {high}"), read)
    }

    pub fn whole(&self, field: &str, range: RangeInclusive<u64>) -> Result<Option<usize>> {
        let (low, high) = (range.start(), range.end());
        let read = |value: &Value| value.as_u64().filter(|x| range.contains(x)).map(|x| x as usize);
        self.maybe(field, format_args!("a whole number from {low} to {high}"), read)
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.maybe(field, "true or false", Value::as_bool)
    }

    pub fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.maybe(field, "a text", Value::as_str)
    }

    pub fn list(&self, field: &str) -> Result<Option<&'a [Value]>> {
        self.maybe(field, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn map(&self, field: &str) -> Result<Option<Fields<'a>>> {
        self.get(field).map(|value| Fields::inside(value, self.name(field))).transpose()
    }
}

/// A value, as long as a sentence takes.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("a text of {} bytes", text.len())
        }
        other => other.to_string(),
    }
}
