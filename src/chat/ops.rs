//! Python's operators, and the functions of Hugging Face's templates.

use minijinja::value::{Enumerator, Object, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, functions};
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::budget::{Budget, ITEM, refuse};
use super::methods::{self, DICT_METHODS, METHODS};
use super::values::*;
use super::{filters, format};

/// What operators, filters and methods get.
pub(super) struct Cx<'a, 's, 'e> {
    pub budget: &'a Budget,
    pub state: &'a mut State<'s, 'e>,
}

type Function = fn(&mut Cx<'_, '_, '_>, &[Value]) -> Made;

pub(super) fn add_to(env: &mut Environment<'_>, budget: &Budget) {
    let functions: [(&'static str, Function); 28] = [
        ("+", |cx, v| add(cx.budget, &v[0], &v[1])),
        ("-", |_, v| arithmetic('-', &v[0], &v[1])),
        ("*", |cx, v| multiply(cx.budget, &v[0], &v[1])),
        ("/", |_, v| arithmetic('/', &v[0], &v[1])),
        ("//", |_, v| arithmetic('f', &v[0], &v[1])),
        ("**", |_, v| arithmetic('^', &v[0], &v[1])),
        ("%", |cx, v| match v[0].as_str() {
            Some(text) => format::printf(cx.budget, text, &v[1]).map(Value::from),
            None => arithmetic('%', &v[0], &v[1]),
        }),
        ("~", |cx, v| Ok((text(cx.budget, &v[0])? + &text(cx.budget, &v[1])?).into())),
        // Not 0 - x, which loses the sign of 0.0.
        ("-x", |_, v| arithmetic('*', &v[0], &(-1).into())),
        ("==", |cx, v| compare(cx.budget, "==", &v[0], &v[1]).map(Value::from)),
        ("!=", |cx, v| compare(cx.budget, "!=", &v[0], &v[1]).map(Value::from)),
        ("<", |cx, v| compare(cx.budget, "<", &v[0], &v[1]).map(Value::from)),
        ("<=", |cx, v| compare(cx.budget, "<=", &v[0], &v[1]).map(Value::from)),
        (">", |cx, v| compare(cx.budget, ">", &v[0], &v[1]).map(Value::from)),
        (">=", |cx, v| compare(cx.budget, ">=", &v[0], &v[1]).map(Value::from)),
        ("in", |cx, v| compare(cx.budget, "in", &v[0], &v[1]).map(Value::from)),
        ("a<b<c", chain),
        ("[]", |cx, v| {
            cx.budget.walk_all(v)?;
            Ok(v.to_vec().into())
        }),
        ("()", |cx, v| {
            cx.budget.walk_all(v)?;
            Ok(Tuple::from(v).into())
        }),
        ("{}", |cx, v| {
            cx.budget.walk_all(v)?;
            Ok(Value::from_pairs(v.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()))))
        }),
        ("[:]", |cx, v| slice(cx.budget, v)),
        ("[i]", |cx, v| item(cx.budget, &v[0], &v[1])),
        ("a.b", |cx, v| attribute(cx.budget, &v[0], &v[1])),
        ("ns.x=", |cx, v| {
            cx.budget.walk_to_keep(&v[0])?;
            Ok(v[0].clone())
        }),
        ("for in", |cx, v| match v[0].kind() {
            ValueKind::String | ValueKind::None | ValueKind::Number | ValueKind::Bool => {
                items(cx.budget, &v[0]).map(Value::from)
            }
            _ => Ok(v[0].clone()),
        }),
        ("*args", |cx, v| items(cx.budget, &v[0]).map(Value::from)),
        ("**kwargs", |cx, v| {
            cx.budget.take_times(v[0].len().unwrap_or(0), ITEM)?;
            Ok(v[0].clone())
        }),
        ("range", |cx, v| {
            cx.budget.take(ITEM)?;
            let int = |v: &Value| integer(v).and_then(|i| isize::try_from(i).ok());
            let bounds: Option<Vec<isize>> = v.iter().map(int).collect();
            match bounds.as_deref() {
                Some([stop]) => functions::range(*stop, None, None),
                Some([start, stop]) => functions::range(*start, Some(*stop), None),
                Some([start, stop, step]) => functions::range(*start, Some(*stop), Some(*step)),
                _ => Err(refuse("range: expected one to three ints")),
            }
        }),
    ];
    for (name, function) in functions {
        let budget = budget.clone();
        env.add_function(name, move |state: &mut State, args: Rest<Value>| {
            function(&mut Cx { budget: &budget, state }, &args)
        });
    }
    for name in METHODS {
        let budget = budget.clone();
        env.add_function(*name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            methods::call(&mut Cx { budget: &budget, state }, &name[1..], &args[0], &args[1..])
        });
    }
    let namespace = Value::from_function(functions::namespace);
    for name in ["namespace", "dict"] {
        let (budget, namespace) = (budget.clone(), namespace.clone());
        env.add_function(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = Args::new(&budget, &args.into_values())?;
            let dict = dict(&budget, args)?;
            if name == "dict" { Ok(dict) } else { namespace.call(state, &[dict]) }
        });
    }
    let paid = budget.clone();
    env.add_function("joiner", move |separator: Option<Value>| {
        let separator = separator.map_or(Ok(", ".to_owned()), |s| text(&paid, &s))?.into();
        Ok::<_, Error>(Value::from_object(Joiner { separator, used: AtomicUsize::new(0) }))
    });
}

