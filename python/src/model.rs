//! A stored model, loaded and run; the proof of one.

use numpy::PyArray2;
use pyo3::prelude::*;
use pyo3::types::PyBool;
use std::path::PathBuf;
use ternlm::config::{Inputs, KvFormat};
use ternlm::formats;
use ternlm::generate::{Sampler, SamplingConfig, Session};
use ternlm::measure;
use ternlm::model::{self, Decoder, Sequences, State};
use ternlm::ternary::Density;
use ternlm::text::Tokenizer;

use crate::matrix::{TernaryMatrix, array};
use crate::{raised, tell_log, unlike, wrong};

/// Proves from the stored files alone that the model at `path`, which may be the folder of a run, is ternary. A dict: pass,
/// reasons, form, scope, group, tensors.
#[pyfunction]
pub fn verify<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyAny>> {
    let path = ternlm::cli::model_dir(&path).map_err(raised)?;
    let proof = py.detach(|| measure::verify(&path, &mut |_| {})).map_err(raised)?;
    let text = serde_json::to_string(&proof).map_err(|e| wrong(e.to_string()))?;
    json(py, &text)
}

/// What a JSON text says, as Python has it.
fn json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (text,))
}

/// A language model that was loaded: `Model.load(path)`.
#[pyclass(frozen, module = "ternlm")]
pub struct Model {
    decoder: Decoder,
    tokenizer: Option<Tokenizer>,
    exact: bool,
    architecture: &'static str,
}

impl Model {
    fn tokenizer(&self) -> PyResult<&Tokenizer> {
        let none = "the model has no tokenizer, and so no texts: logits takes its token ids";
        self.tokenizer.as_ref().ok_or_else(|| wrong(none))
    }

    fn judge(&self, tokens: &[u32]) -> PyResult<()> {
        let (vocab, most) = (self.decoder.config.vocab_size, self.decoder.config.max_positions);
        if tokens.is_empty() || tokens.len() > most {
            return Err(unlike("tokens", tokens.len(), format!("1 to {most}")));
        }
        match tokens.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(unlike("tokens", id, format!("ids below {vocab}"))),
            None => Ok(()),
        }
    }
}

#[pymethods]
impl Model {
    /// Loads a stored model. `precision` is what inputs of ternary products are rounded to: "f32", not at all, which is
    /// exactly the weights' function but for the order of sums; or "int8", a scale for each token, and `generate` keeps
    /// keys and values in f16, as the command line does, which is faster.
    #[staticmethod]
    #[pyo3(signature = (path, precision="f32"))]
    fn load(py: Python<'_>, path: PathBuf, precision: &str) -> PyResult<Self> {
        let inputs = match precision {
            "f32" => Inputs::F32,
            "int8" => Inputs::Int8,
            _ => return Err(unlike("precision", format!("{precision:?}"), "\"f32\" or \"int8\"")),
        };
        tell_log();
        py.detach(|| {
            let path = ternlm::cli::model_dir(&path)?;
            let mut loaded = model::load(&path, None)?;
            loaded.decoder.set_inputs(inputs);
            // A pass over few tokens reads the weights: packed ones are a fraction of the bytes.
            loaded.decoder.weights_mut().for_each(|weight| weight.pack(Density::TwoBit));
            let files = formats::files_of(&path)?;
            let tokenizer = Tokenizer::is_in(&files).then(|| Tokenizer::of(&files)).transpose()?;
            Ok(Self {
                tokenizer,
                exact: inputs == Inputs::F32,
                architecture: loaded.description.architecture,
                decoder: loaded.decoder,
            })
        })
        .map_err(raised)
    }

