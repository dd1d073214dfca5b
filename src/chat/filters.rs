//! Jinja's filters of texts and numbers; those of lists are in [`super::sequences`].

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::budget::{Budget, refuse};
use super::format;
use super::json::tojson;
use super::methods::{capitalize, center, is_space, lines, pad, replace, strip, stripped};
use super::ops::{self, Cx};
use super::sequences;
use super::values::*;

pub(super) type Filter = fn(&mut Cx<'_, '_, '_>, &Value, Args) -> Made;

#[rustfmt::skip]
const FILTERS: [(&str, Filter); 27] = [
    ("abs", abs), ("attr", attr), ("capitalize", |cx, v, a| of_text(cx, v, a, capitalize)), ("center", centered),
    ("d", default), ("default", default), ("e", escape), ("escape", escape), ("float", float),
    ("forceescape", escape), ("format", formatted), ("indent", indent), ("int", to_int),
    ("lower", |cx, v, a| of_text(cx, v, a, str::to_lowercase)), ("replace", replaced), ("round", round),
    ("safe", safe), ("string", string), ("striptags", striptags), ("title", |cx, v, a| of_text(cx, v, a, title)),
    ("tojson", |cx, v, a| tojson(cx.budget, v, a)),
    ("trim", |cx, v, a| stripped(cx.budget, "trim", &text(cx.budget, v)?, a)), ("truncate", truncate),
    ("upper", |cx, v, a| of_text(cx, v, a, str::to_uppercase)), ("urlencode", urlencode), ("wordcount", wordcount),
    ("pprint", |cx, v, _| repr(cx.budget, v).map(Value::from)),
];

pub(super) fn add_to(env: &mut Environment<'_>, budget: &Budget) {
    for (name, filter) in FILTERS.into_iter().chain(sequences::FILTERS) {
        let budget = budget.clone();
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            let value = args.first().cloned().unwrap_or_default();
            let args = Args::new(&budget, args.get(1..).unwrap_or_default())?;
            filter(&mut Cx { budget: &budget, state }, &value, args)
        });
    }
}

pub(super) fn exists(name: &str) -> bool {
    FILTERS.iter().chain(&sequences::FILTERS).any(|(n, _)| *n == name)
}

fn of_text(cx: &mut Cx, value: &Value, args: Args, change: fn(&str) -> String) -> Made {
    let [] = args.bind("filter", [])?;
    let text = text(cx.budget, value)?;
    // Some characters become three.
    cx.budget.take(2 * text.len())?;
    Ok(change(&text).into())
}

/// Jinja's own rule, another than `str.title`: words end at whitespace, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            made.extend(c.to_uppercase())
        } else {
            made.extend(c.to_lowercase())
        }
        start = is_space(c) || "-({[<".contains(c);
    }
    made
}

fn abs(_: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("abs", [])?;
    match number(value) {
        Some(Num::Int(i)) => i.checked_abs().map(int).ok_or_else(|| refuse("abs: too large")),
        Some(Num::Float(f)) => Ok(f.abs().into()),
        None => Err(refuse(format!("abs: expected a number, found {}", type_name(value)))),
    }
}

fn attr(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [name] = args.bind("attr", ["name"])?;
    let name = name.ok_or_else(|| refuse("attr: expected a name"))?;
    match value.kind() {
        // Attributes, not items.
        ValueKind::Map if is_dict(value) => Ok(Value::UNDEFINED),
        ValueKind::Map => ops::item(cx.budget, value, &name),
        ValueKind::Undefined => Err(refuse("attr: an undefined value")),
        _ => Ok(Value::UNDEFINED),
    }
}

fn centered(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [width] = args.bind("center", ["width"])?;
    let width = size_or(&width, 80, "center")?;
    pad(cx.budget, &text(cx.budget, value)?, width, ' ', |missing| center(missing, width))
}

fn default(_: &mut Cx, value: &Value, args: Args) -> Made {
    let [default, falsy] = args.bind("default", ["default_value", "boolean"])?;
    let missing = value.is_undefined() || (flag(&falsy) && !value.is_true());
    Ok(if missing { default.unwrap_or("".into()) } else { value.clone() })
}

