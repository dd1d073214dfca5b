//! Recipes: built-in ones, files, and what the command line changes in them.

use std::path::{Path, PathBuf};
use toml::{Table, Value};

use crate::config::toml_error::{one_line, where_in};
use crate::config::{ModelConfig, Recipe};
use crate::error::{Error, Result};
use crate::files::{if_there, path_text, read_text};

/// Name and text of every recipe in the binary.
pub const BUILT_IN: [(&str, &str); 10] = [
    ("copy", include_str!("../../recipes/copy.toml")),
    ("recall", include_str!("../../recipes/recall.toml")),
    ("shakespeare", include_str!("../../recipes/shakespeare.toml")),
    ("shakespeare-bytes", include_str!("../../recipes/shakespeare-bytes.toml")),
    ("wiki-75m", include_str!("../../recipes/wiki-75m.toml")),
    ("wiki-75m-best", include_str!("../../recipes/wiki-75m-best.toml")),
    ("wiki-10x", include_str!("../../recipes/wiki-10x.toml")),
    ("convert-smollm2", include_str!("../../recipes/convert-smollm2.toml")),
    ("qwen3-0.6b-all", include_str!("../../recipes/qwen3-0.6b-all.toml")),
    ("qwen3-0.6b-blocks", include_str!("../../recipes/qwen3-0.6b-blocks.toml")),
];

/// Every key, its default and its values.
pub const KEYS: &str = include_str!("../../recipes/keys.md");

/// The recipe of a run, in its folder.
pub const FILE: &str = "recipe.toml";
/// Bytes of a recipe; ours have about a thousand.
pub const MAX_BYTES: u64 = 1 << 20;

/// The TOML of the built-in recipe of that name.
pub fn built_in(name: &Path) -> Option<&'static str> {
    BUILT_IN.iter().find(|(built_in, _)| name == Path::new(built_in)).map(|(_, text)| *text)
}

/// The TOML of a built-in recipe or of a file.
pub fn text(name: &Path) -> Result<String> {
    match built_in(name) {
        Some(text) => Ok(text.to_string()),
        None if name.is_file() => read_text(name, MAX_BYTES),
        None => {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            Err(Error::usage(format!("recipe {name:?}: no such file, nor one of {}", names.join(", "))))
        }
    }
}

/// The table of a built-in recipe or of a file, before anything is judged.
pub fn read(name: &Path) -> Result<Table> {
    parse(name, &text(name)?)
}

/// The table that the text of the file `path` holds.
pub fn parse(path: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| Error::input(path, "TOML", where_in(text, &e), "a recipe"))
}

/// The recipe of the run in the folder `run`; `None` where there is none.
pub fn of_run(run: &Path) -> Result<Option<Recipe>> {
    if run.is_file() {
        return Ok(None);
    }
    let file = run.join(FILE);
    let Some(text) = if_there(read_text(&file, MAX_BYTES))? else { return Ok(None) };
    // Not judged: a later version may allow less.
    from_table(&file, parse(&file, &text)?).map(Some)
}

/// Sets `key` (`train.lr`) to `value`.
pub fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (parents, last) = match key.rsplit_once('.') {
        Some((parents, last)) => (parents.split('.').collect(), last),
        None => (Vec::new(), key),
    };
    let mut table = table;
    for parent in parents {
        let entry = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
        table = entry
            .as_table_mut()
            .ok_or_else(|| Error::usage(format!("--set {key}: {parent} is not a table")))?;
    }
    table.insert(last.to_string(), value);
    Ok(())
}

/// Sets the texts of `--data`, where it names some.
pub fn set_data(table: &mut Table, paths: &[PathBuf]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let texts = paths.iter().map(|path| Value::String(path_text::write(path))).collect();
    set(table, "data.train", Value::Array(texts))
}

/// Applies `key=value` as `--set` gives it; a value that is not TOML is a string.
pub fn set_text(table: &mut Table, assignment: &str) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(Error::usage(format!("--set {assignment}: wanted KEY=VALUE, as in train.lr=1e-3")));
    };
    let parsed: Option<Table> = format!("value = {}", text.trim()).parse().ok();
    let value =
        parsed.and_then(|mut t| t.remove("value")).unwrap_or_else(|| Value::String(text.trim().into()));
    set(table, key.trim(), value)
}

/// Warns of each `key=value` of `--set` that changes nothing.
pub fn tell_idle(recipe: &Recipe, assignments: &[String]) {
    let keys = assignments.iter().filter_map(|text| text.split_once('='));
    for (key, why) in keys.filter_map(|(key, _)| Some((key.trim(), recipe.idle(key.trim())?))) {
        tracing::warn!("--set {key} changes nothing: {why}");
    }
}

/// Fills in what the table does not say of the model.
pub fn set_model(table: &mut Table, model: &ModelConfig) {
    let all = Table::try_from(model).expect("a model has a TOML form");
    let entry = table.entry("model").or_insert_with(|| Value::Table(Table::new()));
    if let Some(said) = entry.as_table_mut() {
        for (key, value) in all {
            said.entry(key).or_insert(value);
        }
    }
}