/// `dict(mapping or pairs, name=value)`.
fn dict(budget: &Budget, args: Args) -> Made {
    let mut made = Vec::new();
    if args.by_position.len() > 1 {
        return Err(refuse("dict: at most one argument without a name"));
    }
    for from in &args.by_position {
        budget.walk(from)?;
        for entry in items(budget, from)? {
            made.push(match is_dict(from) {
                true => (entry.clone(), from.get_item(&entry)?),
                false => match &items(budget, &entry)?[..] {
                    [key, value] => (key.clone(), value.clone()),
                    _ => return Err(refuse("dict: expected pairs")),
                },
            });
        }
    }
    for (name, value) in args.by_name {
        budget.walk(&value)?;
        made.push((name.into(), value));
    }
    Ok(Value::from_pairs(made))
}

/// Jinja's `joiner`: nothing at the first call, then the separator.
#[derive(Debug)]
struct Joiner {
    separator: Value,
    used: AtomicUsize,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Made {
        let first = self.used.fetch_add(1, Relaxed) == 0;
        Ok(if first { "".into() } else { self.separator.clone() })
    }
}

/// A method that was named but not called: `schema.items` is one, and true.
#[derive(Debug)]
struct BoundMethod {
    receiver: Value,
    name: &'static str,
    budget: Budget,
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Made {
        methods::call(&mut Cx { budget: &self.budget, state }, self.name, &self.receiver, args)
    }
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    let (a, b) = (type_name(a), type_name(b));
    refuse(format!("unsupported operand types for {op}: '{a}' and '{b}'"))
}

/// `+ - * / % f ^` of numbers, where `f` is `//` and `^` is `**`.
fn arithmetic(op: char, a: &Value, b: &Value) -> Made {
    let name = match op {
        'f' => "//".into(),
        '^' => "**".into(),
        op => op.to_string(),
    };
    let (Some(x), Some(y)) = (number(a), number(b)) else { return Err(unsupported(&name, a, b)) };
    let zero = || refuse(format!("{name}: division by zero"));
    let large = || refuse(format!("{name}: the result is too large"));
    if let (Num::Int(x), Num::Int(y)) = (x, y) {
        let whole = |result: Option<i128>| result.map(int).ok_or_else(large);
        match op {
            '+' => return whole(x.checked_add(y)),
            '-' => return whole(x.checked_sub(y)),
            '*' => return whole(x.checked_mul(y)),
            'f' | '%' if y == 0 => return Err(zero()),
            'f' => {
                let floor =
                    x.checked_div_euclid(y).map(|q| if y < 0 && x.rem_euclid(y) != 0 { q - 1 } else { q });
                return whole(floor);
            }
            '%' => {
                let rest = x.checked_rem_euclid(y);
                return whole(rest.map(|r| if y < 0 && r != 0 { r + y } else { r }));
            }
            '^' if y >= 0 => return whole(u32::try_from(y).ok().and_then(|y| x.checked_pow(y))),
            _ => {}
        }
    }
    let (x, y) = (x.float(), y.float());
    let made = match op {
        '+' => x + y,
        '-' => x - y,
        '*' => x * y,
        '/' | 'f' | '%' if y == 0.0 => return Err(zero()),
        '/' => x / y,
        // The remainder has the divisor's sign.
        'f' | '%' => {
            let rest = x % y;
            let rest = if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest };
            if op == '%' {
                if rest == 0.0 { 0f64.copysign(y) } else { rest }
            } else {
                ((x - rest) / y).round()
            }
        }
        '^' if x == 0.0 && y < 0.0 => return Err(zero()),
        _ => x.powf(y),
    };
    Ok(made.into())
}