    /// The model's shape.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json(py, &serde_json::to_string(&self.decoder.config).map_err(|e| wrong(e.to_string()))?)
    }

    /// What its files call the architecture.
    #[getter]
    fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// The tensors' names.
    fn names(&self) -> Vec<String> {
        self.decoder.weights().map(|weight| weight.name.clone()).collect()
    }

    /// The ternary matrix of this name.
    fn matrix(&self, py: Python<'_>, name: &str) -> PyResult<TernaryMatrix> {
        let weight = self.decoder.weights().find(|weight| weight.name == name);
        let weight = weight.ok_or_else(|| wrong(format!("no tensor {name:?}")))?;
        let trits = py.detach(|| Ok(weight.trits()?.map(|trits| trits.into_owned()))).map_err(raised)?;
        match (trits, weight.grouping()) {
            (Some(matrix), Some(grouping)) => Ok(TernaryMatrix { matrix, grouping }),
            _ => Err(wrong(format!("{name} is not ternary"))),
        }
    }

    /// The ids of a text, as a prompt begins with them.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        py.detach(|| tokenizer.encode_prompt(text)).map_err(raised)
    }

    /// The text of ids; those that the tokenizer does not have are left out.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        let tokenizer = self.tokenizer()?;
        Ok(py.detach(|| tokenizer.decode(&ids)))
    }

    /// Logits after each token: float32 [tokens, vocabulary].
    fn logits<'py>(&self, py: Python<'py>, tokens: Vec<u32>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        self.judge(&tokens)?;
        let seqs = Sequences::new(1, tokens.len());
        let logits = py.detach(|| self.decoder.logits(&tokens, seqs, &mut State::default()));
        array(py, logits, [tokens.len(), self.decoder.config.vocab_size])
    }

    /// Continues a text, or a list of token ids, by up to `max_tokens` tokens; greedily with temperature 0. `on_text` is
    /// called with each piece of text, and ends it by returning False. A dict: text, tokens, stopped, and the times. It
    /// takes a model with a tokenizer.
    #[pyo3(signature = (prompt, max_tokens=128, *, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
                        repetition_penalty=1.0, seed=0, ignore_eos=false, on_text=None))]
    #[allow(clippy::too_many_arguments)]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: Prompt,
        max_tokens: usize,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        seed: u64,
        ignore_eos: bool,
        on_text: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let off = SamplingConfig::default();
        let sampling = SamplingConfig { temperature, top_k, top_p, min_p, repetition_penalty, seed, ..off };
        sampling.validate().map_err(raised)?;
        let tokenizer = self.tokenizer()?;
        let tokens = match prompt {
            Prompt::Text(text) => py.detach(|| tokenizer.encode_prompt(&text)).map_err(raised)?,
            Prompt::Tokens(tokens) => tokens,
        };
        self.judge(&tokens)?;
        let stop = if ignore_eos { &[] } else { tokenizer.stop_ids() };
        let mut failed = None;
        let made = py.detach(|| {
            let kv = if self.exact { KvFormat::F32 } else { KvFormat::F16 };
            let mut session = Session::new(&self.decoder, tokenizer, kv);
            session.set_tokens(tokens);
            session.generate(&mut Sampler::new(sampling), max_tokens, stop, &mut |piece| {
                // What is left of the text comes even after it was ended.
                if failed.is_some() {
                    return false;
                }
                Python::attach(|py| {
                    let goes_on = py.check_signals().and_then(|()| match &on_text {
                        None => Ok(true),
                        Some(f) => Ok(!f.bind(py).call1((piece,))?.is(PyBool::new(py, false))),
                    });
                    goes_on.unwrap_or_else(|error| {
                        failed = Some(error);
                        false
                    })
                })
            })
        });
        match failed {
            Some(error) => Err(error),
            None => {
                let made = made.map_err(raised)?;
                json(py, &serde_json::to_string(&made).map_err(|e| wrong(e.to_string()))?)
            }
        }
    }

    fn __repr__(&self) -> String {
        format!("Model({}, {} parameters)", self.architecture, self.decoder.config.parameters())
    }
}

#[derive(FromPyObject)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}