/// The recipe that the table describes, every default filled in. Values are not yet judged.
pub fn from_table(name: &Path, table: Table) -> Result<Recipe> {
    // A table has lost its lines: as text again it has some, and the error the one that it is about.
    let text = toml::to_string(&table).expect("a table has a TOML form");
    toml::from_str(&text).map_err(|e| {
        Error::input(
            name,
            key_at(&text, &e).as_deref().unwrap_or("recipe"),
            one_line(&e),
            "a known key and value",
        )
    })
}

/// [`from_table`], and every value judged.
pub fn resolve(name: &Path, table: Table) -> Result<Recipe> {
    let recipe = from_table(name, table)?;
    recipe.validate(name)?;
    recipe.judge_new(name)?;
    Ok(recipe)
}

/// The resolved recipe as TOML.
pub fn to_toml(recipe: &Recipe) -> String {
    toml::to_string_pretty(recipe).expect("a recipe has a TOML form")
}

/// The key, with its table, of the line that an error is about.
fn key_at(text: &str, error: &toml::de::Error) -> Option<String> {
    let at = error.span()?.start.min(text.len());
    let (before, rest) = text.split_at(text[..at].rfind('\n').map_or(0, |end| end + 1));
    let (key, _) = rest.lines().next()?.split_once(" = ")?;
    let table = before.lines().rev().find_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    Some(table.into_iter().chain([key]).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_recipe_resolves_and_survives_a_round_trip() {
        for (name, _) in BUILT_IN {
            let mut table = read(name.as_ref()).unwrap();
            set_text(&mut table, "data.train=[\"x.txt\"]").unwrap();
            if table.contains_key("needs_init") {
                set_text(&mut table, "init=somewhere").unwrap();
            }
            if table.contains_key("distill") {
                set_text(&mut table, "distill.teacher=somewhere").unwrap();
            }
            let recipe = resolve(name.as_ref(), table).unwrap();
            assert_eq!(recipe.name, name);
            assert_eq!(resolve(name.as_ref(), to_toml(&recipe).parse().unwrap()).unwrap(), recipe);
        }
    }

    #[test]
    fn overrides_reach_every_kind_of_value() {
        let mut table = read("copy".as_ref()).unwrap();
        for assignment in [
            "train.lr=1e-3",
            "train.steps=7",
            "train.schedule=linear",
            "ternary.group=tensor",
            "seed=3",
            "data.val=a b.txt",
        ] {
            set_text(&mut table, assignment).unwrap();
        }
        let recipe = resolve("copy".as_ref(), table).unwrap();
        assert_eq!((recipe.train.lr, recipe.train.steps, recipe.seed), (1e-3, 7, 3));
        assert_eq!(recipe.ternary.group, crate::ternary::Grouping::Tensor);
        assert_eq!(recipe.data.val, [Path::new("a b.txt")], "one path is a list of one");
    }

    #[test]
    fn a_wrong_key_or_value_is_named() {
        for (assignment, wanted) in [
            ("train.lrr=1", "unknown field `lrr`"),
            ("train.lr=fast", "copy: train.lr: found invalid type: string \"fast\""),
            ("seed=-1", "copy: seed: found invalid"),
            ("model.heads='2'", "copy: model.heads: found invalid type: string \"2\", expected usize"),
            (
                "data.val=3",
                "copy: data.val: found invalid type: integer `3`, expected a path or a list of paths",
            ),
            ("ternary.group=-1", "copy: ternary.group: found group \"-1\": wanted a number of inputs"),
            ("ternary.group=1.5", "copy: ternary.group: found a number of inputs, 1 or more, or \"tensor\""),
            ("name='../x'", "copy: name: found \"../x\", wanted 1 to 100 characters"),
            ("report.min_accuracy=80", "report.min_accuracy: found 80, wanted 0 to 1"),
            ("report.max_train_loss=nan", "report.max_train_loss: found NaN, wanted 0 or more"),
            ("train.lr=-1", "train.lr: found -1"),
            ("train.steps=0", "train.steps: found 0"),
            ("model.kv_heads=3", "kv_heads: found 3, wanted a divisor of heads (4)"),
            ("ternary.group=0", "group"),
            ("seed.x=0", "seed is not a table"),
            ("seed", "wanted KEY=VALUE"),
        ] {
            let mut table = read("copy".as_ref()).unwrap();
            let error =
                set_text(&mut table, assignment).and_then(|()| resolve("copy".as_ref(), table)).unwrap_err();
            assert!(error.to_string().contains(wanted), "{assignment}: {error}");
        }
        let line = parse("a.toml".as_ref(), "name = 'a'\nlr = = 3").unwrap_err().to_string();
        assert!(line.starts_with("a.toml: TOML: found") && line.contains("(line 2)"), "{line}");
        assert!(read("no-such-recipe".as_ref()).unwrap_err().to_string().contains("wiki-75m"));
    }
}
