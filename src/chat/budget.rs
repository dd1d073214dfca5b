//! What rendering a chat template may cost.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::values::Generator;

/// Bytes that one rendering may make or read altogether, those it throws away included.
pub(super) const BUDGET: u64 = 256 << 20;
/// Nesting of lists and maps: printing and dropping them recurses.
const MAX_DEPTH: usize = 32;
/// What an item of a list is counted as.
pub(super) const ITEM: usize = 32;

pub(super) fn refuse(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

/// What a rendering may still make, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(BUDGET)))
    }

    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn take(&self, bytes: usize) -> Result<(), Error> {
        let left = self.left().checked_sub(bytes as u64);
        let left = left.ok_or_else(|| refuse(format!("it makes more than {} MiB of text", BUDGET >> 20)))?;
        self.0.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Pays for `times` copies of `bytes`.
    pub fn take_times(&self, times: usize, bytes: usize) -> Result<(), Error> {
        self.take(times.saturating_mul(bytes))
    }

    /// Pays for a walk through all that the value holds, and refuses deep nesting.
    pub fn walk(&self, value: &Value) -> Result<(), Error> {
        self.walk_at(value, 0, false)
    }

    /// [`Budget::walk`] of what a namespace or a loop is to hold from now on: nothing that may lead back to it, as a circle is
    /// never freed.
    pub fn walk_to_keep(&self, value: &Value) -> Result<(), Error> {
        self.walk_at(value, 0, true)
    }

    fn walk_at(&self, value: &Value, depth: usize, to_keep: bool) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse(format!("lists or maps nested more than {MAX_DEPTH} deep")));
        }
        if to_keep && may_lead_back(value) {
            return Err(refuse("a namespace, a loop or a method that a namespace holds is not supported"));
        }
        self.take(ITEM + value.as_str().map_or(0, str::len))?;
        if let Some(generator) = value.downcast_object_ref::<Generator>() {
            // Not under its lock, which is taken again where an item leads back to it.
            let items = generator.items().clone();
            return items.iter().try_for_each(|item| self.walk_at(item, depth + 1, to_keep));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()?.checked() {
                    self.walk_at(&item?, depth + 1, to_keep)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    self.walk_at(&key, depth + 1, to_keep)?;
                    self.walk_at(&value.get_item(&key)?, depth + 1, to_keep)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub fn walk_all(&self, values: &[Value]) -> Result<(), Error> {
        values.iter().try_for_each(|value| self.walk(value))
    }
}

/// Whether it may hold what is younger than itself, or hides what it holds.
fn may_lead_back(value: &Value) -> bool {
    let name = value.as_object().map_or("", |object| object.type_name());
    ["::Namespace", "::Loop", "::BoundMethod"].iter().any(|end| name.ends_with(end))
}
