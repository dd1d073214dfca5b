//! A ternary matrix: two-bit codes and one scale a group. This file is the meaning of the number contract; the fast
//! projection in `kernels` must agree with it bit for bit.

use half::f16;

use super::Grouping;
use crate::error::{Error, Result};
use crate::random::{GAMMA, splitmix64};

/// Codes in a 32-bit word.
pub const CODES_PER_WORD: usize = 16;
/// Sixteen codes of the trit 0: what unused places hold.
pub const ZERO_WORD: u32 = 0x5555_5555;

/// `rows x cols` weights `scale * trit`, groups along a row.
///
/// A code is `trit + 1`; code `j` of a row stands at bits `2 * (j % 16)` of word `j / 16` of that row, and a row starts
/// at a word. Places past the end of a row hold the trit 0. Scales are numbers that f16 can hold, kept as f32.
///
/// ```
/// use ternlm::ternary::{Grouping, TernaryMatrix};
/// // One row of five inputs in groups of three: means 1 and 0.375, thresholds 0.5 and 0.1875.
/// let latent = [0.5, -2.0, 0.5, 0.25, -0.5];
/// let w = TernaryMatrix::project("w", &latent, 1, 5, Grouping::Size(3))?;
/// assert_eq!([0, 1, 2, 3, 4].map(|col| w.trit(0, col)), [0, -1, 0, 1, -1]);
/// assert_eq!(w.scales(), [1.0, 0.375]);
/// let mut row = [0.0; 5];
/// w.unpack_row(0, &mut row);
/// assert_eq!(row, [0.0, -1.0, 0.0, 0.375, -0.375]);
///
/// // What is ternary is read as it is; its latents project to it again.
/// assert_eq!(TernaryMatrix::from_values(&row, 1, 5, Grouping::Size(3)).unwrap(), w);
/// assert_eq!(TernaryMatrix::project("w", &w.latents(Grouping::Size(3)), 1, 5, Grouping::Size(3))?, w);
/// # Ok::<(), ternlm::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TernaryMatrix {
    rows: usize,
    cols: usize,
    group: usize,
    words: Vec<u32>,
    scales: Vec<f32>,
}

impl TernaryMatrix {
    /// All zeros.
    pub fn zeros(rows: usize, cols: usize, grouping: Grouping) -> Self {
        let group = grouping.size(cols);
        let mut matrix = Self { rows, cols, group, words: Vec::new(), scales: Vec::new() };
        matrix.words = vec![ZERO_WORD; rows * matrix.row_words()];
        matrix.scales = vec![0.0; rows * matrix.row_groups()];
        matrix
    }

    /// Random trits, half of them 0, and one scale, which keeps outputs as large as inputs: for measurements without a
    /// model.
    ///
    /// ```
    /// use ternlm::ternary::{Grouping, Stats, TernaryMatrix};
    /// let w = TernaryMatrix::random([100, 90], Grouping::default(), 1);
    /// let stats = Stats::of(&w);
    /// assert!([stats.minus, stats.plus].iter().all(|n| (2000..2500).contains(n)), "a quarter of 9,000 each");
    /// assert_eq!(w.scales(), [0.149; 100].map(|s| half::f16::from_f32(s).to_f32())); // sqrt(2 / 90)
    /// ```
    pub fn random([rows, cols]: [usize; 2], grouping: Grouping, seed: u64) -> Self {
        let mut out = Self::zeros(rows, cols, grouping);
        out.scales.fill(f16::from_f32((2.0 / cols as f32).sqrt()).to_f32());
        let mut count = seed << 32;
        for word in &mut out.words {
            count += 1;
            let random = splitmix64(count.wrapping_mul(GAMMA)) as u32;
            // A trit is the difference of two random bits.
            let (plus, minus) = (random & ZERO_WORD, random >> 1 & ZERO_WORD);
            *word = (plus & !minus) << 1 | (!(plus ^ minus) & ZERO_WORD);
        }
        out.clear_unused();
        out
    }

    /// Projects `latent`, `[rows, cols]`: in each group `s = f16(mean|w|)`, and the trit is 0 where `|w| <= s/2`, else
    /// the sign of `w`. Absmean as in BitNet b1.58 (arXiv 2402.17764), per group.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with `name` when a latent, or its group's mean in f16, is not finite.
    pub fn project(name: &str, latent: &[f32], rows: usize, cols: usize, grouping: Grouping) -> Result<Self> {
        assert_eq!(latent.len(), rows * cols, "{name}: {} latents for [{rows}, {cols}]", latent.len());
        let mut out = Self::zeros(rows, cols, grouping);
        if grouping == Grouping::Tensor {
            let sums = latent.chunks(cols.max(1)).map(abs_sum);
            let scale = scale_of(sums.sum(), latent.len());
            out.scales.fill(scale);
        } else {
            for (row, scales) in
                latent.chunks(cols.max(1)).zip(out.scales.chunks_mut(cols.div_ceil(out.group).max(1)))
            {
                for (group, scale) in row.chunks(out.group).zip(scales) {
                    *scale = scale_of(abs_sum(group), group.len());
                }
            }
        }
        if out.scales.iter().any(|s| !s.is_finite()) {
            return Err(not_finite(name, latent, &out));
        }
        for row in 0..rows {
            for col in 0..cols {
                out.set(row, col, trit_of(latent[row * cols + col], out.scale(row, col)));
            }
        }
        Ok(out)
    }

