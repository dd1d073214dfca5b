//! Keys of a recipe that its other keys switch off.

use super::{OptimizerKind, Recipe, ScheduleKind, Scope, Task};

impl Recipe {
    /// Why `key` changes nothing in this training, whatever its value; `None` where it does.
    ///
    /// ```
    /// use ternlm::config::{OptimizerKind, Recipe};
    /// let mut recipe: Recipe = toml::from_str("name = 'r'\ntask = 'copy'\n[train]").unwrap();
    /// assert_eq!(recipe.idle("train.cautious"), Some("only muon uses it"));
    /// recipe.train.optimizer = OptimizerKind::Muon;
    /// assert_eq!(recipe.idle("train.cautious"), None);
    /// ```
    pub fn idle(&self, key: &str) -> Option<&'static str> {
        let (t, lm) = (&self.train, self.task == Task::Lm);
        let learned = self.ternary.learns_scales();
        let (idle, why) = match key {
            // Learned scales go by Adam whatever the weights go by.
            "train.beta1" | "train.beta2" | "train.eps" => {
                (t.optimizer == OptimizerKind::Sgd && !learned, "sgd does not use it")
            }
            "train.momentum" => (t.optimizer == OptimizerKind::AdamW, "adamw does not use it"),
            "train.muon_lr" | "train.muon_steps" | "train.cautious" => {
                (t.optimizer != OptimizerKind::Muon, "only muon uses it")
            }
            "train.scale_lr" => (!learned, "only learned scales (ternary.scale) use it"),
            "train.eval_sequences" => {
                (t.eval_every == 0, "train.eval_every is 0: only the end is measured, in full")
            }
            "train.weight_decay_until" => (t.weight_decay == 0.0, "train.weight_decay is 0"),
            "train.floor" => (t.schedule == ScheduleKind::Constant, "a constant schedule does not use it"),
            "train.decay_fraction" => (t.schedule != ScheduleKind::Linear, "only a linear schedule uses it"),
            "train.seq" | "data.train" | "data.val" | "data.field" | "data.join" | "data.order"
            | "data.tokenizer" => (!lm, "the task makes its own sequences"),
            "data.val_fraction" if lm => (!self.data.val.is_empty(), "data.val is what is held out"),
            "data.val_fraction" => (true, "the task makes its own sequences"),
            "data.sequence" => (lm, "a text has no sequences of its own"),
            "distill.temperature" | "distill.direction" => {
                (self.taught().is_none_or(|d| d.weight == 0.0), "no teacher's logits are learnt")
            }
            "distill.relation_layer" => {
                (!self.taught().is_some_and(|d| d.relates()), "distill.relations is 0")
            }
            "report.prompts" | "report.test" if !lm => (true, "the task makes its own sequences"),
            "report.top_p" if !self.report.prompts.is_empty() => {
                (self.report.temperature == 0.0, "report.temperature is 0")
            }
            "report.sample_tokens" | "report.temperature" | "report.top_p" => {
                (self.report.prompts.is_empty(), "report.prompts is empty")
            }
            "ternary.start.ends" if self.ternary.scope == Scope::Blocks => {
                (true, "embedding and head are not ternary (ternary.scope)")
            }
            _ if key.starts_with("ternary.") && key != "ternary.scope" => {
                let of_start = ["ternary.init_std", "ternary.rotate"].contains(&key);
                (self.ternary.scope == Scope::None && !of_start, "ternary.scope is none")
            }
            _ => (false, ""),
        };
        idle.then_some(why)
    }
}
