//! The methods of Python's `str`, `list`, `tuple` and `dict` that do not change their object.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::budget::{Budget, ITEM, refuse};
use super::format;
use super::ops::Cx;
use super::values::*;

/// The names behind which [`call`] stands, with a dot so that no template can have a variable of this name.
#[rustfmt::skip]
pub(super) const METHODS: &[&str] = &[
    ".capitalize", ".casefold", ".center", ".changed", ".copy", ".count", ".cycle", ".endswith", ".find", ".format", ".format_map", ".get",
    ".index", ".isalnum", ".isalpha", ".isascii", ".isdecimal", ".isdigit", ".islower", ".isnumeric", ".isspace",
    ".istitle", ".isupper", ".items", ".join", ".keys", ".ljust", ".lower", ".lstrip", ".partition", ".removeprefix",
    ".removesuffix", ".replace", ".rfind", ".rindex", ".rjust", ".rpartition", ".rsplit", ".rstrip", ".split",
    ".splitlines", ".startswith", ".strip", ".swapcase", ".title", ".upper", ".values", ".zfill",
];

/// Names that a dictionary answers to with a method, be there a key or not.
pub(super) const DICT_METHODS: &[&str] = &[".copy", ".get", ".items", ".keys", ".values"];

pub(super) fn call(cx: &mut Cx, name: &str, receiver: &Value, values: &[Value]) -> Made {
    let args = || Args::new(cx.budget, values);
    match receiver.kind() {
        ValueKind::String => on_text(cx.budget, name, receiver.as_str().unwrap_or_default(), args()?),
        ValueKind::Seq | ValueKind::Iterable if is_list(receiver) => {
            on_list(cx.budget, name, receiver, args()?)
        }
        ValueKind::Map if is_dict(receiver) => match on_dict(cx.budget, name, receiver, args()?) {
            Err(e) if e.kind() == ErrorKind::UnknownMethod => of_object(cx, name, receiver, values),
            made => made,
        },
        _ => of_object(cx, name, receiver, values),
    }
}

/// The engine's own methods: those of `loop`, and macros that a namespace holds.
fn of_object(cx: &mut Cx, name: &str, receiver: &Value, values: &[Value]) -> Made {
    // `loop.changed` compares them with the last ones, and keeps them.
    let keeps = name == "changed";
    let walk = |value| if keeps { cx.budget.walk_to_keep(value) } else { cx.budget.walk(value) };
    values.iter().try_for_each(walk)?;
    if name == "cycle" && values.is_empty() {
        return Err(refuse("cycle: expected a value"));
    }
    receiver.call_method(cx.state, name, values)
}

fn unknown() -> Error {
    Error::from(ErrorKind::UnknownMethod)
}

fn on_dict(budget: &Budget, name: &str, dict: &Value, args: Args) -> Made {
    let entries = || -> Result<Vec<(Value, Value)>, Error> {
        let keys = items(budget, dict)?;
        keys.into_iter().map(|key| dict.get_item(&key).map(|value| (key, value))).collect()
    };
    if name == "get" {
        let [key, default] = args.bind(name, ["key", "default"])?;
        let key = key.ok_or_else(|| refuse("get: expected a key"))?;
        budget.walk(&key)?;
        let found = dict.get_item(&key)?;
        return Ok(if found.is_undefined() { default.unwrap_or(().into()) } else { found });
    }
    if !DICT_METHODS.iter().any(|method| method[1..] == *name) {
        return Err(unknown());
    }
    let [] = args.bind(name, [])?;
    Ok(match name {
        "items" => entries()?.into_iter().map(|(k, v)| Value::from(Tuple::from([k, v]))).collect(),
        "keys" => items(budget, dict)?.into(),
        "values" => entries()?.into_iter().map(|(_, v)| v).collect(),
        _ => Value::from_pairs(entries()?),
    })
}

fn on_list(budget: &Budget, name: &str, list: &Value, args: Args) -> Made {
    let all = items(budget, list)?;
    match name {
        "count" | "index" => {
            let [what, start, stop] = args.bind(name, ["value", "start", "stop"])?;
            let what = what.ok_or_else(|| refuse(format!("{name}: expected a value")))?;
            let (from, to) = range(all.len(), &start, &stop, name)?;
            let mut count = 0;
            for (i, item) in all.iter().enumerate().take(to).skip(from) {
                if equal(budget, item, &what)? {
                    if name == "index" {
                        return Ok(i.into());
                    }
                    count += 1;
                }
            }
            if name == "index" {
                Err(refuse("index: the value is not in the list"))
            } else {
                Ok(count.into())
            }
        }
        "copy" if !list.is_tuple() => Ok(all.into()),
        _ => Err(unknown()),
    }
}

