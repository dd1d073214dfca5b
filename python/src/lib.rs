//! ternlm for Python. Arrays go in and out as NumPy's; what takes long (models, trainings, proofs, texts) lets other Python threads run
//! meanwhile.

mod matrix;
mod model;
mod training;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ffi::OsString;

#[global_allocator]
static MEMORY: ternlm::kernels::LargePages = ternlm::kernels::LargePages;

/// What the library logs of a module's work is told as it is of a command's.
fn tell_log() {
    ternlm::cli::tell_log("ternlm=warn");
}

pyo3::create_exception!(_ternlm, TernlmError, PyValueError, "A file, a value or a request that cannot be used.");

/// What ternlm refuses, as Python raises it.
fn raised(error: ternlm::Error) -> PyErr {
    TernlmError::new_err(error.to_string())
}

fn wrong(text: impl Into<String>) -> PyErr {
    TernlmError::new_err(text.into())
}

/// Runs the command line with these arguments, the first of which is the program's name; its exit status. `program` starts a
/// process that does the same.
#[pyfunction]
fn call(py: Python<'_>, arguments: Vec<OsString>, program: Vec<OsString>) -> u8 {
    ternlm::cli::started_by(program);
    py.detach(|| ternlm::cli::call(arguments))
}

#[pymodule]
fn _ternlm(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("TernlmError", m.py().get_type::<TernlmError>())?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<matrix::TernaryMatrix>()?;
    m.add_class::<model::Model>()?;
    m.add_function(wrap_pyfunction!(matrix::project, m)?)?;
    m.add_function(wrap_pyfunction!(model::verify, m)?)?;
    m.add_function(wrap_pyfunction!(training::train, m)?)?;
    m.add_function(wrap_pyfunction!(call, m)?)
}
