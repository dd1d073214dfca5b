//! Which values a recipe may have. The only place that says so; what needs the text or a model's files is judged where they are
//! read.

use std::fmt::Display;
use std::path::Path;

use super::{Direction, OF_THE_TEXT, Recipe, Scale, Task, TernaryConfig};
use crate::error::{Error, Result};
use crate::ternary::Grouping;

/// The share of the steps by which every ternary weight is one: the last steps are those of the model that is stored.
const ALL_TERNARY: f32 = 0.9;

/// Judges the name of a recipe, which is that of a folder and stands in a line of a terminal.
pub fn judge_name(name: &str, file: &Path) -> Result<()> {
    let fits = |c: char| !c.is_control() && c != '/' && c != '\\';
    if (1..=100).contains(&name.chars().count()) && name.chars().all(fits) && name != "." && name != ".." {
        return Ok(());
    }
    let wanted = "1 to 100 characters, none of them / or \\ or a control character, and not . or ..";
    Err(Error::input(file, "name", format!("{name:?}"), wanted))
}

/// The error that a field of a recipe makes.
type Bad<'a> = &'a dyn Fn(&str, &dyn Display, &str) -> Result<()>;

impl Recipe {
    /// Judges every value that does not need the data or the model's files.
    pub fn validate(&self, file: &Path) -> Result<()> {
        let bad: Bad<'_> = &|field, found, wanted| Err(Error::input(file, field, found, wanted));
        judge_name(&self.name, file)?;
        if self.needs_init && self.init.is_none() {
            return bad("init", &"nothing", "the directory of a pretrained model (--init DIR)");
        }
        match (&self.model, &self.init) {
            (None, None) => return bad("model", &"nothing", "a [model] table, or init = DIR"),
            (Some(model), _) => model.validate(file)?,
            _ => {}
        }
        self.judge_ternary(bad)?;
        self.judge_distill(bad)?;
        self.judge_ranges(bad)?;
        self.judge_task(bad)
    }

    /// [`Recipe::validate`] of what begins: that no two keys of it make nonsense together. A run that began so can go on.
    pub fn judge_new(&self, file: &Path) -> Result<()> {
        let bad: Bad<'_> = &|field, found, wanted| Err(Error::input(file, field, found, wanted));
        let ternary = &self.ternary;
        if ternary.calibrate > 0 && (ternary.anneal > 0.0 || !ternary.start.is_at_once()) {
            let wanted = "0 with ternary.anneal or ternary.start, which begin with latents: calibrated ones are no \
                          longer the weights of the model";
            return bad("ternary.calibrate", &ternary.calibrate, wanted);
        }
        match self.report.min_accuracy.filter(|_| self.task == Task::Lm) {
            Some(bar) => {
                bad("report.min_accuracy", &bar, "none: a text has no accuracy (report.max_train_loss)")
            }
            None => Ok(()),
        }
    }

    fn judge_ternary(&self, bad: Bad<'_>) -> Result<()> {
        let TernaryConfig { group, scale, init_std, rotate, calibrate, .. } = self.ternary;
        if group == Grouping::Size(0) {
            return bad("ternary.group", &0, "1 or more, or \"tensor\"");
        }
        if scale == Scale::Learned && group == Grouping::Tensor {
            return bad("ternary.scale", &"learned", "absmean with ternary.group = \"tensor\"");
        }
        if let Some(std) = init_std.filter(|std| !(std.is_finite() && *std > 0.0)) {
            return bad("ternary.init_std", &std, "a positive number");
        }
        if rotate && self.init.is_none() {
            let wanted = "false: only a model to start from (--init MODEL) can be rotated";
            return bad("ternary.rotate", &true, wanted);
        }
        let wanted = match calibrate {
            0 => None,
            _ if self.init.is_none() => {
                Some("0: only a model to start from (--init MODEL) has outputs to keep")
            }
            _ if group == Grouping::Tensor => Some("0 with ternary.group = \"tensor\""),
            _ if calibrate > 1 << 20 => Some("at most 1048576"),
            _ => None,
        };
        if let Some(wanted) = wanted {
            return bad("ternary.calibrate", &calibrate, wanted);
        }
        Ok(())
    }

    fn judge_distill(&self, bad: Bad<'_>) -> Result<()> {
        let Some(distill) = self.taught() else { return Ok(()) };
        if distill.teacher.is_none() && distill.lessons.is_none() {
            let wanted = "the model to learn from (--teacher MODEL), what was stored of one (--lessons DIR), or \
                          distill.weight = 0 and no relations";
            return bad("distill.teacher", &"nothing", wanted);
        }
        if let Some(lessons) = &distill.lessons {
            if distill.teacher.is_some() {
                let wanted = "none beside distill.teacher: a training learns from one of both";
                return bad("distill.lessons", &lessons.display(), wanted);
            }
            if distill.relations > 0.0 {
                let wanted = "0 with distill.lessons: they hold no relations";
                return bad("distill.relations", &distill.relations, wanted);
            }
            if distill.temperature != 1.0 {
                let wanted = "1, at which distill.lessons are stored";
                return bad("distill.temperature", &distill.temperature, wanted);
            }
            if distill.direction != Direction::Forward {
                let wanted = "\"forward\": the other one asks for more than distill.lessons hold";
                return bad("distill.direction", &"\"reverse\"", wanted);
            }
        }
        match self.task {
            Task::Lm => Ok(()),
            _ => bad("distill", &"a teacher", "none: the task makes its own sequences"),
        }
    }