/// `start:stop` of a sequence of `len`, as positions.
fn range(
    len: usize,
    start: &Option<Value>,
    stop: &Option<Value>,
    name: &str,
) -> Result<(usize, usize), Error> {
    let position =
        |i: i128| (if i < 0 { i.saturating_add(len as i128) } else { i }).clamp(0, len as i128) as usize;
    let start = int_or(&given(start.clone()), 0, name)?;
    let stop = int_or(&given(stop.clone()), len as i128, name)?;
    // A start behind the end finds nothing, not even the empty text.
    Ok((if start > len as i128 { usize::MAX } else { position(start) }, position(stop)))
}

/// Python's whitespace.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let away = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(away) } else { text };
    if right { text.trim_end_matches(away) } else { text }
}

/// The methods `strip`, `lstrip` and `rstrip`, and the filter `trim`.
pub(super) fn stripped(budget: &Budget, name: &str, text: &str, args: Args) -> Made {
    let [chars] = args.bind(name, ["chars"])?;
    let chars = given(chars);
    let chars = chars.as_ref().map(|c| str_of(c, name)).transpose()?;
    // Every character is looked for among these.
    budget.take_times(text.len(), chars.map_or(0, str::len) / 16)?;
    Ok(strip(text, chars, name != "rstrip", name != "lstrip").into())
}

pub(super) fn replace(budget: &Budget, text: &str, old: &str, new: &str, count: i128) -> Made {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    budget.take(text.len())?;
    budget.take_times(text.matches(old).count().min(count), new.len())?;
    Ok(text.replacen(old, new, count).into())
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// Python's line ends, of which `\r\n` is one.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut made = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let width = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        made.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    if !rest.is_empty() {
        made.push(rest);
    }
    made
}

/// `text` within `width` characters. `left`: the share of the fill that goes before it.
pub(super) fn pad(
    budget: &Budget,
    text: &str,
    width: usize,
    fill: char,
    left: impl Fn(usize) -> usize,
) -> Made {
    let missing = width.saturating_sub(text.chars().count());
    budget.take_times(missing, fill.len_utf8())?;
    budget.take(text.len())?;
    let before = left(missing);
    let fills = |n: usize| fill.to_string().repeat(n);
    Ok((fills(before) + text + &fills(missing - before)).into())
}

/// The share that `str.center` puts before a text.
pub(super) fn center(missing: usize, width: usize) -> usize {
    missing / 2 + (missing & width & 1)
}

