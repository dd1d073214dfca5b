//! What a sweep runs: a recipe, settings that all runs share, values to be tried, seeds.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Value;

use crate::config::TOKEN_KEYS;
use crate::config::toml_error::where_in;
use crate::error::{Error, Result};
use crate::files::read_text;

/// The plan in the folder of a sweep.
pub const FILE: &str = "sweep.toml";
/// Bytes of a plan.
const MAX_BYTES: u64 = 1 << 20;
/// Runs of a sweep; more are a slip of the hand.
const MOST: usize = 10_000;

/// A sweep, as its TOML file says it.
///
/// ```toml
/// recipe = "shakespeare"
/// data = ["input.txt"]
/// seeds = [0, 1, 2]
///
/// [set]
/// "train.steps" = 300
///
/// [grid]
/// "train.muon_lr" = [0.01, 0.02]
/// "ternary.scope" = ["all", "none"]
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// A built-in recipe or a TOML file.
    pub recipe: PathBuf,
    /// Texts to train on, as `ternlm train --data` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Seeds that every setting is run with.
    pub seeds: Vec<u64>,
    /// Keys of the recipe that are the same in all runs.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// Keys of the recipe and the values to be tried: every combination is.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
}

/// One training of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Keys of the grid with this run's values.
    pub settings: Vec<(String, Value)>,
    pub seed: u64,
}

impl Plan {
    /// # Errors
    /// A file that is no plan, or a plan without runs or with too many.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, MAX_BYTES)?;
        let plan: Plan = toml::from_str(&text).map_err(|e| {
            let wanted = "recipe, seeds, and tables set and grid";
            Error::input(path, "sweep", where_in(&text, &e), wanted)
        })?;
        plan.judge(path)?;
        Ok(plan)
    }

    /// # Errors
    /// A plan without runs or with too many; a key in two places; two runs in one folder.
    pub fn judge(&self, path: &Path) -> Result<()> {
        let bad = |field: &str, found: String, wanted: &str| Err(Error::input(path, field, found, wanted));
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        if seeds.is_empty() || seeds.len() < self.seeds.len() || seeds.iter().any(|s| *s > i64::MAX as u64) {
            let wanted = format!("one or more, each once, at most {}", i64::MAX);
            return bad("seeds", format!("{:?}", self.seeds), &wanted);
        }
        for (key, values) in &self.grid {
            let field = format!("grid.{key:?}");
            if values.is_empty() || (1..values.len()).any(|i| values[..i].contains(&values[i])) {
                return bad(&field, format!("{} values", values.len()), "one or more, each once");
            }
            if self.set.contains_key(key) {
                return bad(&field, "a key of [set]".into(), "a key in one of the two tables");
            }
        }
        if let Some(key) =
            self.set.keys().chain(self.grid.keys()).find(|key| *key == "seed" || *key == "name")
        {
            return bad(key, "a value".into(), "seeds in `seeds`, and no name");
        }
        // They decide what is held out.
        if let Some(key) = self
            .grid
            .keys()
            .find(|key| ["data.val", "data.val_fraction", "data.field"].contains(&key.as_str()))
        {
            let field = format!("grid.{key:?}");
            return bad(&field, "a text to be judged by for each run".into(), "the same one for all");
        }
        let settings = self.grid.values().try_fold(1usize, |n, values| n.checked_mul(values.len()));
        if settings.and_then(|n| n.checked_mul(self.seeds.len())).is_none_or(|runs| runs > MOST) {
            return bad("grid", "too many combinations".into(), &format!("at most {MOST} runs"));
        }
        // Values that are not the same may be written alike, as 1 and "1" are.
        let (runs, mut folders) = (self.runs(), BTreeMap::new());
        for run in &runs {
            if let Some(other) = folders.insert(run.folder(), run)
                && let Some((a, b)) = other.settings.iter().zip(&run.settings).find(|(a, b)| a.1 != b.1)
            {
                let found = format!("{} and {}, which name one folder", a.1, b.1);
                return bad(&format!("grid.{:?}", a.0), found, "values that name a folder each");
            }
        }
        Ok(())
    }

    /// [`Plan::judge`] of what is to be trained. A sweep that is there can be shown.
    ///
    /// # Errors
    /// A text in two places; one for each run to be judged by.
    pub fn judge_new(&self, path: &Path) -> Result<()> {
        let key = "data.train";
        if !self.data.is_empty() && (self.set.contains_key(key) || self.grid.contains_key(key)) {
            return Err(Error::input(path, key, "texts beside those of `data`", "one of the two"));
        }
        if self.grid.contains_key("data.join") {
            let found = "a text to be judged by for each run";
            return Err(Error::input(path, "grid.\"data.join\"", found, "the same one for all"));
        }
        Ok(())
    }

    /// Whether a token of one run is not a token of every other.
    pub fn varies_tokens(&self) -> bool {
        // A model to start from may have other ones.
        TOKEN_KEYS.iter().chain(&["init"]).any(|key| self.grid.contains_key(*key))
    }

    /// Every combination with every seed, seed by seed: the first seed of all settings comes before the second of any, so
    /// that an early look sees them all.
    pub fn runs(&self) -> Vec<Run> {
        let mut settings: Vec<Vec<(String, Value)>> = vec![Vec::new()];
        for (key, values) in &self.grid {
            let longer = |before: &Vec<(String, Value)>| {
                let before = before.clone();
                values.iter().map(move |value| {
                    before.iter().cloned().chain([(key.clone(), value.clone())]).collect::<Vec<_>>()
                })
            };
            settings = settings.iter().flat_map(longer).collect();
        }
        let of_seed = |seed: &u64| {
            let seed = *seed;
            settings.iter().map(move |settings| Run { settings: settings.clone(), seed })
        };
        self.seeds.iter().flat_map(of_seed).collect()
    }

    /// Why results of `earlier`, a plan of the same folder, cannot stand beside those of this one. Values and seeds may be
    /// added and taken away.
    pub fn differs(&self, earlier: &Plan) -> Option<String> {
        let of = |plan: &Plan| {
            let keys: Vec<String> = plan.grid.keys().cloned().collect();
            [
                ("recipe", plan.recipe.display().to_string()),
                ("data", format!("{:?}", plan.data)),
                ("set", toml::to_string(&plan.set).unwrap_or_default()),
                ("keys of the grid", keys.join(", ")),
            ]
        };
        let (now, before) = (of(self), of(earlier));
        let at = now.iter().zip(&before).find(|(a, b)| a.1 != b.1)?;
        let line = |text: &str| text.trim().replace('\n', ", ");
        Some(format!("{}: found {}, wanted {}", at.0.0, line(&at.0.1), line(&at.1.1)))
    }
}