pub(super) fn add(budget: &Budget, a: &Value, b: &Value) -> Made {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        if a.is_safe() != b.is_safe() {
            // What `safe` marked escapes the other side, even where nothing else is escaped.
            let escaped = |v: &Value, text: &str| {
                if v.is_safe() { Ok(text.to_owned()) } else { filters::escaped(budget, text) }
            };
            let (left, right) = (escaped(a, left)?, escaped(b, right)?);
            budget.take(left.len() + right.len())?;
            return Ok(Value::from_safe_string(left + &right));
        }
        budget.take(left.len() + right.len())?;
        let whole = [left, right].concat();
        return Ok(if a.is_safe() { Value::from_safe_string(whole) } else { whole.into() });
    }
    if a.kind() == ValueKind::Seq && b.kind() == ValueKind::Seq && a.is_tuple() == b.is_tuple() {
        let mut all = items(budget, a)?;
        all.extend(items(budget, b)?);
        return Ok(if a.is_tuple() { Tuple::from(all).into() } else { all.into() });
    }
    arithmetic('+', a, b)
}

fn multiply(budget: &Budget, a: &Value, b: &Value) -> Made {
    for (what, times) in [(a, b), (b, a)] {
        let Some(times) = integer(times) else { continue };
        let times = times.clamp(0, 1 << 40) as usize;
        if let Some(text) = what.as_str() {
            budget.take_times(times, text.len())?;
            return Ok(text.repeat(times).into());
        }
        if what.kind() == ValueKind::Seq {
            let list = items(budget, what)?;
            budget.take_times(times, ITEM * list.len())?;
            let all: Vec<Value> = list.iter().cycle().take(times * list.len()).cloned().collect();
            return Ok(if what.is_tuple() { Tuple::from(all).into() } else { all.into() });
        }
    }
    arithmetic('*', a, b)
}

pub(super) fn compare(budget: &Budget, op: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    let nan = |v: &Value| matches!(number(v), Some(Num::Float(f)) if f.is_nan());
    Ok(match op {
        "==" => equal(budget, a, b)?,
        "!=" => !equal(budget, a, b)?,
        "in" => contains(budget, b, a)?,
        "not in" => !contains(budget, b, a)?,
        _ => {
            let order = order(budget, a, b)?;
            if nan(a) || nan(b) {
                return Ok(false);
            }
            match op {
                "<" => order == Ordering::Less,
                "<=" => order != Ordering::Greater,
                ">" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }
        }
    })
}

/// `a < b <= c`, as operands and operators in turn.
fn chain(cx: &mut Cx, v: &[Value]) -> Made {
    let mut holds = true;
    for i in (0..v.len().saturating_sub(2)).step_by(2) {
        holds = holds && compare(cx.budget, v[i + 1].as_str().unwrap_or_default(), &v[i], &v[i + 2])?;
    }
    Ok(holds.into())
}

