//! The training of a recipe, told to Python as it goes.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use ternlm::measure::Perplexity;
use ternlm::train::{Observer, Outcome, StepReport};

use crate::{raised, tell_log};

/// Trains as `ternlm train ARGUMENTS` does. `on_metrics` gets a dict with `step` and `loss`, `lr`, `grad_norm`,
/// `tokens_per_s` of every step that is logged, and `step`, `val_nll`, `val_perplexity` of every validation; returning
/// False ends the training after the step at hand, with a checkpoint. True if it came to its end.
#[pyfunction]
#[pyo3(signature = (arguments, on_metrics=None))]
pub fn train(py: Python<'_>, arguments: Vec<OsString>, on_metrics: Option<Py<PyAny>>) -> PyResult<bool> {
    tell_log();
    let stop = Arc::new(AtomicBool::new(false));
    let mut told = Told { on_metrics, stop: stop.clone(), failed: None };
    let outcome = py.detach(|| ternlm::cli::train(arguments, &stop, &mut told));
    match told.failed {
        Some(error) => Err(error),
        None => Ok(outcome.map_err(raised)? == Outcome::Finished),
    }
}

struct Told {
    on_metrics: Option<Py<PyAny>>,
    stop: Arc<AtomicBool>,
    failed: Option<PyErr>,
}

impl Told {
    fn tell(&mut self, step: u64, figures: &[(&str, f64)]) {
        // A step that has been told may be followed by a validation.
        if self.failed.is_some() {
            return;
        }
        let goes_on = Python::attach(|py| {
            py.check_signals()?;
            let Some(f) = self.on_metrics.as_ref().filter(|_| !figures.is_empty()) else { return Ok(true) };
            let metrics = PyDict::new(py);
            metrics.set_item("step", step)?;
            figures.iter().try_for_each(|(name, value)| metrics.set_item(name, value))?;
            let said = f.bind(py).call1((metrics,))?;
            Ok::<bool, PyErr>(!said.is(PyBool::new(py, false)))
        });
        match goes_on {
            Ok(true) => {}
            Ok(false) => self.stop.store(true, Ordering::SeqCst),
            Err(error) => {
                self.failed = Some(error);
                self.stop.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl Observer for Told {
    fn stepped(&mut self, report: &StepReport, tokens_per_s: f64, logged: bool) {
        let figures = [
            ("loss", report.loss),
            ("lr", report.lr as f64),
            ("grad_norm", report.grad_norm),
            ("tokens_per_s", tokens_per_s),
        ];
        self.tell(report.index + 1, if logged { &figures } else { &[] });
    }

    fn validated(&mut self, step: u64, measured: &Perplexity) {
        self.tell(step, &[("val_nll", measured.nll), ("val_perplexity", measured.ppl)]);
    }

    fn saved(&mut self, _: &Path) {}
}