impl Run {
    /// `train.lr=0.001, ternary.scope=all`, or words that say so without a grid.
    pub fn name(settings: &[(String, Value)]) -> String {
        if settings.is_empty() { "the recipe as it is".into() } else { Self::label(settings) }
    }

    /// As [`Run::name`], but nothing without a grid.
    fn label(settings: &[(String, Value)]) -> String {
        let one = |(key, value): &(String, Value)| format!("{key}={}", shown(value));
        settings.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The folder of the run in that of the sweep; another one for every run.
    pub fn folder(&self) -> PathBuf {
        let safe = |text: String| -> String {
            let kept = |c: char| if c.is_ascii_alphanumeric() || "._=,+-".contains(c) { c } else { '_' };
            text.chars().map(kept).collect()
        };
        let label = Self::label(&self.settings).replace(", ", "+");
        let name = if label.is_empty() { "all".to_string() } else { safe(label.clone()) };
        // What the name does not hold of the settings, it holds as a digest.
        let name = if name == label || label.is_empty() {
            name
        } else {
            format!(
                "{}-{}",
                name.chars().take(100).collect::<String>(),
                &crate::files::sha256_hex([label.as_bytes()])[..8]
            )
        };
        Path::new("runs").join(name).join(format!("seed-{}", self.seed))
    }

    /// `KEY=VALUE` for `ternlm train --set`.
    pub fn assignments<'a>(
        &'a self,
        shared: &'a BTreeMap<String, Value>,
    ) -> impl Iterator<Item = String> + 'a {
        let own = self.settings.iter().map(|(key, value)| (key, value));
        shared.iter().chain(own).map(|(key, value)| format!("{key}={value}"))
    }
}

