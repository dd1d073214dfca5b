//! `tojson` as Hugging Face defines it: Python's `json.dumps` with `ensure_ascii` off.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::budget::{Budget, refuse};
use super::values::*;

pub(super) fn tojson(budget: &Budget, value: &Value, args: Args) -> Made {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort_keys] = args.bind("tojson", names)?;
    let indent = match given(indent) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => {
            let width = size_or(&Some(width), 0, "tojson: indent")?;
            budget.take(width)?;
            Some(" ".repeat(width))
        }
    };
    let separators = match given(separators) {
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
        Some(pair) => match &items(budget, &pair)?[..] {
            [item, key] => [str_of(item, "tojson")?.to_owned(), str_of(key, "tojson")?.to_owned()],
            _ => return Err(refuse("tojson: separators are two texts")),
        },
    };
    budget.walk(value)?;
    let (ascii, sort_keys) = (flag(&ascii), flag(&sort_keys));
    let mut writer = Writer { budget, out: String::new(), ascii, indent, separators, sort_keys };
    writer.value(value, 1)?;
    Ok(writer.out.into())
}

struct Writer<'a> {
    budget: &'a Budget,
    out: String,
    ascii: bool,
    indent: Option<String>,
    separators: [String; 2],
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number_text(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable if is_list(value) => {
                let list = items(self.budget, value)?;
                self.out.push('[');
                for (i, item) in list.iter().enumerate() {
                    self.before_item(i, depth)?;
                    self.value(item, depth + 1)?;
                }
                self.close(']', list.len(), depth)?;
            }
            ValueKind::Map if is_dict(value) => {
                let mut keys = items(self.budget, value)?;
                if self.sort_keys {
                    keys = sorted(keys, &mut |a, b| order(self.budget, a, b))?;
                }
                self.out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.before_item(i, depth)?;
                    match key.kind() {
                        ValueKind::String => self.text(key.as_str().unwrap_or_default())?,
                        ValueKind::None => self.text("null")?,
                        ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" })?,
                        ValueKind::Number => self.text(&number_text(key))?,
                        _ => return Err(refuse(format!("tojson: a key of type {}", type_name(key)))),
                    }
                    self.budget.take(self.separators[1].len())?;
                    self.out.push_str(&self.separators[1]);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close('}', keys.len(), depth)?;
            }
            _ => return Err(refuse(format!("tojson: {} is not JSON serializable", type_name(value)))),
        }
        Ok(())
    }

    fn before_item(&mut self, i: usize, depth: usize) -> Result<(), Error> {
        if i > 0 {
            self.budget.take(self.separators[0].len())?;
            self.out.push_str(&self.separators[0]);
        }
        self.new_line(depth)
    }

    fn close(&mut self, bracket: char, items: usize, depth: usize) -> Result<(), Error> {
        if items > 0 {
            self.new_line(depth - 1)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.budget.take_times(depth, indent.len())?;
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        // A control character takes six, one outside the basic plane twelve.
        self.budget.take(5 * text.len())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if c < ' ' => self.out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

fn number_text(value: &Value) -> String {
    match number(value) {
        Some(Num::Float(f)) if f.is_nan() => "NaN".into(),
        Some(Num::Float(f)) if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Some(Num::Float(f)) => float_text(f),
        _ => value.to_string(),
    }
}
