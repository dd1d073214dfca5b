//! What follows the last step: the finished model on disk, the proof, the bars of the recipe, samples, the report.

use std::path::Path;

use super::thousands;
use crate::config::Task;
use crate::error::{Error, Result};
use crate::files::{DirectoryWriter, IfExists, path_text};
use crate::generate::{Sampler, SamplingConfig, Session};
use crate::measure::{self, Perplexity, Proof};
use crate::model;
use crate::report::{self, Check, Evaluation, Sample, Summary, TernarySummary, TestEvaluation, Versions};
use crate::text::{Reading, ReadingOptions};
use crate::train::Trainer;

/// Folder of the finished model in a run's folder.
pub const MODEL: &str = "model";
/// Held-out sequences of a synthetic task.
const HELD_OUT: usize = 1000;

/// What a figure of a run must reach.
#[derive(Clone, Copy)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn value(self) -> f64 {
        match self {
            Bar::AtMost(value) | Bar::AtLeast(value) => value,
        }
    }

    /// A figure that is no number reaches nothing.
    fn holds(self, figure: f64) -> bool {
        match self {
            Bar::AtMost(most) => figure <= most,
            Bar::AtLeast(least) => figure >= least,
        }
    }
}

pub fn finish(trainer: &mut Trainer, out: &Path) -> Result<()> {
    let dir = out.join(MODEL);
    export(trainer, &dir)?;
    let proof = measure::verify(&dir, &mut |_| {})?;
    let synthetic = trainer.recipe.task != Task::Lm;
    let accuracy = synthetic.then(|| trainer.accuracy(HELD_OUT));
    let val = trainer.validate(0).filter(|_| !synthetic);
    // From here on the model is the one on disk.
    let (test, samples) = stored_model(trainer, &dir)?;
    let bars = &trainer.recipe.report;
    let last20 = mean(&trainer.losses[trainer.losses.len().saturating_sub(20)..]);
    let mut checks = Vec::new();
    let mut check = |name: &str, value: f64, bar: Option<Bar>| {
        let Some(bar) = bar else { return };
        checks.push(Check { name: name.into(), value, bar: bar.value(), pass: bar.holds(value) });
    };
    check("train loss", last20, bars.max_train_loss.map(Bar::AtMost));
    let least = bars.min_accuracy.filter(|_| synthetic).map(Bar::AtLeast);
    check("min accuracy", accuracy.unwrap_or(f64::NAN), least);
    let summary = summary(trainer, &proof, accuracy, val, test, samples, checks);
    report::write(out, &summary)?;
    say(&summary, &proof, out);
    match proof.pass && summary.checks.iter().all(|c| c.pass) {
        true => Ok(()),
        false => Err(Error::CheckFailed(format!("{}: a check failed, see above", summary.name))),
    }
}

/// The finished model, as weights that any Hugging Face tool reads.
fn export(trainer: &Trainer, dir: &Path) -> Result<()> {
    let writer = DirectoryWriter::new(dir, IfExists::Replace)?;
    model::save(writer.path(), &trainer.model.decoder, &trainer.model.description, None)?;
    if let Some(tokenizer) = &trainer.tokenizer {
        tokenizer.save(writer.path())?;
    }
    writer.commit()
}

fn stored_model(trainer: &Trainer, dir: &Path) -> Result<(Option<TestEvaluation>, Vec<Sample>)> {
    let Some(tokenizer) = &trainer.tokenizer else { return Ok((None, Vec::new())) };
    let config = &trainer.recipe.report;
    let decoder = model::load(dir, None)?.decoder;
    let mut test = None;
    if let Some(file) = &config.test {
        let data = &trainer.recipe.data;
        let options =
            ReadingOptions { field: data.field.clone(), join: data.join, ..ReadingOptions::default() };
        let text = Reading::open(file, tokenizer, &options)?;
        tokenizer.fits(&file.display().to_string(), text.ids.iter().copied(), decoder.config.vocab_size)?;
        let seq = trainer.source.seq();
        let bar = super::count_bar("Test text", text.ids.len() as u64);
        let p = measure::perplexity_of(&decoder, &text, seq, seq, &mut |n| bar.inc(n));
        bar.finish_and_clear();
        let result = evaluation(&p);
        test = Some(TestEvaluation { file: path_text::write(file), result });
    }
    let mut samples = Vec::new();
    for prompt in &config.prompts {
        let sampling = SamplingConfig {
            temperature: config.temperature,
            top_p: config.top_p,
            seed: trainer.recipe.seed,
            ..SamplingConfig::default()
        };
        let mut session = Session::new(&decoder, tokenizer);
        session.set_tokens(tokenizer.encode_prompt(prompt)?);
        let mut sampler = Sampler::new(sampling);
        let text =
            session.generate(&mut sampler, config.sample_tokens, tokenizer.stop_ids(), &mut |_| true)?.text;
        samples.push(Sample { prompt: prompt.clone(), text });
    }
    Ok((test, samples))
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| l as f64).sum::<f64>() / losses.len().max(1) as f64
}

