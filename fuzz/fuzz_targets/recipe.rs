//! A recipe, then changes to it, a line each, as the command line takes both. What is read as a table is what is read at once;
//! what was read is written and read again, the same, and so are its values one by one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::str::from_utf8;
use ternlm::cli::recipe;
use ternlm::config::Recipe;
use ternlm_fuzz::parts;
use toml::{Table, Value};

/// `KEY=VALUE` for every value of a table, as a sweep hands them on.
fn assignments(before: &str, table: &Table, out: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => assignments(&format!("{before}{key}."), inner, out),
            value => out.push(format!("{before}{key}={value}")),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [text, changes] = parts(data);
    let (Ok(text), Ok(changes)) = (from_utf8(text), from_utf8(changes)) else { return };
    let path = Path::new("recipe.toml");
    let Ok(mut table) = recipe::parse(path, text) else { return };
    let right = |recipe: &Recipe| recipe.validate(path).is_ok();
    let by_table = recipe::from_table(path, table.clone()).ok().filter(right);
    assert_eq!(by_table, toml::from_str::<Recipe>(text).ok().filter(right));
    if let Some(read) = by_table {
        assert_eq!(toml::from_str::<Recipe>(&recipe::to_toml(&read)).expect("what was written"), read);
    }
    if changes.lines().any(|change| recipe::set_text(&mut table, change).is_err()) {
        return;
    }
    let Ok(read) = recipe::resolve(path, table) else { return };
    let written = recipe::parse(path, &recipe::to_toml(&read)).expect("what was written");
    let (mut values, mut again) = (Vec::new(), Table::new());
    assignments("", &written, &mut values);
    values.iter().for_each(|value| recipe::set_text(&mut again, value).expect("a key and a value"));
    for table in [written, again] {
        assert_eq!(recipe::resolve(path, table).expect("what was written"), read);
    }
});
