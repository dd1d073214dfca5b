//! What may change when a training goes on. The checkpoint is the truth: what it fixes is refused by name, what can take
//! effect is taken.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Residuals;
use super::checkpoint::{self, Saved};
use super::teacher::LESSONS;
use crate::config::{DataConfig, ModelConfig, Order, Recipe};
use crate::error::{Error, Result};
use crate::files::Bundle;
use crate::formats::{Description, hf};
use crate::text::Corpus;

/// A checkpoint to go on from.
pub struct Resume {
    pub dir: PathBuf,
    /// Another text than the one trained on so far is meant.
    pub other_data: bool,
    saved: Saved,
    description: Description,
}

impl Resume {
    /// # Errors
    /// Files of the checkpoint that do not fit together, by file and key.
    pub fn open(dir: &Path, other_data: bool) -> Result<Self> {
        let (saved, description) = (checkpoint::read(dir)?, hf::read_config(&Bundle::folder(dir))?);
        let resume = Self { dir: dir.into(), other_data, saved, description };
        if let Some(recipe) = &resume.saved.recipe
            && let Some(d) = differences(&resume.truth(recipe), recipe).into_iter().next()
        {
            let wanted = format!("{}, as in {}", d.wanted, checkpoint::TRAINER);
            return Err(Error::input(dir.join(hf::FILE_NAME), d.key, d.found, wanted));
        }
        Ok(resume)
    }

    /// The shape of the model in the checkpoint.
    pub fn model(&self) -> &ModelConfig {
        &self.description.model
    }

    /// The recipe at the checkpoint. Those made before they held it have none.
    pub fn recipe(&self) -> Option<&Recipe> {
        self.saved.recipe.as_ref()
    }

    /// `recipe` with what `config.json` says of the model.
    fn truth(&self, recipe: &Recipe) -> Recipe {
        let mut truth = recipe.clone();
        truth.model = Some(self.description.model.clone());
        if let Some(note) = &self.description.ternary {
            truth.ternary.scope = note.scope;
            truth.ternary.group = note.group;
            truth.ternary.activations = note.activations;
        }
        truth
    }

    /// Judges the recipe that the training is to go on by, whose values need not have been validated. `recorded`, the
    /// one in the run's folder, is asked where the checkpoint has none.
    ///
    /// # Errors
    /// Every change that cannot take effect, by key.
    pub fn judge(&self, recorded: &Recipe, asked: &Recipe) -> Result<()> {
        let was = self.truth(self.recipe().unwrap_or(recorded));
        let mut refused: Vec<String> = differences(asked, &was)
            .into_iter()
            .filter_map(|d| {
                let why = refusal(&d.key, asked)?;
                Some(format!("{}: found {}, wanted {}{why}", d.key, d.found, d.wanted))
            })
            .collect();
        let (steps, done) = (asked.train.steps, self.saved.progress.step);
        if steps == done && refused.is_empty() {
            // What it was trained by stays recorded.
            refused.extend(differences(asked, &was).into_iter().filter(|d| is_of_steps(&d.key)).map(|d| {
                let why = "no step is left that it could change (a larger train.steps leaves some)";
                format!("{}: found {}, wanted {}: {why}", d.key, d.found, d.wanted)
            }));
        }
        if steps < done {
            refused.push(format!("train.steps: found {steps}, wanted at least the {done} that are done"));
        } else if let Some(more) = too_few_of_trits(&was, asked, done) {
            refused.push(more);
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::usage(format!(
            "--resume: {}: the training in {} cannot go on so; a run of its own can (--out DIR without --resume)",
            refused.join("; "),
            self.dir.display()
        )))
    }

    /// Judges the model that the training is to learn from.
    ///
    /// # Errors
    /// Another one than so far.
    pub fn judge_teacher(&self, digest: Option<&str>) -> Result<()> {
        judge_teachers(self.saved.teacher.as_deref(), digest)
    }