    /// From stored parts, as [`Self::words`] and [`Self::scales`] give them; the error says which part is wrong. A group
    /// whose scale is 0 is all zeros, whatever its codes.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        grouping: Grouping,
        words: Vec<u32>,
        scales: Vec<f32>,
    ) -> Result<Self, String> {
        let mut out = Self { rows, cols, group: grouping.size(cols), words, scales };
        if out.words.len() != rows * out.row_words() {
            return Err(format!("{} words of codes, wanted {}", out.words.len(), rows * out.row_words()));
        }
        if out.scales.len() != rows * out.row_groups() {
            return Err(format!("{} scales, wanted {}", out.scales.len(), rows * out.row_groups()));
        }
        if let Some([row, col]) = bad_code(&out.words, cols) {
            return Err(format!("code 3 in row {row}, column {col}, wanted 0, 1 or 2"));
        }
        if let Some(s) = out.scales.iter().find(|s| !(**s >= 0.0 && f16_holds(**s))) {
            return Err(format!("scale {s}, wanted a number that f16 holds, 0 or more"));
        }
        if let (Grouping::Tensor, Some(other)) = (grouping, out.scales.iter().find(|s| **s != out.scales[0]))
        {
            return Err(format!("scales {} and {other}, wanted one for the whole matrix", out.scales[0]));
        }
        out.clear_unused();
        Ok(out)
    }

    /// Brings what no weight hangs on into its one form: no negative zero among the scales, trits of 0 where the scale is, and
    /// codes of 0 behind the end of a row.
    pub(super) fn clear_unused(&mut self) {
        let (groups, words) = (self.row_groups(), self.row_words());
        for at in 0..self.scales.len() {
            if self.scales[at] == 0.0 {
                self.scales[at] = 0.0;
                let (row, first) = (at / groups, at % groups * self.group);
                (first..(first + self.group).min(self.cols)).for_each(|col| self.set(row, col, 0));
            }
        }
        if !self.cols.is_multiple_of(CODES_PER_WORD) {
            let used = (1 << (2 * (self.cols % CODES_PER_WORD))) - 1;
            let last = self.words.iter_mut().skip(words - 1).step_by(words);
            last.for_each(|word| *word = *word & used | ZERO_WORD & !used);
        }
    }

    /// Reads values that are ternary already, `[rows, cols]`: in each group −s, 0 and +s for one `s` that f16 can hold.
    /// The error says where the first value is that is not.
    pub fn from_values(values: &[f32], rows: usize, cols: usize, grouping: Grouping) -> Result<Self, String> {
        assert_eq!(values.len(), rows * cols, "{} values for [{rows}, {cols}]", values.len());
        let mut out = Self::zeros(rows, cols, grouping);
        let max = |part: &[f32]| part.iter().fold(0f32, |a, w| a.max(w.abs()));
        let common = (grouping == Grouping::Tensor).then(|| max(values));
        for row in 0..rows {
            for col in 0..cols {
                if col % out.group == 0 {
                    let end = (col + out.group).min(cols);
                    let scale = common.unwrap_or_else(|| max(&values[row * cols + col..row * cols + end]));
                    if !f16_holds(scale) {
                        return Err(format!("row {row}, column {col}: scale {scale} is not an f16 number"));
                    }
                    let at = row * out.row_groups() + col / out.group;
                    out.scales[at] = scale;
                }
                let (w, s) = (values[row * cols + col], out.scale(row, col));
                if !(w == 0.0 || w.abs() == s) {
                    return Err(format!("row {row}, column {col}: {w} is none of -{s}, 0, +{s}"));
                }
                out.set(row, col, if w == 0.0 { 0 } else { w.signum() as i8 });
            }
        }
        Ok(out)
    }

    /// Latents whose projection by `grouping`, the one this matrix was made with, is this matrix, `[rows, cols]`: a
    /// group with `k` of its `n` weights not 0 gets `trit * scale * n / k`, so that their absolute mean is the scale.
    pub fn latents(&self, grouping: Grouping) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * self.cols];
        for (row, values) in out.chunks_mut(self.cols.max(1)).enumerate() {
            self.unpack_row(row, values);
            if grouping != Grouping::Tensor {
                values.chunks_mut(self.group).for_each(restore_mean);
            }
        }
        if grouping == Grouping::Tensor {
            restore_mean(&mut out);
        }
        out
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Inputs of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Inputs that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }
    /// Words of codes in a row.
    pub fn row_words(&self) -> usize {
        self.cols.div_ceil(CODES_PER_WORD)
    }
    /// Scales in a row.
    pub fn row_groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }
    /// `[rows, row_words]`
    pub fn words(&self) -> &[u32] {
        &self.words
    }
    /// `[rows, row_groups]`
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
    /// For the kernels that fill a matrix in place.
    pub(crate) fn parts_mut(&mut self) -> (&mut [u32], &mut [f32]) {
        (&mut self.words, &mut self.scales)
    }

    /// −1, 0 or +1.
    pub fn trit(&self, row: usize, col: usize) -> i8 {
        self.code(row, col) as i8 - 1
    }

    /// The trit plus 1.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        let word = self.words[row * self.row_words() + col / CODES_PER_WORD];
        (word >> (2 * (col % CODES_PER_WORD)) & 3) as u8
    }

    /// The scale of the group that holds this weight.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        self.scales[row * self.row_groups() + col / self.group]
    }

    fn set(&mut self, row: usize, col: usize, trit: i8) {
        let at = row * self.row_words() + col / CODES_PER_WORD;
        let shift = 2 * (col % CODES_PER_WORD);
        self.words[at] = self.words[at] & !(3 << shift) | ((trit + 1) as u32) << shift;
    }

    /// Writes the weights of one row, `scale * trit`, to `out` of `cols` values.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        for (col, w) in out.iter_mut().enumerate() {
            *w = self.scale(row, col) * self.trit(row, col) as f32;
        }
    }

    /// Codes as little-endian bytes, then scales as little-endian f16: what a digest of the matrix is made over.
    pub fn digest_chunks(&self) -> [Vec<u8>; 2] {
        let codes = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let scales = self.scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect();
        [codes, scales]
    }
}

