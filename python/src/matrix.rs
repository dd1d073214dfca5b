//! A ternary matrix, and the projection that makes one.

use numpy::ndarray::Array2;
use numpy::{Element, IntoPyArray, PyArray2, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ternlm::config::Inputs;
use ternlm::kernels::{self, Matrix, To, linear};
use ternlm::ternary::{self, CODES_PER_WORD, Density, Grouping, PackedMatrix, ZERO_WORD};

use crate::{raised, unlike, wrong};

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
        _ => Err(unlike("density", format!("{name:?}"), "\"base3\" or \"2bit\"")),
    }
}

/// Projects latents, float32 [out, in]: in each group of inputs `s = f16(mean |w|)`, and a trit is 0 where `|w| <= s / 2`,
/// else the sign of `w`. `group` is a number of inputs, or "tensor".
#[pyfunction]
#[pyo3(signature = (latents, group=Group::Size(128)))]
pub fn project(py: Python<'_>, latents: PyReadonlyArray2<'_, f32>, group: Group) -> PyResult<TernaryMatrix> {
    let (([rows, cols], latents), grouping) = (read_matrix("latents", &latents)?, group.grouping()?);
    let matrix = py.detach(|| {
        let mut matrix = ternary::TernaryMatrix::zeros(rows, cols, grouping);
        kernels::project("latents", &latents, grouping, &mut matrix).map(|_| matrix)
    });
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
    fn from_values(py: Python<'_>, values: PyReadonlyArray2<'_, f32>, group: Group) -> PyResult<Self> {
        let (([rows, cols], values), grouping) = (read_matrix("values", &values)?, group.grouping()?);
        let matrix = py.detach(|| ternary::TernaryMatrix::from_values(&values, rows, cols, grouping));
        Ok(Self { matrix: matrix.map_err(wrong)?, grouping })
    }

    /// From trits, int8 [out, in], and scales, float32 [out, groups].
    #[staticmethod]
    #[pyo3(signature = (trits, scales, group=Group::Size(128)))]
    fn from_parts(
        py: Python<'_>,
        trits: PyReadonlyArray2<'_, i8>,
        scales: PyReadonlyArray2<'_, f32>,
        group: Group,
    ) -> PyResult<Self> {
        let (([rows, cols], trits), grouping) = (read_matrix("trits", &trits)?, group.grouping()?);
        let (found, scales) = read("scales", &scales)?;
        let wanted = [rows, cols.div_ceil(grouping.size(cols))];
        if found != wanted {
            return Err(unlike("scales", format!("{found:?}"), format!("{wanted:?}")));
        }
        let matrix = py.detach(|| {
            let row_words = cols.div_ceil(CODES_PER_WORD);
            let mut words = vec![ZERO_WORD; rows * row_words];
            for (row, (trits, words)) in trits.chunks(cols).zip(words.chunks_mut(row_words)).enumerate() {
                for (col, &trit) in trits.iter().enumerate() {
                    if !(-1..=1).contains(&trit) {
                        return Err(unlike(&format!("trits[{row}, {col}]"), trit, "-1, 0 or 1"));
                    }
                    let (word, at) = (&mut words[col / CODES_PER_WORD], 2 * (col % CODES_PER_WORD));
                    *word = *word & !(3 << at) | ((trit + 1) as u32) << at;
                }
            }
            ternary::TernaryMatrix::from_parts(rows, cols, grouping, words, scales).map_err(wrong)
        });
        Ok(Self { matrix: matrix?, grouping })
    }

    /// From the bytes of `pack`.
    #[staticmethod]
    #[pyo3(signature = (data, shape, group=Group::Size(128), density="base3"))]
    fn unpack(py: Python<'_>, data: &[u8], shape: [usize; 2], group: Group, density: &str) -> PyResult<Self> {
        let (grouping, density) = (group.grouping()?, self::density(density)?);
        let matrix = py.detach(|| {
            let packed = PackedMatrix::from_bytes(shape, grouping, density, data.to_vec().into())?;
            packed.judge()?;
            packed.unpack(0..shape[0])
        });
        Ok(Self { matrix: matrix.map_err(wrong)?, grouping })
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
        let trits = py.detach(|| Array2::from_shape_fn(size, |(row, col)| self.matrix.trit(row, col)));
        trits.into_pyarray(py)
    }

    /// float32 [out, groups], numbers that f16 holds.
    fn scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        array(py, self.matrix.scales().to_vec(), [self.matrix.rows(), self.matrix.row_groups()])
    }

    /// float32 [out, in], each -s, 0 or +s.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let [rows, cols] = [self.matrix.rows(), self.matrix.cols()];
        let values = py.detach(|| {
            let mut values = vec![0f32; rows * cols];
            let each = values.chunks_mut(cols).enumerate();
            each.for_each(|(row, out)| self.matrix.unpack_row(row, out));
            values
        });
        array(py, values, [rows, cols])
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
        let ([n, cols], x) = read("x", &x)?;
        if cols != self.matrix.cols() {
            return Err(unlike("x", format!("{cols} inputs a row"), self.matrix.cols()));
        }
        let inputs = match inputs {
            "f32" => Inputs::F32,
            "int8" => Inputs::Int8,
            _ => return Err(unlike("inputs", format!("{inputs:?}"), "\"f32\" or \"int8\"")),
        };
        let mut y = vec![0f32; n * self.matrix.rows()];
        py.detach(|| linear::forward(&x, Matrix::ternary(&self.matrix, inputs), &mut y, To::Set));
        array(py, y, [n, self.matrix.rows()])
    }

    fn __repr__(&self) -> String {
        format!("TernaryMatrix({} x {}, group {})", self.matrix.rows(), self.matrix.cols(), self.grouping)
    }
}

/// The sizes of an array, and its values row by row, however it lies in memory.
fn read<T: Element + Copy>(name: &str, x: &PyReadonlyArray2<'_, T>) -> PyResult<([usize; 2], Vec<T>)> {
    let [rows, cols] = x.shape()[..] else { unreachable!("an array of two dimensions") };
    // Strides that are no whole number of values would be cut to one, and other values read.
    if !x.is_aligned() {
        return Err(unlike(name, "an array that is not aligned", format!("one that is: {name}.copy()")));
    }
    Ok(([rows, cols], x.as_array().iter().copied().collect()))
}

/// [`read`] of a matrix, which has a value.
fn read_matrix<T: Element + Copy>(name: &str, x: &PyReadonlyArray2<'_, T>) -> PyResult<([usize; 2], Vec<T>)> {
    let (shape, values) = read(name, x)?;
    if values.is_empty() {
        return Err(unlike(name, format!("{shape:?}"), "a row and a column, or more"));
    }
    Ok((shape, values))
}

/// Row-major data of these sizes.
pub fn array<T: Element>(
    py: Python<'_>,
    data: Vec<T>,
    [rows, cols]: [usize; 2],
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let array = Array2::from_shape_vec((rows, cols), data).map_err(|e| wrong(e.to_string()))?;
    Ok(array.into_pyarray(py))
}
