//! Python's two ways to format: `'%s' % value` and `'{}'.format(value)`.

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::budget::{Budget, refuse};
use super::methods::pad;
use super::ops;
use super::values::*;

/// Characters that a field may be widened to, and digits that it may ask for.
const MAX_WIDTH: usize = 10_000;

fn width(digits: &str) -> Result<usize, Error> {
    let width = if digits.is_empty() { Ok(0) } else { digits.parse() };
    width
        .ok()
        .filter(|w| *w <= MAX_WIDTH)
        .ok_or_else(|| refuse(format!("a format of {digits} characters, at most {MAX_WIDTH} are supported")))
}

/// The digits at the start of `text`, and what follows.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len())
}

fn native(budget: &Budget, style: FormatStyle, spec: &str, value: Value) -> Result<String, Error> {
    // The longest float has 309 digits before its point.
    budget.take(2 * MAX_WIDTH.min(400))?;
    let made = formatting::format(style, spec, &[value])?;
    budget.take(made.len())?;
    Ok(made)
}

/// `s`, `r` or `a`: `str`, `repr` or `ascii`.
fn converted(budget: &Budget, value: &Value, kind: char) -> Result<String, Error> {
    match kind {
        's' => text(budget, value),
        'r' => repr(budget, value),
        _ => {
            let mut made = String::new();
            for c in repr(budget, value)?.chars() {
                if c.is_ascii() { made.push(c) } else { made.push_str(&escape(c)) }
            }
            Ok(made)
        }
    }
}

/// `template % values`.
pub(super) fn printf(budget: &Budget, template: &str, values: &Value) -> Result<String, Error> {
    budget.take(template.len())?;
    let list = if values.is_tuple() { items(budget, values)? } else { vec![values.clone()] };
    let mut list = list.into_iter();
    let mut named = false;
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        budget.take(at)?;
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let (name, after) = inside.split_once(')').ok_or_else(|| refuse("%: a key without an end"))?;
            if !is_dict(values) {
                return Err(refuse("%: a key, but no dict"));
            }
            let found = values.get_item(&name.into())?;
            if found.is_undefined() {
                return Err(refuse(format!("%: no key '{name}'")));
            }
            (key, rest, named) = (Some(found), after, true);
        }
        let mut next =
            |what: &str| list.next().ok_or_else(|| refuse(format!("%: not enough arguments for {what}")));
        let flags = &rest[..rest.len() - rest.trim_start_matches(['#', '0', '-', ' ', '+']).len()];
        rest = &rest[flags.len()..];
        let mut flags = flags.to_owned();
        let mut size = |rest: &mut &str, flags: &mut String| -> Result<usize, Error> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                let given = integer(&next("*")?).ok_or_else(|| refuse("%: * wants an int"))?;
                flags.push_str(if given < 0 { "-" } else { "" });
                return width(&given.unsigned_abs().to_string());
            }
            let (number, after) = digits(rest);
            *rest = after;
            width(number)
        };
        let wide = size(&mut rest, &mut flags)?;
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            precision = Some(size(&mut rest, &mut String::new())?);
        }
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let kind = rest.chars().next().ok_or_else(|| refuse("%: incomplete format"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = key.map_or_else(|| next(&format!("%{kind}")), Ok)?;
        let places = precision.map_or(String::new(), |p| format!(".{p}"));
        let numeric = |value: Value, kind: char| {
            let spec = if wide == 0 {
                format!("%{flags}{places}{kind}")
            } else {
                format!("%{flags}{wide}{places}{kind}")
            };
            native(budget, FormatStyle::Printf, &spec, value)
        };
        let float = |value: &Value| number(value).map(|n| Value::from(n.float()));
        let wrong = || refuse(format!("%{kind}: a number is required, not {}", type_name(&value)));
        let made = match kind {
            's' | 'r' | 'a' => {
                let whole = converted(budget, &value, kind)?;
                let cut: String = whole.chars().take(precision.unwrap_or(usize::MAX)).collect();
                let left = flags.contains('-');
                pad(budget, &cut, wide, ' ', |missing| if left { 0 } else { missing })?.to_string()
            }
            'c' => {
                let one = match integer(&value) {
                    Some(code) => u32::try_from(code).ok().and_then(char::from_u32).map(String::from),
                    None => value.as_str().filter(|s| s.chars().count() == 1).map(str::to_owned),
                };
                let one = one.ok_or_else(wrong)?;
                pad(budget, &one, wide, ' ', |missing| if flags.contains('-') { 0 } else { missing })?
                    .to_string()
            }
            'd' | 'i' | 'u' => match number(&value).ok_or_else(wrong)? {
                Num::Int(i) => numeric(int(i), 'd')?,
                Num::Float(f) if f.is_finite() => numeric(int(f.trunc() as i128), 'd')?,
                Num::Float(_) => return Err(wrong()),
            },
            'x' | 'X' | 'o' => numeric(int(integer(&value).ok_or_else(wrong)?), kind)?,
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => numeric(float(&value).ok_or_else(wrong)?, kind)?,
            _ => return Err(refuse(format!("%: unsupported format character '{kind}'"))),
        };
        out.push_str(&made);
    }
    let one = named || is_dict(values) || (is_list(values) && !values.is_tuple());
    if list.len() > 0 && !one {
        return Err(refuse("%: not all arguments were converted"));
    }
    budget.take(rest.len())?;
    Ok(out + rest)
}