fn escape(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("escape", [])?;
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = text(cx.budget, value)?;
    escaped(cx.budget, &text).map(Value::from_safe_string)
}

/// The text for HTML.
pub(super) fn escaped(budget: &Budget, text: &str) -> Result<String, Error> {
    budget.take(4 * text.len())?;
    let mut made = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => made.push_str("&amp;"),
            '<' => made.push_str("&lt;"),
            '>' => made.push_str("&gt;"),
            '"' => made.push_str("&#34;"),
            '\'' => made.push_str("&#39;"),
            c => made.push(c),
        }
    }
    Ok(made)
}

fn safe(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("safe", [])?;
    text(cx.budget, value).map(Value::from_safe_string)
}

fn string(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("string", [])?;
    text(cx.budget, value).map(Value::from)
}

/// Without tags and comments, whitespace run together.
fn striptags(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("striptags", [])?;
    let mut text = text(cx.budget, value)?;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut made = String::new();
        let mut rest = &text[..];
        while let Some((before, after)) = rest.split_once(open) {
            let Some((_, after)) = after.split_once(close) else { break };
            made.push_str(before);
            rest = after;
        }
        text = made + rest;
    }
    let words: Vec<&str> = text.split(is_space).filter(|w| !w.is_empty()).collect();
    Ok(words.join(" ").into())
}

fn float(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [default] = args.bind("float", ["default"])?;
    if value.is_undefined() {
        return Err(refuse("float: an undefined value"));
    }
    cx.budget.take(value.as_str().map_or(0, str::len))?;
    let made = match value.as_str() {
        Some(text) => parse_float(text),
        None => number(value).map(Num::float),
    };
    Ok(made.map_or_else(|| default.unwrap_or(0.0.into()), Value::from))
}

fn parse_float(text: &str) -> Option<f64> {
    strip(text, None, true, true).replace('_', "").parse().ok()
}

/// `int(text, base)`.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = strip(text, None, true, true).replace('_', "");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = |prefixes: [&str; 2]| prefixes.iter().find_map(|p| digits.strip_prefix(p));
    let digits = match base {
        2 => prefixed(["0b", "0B"]),
        8 => prefixed(["0o", "0O"]),
        16 => prefixed(["0x", "0X"]),
        _ => None,
    }
    .unwrap_or(digits);
    i128::from_str_radix(&format!("{sign}{digits}"), base).ok().filter(|_| !digits.starts_with(['+', '-']))
}

fn to_int(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let base = u32::try_from(int_or(&base, 10, "int")?).ok().filter(|b| (2..=36).contains(b));
    let base = base.ok_or_else(|| refuse("int: the base is 2 to 36"))?;
    if value.is_undefined() {
        return Err(refuse("int: an undefined value"));
    }
    cx.budget.take(value.as_str().map_or(0, str::len))?;
    let whole = |f: f64| (f.is_finite() && f.abs() < 1e38).then_some(f.trunc() as i128);
    let made = match value.as_str() {
        Some(text) => parse_int(text, base).or_else(|| parse_float(text).and_then(whole)),
        None => number(value).and_then(|n| match n {
            Num::Int(i) => Some(i),
            Num::Float(f) => whole(f),
        }),
    };
    Ok(made.map_or_else(|| default.unwrap_or(0.into()), int))
}

/// Python's `round`: to the nearest, half to even.
fn round(_: &mut Cx, value: &Value, args: Args) -> Made {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let digits = int_or(&precision, 0, "round")?.clamp(-400, 400) as i32;
    let value = number(value).ok_or_else(|| refuse("round: expected a number"))?;
    let method = method.map_or(Ok("common".to_owned()), |m| str_of(&m, "round").map(str::to_owned))?;
    // The nearest to that power of ten; what `powi` gives differs between systems.
    let scale: f64 = format!("1e{digits}").parse().unwrap_or(f64::INFINITY);
    Ok(match (&method[..], value) {
        ("common", Num::Int(i)) if digits >= 0 => int(i),
        ("common", Num::Int(i)) => int(((i as f64 * scale).round_ties_even() / scale) as i128),
        ("common", Num::Float(f)) if !f.is_finite() => f.into(),
        ("common", Num::Float(f)) if digits >= 0 => {
            format!("{f:.0$}", digits as usize).parse::<f64>().unwrap_or(f).into()
        }
        ("common", Num::Float(f)) => ((f * scale).round_ties_even() / scale).into(),
        ("ceil", value) => ((value.float() * scale).ceil() / scale).into(),
        ("floor", value) => ((value.float() * scale).floor() / scale).into(),
        _ => return Err(refuse("round: the method is common, ceil or floor")),
    })
}