    /// Judges the text that the training is to go on with.
    ///
    /// # Errors
    /// Another text than so far, unless that is meant.
    pub fn judge_corpus(&self, asked: &DataConfig, corpus: &Corpus) -> Result<()> {
        let Some(was) = &self.saved.corpus else {
            tracing::warn!(
                "{} does not say on which text it was trained: whether this is the same one is not known",
                self.dir.display()
            );
            return Ok(());
        };
        if self.other_data || *was == corpus.fingerprint {
            return Ok(());
        }
        let before = self.recipe().map(|recipe| differences(asked, &recipe.data)).unwrap_or_default();
        let keys: Vec<String> = before.into_iter().map(|d| format!("data.{}", d.key)).collect();
        let cause = match keys.is_empty() {
            true => "the files have changed".to_string(),
            false => format!("changed: {}", keys.join(", ")),
        };
        Err(Error::usage(format!(
            "--resume: data.train: found a text of other tokens (SHA-256 {}…; {cause}), wanted the one trained on so far \
             ({}…), or --other-data to go on with another one",
            brief(&corpus.fingerprint),
            brief(was)
        )))
    }
}

/// What a training learned from so far, and what it is to learn from.
fn judge_teachers(was: Option<&str>, now: Option<&str>) -> Result<()> {
    if was == now {
        return Ok(());
    }
    let said = |digest: Option<&str>| match digest {
        None => "none".to_string(),
        Some(digest) => match digest.strip_prefix(LESSONS) {
            Some(digest) => format!("lessons (distill.lessons) of SHA-256 {}…", brief(digest)),
            None => format!("a model of SHA-256 {}…", brief(digest)),
        },
    };
    Err(Error::usage(format!(
        "--resume: distill.teacher: found {}, wanted {}, as so far; a run of its own can have another teacher (--out DIR \
         without --resume)",
        said(now),
        said(was)
    )))
}

/// What is wrong with `asked`, which ends sooner than planned, where the `done` steps multiplied with latents: a tenth of a
/// training is of trits alone.
fn too_few_of_trits(was: &Recipe, asked: &Recipe, done: u64) -> Option<String> {
    let enough = |steps: u64| {
        let end = Residuals::end(&asked.ternary, steps).max(done);
        steps - end >= (steps / 10).max(1)
    };
    let (found, planned) = (asked.train.steps, was.train.steps);
    let soft = done > 0 && done <= Residuals::end(&was.ternary, planned);
    if !soft || found >= planned || enough(found) {
        return None;
    }
    let wanted = (found..planned).find(|&steps| enough(steps)).unwrap_or(planned);
    Some(format!(
        "train.steps: found {found}, wanted at least {wanted}: no step yet was of trits alone, as a tenth of them are to be"
    ))
}

fn brief(hash: &str) -> String {
    hash.chars().take(16).collect()
}

/// What follows the wanted value where `key`, which `asked` changes, cannot take effect; `None` where it can.
fn refusal(key: &str, asked: &Recipe) -> Option<String> {
    let idle = asked.idle(key);
    match key {
        // A report is made again.
        _ if key.starts_with("report.") => None,
        // Which model or lessons it is, their digest judges.
        _ if key.starts_with("distill.") => None,
        _ if idle.is_some() => idle.map(|why| format!(": {why}")),
        // Epochs are counted in windows: another length would make another place of the cursor.
        "train.seq" => (asked.data.order == Order::Epoch).then(|| {
            ": with data.order = \"epoch\" the place in the text is counted in windows of it".to_string()
        }),
        "train.steps"
        | "train.batch"
        | "train.accumulate"
        | "train.precision"
        | "train.recompute"
        | "train.lr"
        | "train.beta1"
        | "train.beta2"
        | "train.eps"
        | "train.momentum"
        | "train.muon_lr"
        | "train.muon_steps"
        | "train.cautious"
        | "train.scale_lr"
        | "train.weight_decay"
        | "train.weight_decay_until"
        | "train.clip"
        | "train.z_loss"
        | "train.dropout"
        | "train.schedule"
        | "train.warmup"
        | "train.floor"
        | "train.decay_fraction"
        | "train.log_every"
        | "train.eval_every"
        | "train.eval_sequences"
        | "train.save_every"
        | "train.keep"
        // The fingerprint of the text judges.
        | "data.train"
        | "data.val"
        | "data.val_fraction"
        | "data.field"
        | "data.join" => None,
        _ => Some(", as at the start".to_string()),
    }
}