fn contains(budget: &Budget, container: &Value, what: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let part = what.as_str();
        let part =
            part.ok_or_else(|| refuse(format!("'in <string>' requires a str, not {}", type_name(what))))?;
        budget.take(text.len())?;
        return Ok(text.contains(part));
    }
    if is_dict(container) {
        budget.walk(what)?;
        return Ok(container.get_item(what).is_ok_and(|v| !v.is_undefined()));
    }
    for item in items(budget, container)? {
        if equal(budget, &item, what)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `value[key]`: a missing item is undefined, but a dictionary's methods are found.
pub(super) fn item(budget: &Budget, value: &Value, key: &Value) -> Made {
    let none = Value::UNDEFINED;
    match value.kind() {
        ValueKind::Undefined => Err(refuse("an item of an undefined value")),
        ValueKind::String => {
            let Some(i) = integer(key) else { return Ok(none) };
            let text = value.as_str().unwrap_or_default();
            budget.take(text.len())?;
            let i = if i < 0 { i + text.chars().count() as i128 } else { i };
            let c = usize::try_from(i).ok().and_then(|i| text.chars().nth(i));
            Ok(c.map_or(none, |c| Value::from(c.to_string())))
        }
        ValueKind::Seq | ValueKind::Iterable if is_list(value) => {
            let Some(i) = integer(key) else {
                // The parts of a group have names.
                return if key.as_str().is_some() { value.get_item(key) } else { Ok(none) };
            };
            let i = if i < 0 { i + value.len().unwrap_or(0) as i128 } else { i };
            if value.kind() == ValueKind::Iterable {
                budget.take_times(value.len().unwrap_or(0), ITEM)?;
            }
            usize::try_from(i).map_or(Ok(none), |i| value.get_item_by_index(i))
        }
        ValueKind::Map if is_dict(value) => {
            budget.walk(key)?;
            let found = value.get_item(key)?;
            Ok(if found.is_undefined() { method(budget, value, key).unwrap_or(none) } else { found })
        }
        ValueKind::Map | ValueKind::Plain => value.get_item(key),
        _ => Ok(none),
    }
}

/// `value.name`, where a dictionary has a method of this name.
fn attribute(budget: &Budget, value: &Value, name: &Value) -> Made {
    match method(budget, value, name) {
        Some(method) => Ok(method),
        None => value.get_attr(name.as_str().unwrap_or_default()),
    }
}

fn method(budget: &Budget, receiver: &Value, name: &Value) -> Option<Value> {
    let name = DICT_METHODS.iter().find(|n| Some(&n[1..]) == name.as_str())?;
    let bound = || BoundMethod { receiver: receiver.clone(), name: &name[1..], budget: budget.clone() };
    is_dict(receiver).then(|| Value::from_object(bound()))
}

/// `value[start:stop:step]`.
fn slice(budget: &Budget, v: &[Value]) -> Made {
    let value = &v[0];
    let sliced = value.as_str().is_some() || is_list(value);
    let bound = |v: &Value| if v.is_none() { Some(None) } else { integer(v).map(Some) };
    let (true, Some(start), Some(stop), Some(step)) = (sliced, bound(&v[1]), bound(&v[2]), bound(&v[3]))
    else {
        return Err(refuse(format!("a part of {}, or bounds that are no ints", type_name(value))));
    };
    let all: Vec<Value> = match value.as_str() {
        Some(text) if text.is_ascii() => {
            budget.take(text.len())?;
            let picked: String =
                indices(text.len(), start, stop, step)?.map(|i| text.as_bytes()[i] as char).collect();
            return Ok(picked.into());
        }
        Some(text) => {
            budget.take_times(text.len(), 4)?;
            let chars: Vec<char> = text.chars().collect();
            return Ok(indices(chars.len(), start, stop, step)?.map(|i| chars[i]).collect::<String>().into());
        }
        None => items(budget, value)?,
    };
    let picked: Vec<Value> = indices(all.len(), start, stop, step)?.map(|i| all[i].clone()).collect();
    Ok(if value.is_tuple() { Tuple::from(picked).into() } else { picked.into() })
}

fn indices(
    len: usize,
    start: Option<i128>,
    stop: Option<i128>,
    step: Option<i128>,
) -> Result<impl Iterator<Item = usize>, Error> {
    let len = len as i128;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(refuse("a slice step of zero"));
    }
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clip = |i: i128| if i < 0 { i.saturating_add(len).max(lowest) } else { i.min(highest) };
    let first = start.map_or(if step > 0 { lowest } else { highest }, clip);
    let last = stop.map_or(if step > 0 { highest } else { lowest }, clip);
    let mut at = first;
    Ok(std::iter::from_fn(move || {
        let inside = if step > 0 { at < last } else { at > last };
        let here = at;
        at = at.saturating_add(step);
        inside.then_some(here as usize)
    }))
}
