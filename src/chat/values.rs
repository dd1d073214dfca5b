//! Values as Python sees them: `str()`, `repr()`, order, iteration, and the arguments of a call.

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, ValueKind};
use minijinja::{Error, Value};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use super::budget::{Budget, ITEM, refuse};
use super::sequences::Group;

pub(super) type Made = Result<Value, Error>;

/// A number of Python's: `True` and `False` are 1 and 0.
#[derive(Clone, Copy)]
pub(super) enum Num {
    Int(i128),
    Float(f64),
}

impl Num {
    pub fn float(self) -> f64 {
        match self {
            Num::Int(i) => i as f64,
            Num::Float(f) => f,
        }
    }
}

pub(super) fn number(value: &Value) -> Option<Num> {
    match value.kind() {
        ValueKind::Bool => Some(Num::Int(value.is_true().into())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Num::Int),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Num::Float),
        _ => None,
    }
}

pub(super) fn integer(value: &Value) -> Option<i128> {
    match number(value)? {
        Num::Int(i) => Some(i),
        Num::Float(_) => None,
    }
}

pub(super) fn int(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| value.into(), Value::from)
}

/// The name of a Python type, for errors.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Seq if value.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map if is_dict(value) => "dict",
        ValueKind::Iterable => "generator",
        _ => "object",
    }
}

pub(super) fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq)
        || (value.kind() == ValueKind::Iterable && value.downcast_object_ref::<Generator>().is_none())
}

/// Mappings, but not the engine's own objects with attributes (namespaces, loops, macros).
pub(super) fn is_dict(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    value.kind() == ValueKind::Map && object.type_name().contains("Map") || value.is_kwargs()
}

pub(super) fn str_of<'v>(value: &'v Value, what: &str) -> Result<&'v str, Error> {
    value.as_str().ok_or_else(|| refuse(format!("{what}: expected a str, found {}", type_name(value))))
}

/// Python's `str(value)`.
pub(super) fn text(budget: &Budget, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        budget.take(text.len())?;
        return Ok(text.to_owned());
    }
    repr_or(budget, value, |out| match value.kind() {
        ValueKind::Undefined => {}
        _ => write_repr(out, value),
    })
}

/// Python's `repr(value)`.
pub(super) fn repr(budget: &Budget, value: &Value) -> Result<String, Error> {
    repr_or(budget, value, |out| write_repr(out, value))
}

fn repr_or(budget: &Budget, value: &Value, write: impl FnOnce(&mut String)) -> Result<String, Error> {
    let before = budget.left();
    budget.walk(value)?;
    // An escaped character can be several times as long.
    budget.take(3 * (before - budget.left()) as usize)?;
    let mut out = String::new();
    write(&mut out);
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value) {
    let list = |out: &mut String| {
        for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            write_repr(out, &item);
        }
    };
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => match number(value) {
            Some(Num::Float(f)) => out.push_str(&float_text(f)),
            _ => out.push_str(&value.to_string()),
        },
        _ if value.downcast_object_ref::<Generator>().is_some() => out.push_str("<generator object>"),
        ValueKind::Seq if value.is_tuple() || value.downcast_object_ref::<Group>().is_some() => {
            out.push('(');
            list(out);
            out.push_str(if value.len() == Some(1) { ",)" } else { ")" });
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            list(out);
            out.push(']');
        }
        ValueKind::Map if is_dict(value) => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key);
                out.push_str(": ");
                write_repr(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        // What it holds was not paid for.
        ValueKind::Map | ValueKind::Plain => out.push_str("<object>"),
        _ => out.push_str(&value.to_string()),
    }
}

fn write_str_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if printable(c) => out.push(c),
            c => out.push_str(&escape(c)),
        }
    }
    out.push(quote);
}

/// A character as Python's string literals write it.
pub(super) fn escape(c: char) -> String {
    match c as u32 {
        code @ ..0x100 => format!("\\x{code:02x}"),
        code @ ..0x1_0000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// `str.isprintable`: Rust's debug format has the same rule behind another character.
fn printable(c: char) -> bool {
    if c.is_ascii() {
        !c.is_ascii_control()
    } else {
        !format!("{:?}", ['a', c].iter().collect::<String>()).contains("\\u")
    }
}

/// `repr` of a float: the shortest text that reads back, with an exponent outside 1e-4 ≤ |f| < 1e16.
pub(super) fn float_text(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    let text = format!("{f:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{}e{sign}{digits:0>2}", mantissa.strip_suffix(".0").unwrap_or(mantissa))
        }
        None => text,
    }
}

/// What a `for` loop would see.
pub(super) fn items(budget: &Budget, value: &Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain => {
            return Err(refuse(format!("'{}' object is not iterable", type_name(value))));
        }
        ValueKind::String => budget.take_times(value.as_str().map_or(0, str::len), ITEM)?,
        _ => {}
    }
    let mut made = Vec::new();
    for item in value.try_iter()?.checked() {
        budget.take(ITEM)?;
        made.push(item?);
    }
    Ok(made)
}