/// Whether a key is of the rule by which steps change a model: neither of what is measured and written, nor of the machine.
fn is_of_steps(key: &str) -> bool {
    match key.split_once('.') {
        Some(("train", key)) => ![
            "steps",
            "batch",
            "seq",
            "accumulate",
            "precision",
            "recompute",
            "log_every",
            "eval_every",
            "eval_sequences",
            "save_every",
            "keep",
        ]
        .contains(&key),
        Some(("distill", key)) => !["teacher", "lessons"].contains(&key),
        _ => false,
    }
}

/// A key whose values differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// As `--set` takes it.
    pub key: String,
    pub found: String,
    pub wanted: String,
}

/// Where `found` differs from `wanted`.
pub fn differences<T: Serialize>(found: &T, wanted: &T) -> Vec<Difference> {
    let (found, wanted) = (values(found), values(wanted));
    let keys: std::collections::BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
    let text = |key: &str, value: Option<&Value>| match value {
        // Not written where they are the default.
        None if ["train.moments", "train.precision", "ternary.activations"].contains(&key) => {
            "f32".to_string()
        }
        None if key == "ternary.scale" => "absmean".to_string(),
        None if ["needs_init", "ternary.rotate"].contains(&key) => "false".to_string(),
        None if ["ternary.anneal", "ternary.calibrate"].contains(&key)
            || key.starts_with("ternary.start.") =>
        {
            "0".to_string()
        }
        None => "nothing".to_string(),
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(value) => value.to_string(),
    };
    keys.into_iter()
        .map(|key| (key, found.get(key), wanted.get(key)))
        .filter(|(_, found, wanted)| found != wanted)
        .map(|(key, found, wanted)| Difference {
            key: key.clone(),
            found: text(key, found),
            wanted: text(key, wanted),
        })
        .collect()
}