fn split(budget: &Budget, text: &str, args: Args, from_right: bool) -> Made {
    let [separator, most] = args.bind("split", ["sep", "maxsplit"])?;
    let most = usize::try_from(int_or(&most, -1, "split")?).unwrap_or(usize::MAX);
    budget.take(text.len())?;
    let mut parts: Vec<&str> = Vec::new();
    match given(separator) {
        Some(separator) => {
            let separator = str_of(&separator, "split")?;
            if separator.is_empty() {
                return Err(refuse("split: empty separator"));
            }
            let pieces = most.saturating_add(1);
            if from_right {
                parts.extend(text.rsplitn(pieces, separator));
            } else {
                parts.extend(text.splitn(pieces, separator));
            }
        }
        // Runs of whitespace separate, and those at the ends do not count.
        None => {
            let mut rest = strip(text, None, true, true);
            let around = |rest: &str| if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
            while let Some(at) = around(rest).filter(|_| parts.len() < most) {
                let next = at + rest[at..].chars().next().map_or(1, char::len_utf8);
                let (part, left) =
                    if from_right { (&rest[next..], &rest[..at]) } else { (&rest[..at], &rest[next..]) };
                parts.push(part);
                rest = strip(left, None, !from_right, from_right);
            }
            if !rest.is_empty() {
                // What was not split keeps the whitespace at its other end.
                let cut = parts.len() >= most;
                let whole = match (cut, from_right) {
                    (false, _) => rest,
                    (true, false) => &text[rest.as_ptr() as usize - text.as_ptr() as usize..],
                    (true, true) => &text[..rest.as_ptr() as usize - text.as_ptr() as usize + rest.len()],
                };
                parts.push(whole);
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    budget.take_times(parts.len(), ITEM)?;
    Ok(parts.into_iter().map(Value::from).collect())
}

fn find(budget: &Budget, name: &str, text: &str, args: Args) -> Made {
    let [what, start, stop] = args.bind(name, ["sub", "start", "end"])?;
    let what = what.ok_or_else(|| refuse(format!("{name}: expected a text")))?;
    budget.take(text.len())?;
    let count = text.chars().count();
    let (from, to) = range(count, &start, &stop, name)?;
    let byte = |i: usize| text.char_indices().nth(i).map_or(text.len(), |(at, _)| at);
    let part = (from <= to).then(|| &text[byte(from)..byte(to)]);
    if name == "startswith" || name == "endswith" {
        let list = if what.is_tuple() { items(budget, &what)? } else { vec![what] };
        for affix in &list {
            let affix = str_of(affix, name)?;
            budget.take(affix.len())?;
            let is = |p: &str| if name == "endswith" { p.ends_with(affix) } else { p.starts_with(affix) };
            if part.is_some_and(is) {
                return Ok(true.into());
            }
        }
        return Ok(false.into());
    }
    let what = str_of(&what, name)?;
    if name == "count" {
        return Ok(part.map_or(0, |p| p.matches(what).count()).into());
    }
    let found = part.and_then(|p| if name.starts_with('r') { p.rfind(what) } else { p.find(what) });
    match found {
        Some(at) => Ok((from + part.map_or(0, |p| p[..at].chars().count())).into()),
        None if name.ends_with("index") => Err(refuse(format!("{name}: substring not found"))),
        None => Ok((-1).into()),
    }
}

/// `isalpha` and the like.
fn is(name: &str, text: &str) -> Option<bool> {
    let all = |of: fn(char) -> bool| !text.is_empty() && text.chars().all(of);
    let cased = |of: fn(char) -> bool, not: fn(char) -> bool| text.chars().any(of) && !text.chars().any(not);
    Some(match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        // Superscripts and fractions outside Latin-1 are not told apart.
        "isdecimal" => all(|c| c.is_numeric() && !"²³¹¼½¾".contains(c)),
        "isdigit" => all(|c| c.is_numeric() && !"¼½¾".contains(c)),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "istitle" => title(text) == text && text.chars().any(|c| c.is_uppercase()),
        _ => return None,
    })
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut made = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            made.extend(c.to_lowercase())
        } else {
            made.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    made
}

fn on_text(budget: &Budget, name: &str, text: &str, args: Args) -> Made {
    budget.take(text.len())?;
    let missing = |what: &str| refuse(format!("{name}: expected {what}"));
    match name {
        "format" => return format::braces(budget, text, &args).map(Value::from),
        "format_map" => {
            let [map] = args.bind(name, ["mapping"])?;
            let map = map.filter(is_dict).ok_or_else(|| missing("a dict"))?;
            let mut args = Args { by_position: Vec::new(), by_name: Vec::new() };
            for key in items(budget, &map)? {
                let Some(name) = key.as_str() else { continue };
                budget.take(name.len())?;
                args.by_name.push((name.to_owned(), map.get_item(&key)?));
            }
            return format::braces(budget, text, &args).map(Value::from);
        }
        "split" | "rsplit" => return split(budget, text, args, name == "rsplit"),
        "count" | "find" | "index" | "rfind" | "rindex" | "startswith" | "endswith" => {
            return find(budget, name, text, args);
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else { return Err(missing("two texts")) };
            return replace(
                budget,
                text,
                str_of(&old, name)?,
                str_of(&new, name)?,
                int_or(&count, -1, name)?,
            );
        }
        "strip" | "lstrip" | "rstrip" => return stripped(budget, name, text, args),
        "join" => {
            let [list] = args.bind(name, ["iterable"])?;
            let list = items(budget, &list.ok_or_else(|| missing("a list"))?)?;
            let mut made = String::new();
            for (i, item) in list.iter().enumerate() {
                let item = str_of(item, name)?;
                budget.take(item.len() + text.len())?;
                made.push_str(if i > 0 { text } else { "" });
                made.push_str(item);
            }
            return Ok(made.into());
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let lines = lines(text, flag(&keep));
            budget.take_times(lines.len(), ITEM)?;
            return Ok(lines.into_iter().map(Value::from).collect());
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = separator.ok_or_else(|| missing("a separator"))?;
            let separator = str_of(&separator, name)?;
            if separator.is_empty() {
                return Err(missing("a separator that is not empty"));
            }
            let parts =
                if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match parts {
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            return Ok(Tuple::from(parts.map(Value::from)).into());
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["affix"])?;
            let affix = affix.ok_or_else(|| missing("a text"))?;
            let affix = str_of(&affix, name)?;
            let cut =
                if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            return Ok(cut.unwrap_or(text).into());
        }
        "ljust" | "rjust" | "center" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = size_or(&Some(width.ok_or_else(|| missing("a width"))?), 0, name)?;
            let fill = fill.map_or(Ok(" ".to_owned()), |f| str_of(&f, name).map(str::to_owned))?;
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(missing("one character"));
            };
            return pad(budget, text, width, fill, |missing| match name {
                "ljust" => 0,
                "rjust" => missing,
                _ => center(missing, width),
            });
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"])?;
            let width = size_or(&Some(width.ok_or_else(|| missing("a width"))?), 0, name)?;
            let sign = text.len() - text.strip_prefix(['+', '-']).unwrap_or(text).len();
            let (sign, digits) = text.split_at(sign);
            let digits = pad(budget, digits, width.saturating_sub(sign.len()), '0', |missing| missing)?;
            return Ok((sign.to_owned() + digits.as_str().unwrap_or_default()).into());
        }
        _ => {}
    }
    let [] = args.bind(name, [])?;
    // Upper case can be longer: three characters for one.
    budget.take(2 * text.len())?;
    Ok(match name {
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "capitalize" => capitalize(text).into(),
        "title" => title(text).into(),
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        _ => is(name, text).map(Value::from).ok_or_else(unknown)?,
    })
}