fn evaluation(p: &Perplexity) -> Evaluation {
    Evaluation {
        nll: p.nll,
        ppl: p.ppl,
        bits_per_byte: p.bits_per_byte(),
        tokens: p.tokens,
        context: p.context as u64,
        stride: p.stride as u64,
    }
}

fn summary(
    trainer: &Trainer,
    proof: &Proof,
    accuracy: Option<f64>,
    val: Option<Perplexity>,
    test: Option<TestEvaluation>,
    samples: Vec<Sample>,
    checks: Vec<Check>,
) -> Summary {
    let total = proof.total();
    let progress = &trainer.progress;
    let recipe = &trainer.recipe;
    Summary {
        name: recipe.name.clone(),
        task: format!("{:?}", recipe.task).to_lowercase(),
        steps: progress.step,
        seed: recipe.seed,
        parameters: trainer.model.decoder.weights().map(|w| w.len() as u64).sum(),
        ternary_weights: total.weights(),
        wall_seconds: progress.elapsed_s,
        tokens: progress.tokens,
        tok_per_s: progress.tokens as f64 / progress.elapsed_s.max(1e-9),
        first5_loss: mean(&trainer.losses[..trainer.losses.len().min(5)]),
        last20_loss: mean(&trainer.losses[trainer.losses.len().saturating_sub(20)..]),
        loss_curve: (1..).zip(trainer.losses.iter().map(|&l| l as f64)).collect(),
        val: val.map(|p| evaluation(&p)),
        test,
        accuracy,
        ternary: (!proof.tensors.is_empty()).then(|| TernarySummary {
            pass: proof.pass,
            tensors: proof.tensors.len() as u64,
            weights: total.weights(),
            minus: total.minus,
            zero: total.zero,
            plus: total.plus,
            groups: total.groups,
            dead_groups: total.dead_groups,
            max_error: proof.max_error() as f64,
        }),
        samples,
        checks,
        // Through the text, in which an f32 has its own digits.
        recipe: serde_json::to_string(recipe)
            .and_then(|text| serde_json::from_str(&text))
            .expect("a recipe has a JSON form"),
        versions: Versions {
            ternlm: env!("CARGO_PKG_VERSION").into(),
            rustc: option_env!("TERNLM_RUSTC").map(String::from),
            os: super::os_name(),
            cpu: super::cpu_name(),
            isa: crate::kernels::Isa::current().to_string(),
            threads: rayon::current_num_threads() as u64,
        },
    }
}

fn say(summary: &Summary, proof: &Proof, out: &Path) {
    let verdict = |pass: bool| if pass { "PASS" } else { "FAIL" };
    for check in summary.checks.iter().filter(|c| c.name == "train loss") {
        say!("Train loss: {:.4}: {} (bar {})", check.value, verdict(check.pass), check.bar);
    }
    if let Some(t) = &summary.ternary {
        let exact = proof.tensors.iter().all(|t| t.max_error == 0.0);
        say!(
            "Ternary check: all weights in {{-1, 0, +1}}: {} ({} weights in {} tensors, {:.1} % zeros)",
            verdict(exact),
            thousands(t.weights),
            t.tensors,
            100.0 * t.zero as f64 / t.weights as f64
        );
        say!(
            "Group scales: one f16 scale for each group of {}: {} ({} groups, {} dead)",
            proof.group,
            verdict(proof.pass),
            thousands(t.groups),
            t.dead_groups
        );
        for reason in proof.reasons.iter().chain(proof.tensors.iter().flat_map(|t| &t.reasons)) {
            say!("  {reason}");
        }
    }
    for check in summary.checks.iter().filter(|c| c.name == "min accuracy") {
        let task = if summary.task == "copy" { "Copy" } else { "Recall" };
        say!(
            "{task} accuracy: {:.2}%: {} (bar {}%, {HELD_OUT} held-out sequences)",
            100.0 * check.value,
            verdict(check.pass),
            100.0 * check.bar
        );
    }
    if let Some(v) = &summary.val {
        say!(
            "Validation: {:.4} nats/token, perplexity {:.2} over {} tokens",
            v.nll,
            v.ppl,
            thousands(v.tokens)
        );
    } else if summary.task == "lm" {
        say!("Validation: none, nothing is held out");
    }
    if let Some(t) = &summary.test {
        say!(
            "Test ({}): {:.4} nats/token, perplexity {:.2} (context {}, stride {}), {:.4} bits/byte",
            t.file,
            t.result.nll,
            t.result.ppl,
            t.result.context,
            t.result.stride,
            t.result.bits_per_byte.unwrap_or(f64::NAN)
        );
    }
    say!("Trained in {:.1} s at {:.0} tokens/s", summary.wall_seconds, summary.tok_per_s);
    say!("Model: {}   Report: {}", out.join(MODEL).display(), out.join(report::HTML).display());
}