fn formatted(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let values = match (args.by_position, args.by_name) {
        (by_position, by_name) if by_name.is_empty() => {
            Value::from(minijinja::value::Tuple::from(by_position))
        }
        (by_position, by_name) if by_position.is_empty() => Value::from_pairs(by_name),
        _ => return Err(refuse("format: positional and named arguments are mixed")),
    };
    format::printf(cx.budget, &text(cx.budget, value)?, &values).map(Value::from)
}

fn indent(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let by = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = size_or(&width, 4, "indent")?;
            cx.budget.take(width)?;
            " ".repeat(width)
        }
    };
    let (first, blank) = (flag(&first), flag(&blank));
    // As in Jinja, so that the last line end stays.
    let text = text(cx.budget, value)? + "\n";
    let mut made = String::new();
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        made.push_str(if i > 0 { "\n" } else { "" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            cx.budget.take(by.len())?;
            made.push_str(&by);
        }
        made.push_str(line);
    }
    Ok(made.into())
}

fn replaced(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
    let (Some(old), Some(new)) = (old, new) else { return Err(refuse("replace: expected two texts")) };
    let count = int_or(&given(count), -1, "replace")?;
    let (old, new) = (text(cx.budget, &old)?, text(cx.budget, &new)?);
    replace(cx.budget, &text(cx.budget, value)?, &old, &new, count)
}

fn truncate(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [length, killwords, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let text = text(cx.budget, value)?;
    let end = end.map_or(Ok("...".to_owned()), |e| str_of(&e, "truncate").map(str::to_owned))?;
    let length = size_or(&length, 255, "truncate")?;
    let leeway = size_or(&given(leeway), 5, "truncate")?;
    let room = length.checked_sub(end.chars().count());
    let room =
        room.ok_or_else(|| refuse(format!("truncate: expected a length of at least {}", end.len())))?;
    if text.chars().count() <= length + leeway {
        return Ok(text.into());
    }
    let cut: String = text.chars().take(room).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((words, _)) if !flag(&killwords) => words,
        _ => &cut,
    };
    cx.budget.take(end.len())?;
    Ok(format!("{cut}{end}").into())
}

fn urlencode(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("urlencode", [])?;
    let quoted = |value: &Value, in_query: bool| -> Result<String, Error> {
        let text = text(cx.budget, value)?;
        cx.budget.take(3 * text.len())?;
        let mut made = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                    made.push(byte as char)
                }
                b'/' if !in_query => made.push('/'),
                b' ' if in_query => made.push('+'),
                byte => made.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(made)
    };
    let mut pairs = Vec::new();
    if is_dict(value) {
        for key in items(cx.budget, value)? {
            pairs.push(format!("{}={}", quoted(&key, true)?, quoted(&value.get_item(&key)?, true)?));
        }
    } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for pair in items(cx.budget, value)? {
            match &items(cx.budget, &pair)?[..] {
                [key, value] => pairs.push(format!("{}={}", quoted(key, true)?, quoted(value, true)?)),
                _ => return Err(refuse("urlencode: expected pairs")),
            }
        }
    } else {
        return quoted(value, false).map(Value::from);
    }
    Ok(pairs.join("&").into())
}

fn wordcount(cx: &mut Cx, value: &Value, args: Args) -> Made {
    let [] = args.bind("wordcount", [])?;
    let text = text(cx.budget, value)?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
    Ok(words.count().into())
}

/// Calls the filter or test `name` on `value`, with what the caller was given for it.
pub(super) fn arguments(value: &Value, args: &Args) -> Vec<Value> {
    let mut all = vec![value.clone()];
    all.extend(args.by_position.iter().cloned());
    if !args.by_name.is_empty() {
        all.push(
            args.by_name
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone()))
                .collect::<Kwargs>()
                .into(),
        );
    }
    all
}
