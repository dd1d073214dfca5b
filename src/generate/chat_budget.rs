//! What rendering a chat template may cost.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one rendering may make altogether, those it throws away included.
pub(super) const BUDGET: u64 = 256 << 20;
/// Nesting of lists and maps: printing and dropping them recurses.
const MAX_DEPTH: usize = 32;

pub(super) fn refuse(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// What a rendering may still make, in bytes.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(BUDGET)))
    }

    pub fn take(&self, bytes: usize) -> Result<(), Error> {
        let left = self.0.load(Ordering::Relaxed).checked_sub(bytes as u64);
        let left = left.ok_or_else(|| refuse(format!("it makes more than {} MiB of text", BUDGET >> 20)))?;
        self.0.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Pays for a copy of the value itself: a string's bytes, a list's references.
    pub fn copy(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.take(text.len()),
            None => self.take(16 + 32 * value.len().unwrap_or(0)),
        }
    }

    /// Pays for a walk through all that the value holds, and refuses deep nesting.
    pub fn walk(&self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse(format!("lists or maps nested more than {MAX_DEPTH} deep")));
        }
        self.take(32 + value.as_str().map_or(0, str::len))?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()?.checked() {
                    self.walk(&item?, depth + 1)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    self.walk(&key, depth + 1)?;
                    self.walk(&value.get_item(&key)?, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub fn walk_all(&self, values: &[Value]) -> Result<(), Error> {
        values.iter().try_for_each(|value| self.walk(value, 0))
    }

    /// A lazy sequence as a list: laziness upon laziness would recurse without bound.
    pub fn solid(&self, value: Value) -> Result<Value, Error> {
        if value.kind() != ValueKind::Iterable {
            return Ok(value);
        }
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            self.take(32)?;
            items.push(item?);
        }
        Ok(items.into())
    }

    /// Pays for `replace` and `join`, whose results can be longer than everything given to them.
    pub fn multiplied(&self, name: &str, args: &[Value]) -> Result<(), Error> {
        let text = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or("");
        match name {
            "replace" => self.take(text(0).matches(text(1)).count().saturating_mul(text(2).len())),
            "join" => {
                let (list, separator) = if args[0].as_str().is_some() { (1, 0) } else { (0, 1) };
                let items = args.get(list).and_then(Value::len).unwrap_or(0);
                self.take(items.saturating_mul(text(separator).len()))
            }
            _ => Ok(()),
        }
    }
}