pub(super) fn equal(budget: &Budget, a: &Value, b: &Value) -> Result<bool, Error> {
    // Texts and numbers are compared within what they are; lists can share items and be walked for long.
    if a.as_object().is_some() && b.as_object().is_some() {
        budget.walk(a)?;
        budget.walk(b)?;
    }
    budget.take(a.as_str().map_or(0, str::len).min(b.as_str().map_or(0, str::len)))?;
    Ok(a == b)
}

/// Python's order: numbers, texts, lists and tuples among themselves.
pub(super) fn order(budget: &Budget, a: &Value, b: &Value) -> Result<Ordering, Error> {
    order_at(budget, a, b, 0)
}

fn order_at(budget: &Budget, a: &Value, b: &Value, depth: usize) -> Result<Ordering, Error> {
    budget.take(ITEM)?;
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        budget.take(a.len().min(b.len()))?;
        return Ok(a.cmp(b));
    }
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Ok(match (a, b) {
            (Num::Int(a), Num::Int(b)) => a.cmp(&b),
            // Every comparison with NaN is false in Python; here it orders as equal.
            _ => a.float().partial_cmp(&b.float()).unwrap_or(Ordering::Equal),
        });
    }
    if is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple() && depth < 32 {
        let (a, b) = (items(budget, a)?, items(budget, b)?);
        for (a, b) in a.iter().zip(&b) {
            if !equal(budget, a, b)? {
                return order_at(budget, a, b, depth + 1);
            }
        }
        return Ok(a.len().cmp(&b.len()));
    }
    Err(refuse(format!("'<' not supported between instances of '{}' and '{}'", type_name(a), type_name(b))))
}

/// A merge sort whose comparison may fail; the library's may panic then.
pub(super) fn sorted<T>(
    list: Vec<T>,
    compare: &mut dyn FnMut(&T, &T) -> Result<Ordering, Error>,
) -> Result<Vec<T>, Error> {
    if list.len() < 2 {
        return Ok(list);
    }
    let mut left = list;
    let right = left.split_off(left.len() / 2);
    let mut left = sorted(left, compare)?.into_iter().peekable();
    let mut right = sorted(right, compare)?.into_iter().peekable();
    let mut made = Vec::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let from = if compare(b, a)? == Ordering::Less { &mut right } else { &mut left };
        made.extend(from.next());
    }
    made.extend(left);
    made.extend(right);
    Ok(made)
}

/// What `map`, `select` and other filters give: true even when empty, and empty after one pass.
pub(super) struct Generator(Mutex<VecDeque<Value>>);

impl Generator {
    pub fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items.into())))
    }

    pub fn items(&self) -> MutexGuard<'_, VecDeque<Value>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Rest(self.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

struct Rest(Arc<Generator>);

impl Iterator for Rest {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.items().pop_front()
    }

    // `loop.length` and `loop.last` want to know.
    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.items().len();
        (left, Some(left))
    }
}

/// The arguments of a call: by position, then by name.
pub(super) struct Args {
    pub by_position: Vec<Value>,
    pub by_name: Vec<(String, Value)>,
}

impl Args {
    /// Pays for the texts among them: whoever is called reads them.
    pub fn new(budget: &Budget, values: &[Value]) -> Result<Self, Error> {
        let mut by_position = values.to_vec();
        let mut by_name = Vec::new();
        if let Some(last) = by_position.pop_if(|v| v.is_kwargs()) {
            let named = Kwargs::try_from(last)?;
            for name in named.args() {
                budget.take(name.len())?;
                by_name.push((name.to_owned(), named.peek(name)?));
            }
        }
        for value in by_position.iter().chain(by_name.iter().map(|(_, value)| value)) {
            budget.take(value.as_str().map_or(0, str::len))?;
        }
        Ok(Self { by_position, by_name })
    }

    /// The values of the parameters `names`, `None` where one was not given.
    pub fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> Result<[Option<Value>; N], Error> {
        if self.by_position.len() > N {
            let found = self.by_position.len();
            return Err(refuse(format!("{what}: at most {N} arguments expected, found {found}")));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.by_position) {
            *slot = Some(value);
        }
        for (name, value) in self.by_name {
            match names.iter().position(|n| *n == name) {
                Some(i) if bound[i].is_none() => bound[i] = Some(value),
                _ => return Err(refuse(format!("{what}: unexpected argument '{name}'"))),
            }
        }
        Ok(bound)
    }
}

/// An argument that was given and is not `none`.
pub(super) fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|v| !v.is_none())
}

/// Whether an argument was given and is true.
pub(super) fn flag(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::is_true)
}

/// A whole number that was given, or `default`.
pub(super) fn int_or(value: &Option<Value>, default: i128, what: &str) -> Result<i128, Error> {
    match value {
        None => Ok(default),
        Some(value) => integer(value)
            .ok_or_else(|| refuse(format!("{what}: expected an int, found {}", type_name(value)))),
    }
}

/// A length that was given, at most a gigabyte: what is made of it is paid for.
pub(super) fn size_or(value: &Option<Value>, default: usize, what: &str) -> Result<usize, Error> {
    Ok(int_or(value, default as i128, what)?.clamp(0, 1 << 30) as usize)
}
