//! The start of a training of several processes: they tell each other what they are about to do.

use serde::{Deserialize, Serialize};

use super::teacher::Taught;
use super::{Difference, Source, Together, Trainer, differences};
use crate::config::Recipe;
use crate::error::{Error, Result};
use crate::kernels::Isa;

/// What must be the same on all processes, beside the latents.
#[derive(Serialize, Deserialize)]
struct Plan {
    #[serde(flatten)]
    plain: Plain,
    recipe: Recipe,
}

#[derive(Serialize, Deserialize)]
struct Plain {
    version: String,
    /// Others round otherwise, in the last bit.
    instruction_set: String,
    /// Fingerprint of the text.
    corpus: String,
    /// Digest of the tokens that are held out.
    held_out: String,
    /// Digest of the model or the lessons that are learnt from.
    teacher: String,
    step: u64,
    cursor: u64,
    /// How gradients are added up.
    reduction: String,
}

/// Paths, which may be others on another machine: what they lead to is compared.
const PATHS: [&str; 7] =
    ["data.train", "data.val", "data.tokenizer", "init", "distill.teacher", "distill.lessons", "report.test"];

/// Has `trainer` take its steps together with the others, once all have the same to do. `reduction` says how gradients are
/// added up; with `shard` each process keeps the optimizer's moments of a part of the model alone.
///
/// # Errors
/// A process that is about something else, with what differs from process 0.
pub fn meet(trainer: &mut Trainer, mut together: Together, reduction: &str, shard: bool) -> Result<()> {
    let mut checked = check(trainer, &mut together, reduction);
    if shard && !together.is_alone() && trainer.recipe.ternary.learns_scales() {
        let refused = "ternary.scale: found learned, wanted absmean with --shard-optimizer";
        checked = checked.and_then(|()| Err(together.alike(Error::usage(refused))));
    }
    trainer.join(together, shard && checked.is_ok());
    checked
}

fn check(trainer: &Trainer, together: &mut Together, reduction: &str) -> Result<()> {
    if together.is_alone() {
        return Ok(());
    }
    let plan = Plan {
        plain: Plain {
            version: env!("CARGO_PKG_VERSION").into(),
            instruction_set: Isa::current().to_string(),
            corpus: trainer.source.fingerprint().unwrap_or("none").into(),
            held_out: match &trainer.source {
                Source::Text { corpus, .. } => corpus.val.sha256(),
                Source::Synthetic(_) => "none".into(),
            },
            teacher: trainer.teacher.as_ref().map_or("none", Taught::digest).into(),
            step: trainer.progress.step,
            cursor: trainer.progress.cursor,
            reduction: reduction.into(),
        },
        recipe: trainer.recipe.clone(),
    };
    let text = serde_json::to_string(&plan).expect("plain data has a JSON form");
    let first = together.text_of_first(&text)?;
    let judged = judge(&plan, &first);
    together.agree(judged)?;
    let sequences = trainer.recipe.train.batch * trainer.recipe.train.accumulate;
    if sequences < together.size() {
        let wanted = format!("at least {}, one for each process", together.size());
        return Err(together.alike(Error::usage(format!(
            "train.batch times train.accumulate: found {sequences} sequences a step, wanted {wanted}"
        ))));
    }
    together.compare(&trainer.model.decoder, &trainer.latents)
}

/// Holds a plan against that of process 0, in whose version it may not be one.
fn judge(plan: &Plan, first: &str) -> Result<()> {
    let wrong = |differences: Vec<Difference>| {
        let texts: Vec<String> = differences
            .into_iter()
            .map(|d| format!("{}: found {}, wanted {}", d.key, d.found, d.wanted))
            .collect();
        match texts.is_empty() {
            true => Ok(()),
            false => Err(Error::usage(format!("{}, as process 0 has it", texts.join("; ")))),
        }
    };
    let unread = |e| {
        let version = &plan.plain.version;
        Error::usage(format!(
            "version: found {version}, wanted that of process 0, whose plan cannot be read ({e})"
        ))
    };
    let plain: Plain = serde_json::from_str(first).map_err(unread)?;
    wrong(differences(&plan.plain, &plain))?;
    let theirs: Plan = serde_json::from_str(first).map_err(unread)?;
    let mut found = differences(&plan.recipe, &theirs.recipe);
    found.retain(|d| !PATHS.contains(&d.key.as_str()));
    wrong(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_and_paths_may() {
        let plan = || Plan {
            plain: Plain {
                version: "1".into(),
                instruction_set: "avx2".into(),
                corpus: "ab".into(),
                held_out: "cd".into(),
                teacher: "none".into(),
                step: 3,
                cursor: 9,
                reduction: "fastest".into(),
            },
            recipe: toml::from_str(include_str!("../../recipes/shakespeare-bytes.toml")).unwrap(),
        };
        let judged = |change: fn(&mut Plan)| {
            let mut first = plan();
            change(&mut first);
            let text = serde_json::to_string(&first).unwrap();
            judge(&plan(), &text).map_err(|e| e.to_string())
        };
        assert_eq!(judged(|_| {}), Ok(()));
        assert_eq!(judged(|p| p.recipe.data.train = vec!["/elsewhere".into()]), Ok(()));
        let text = judged(|p| p.recipe.train.lr = 0.5).unwrap_err();
        assert_eq!(text, "train.lr: found 0.002, wanted 0.5, as process 0 has it");
        let text = judged(|p| p.plain.version = "2".into()).unwrap_err();
        assert_eq!(text, "version: found 1, wanted 2, as process 0 has it");
        assert!(
            judged(|p| p.plain.corpus = "cd".into()).unwrap_err().starts_with("corpus: found ab, wanted cd")
        );
        assert!(
            judge(&plan(), "{}")
                .unwrap_err()
                .to_string()
                .starts_with("version: found 1, wanted that of process 0")
        );
    }
}