/// A value as people write it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(x) if *x != 0.0 && !(1e-3..1e6).contains(&x.abs()) => format!("{x:e}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan> {
        let plan: Plan = toml::from_str(text).unwrap();
        plan.judge("sweep.toml".as_ref())?;
        plan.judge_new("sweep.toml".as_ref()).map(|()| plan)
    }

    #[test]
    fn every_combination_is_run_with_every_seed_in_a_folder_of_its_own() {
        let text = "recipe='copy'\nseeds=[3,1]\n[grid]\n'train.lr'=[1e-3,2]\n'ternary.scope'=['all','a/../b','a_.._b']";
        let runs = plan(text).unwrap().runs();
        assert_eq!(runs.len(), 12);
        assert!(runs[..6].iter().all(|run| run.seed == 3), "the first seed of all settings comes first");
        let folders: std::collections::BTreeSet<PathBuf> = runs.iter().map(Run::folder).collect();
        assert_eq!(folders.len(), 12);
        assert!(folders.contains(Path::new("runs/ternary.scope=all+train.lr=0.001/seed-1")), "{folders:?}");
        assert!(folders.iter().all(|path| path.components().count() == 3), "{folders:?}");
        let said: Vec<String> = runs[0].assignments(&BTreeMap::new()).collect();
        assert_eq!(said, ["ternary.scope=\"all\"", "train.lr=0.001"]);
        assert_eq!(
            plan("recipe='copy'\nseeds=[0]").unwrap().runs()[0].folder(),
            Path::new("runs/all/seed-0")
        );
    }

    #[test]
    fn a_plan_that_cannot_be_run_is_refused() {
        for (text, wanted) in [
            ("recipe='copy'\nseeds=[]", "seeds"),
            ("recipe='copy'\nseeds=[1,1]", "each once"),
            ("recipe='copy'\nseeds=[1]\n[grid]\n'train.lr'=[]", "0 values"),
            ("recipe='copy'\nseeds=[1]\n[grid]\n'train.lr'=[1,1]", "each once"),
            (
                "recipe='copy'\nseeds=[1]\n[grid]\na=[2,1,'1']",
                "grid.\"a\": found 1 and \"1\", which name one folder",
            ),
            ("recipe='copy'\nseeds=[1]\n[grid]\na=[nan,nan]", "found nan and nan, which name one folder"),
            ("recipe='copy'\nseeds=[1]\n[grid]\na=['x, b=1','x']\nb=['2','1, b=2']", "grid.\"a\": found"),
            ("recipe='copy'\nseeds=[1]\n[grid]\nseed=[1]", "seeds in"),
            ("recipe='copy'\nseeds=[1]\ndata=['a']\n[grid]\n'data.train'=[['b']]", "one of the two"),
            ("recipe='copy'\nseeds=[1]\n[grid]\n'data.join'=['eos']", "the same one for all"),
            ("recipe='copy'\nseeds=[1]\ndata=['a']\n[set]\n'data.train'=['b']", "one of the two"),
            ("recipe='copy'\nseeds=[1]\n[set]\n'train.lr'=1\n[grid]\n'train.lr'=[2]", "a key of [set]"),
        ] {
            let error = plan(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        let many: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let many = many.join(",");
        let error =
            plan(&format!("recipe='copy'\nseeds=[{many}]\n[grid]\na=[{many}]")).unwrap_err().to_string();
        assert!(error.contains("at most 10000 runs"), "{error}");
    }

    #[test]
    fn a_sweep_may_grow_and_not_change() {
        let first =
            plan("recipe='copy'\nseeds=[0]\n[set]\n'train.steps'=5\n[grid]\n'train.lr'=[1.0]").unwrap();
        let grown =
            plan("recipe='copy'\nseeds=[0,1]\n[set]\n'train.steps'=5\n[grid]\n'train.lr'=[1.0,2.0]").unwrap();
        assert_eq!(grown.differs(&first), None);
        let other =
            plan("recipe='copy'\nseeds=[0]\n[set]\n'train.steps'=6\n[grid]\n'train.lr'=[1.0]").unwrap();
        assert!(other.differs(&first).unwrap().contains("train.steps\" = 6"), "{:?}", other.differs(&first));
    }
}