/// Whether this is a finite number that f16 has.
pub(crate) fn f16_holds(x: f32) -> bool {
    x.is_finite() && f16::from_f32(x).to_f32() == x
}

/// Row and column of the first code 3 in rows of `cols` codes.
pub(crate) fn bad_code(words: &[u32], cols: usize) -> Option<[usize; 2]> {
    let row_words = cols.div_ceil(CODES_PER_WORD);
    // It is both bits of a pair set.
    let both = |word: u32| word & (word >> 1) & ZERO_WORD;
    let at = words.iter().position(|word| both(*word) != 0)?;
    let within = both(words[at]).trailing_zeros() as usize / 2;
    Some([at / row_words, at % row_words * CODES_PER_WORD + within])
}

/// Scales values of −s, 0, +s so that their absolute mean is s.
fn restore_mean(group: &mut [f32]) {
    let nonzero = group.iter().filter(|w| **w != 0.0).count();
    let factor = group.len() as f64 / nonzero.max(1) as f64;
    group.iter_mut().for_each(|w| *w = (*w as f64 * factor) as f32);
}

/// In f64, where the sum of a group of f32 is exact unless they span more than 2^22: the order does not matter.
fn abs_sum(group: &[f32]) -> f64 {
    group.iter().map(|w| w.abs() as f64).sum()
}

/// `f16(mean)` by way of f32, the same on every machine.
pub(crate) fn scale_of(sum: f64, count: usize) -> f32 {
    f16::from_f32((sum / count.max(1) as f64) as f32).to_f32()
}

/// The projection of one weight: ties go to 0.
pub(crate) fn trit_of(w: f32, scale: f32) -> i8 {
    if w.abs() <= 0.5 * scale || scale == 0.0 { 0 } else { w.signum() as i8 }
}

/// The error that names the first bad latent, or else the first group whose mean f16 cannot hold.
pub(crate) fn not_finite(name: &str, latent: &[f32], out: &TernaryMatrix) -> Error {
    let place = |at: usize| format!("row {}, column {}", at / out.cols, at % out.cols);
    let detail = match latent.iter().position(|w| !w.is_finite()) {
        Some(at) => format!("the latent at {} is {}", place(at), latent[at]),
        None => {
            let at = out.scales.iter().position(|s| !s.is_finite()).unwrap_or(0);
            let (row, col) = (at / out.row_groups(), at % out.row_groups() * out.group);
            let scale = out.scales[at];
            format!(
                "the scale at {} is {scale} in f16 (latents must average below 65,520)",
                place(row * out.cols + col)
            )
        }
    };
    Error::NotFinite { tensor: name.to_string(), detail }
}
