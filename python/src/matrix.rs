//! A ternary matrix, and the projection that makes one.

use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ternlm::config::Inputs;
use ternlm::kernels::{Matrix, To, linear};
use ternlm::ternary::{self, CODES_PER_WORD, Density, Grouping, PackedMatrix, ZERO_WORD};

use crate::{raised, wrong};

/// 128, another number, or "tensor".
#[derive(FromPyObject)]
pub enum Group {
    Size(usize),
    Name(String),
}

impl Group {
    fn grouping(self) -> PyResult<Grouping> {
        match self {
            Group::Size(size) => size.to_string(),
            Group::Name(name) => name,
        }
        .parse()
        .map_err(wrong)
    }
}

fn density(name: &str) -> PyResult<Density> {
    match name {
        "base3" => Ok(Density::Base3),
        "2bit" => Ok(Density::TwoBit),
        _ => Err(wrong(format!("density: found {name:?}, wanted \"base3\" or \"2bit\""))),
    }
}

/// Projects latents, float32 [out, in]: in each group of inputs `s = f16(mean |w|)`, and a trit is 0 where `|w| <= s / 2`,
/// else the sign of `w`. `group` is a number of inputs, or "tensor".
#[pyfunction]
#[pyo3(signature = (latents, group=Group::Size(128)))]
pub fn project(py: Python<'_>, latents: PyReadonlyArray2<'_, f32>, group: Group) -> PyResult<TernaryMatrix> {
    let (values, [rows, cols], grouping) = (row_major(&latents), shape(&latents), group.grouping()?);
    let matrix = py.detach(|| ternary::TernaryMatrix::project("latents", &values, rows, cols, grouping));
    Ok(TernaryMatrix { matrix: matrix.map_err(raised)?, grouping })
}

/// Weights s * {-1, 0, +1}, [out, in], with a scale s for each group of inputs.
#[pyclass(frozen, module = "ternlm")]
pub struct TernaryMatrix {
    pub matrix: ternary::TernaryMatrix,
    pub grouping: Grouping,
}

#[pymethods]
impl TernaryMatrix {
    /// From values that are ternary already, float32 [out, in]: in each group -s, 0 and +s with an s that f16 holds.
    #[staticmethod]
    #[pyo3(signature = (values, group=Group::Size(128)))]
    fn from_values(values: PyReadonlyArray2<'_, f32>, group: Group) -> PyResult<Self> {
        let (x, [rows, cols], grouping) = (row_major(&values), shape(&values), group.grouping()?);
        let matrix = ternary::TernaryMatrix::from_values(&x, rows, cols, grouping).map_err(wrong)?;
        Ok(Self { matrix, grouping })
    }

    /// From trits, int8 [out, in], and scales, float32 [out, groups].
    #[staticmethod]
    #[pyo3(signature = (trits, scales, group=Group::Size(128)))]
    fn from_parts(
        trits: PyReadonlyArray2<'_, i8>,
        scales: PyReadonlyArray2<'_, f32>,
        group: Group,
    ) -> PyResult<Self> {
        let ([rows, cols], grouping) = (shape(&trits), group.grouping()?);
        let groups = cols.div_ceil(grouping.size(cols));
        if shape(&scales) != [rows, groups] {
            return Err(wrong(format!("scales: found {:?}, wanted {:?}", shape(&scales), [rows, groups])));
        }
        let row_words = cols.div_ceil(CODES_PER_WORD);
        let mut words = vec![ZERO_WORD; rows * row_words];
        for ((row, col), trit) in trits.as_array().indexed_iter() {
            if !(-1..=1).contains(trit) {
                return Err(wrong(format!("trits[{row}, {col}]: found {trit}, wanted -1, 0 or 1")));
            }
            let (word, at) = (row * row_words + col / CODES_PER_WORD, 2 * (col % CODES_PER_WORD));
            words[word] = words[word] & !(3 << at) | ((trit + 1) as u32) << at;
        }
        let scales = row_major(&scales);
        let matrix =
            ternary::TernaryMatrix::from_parts(rows, cols, grouping, words, scales).map_err(wrong)?;
        Ok(Self { matrix, grouping })
    }

