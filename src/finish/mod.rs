//! What follows the last step of a training: the finished model on disk, the proof, the bars of the recipe, the test text,
//! samples, the report.

mod bar;

use std::path::{Path, PathBuf};

use crate::config::{self, KvFormat, Task};
use crate::error::Result;
use crate::files::{DirectoryWriter, IfExists, path_text};
use crate::formats::Form;
use crate::generate::{Sampler, SamplingConfig, Session};
use crate::measure::{self, Perplexity, Proof, Windows};
use crate::model::{self, Decoder};
use crate::report::{
    self, Check, Evaluation, Sample, Summary, TernarySummary, TestEvaluation, Texts, Versions,
};
use crate::text::Tokenizer;
use crate::train::{Source, Trainer, test_text};

/// Folder of the finished model in a run's folder.
pub const MODEL: &str = "model";
/// Held-out sequences that the accuracy on a synthetic task is measured on.
pub const HELD_OUT: usize = 1000;

/// What a run came to.
pub struct Finished {
    /// What `report.json` holds.
    pub summary: Summary,
    pub proof: Proof,
    /// Folder of the finished model.
    pub model: PathBuf,
}

impl Finished {
    /// Whether the proof holds and every bar of the recipe is reached.
    pub fn passed(&self) -> bool {
        self.proof.pass && self.summary.checks.iter().all(|check| check.pass)
    }
}

/// Finishes the run in the folder `run`, whose training has made its last step: exports the model to `run/model`, proves
/// it, measures it, lets it write, and writes the report. `progress` is told how many tokens of the test text have been
/// read, and how many it has.
///
/// A failed check is no error: see [`Finished::passed`].
///
/// # Errors
/// A file that cannot be written, or a test text that cannot be read or does not fit the model.
pub fn finish(trainer: &mut Trainer, run: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Finished> {
    let dir = run.join(MODEL);
    export(trainer, &dir)?;
    let proof = measure::verify(&dir, &mut |_| {})?;
    let synthetic = trainer.recipe.task != Task::Lm;
    let accuracy = synthetic.then(|| trainer.accuracy(HELD_OUT));
    let val = trainer.validate(0)?.filter(|_| !synthetic);
    let (mut test, mut samples) = (None, Vec::new());
    if let Some(tokenizer) = &trainer.tokenizer {
        // From here on the model is the one on disk.
        let decoder = model::load(&dir, None)?.decoder;
        test = on_test_text(trainer, &decoder, tokenizer, progress)?;
        samples = written(trainer, &decoder, tokenizer)?;
    }
    let checks = bar::checks(&trainer.recipe.report, last_losses(trainer), accuracy);
    let figures = Figures { accuracy, val, test, samples, checks };
    let summary = summary(trainer, &proof, figures);
    report::write(run, &summary)?;
    Ok(Finished { summary, proof, model: dir })
}

/// The finished model, as weights in f16 and f32; of a language model, as Hugging Face's tools read them.
fn export(trainer: &Trainer, dir: &Path) -> Result<()> {
    let writer = DirectoryWriter::new(dir, IfExists::Replace)?;
    trainer.save_model(writer.path(), Form::Unpacked)?;
    writer.commit()
}

/// The model on the test text of the recipe, if it names one.
fn on_test_text(
    trainer: &Trainer,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<TestEvaluation>> {
    let seq = trainer.source.seq();
    let Some(file) = &trainer.recipe.report.test else { return Ok(None) };
    let text = test_text(&trainer.recipe, file, tokenizer, decoder.config.vocab_size)?;
    let (mut read, all) = (0, text.ids.len() as u64);
    progress(read, all);
    let windows = Windows::Sliding { context: seq, stride: seq };
    let measured = measure::perplexity_of(decoder, &text, windows, None, &mut |n| {
        read += n;
        progress(read, all);
    });
    progress(all, all);
    Ok(Some(TestEvaluation { file: path_text::write(file), result: evaluation(&measured) }))
}

/// What the model writes after each prompt of the recipe.
fn written(trainer: &Trainer, decoder: &Decoder, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
    let config = &trainer.recipe.report;
    let sampling = SamplingConfig {
        temperature: config.temperature,
        top_p: config.top_p,
        seed: trainer.recipe.seed,
        ..SamplingConfig::default()
    };
    let sample = |prompt: &String| {
        let mut session = Session::new(decoder, tokenizer, KvFormat::F32);
        session.set_tokens(tokenizer.encode_prompt(prompt)?);
        let mut sampler = Sampler::new(sampling.clone());
        let made =
            session.generate(&mut sampler, config.sample_tokens, tokenizer.stop_ids(), &mut |_| true)?;
        Ok(Sample { prompt: prompt.clone(), text: made.text })
    };
    config.prompts.iter().map(sample).collect()
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| l as f64).sum::<f64>() / losses.len().max(1) as f64
}

/// Mean of the last 20 of steps that were of trits alone.
fn last_losses(trainer: &Trainer) -> f64 {
    let losses = trainer.losses_of_trits();
    mean(&losses[losses.len().saturating_sub(20)..])
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

/// What was measured of the finished model.
struct Figures {
    accuracy: Option<f64>,
    val: Option<Perplexity>,
    test: Option<TestEvaluation>,
    samples: Vec<Sample>,
    checks: Vec<Check>,
}

fn summary(trainer: &Trainer, proof: &Proof, figures: Figures) -> Summary {
    let total = proof.total();
    let progress = &trainer.progress;
    let recipe = &trainer.recipe;
    Summary {
        name: recipe.name.clone(),
        task: config::name(&recipe.task),
        steps: progress.step,
        seed: recipe.seed,
        parameters: trainer.model.decoder.config.parameters() as u64,
        ternary_weights: total.weights(),
        wall_seconds: progress.elapsed_s,
        tokens: progress.tokens,
        tok_per_s: progress.tokens as f64 / progress.elapsed_s.max(1e-9),
        first5_loss: mean(&trainer.losses[..trainer.losses.len().min(5)]),
        last20_loss: last_losses(trainer),
        loss_curve: (1..).zip(trainer.losses.iter().map(|&l| l as f64)).collect(),
        val: figures.val.map(|p| evaluation(&p)),
        test: figures.test,
        accuracy: figures.accuracy,
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
        samples: figures.samples,
        checks: figures.checks,
        texts: match &trainer.source {
            Source::Text { corpus, .. } => {
                Some(Texts { train: corpus.fingerprint.clone(), val: corpus.val.sha256() })
            }
            Source::Synthetic(_) => None,
        },
        // Through the text, in which an f32 has its own digits.
        recipe: serde_json::to_string(recipe)
            .and_then(|text| serde_json::from_str(&text))
            .expect("a recipe has a JSON form"),
        versions: Versions::current(),
    }
}
