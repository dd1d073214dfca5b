//! ternlm for Python. Arrays go in and out as NumPy's; what takes long (models, matrices, trainings, proofs, texts) lets
//! other Python threads run meanwhile.

mod matrix;
mod model;
mod training;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use ternlm::Error;

#[global_allocator]
static MEMORY: ternlm::kernels::LargePages = ternlm::kernels::LargePages;

/// What the library logs of a module's work is told as it is of a command's.
fn tell_log() {
    ternlm::cli::tell_log("ternlm=warn");
}

pyo3::create_exception!(
    _ternlm,
    TernlmError,
    PyValueError,
    "A file, a value or a request that cannot be used. file, field, found, wanted: texts, None where there are none."
);

/// The attributes of a [`TernlmError`].
const PARTS: [&str; 4] = ["file", "field", "found", "wanted"];

/// What ternlm refuses, as Python raises it.
fn raised(error: Error) -> PyErr {
    let parts = match &error {
        Error::Input { file, field, found, wanted } => {
            [file.as_os_str(), OsStr::new(field), OsStr::new(found), OsStr::new(wanted)].map(Some)
        }
        Error::Io { path, .. } => [Some(path.as_os_str()), None, None, None],
        _ => [None; 4],
    };
    with_parts(error.to_string(), parts)
}

/// An argument, or a part of one, that is not what is wanted.
fn unlike(field: &str, found: impl Display, wanted: impl Display) -> PyErr {
    let (found, wanted) = (found.to_string(), wanted.to_string());
    let parts = [None, Some(OsStr::new(field)), Some(OsStr::new(&found)), Some(OsStr::new(&wanted))];
    with_parts(format!("{field}: found {found}, wanted {wanted}"), parts)
}

fn wrong(text: impl Into<String>) -> PyErr {
    TernlmError::new_err(text.into())
}

fn with_parts(text: String, parts: [Option<&OsStr>; 4]) -> PyErr {
    let error = wrong(text);
    let noted = Python::attach(|py| {
        let value = error.value(py);
        PARTS.into_iter().zip(parts).try_for_each(|(name, part)| value.setattr(name, part))
    });
    noted.err().unwrap_or(error)
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
    let error = m.py().get_type::<TernlmError>();
    PARTS.into_iter().try_for_each(|name| error.setattr(name, m.py().None()))?;
    m.add("TernlmError", error)?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<matrix::TernaryMatrix>()?;
    m.add_class::<model::Model>()?;
    m.add_function(wrap_pyfunction!(matrix::project, m)?)?;
    m.add_function(wrap_pyfunction!(model::verify, m)?)?;
    m.add_function(wrap_pyfunction!(training::train, m)?)?;
    m.add_function(wrap_pyfunction!(call, m)?)
}