/// `template.format(*args)`.
pub(super) fn braces(budget: &Budget, template: &str, args: &Args) -> Result<String, Error> {
    let mut fields = Fields { budget, args, next: Some(0), numbered: false };
    fields.format(template, 0)
}

struct Fields<'a> {
    budget: &'a Budget,
    args: &'a Args,
    /// The number of the next `{}`; `None` after a `{0}`.
    next: Option<usize>,
    numbered: bool,
}

impl Fields<'_> {
    fn format(&mut self, template: &str, depth: usize) -> Result<String, Error> {
        if depth > 1 {
            return Err(refuse("format: fields nested too deeply"));
        }
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            self.budget.take(at)?;
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(refuse("format: a single '}'"));
            }
            let mut open = 1;
            let end = rest.find(|c| {
                open += i32::from(c == '{') - i32::from(c == '}');
                open == 0
            });
            let field = &rest[..end.ok_or_else(|| refuse("format: a '{' without an end"))?];
            rest = &rest[field.len() + 1..];
            out.push_str(&self.field(field, depth)?);
        }
        self.budget.take(rest.len())?;
        Ok(out + rest)
    }

    /// `name!conversion:spec`.
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        // A colon in an index does not end the name.
        let mut inside = false;
        let end = field.find(|c| {
            inside = if c == '[' { true } else { inside && c != ']' };
            !inside && (c == '!' || c == ':')
        });
        let (name, after) = field.split_at(end.unwrap_or(field.len()));
        let (conversion, spec) = match after.strip_prefix('!') {
            Some(converted) => converted.split_once(':').unwrap_or((converted, "")),
            None => ("", after.strip_prefix(':').unwrap_or(after)),
        };
        let value = self.value(name)?;
        let spec = if spec.contains('{') { self.format(spec, depth + 1)? } else { spec.to_owned() };
        let value = match conversion {
            "" => value,
            "s" => converted(self.budget, &value, 's')?.into(),
            "r" => converted(self.budget, &value, 'r')?.into(),
            "a" => converted(self.budget, &value, 'a')?.into(),
            other => return Err(refuse(format!("format: unknown conversion '{other}'"))),
        };
        formatted(self.budget, &value, &spec)
    }

    /// `name.attribute[item]`.
    fn value(&mut self, path: &str) -> Result<Value, Error> {
        let (name, mut rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        let position = match (name.parse::<usize>(), &mut self.next) {
            (Ok(_), Some(_)) if self.numbered => {
                return Err(refuse("format: numbered and plain fields are mixed"));
            }
            (Ok(i), next) => {
                *next = None;
                Some(i)
            }
            // Jinja's formatter does not number `{[0]}`.
            (Err(_), Some(next)) if path.is_empty() => {
                self.numbered = true;
                *next += 1;
                Some(*next - 1)
            }
            (Err(_), None) if path.is_empty() => {
                return Err(refuse("format: numbered and plain fields are mixed"));
            }
            _ => None,
        };
        let found = match position {
            Some(i) => self.args.by_position.get(i),
            None => self.args.by_name.iter().find(|(n, _)| n == name).map(|(_, value)| value),
        };
        let mut value =
            found.cloned().ok_or_else(|| refuse(format!("format: no argument for '{{{path}}}'")))?;
        while !rest.is_empty() {
            let key: Value;
            if let Some(attribute) = rest.strip_prefix('.') {
                let (name, after) = attribute.split_at(attribute.find(['.', '[']).unwrap_or(attribute.len()));
                (key, rest) = (name.into(), after);
            } else {
                let inside = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
                let (name, after) = inside.ok_or_else(|| refuse("format: a '[' without an end"))?;
                (key, rest) = (name.parse::<usize>().map_or_else(|_| name.into(), Value::from), after);
            }
            value = ops::item(self.budget, &value, &key)?;
        }
        Ok(value)
    }
}