/// The values of plain data by dotted key.
fn values(of: &impl Serialize) -> BTreeMap<String, Value> {
    // Through the text, in which an f32 has its own digits.
    let text = serde_json::to_string(of).expect("plain data has a JSON form");
    let mut open = vec![(String::new(), serde_json::from_str(&text).expect("what was just written"))];
    let mut all = BTreeMap::new();
    while let Some((key, value)) = open.pop() {
        match value {
            Value::Object(map) => {
                open.extend(map.into_iter().map(|(name, value)| {
                    (if key.is_empty() { name } else { format!("{key}.{name}") }, value)
                }))
            }
            value => drop(all.insert(key, value)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OptimizerKind, Scale, ScheduleKind, Task};

    /// A recipe that has every key.
    fn full() -> Recipe {
        let mut recipe: Recipe =
            toml::from_str(include_str!("../../recipes/shakespeare-bytes.toml")).unwrap();
        recipe.needs_init = true;
        recipe.init = Some("/model".into());
        recipe.data.train = vec!["/text".into()];
        recipe.ternary.init_std = Some(0.5);
        recipe.ternary.activations = crate::config::Inputs::Int8;
        recipe.ternary.anneal = 0.25;
        recipe.ternary.rotate = true;
        recipe.ternary.scale = Scale::Learned;
        recipe.ternary.calibrate = 8;
        recipe.ternary.start.attention = 0.5;
        let [teacher, lessons] = ["/teacher", "/lessons"].map(|path| Some(path.into()));
        let distill = crate::config::DistillConfig { teacher, lessons, ..Default::default() };
        recipe.distill = Some(crate::config::DistillConfig { relation_layer: Some(1), ..distill });
        recipe.train.moments = crate::config::MomentFormat::Int8;
        recipe.train.precision = crate::config::Precision::Bf16;
        recipe.train.weight_decay_until = Some(7);
        recipe.report.test = Some("/test".into());
        recipe.report.max_train_loss = Some(1.0);
        recipe.report.min_accuracy = Some(1.0);
        recipe
    }

    #[test]
    fn every_key_of_a_recipe_is_judged() {
        let mut recipe = full();
        recipe.data.order = Order::Random;
        recipe.train.optimizer = OptimizerKind::Muon;
        recipe.train.schedule = ScheduleKind::Linear;
        let (fixed, free): (Vec<String>, Vec<String>) =
            values(&recipe).into_keys().partition(|key| refusal(key, &recipe).is_some());
        // A new key comes into one of these lists and into DESIGN.md.
        let wanted = "data.order data.sequence data.tokenizer init name needs_init seed task ternary.activations \
                      ternary.anneal ternary.calibrate ternary.group ternary.init_std ternary.rotate ternary.scale ternary.scope ternary.start.attention \
                      ternary.start.ends ternary.start.feed_forward train.moments train.optimizer";
        let fixed: Vec<&str> =
            fixed.iter().map(String::as_str).filter(|key| !key.starts_with("model.")).collect();
        assert_eq!(fixed, wanted.split_whitespace().collect::<Vec<_>>());
        let wanted = "data.field data.join data.train data.val data.val_fraction distill.direction distill.lessons \
                      distill.relation_layer distill.relations distill.teacher distill.temperature distill.weight report.max_train_loss \
                      report.min_accuracy report.prompts report.sample_tokens report.temperature report.test \
                      report.top_p train.accumulate train.batch train.beta1 train.beta2 train.cautious \
                      train.clip train.decay_fraction train.dropout train.eps train.eval_every train.eval_sequences train.floor train.keep \
                      train.log_every train.lr train.momentum train.muon_lr train.muon_steps train.precision train.recompute \
                      train.save_every train.scale_lr train.schedule train.seq train.steps train.warmup train.weight_decay train.weight_decay_until train.z_loss";
        assert_eq!(free, wanted.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn every_key_of_a_recipe_is_in_the_list_for_people() {
        let list = include_str!("../../recipes/keys.md");
        for key in values(&full()).into_keys() {
            assert!(list.contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn what_another_key_switches_off_cannot_change() {
        let mut recipe = full();
        let refused = |recipe: &Recipe, key: &str| refusal(key, recipe).is_some();
        recipe.train.optimizer = OptimizerKind::Sgd;
        recipe.train.schedule = ScheduleKind::Constant;
        recipe.data.order = Order::Epoch;
        // Learned scales go by Adam.
        assert!(!refused(&recipe, "train.beta1") && !refused(&recipe, "train.scale_lr"));
        recipe.ternary.scale = Scale::Absmean;
        for key in
            ["beta1", "beta2", "eps", "muon_lr", "muon_steps", "cautious", "floor", "decay_fraction", "seq"]
        {
            assert!(refused(&recipe, &format!("train.{key}")), "{key}");
        }
        assert!(!refused(&recipe, "train.momentum") && refused(&recipe, "train.scale_lr"));
        recipe.train.optimizer = OptimizerKind::AdamW;
        assert!(refused(&recipe, "train.momentum") && !refused(&recipe, "train.eps"));
        recipe.task = Task::Copy;
        recipe.data.order = Order::Random;
        assert!(refused(&recipe, "train.seq") && refused(&recipe, "data.train"));
    }

    #[test]
    fn differences_have_the_digits_that_were_written() {
        let (a, mut b) = (full(), full());
        assert_eq!(differences(&a, &b), []);
        b.train.lr = 1e-4;
        b.init = None;
        b.model.as_mut().unwrap().layers = 77;
        let found: Vec<[String; 3]> =
            differences(&b, &a).into_iter().map(|d| [d.key, d.found, d.wanted]).collect();
        let layers = a.model.unwrap().layers.to_string();
        let lr = a.train.lr.to_string();
        assert_eq!(
            found,
            [
                ["init", "nothing", "/model"],
                ["model.layers", "77", layers.as_str()],
                ["train.lr", "0.0001", lr.as_str()]
            ]
        );
    }
}