    /// From the bytes of `pack`.
    #[staticmethod]
    #[pyo3(signature = (data, shape, group=Group::Size(128), density="base3"))]
    fn unpack(data: &[u8], shape: [usize; 2], group: Group, density: &str) -> PyResult<Self> {
        let grouping = group.grouping()?;
        let packed = PackedMatrix::from_bytes(shape, grouping, self::density(density)?, data.to_vec().into());
        let matrix = packed.and_then(|p| p.judge().and_then(|()| p.unpack(0..shape[0]))).map_err(wrong)?;
        Ok(Self { matrix, grouping })
    }

    /// Bytes of a packed file's matrix: "base3", five trits a byte, or "2bit".
    #[pyo3(signature = (density="base3"))]
    fn pack<'py>(&self, py: Python<'py>, density: &str) -> PyResult<Bound<'py, PyBytes>> {
        let density = self::density(density)?;
        let packed = py.detach(|| PackedMatrix::pack(&self.matrix, self.grouping, density));
        Ok(PyBytes::new(py, packed.bytes()))
    }

    /// (out, in)
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.matrix.rows(), self.matrix.cols())
    }

    /// Inputs that share a scale.
    #[getter]
    fn group(&self) -> usize {
        self.matrix.group()
    }

    /// int8 [out, in], each -1, 0 or 1.
    fn trits<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray2<i8>> {
        let size = (self.matrix.rows(), self.matrix.cols());
        Array2::from_shape_fn(size, |(row, col)| self.matrix.trit(row, col)).into_pyarray(py)
    }

    /// float32 [out, groups], numbers that f16 holds.
    fn scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        array(py, self.matrix.scales().to_vec(), self.matrix.row_groups())
    }

    /// float32 [out, in], each -s, 0 or +s.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let cols = self.matrix.cols();
        let mut out = vec![0f32; self.matrix.rows() * cols];
        let rows = out.chunks_mut(cols.max(1)).enumerate();
        rows.for_each(|(row, out)| self.matrix.unpack_row(row, out));
        array(py, out, cols)
    }

    /// `x @ values().T` for x, float32 [n, in]; float32 [n, out]. With `inputs="int8"` each row of x is rounded to 8 bits
    /// first.
    #[pyo3(signature = (x, inputs="f32"))]
    fn linear<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'_, f32>,
        inputs: &str,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let ([n, cols], x) = (shape(&x), row_major(&x));
        if cols != self.matrix.cols() {
            return Err(wrong(format!("x: found {cols} inputs a row, wanted {}", self.matrix.cols())));
        }
        let inputs = match inputs {
            "f32" => Inputs::F32,
            "int8" => Inputs::Int8,
            _ => return Err(wrong(format!("inputs: found {inputs:?}, wanted \"f32\" or \"int8\""))),
        };
        let mut y = vec![0f32; n * self.matrix.rows()];
        py.detach(|| linear::forward(&x, Matrix::ternary(&self.matrix, inputs), &mut y, To::Set));
        array(py, y, self.matrix.rows())
    }

    fn __repr__(&self) -> String {
        format!("TernaryMatrix({} x {}, group {})", self.matrix.rows(), self.matrix.cols(), self.grouping)
    }
}

pub fn shape<T: numpy::Element>(x: &PyReadonlyArray2<'_, T>) -> [usize; 2] {
    let (rows, cols) = x.as_array().dim();
    [rows, cols]
}

/// The values row by row, however the array lies in memory.
pub fn row_major<T: numpy::Element + Copy>(x: &PyReadonlyArray2<'_, T>) -> Vec<T> {
    x.as_array().iter().copied().collect()
}

/// `[rows, cols]`
pub fn array<T: numpy::Element>(py: Python<'_>, data: Vec<T>, cols: usize) -> PyResult<Bound<'_, PyArray2<T>>> {
    let rows = data.len() / cols.max(1);
    let array = Array2::from_shape_vec((rows, cols), data).map_err(|e| wrong(e.to_string()))?;
    Ok(array.into_pyarray(py))
}