/// `format(value, spec)`.
fn formatted(budget: &Budget, value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return text(budget, value);
    }
    let numeric = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !numeric && value.as_str().is_none() {
        return Err(refuse(format!("format: unsupported format '{spec}' for {}", type_name(value))));
    }
    let mut chars = spec.chars();
    let is_align = |c: Option<char>| c.is_some_and(|c| "<>^=".contains(c));
    let (first, second) = (chars.next(), chars.next());
    let (fill, align, mut rest) = match (first, second) {
        (Some(fill), align) if is_align(align) => (Some(fill), align, chars.as_str()),
        (align, _) if is_align(align) => (None, align, &spec[1..]),
        _ => (None, None, spec),
    };
    let flags = &rest[..rest.len() - rest.trim_start_matches(['+', '-', ' ', '#', '0']).len()];
    rest = &rest[flags.len()..];
    let (wide, after) = digits(rest);
    let (wide, grouping) = (width(wide)?, &after[..after.len() - after.trim_start_matches([',', '_']).len()]);
    let mut places = None;
    rest = &after[grouping.len()..];
    if let Some(after) = rest.strip_prefix('.') {
        let (number, after) = digits(after);
        (places, rest) = (Some(width(number)?), after);
    }
    // A zero before the width is a fill.
    let fill = fill.unwrap_or(if flags.ends_with('0') { '0' } else { ' ' });
    let put = |text: &str, wide: usize, by_default: char| {
        let made = pad(budget, text, wide, fill, |missing| match align.unwrap_or(by_default) {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        });
        made.map(|v| v.to_string())
    };
    if let Some(text) = value.as_str() {
        if !matches!(rest, "" | "s")
            || align == Some('=')
            || !grouping.is_empty()
            || !flags.trim_matches('0').is_empty()
        {
            return Err(refuse(format!("format: invalid format '{spec}' for a str")));
        }
        let cut: String = text.chars().take(places.unwrap_or(usize::MAX)).collect();
        return put(&cut, wide, '<');
    }
    let point = places.map_or(String::new(), |p| format!(".{p}"));
    if rest == "%" {
        let flags = flags.trim_end_matches('0');
        let spec = format!("{{:{flags}{grouping}{}f}}", if point.is_empty() { ".6" } else { &point });
        let hundredfold = number(value).map_or(0.0, Num::float) * 100.0;
        return put(&(native(budget, FormatStyle::StrFormat, &spec, hundredfold.into())? + "%"), wide, '>');
    }
    let value = match number(value) {
        Some(Num::Int(i)) if rest.contains(['e', 'E', 'f', 'F', 'g', 'G']) => Value::from(i as f64),
        Some(Num::Int(i)) => int(i),
        _ => value.clone(),
    };
    if let Some(align) = align {
        let unfilled = flags.trim_end_matches('0');
        let spec = format!("{{:{unfilled}{grouping}{point}{rest}}}");
        let made = native(budget, FormatStyle::StrFormat, &spec, value)?;
        // Between sign and digits.
        let sign = if align == '=' && made.starts_with(['+', '-', ' ']) { 1 } else { 0 };
        let digits = put(&made[sign..], wide - sign.min(wide), '>')?;
        return Ok(made[..sign].to_owned() + &digits);
    }
    let wide = if wide == 0 { String::new() } else { wide.to_string() };
    native(budget, FormatStyle::StrFormat, &format!("{{:{flags}{wide}{grouping}{point}{rest}}}"), value)
}