    /// Numbers that are right or wrong by themselves.
    fn judge_ranges(&self, bad: Bad<'_>) -> Result<()> {
        let (t, distill) = (&self.train, self.distill.clone().unwrap_or_default());
        let bars = [
            ("report.max_train_loss", self.report.max_train_loss, f64::MAX),
            ("report.min_accuracy", self.report.min_accuracy, 1.0),
        ];
        for (field, bar, high) in bars {
            if let Some(bar) = bar.filter(|bar| !(0.0..=high).contains(bar)) {
                return bad(field, &bar, if high == 1.0 { "0 to 1" } else { "0 or more" });
            }
        }
        for (field, value, high) in [
            ("train.steps", t.steps, u32::MAX),
            ("train.batch", t.batch as u64, u32::MAX),
            ("train.seq", t.seq as u64, u32::MAX),
            ("train.accumulate", t.accumulate as u64, u32::MAX),
            ("train.log_every", t.log_every, u32::MAX),
            ("train.keep", t.keep as u64, u32::MAX),
            ("data.sequence", self.data.sequence as u64, u32::MAX),
            ("train.muon_steps", t.muon_steps as u64, 12),
        ] {
            if !(1..=high as u64).contains(&value) {
                return bad(field, &value, &format!("1 to {high}"));
            }
        }
        for (field, value, low, high) in [
            ("train.lr", t.lr, 0.0, 1e3),
            ("train.muon_lr", t.muon_lr, 0.0, 1e3),
            ("train.scale_lr", t.scale_lr, 0.0, 10.0),
            ("train.beta1", t.beta1, 0.0, 0.999_999),
            ("train.beta2", t.beta2, 0.0, 0.999_999_9),
            // A row that no gradient has reached yet would be 0 / 0.
            ("train.eps", t.eps, f32::MIN_POSITIVE, 1.0),
            ("train.momentum", t.momentum, 0.0, 0.999_999),
            ("train.weight_decay", t.weight_decay, 0.0, 1e3),
            ("train.clip", t.clip, 0.0, f32::MAX),
            ("train.z_loss", t.z_loss, 0.0, 1.0),
            ("train.dropout", t.dropout, 0.0, 0.9),
            ("train.floor", t.floor, 0.0, 1.0),
            ("train.decay_fraction", t.decay_fraction, 0.0, 1.0),
            ("data.val_fraction", self.data.val_fraction as f32, 0.0, 0.999),
            ("ternary.anneal", self.ternary.anneal, 0.0, ALL_TERNARY),
            ("distill.weight", distill.weight, 0.0, 1.0),
            ("distill.temperature", distill.temperature, 0.01, 100.0),
            ("distill.relations", distill.relations, 0.0, 1e6),
            ("report.temperature", self.report.temperature, 0.0, 100.0),
            ("report.top_p", self.report.top_p, 0.0, 1.0),
        ] {
            if !(low..=high).contains(&value) {
                return bad(field, &value, &format!("{low} to {high}"));
            }
        }
        let TernaryConfig { anneal, start, .. } = self.ternary;
        for (field, value) in [
            ("ternary.start.feed_forward", start.feed_forward),
            ("ternary.start.attention", start.attention),
            ("ternary.start.ends", start.ends),
        ] {
            // As far as f32 tells 0.65 + 0.25 from 0.9.
            if !(value >= 0.0 && value + anneal <= ALL_TERNARY + f32::EPSILON) {
                let wanted = format!("0 to {ALL_TERNARY} together with ternary.anneal, {anneal}");
                return bad(field, &value, &wanted);
            }
        }
        Ok(())
    }

    /// What the task asks of the model and the text.
    fn judge_task(&self, bad: Bad<'_>) -> Result<()> {
        if self.data.tokenizer == OF_THE_TEXT {
            let others = [
                (self.init.is_some(), "init", "nothing (\"\"): it is the one of that model"),
                (self.taught().is_some(), "distill", "the teacher's: its folder, or its tokenizer.json"),
            ];
            if let Some((_, key, wanted)) = others.into_iter().find(|(there, ..)| *there) {
                let found = format!("{OF_THE_TEXT}, a vocabulary of its own, beside {key}");
                return bad("data.tokenizer", &found, wanted);
            }
            if let Some(model) = self.model.as_ref().filter(|m| m.vocab_size < 257) {
                let wanted = "257 or more with data.tokenizer = \"bpe\": 256 bytes and <|endoftext|>";
                return bad("model.vocab_size", &model.vocab_size, wanted);
            }
        }
        if self.task == Task::Lm && self.data.train.is_empty() {
            return bad("data.train", &"no files", "at least one text file (--data FILE)");
        }
        let Some(model) = &self.model else { return Ok(()) };
        match self.task {
            Task::Copy | Task::Recall if model.vocab_size < 3 => {
                bad("model.vocab_size", &model.vocab_size, "3 or more for this task")
            }
            Task::Recall if !model.causal => bad("model.causal", &false, "true: recall is a causal task"),
            Task::Lm if !model.causal => {
                bad("model.causal", &false, "true: a language model predicts the next token")
            }
            _ => Ok(()),
        }
    }
}
