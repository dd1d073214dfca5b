//! The projection of latents to trits, fast; `ternary::TernaryMatrix::project` is its meaning.

use rayon::prelude::*;

use super::isa::kernel;
use super::profile::{Phase, scope};
use crate::error::Result;
use crate::ternary::{
    CODES_PER_WORD, Flips, Grouping, TernaryMatrix, ZERO_WORD, not_finite, scale_of, trit_of,
};

/// Rows a thread takes at a time.
const ROWS: usize = 32;

/// Projects `latent`, `[rows, cols]`, into `out`, which has that shape, and counts the trits that changed.
///
/// # Errors
/// `NotFinite` with `name` when a latent, or a group's mean in f16, is not finite; `out` is then unspecified.
pub fn project(name: &str, latent: &[f32], grouping: Grouping, out: &mut TernaryMatrix) -> Result<Flips> {
    let _time = scope(Phase::Projection);
    let (rows, cols) = (out.rows(), out.cols());
    assert_eq!(latent.len(), rows * cols, "{name}: {} latents for [{rows}, {cols}]", latent.len());
    if latent.is_empty() {
        return Ok(Flips::default());
    }
    let common = (grouping == Grouping::Tensor).then(|| {
        let sums: Vec<f64> = latent.par_chunks(cols).map(abs_sum).collect();
        scale_of(sums.iter().sum(), latent.len())
    });
    let Trits { group, row_words, row_groups, words, scales, .. } =
        Trits::of(name, rows, cols, grouping, out);
    let results: Vec<(Flips, bool)> = latent
        .par_chunks(ROWS * cols)
        .zip(words.par_chunks_mut(ROWS * row_words))
        .zip(scales.par_chunks_mut(ROWS * row_groups))
        .map(|((latent, words), scales)| {
            Trits { cols, group, row_words, row_groups, words, scales, means: None }.project(latent, common)
        })
        .collect();
    if results.iter().any(|(_, finite)| !finite) {
        return Err(not_finite(name, latent, out));
    }
    let mut flips = Flips::default();
    results.iter().for_each(|(f, _)| flips += *f);
    Ok(flips)
}

/// Rows of a ternary matrix, to be filled.
pub(super) struct Trits<'a> {
    cols: usize,
    group: usize,
    row_words: usize,
    row_groups: usize,
    words: &'a mut [u32],
    scales: &'a mut [f32],
    /// What the absolute means of the latents are to be, by group; else they are what they are.
    means: Option<&'a [f32]>,
}

impl<'a> Trits<'a> {
    /// All rows of `matrix`, which must be `[rows, cols]` and made for `grouping`.
    pub fn of(
        name: &str,
        rows: usize,
        cols: usize,
        grouping: Grouping,
        matrix: &'a mut TernaryMatrix,
    ) -> Self {
        assert_eq!([matrix.rows(), matrix.cols()], [rows, cols], "{name}: the projection's shape");
        assert_eq!(matrix.group(), grouping.size(cols), "{name}: a matrix made for another grouping");
        let (group, row_words, row_groups) = (matrix.group(), matrix.row_words(), matrix.row_groups());
        let (words, scales) = matrix.parts_mut();
        Self { cols, group, row_words, row_groups, words, scales, means: None }
    }

    /// With latents that are to be brought to these means, one a group.
    pub fn held_at(self, means: &'a [f32]) -> Self {
        assert_eq!(means.len(), self.scales.len(), "means of groups");
        Self { means: Some(means), ..self }
    }

    /// Brings as many rows of latents to their means, if they have any.
    pub fn hold(&self, latent: &mut [f32]) {
        if let Some(means) = self.means {
            hold_means(latent, self.cols, self.group, means);
        }
    }

    pub fn split_at(self, rows: usize) -> (Trits<'a>, Trits<'a>) {
        let Trits { cols, group, row_words, row_groups, words, scales, means } = self;
        let (words, words_after) = words.split_at_mut(rows * row_words);
        let (scales, scales_after) = scales.split_at_mut(rows * row_groups);
        let (means, means_after) = means.map(|means| means.split_at(rows * row_groups)).unzip();
        (
            Trits { cols, group, row_words, row_groups, words, scales, means },
            Trits {
                cols,
                group,
                row_words,
                row_groups,
                words: words_after,
                scales: scales_after,
                means: means_after,
            },
        )
    }

    /// Projects as many rows of latents, with the scale `common` where that is given: the trits that changed, and
    /// whether every scale is finite.
    pub fn project(&mut self, latent: &[f32], common: Option<f32>) -> (Flips, bool) {
        let mut flips = Flips::default();
        let mut finite = true;
        let rows = latent.chunks_exact(self.cols).zip(self.words.chunks_exact_mut(self.row_words));
        for ((latent, words), scales) in rows.zip(self.scales.chunks_exact_mut(self.row_groups)) {
            for (part, scale) in latent.chunks(self.group).zip(scales.iter_mut()) {
                *scale = common.unwrap_or_else(|| scale_of(abs_sum(part), part.len()));
                finite &= scale.is_finite();
            }
            flips += encode_row(latent, scales, self.group, words);
        }
        (flips, finite)
    }
}

kernel! {
    /// `sum |w|` in f64; exact in any order unless the values span more than 2^22.
    fn abs_sum<S>(group: &[f32]) -> f64 {
        let mut sums = [0f64; 8];
        let chunks = group.chunks_exact(8);
        let tail: f64 = chunks.remainder().iter().map(|w| w.abs() as f64).sum();
        for chunk in chunks {
            for i in 0..8 {
                sums[i] += chunk[i].abs() as f64;
            }
        }
        sums.iter().sum::<f64>() + tail
    }
}

/// The absolute mean of a group.
pub(super) fn mean_of(group: &[f32]) -> f64 {
    abs_sum(group) / group.len() as f64
}

/// Brings every group of `latents`, rows of `cols`, to its absolute mean in `means`. One that is to be 0, or is, stays as it
/// is: it has no direction.
fn hold_means(latents: &mut [f32], cols: usize, group: usize, means: &[f32]) {
    let mut means = means.iter();
    for row in latents.chunks_exact_mut(cols) {
        for (part, &wanted) in row.chunks_mut(group).zip(&mut means) {
            let found = mean_of(part);
            if wanted > 0.0 && found > 0.0 {
                let factor = (wanted as f64 / found) as f32;
                part.iter_mut().for_each(|w| *w *= factor);
            }
        }
    }
}

kernel! {
    fn encode_row<S>(latent: &[f32], scales: &[f32], group: usize, words: &mut [u32]) -> Flips {
        let mut flips = Flips::default();
        for (at, (word, part)) in words.iter_mut().zip(latent.chunks(CODES_PER_WORD)).enumerate() {
            let first = at * CODES_PER_WORD;
            let scale = scales[first / group];
            let one_group = first / group == (first + part.len() - 1) / group;
            let new = if one_group && part.len() == CODES_PER_WORD {
                let half = 0.5 * scale;
                // A dead group has no signs: half = infinity makes every code that of 0.
                let half = if scale == 0.0 { f32::INFINITY } else { half };
                let mut new = 0;
                for i in (0..CODES_PER_WORD).step_by(S::LANES) {
                    // SAFETY: `part` holds 16 values, and i + LANES <= 16.
                    new |= unsafe { S::encode(part.as_ptr().add(i), half) } << (2 * i);
                }
                new
            } else {
                part.iter().enumerate().fold(ZERO_WORD, |word, (i, &w)| {
                    let code = (trit_of(w, scales[(first + i) / group]) + 1) as u32;
                    word & !(3 << (2 * i)) | code << (2 * i)
                })
            };
            if new != *word {
                flips += Flips::between(*word, new);
                *word = new;
            }
        }
        flips
    }
}

/// Latents `[rows, cols]` with `| |w| − s/2 | ≤ near · s/2`: a small step may change their trits.
pub fn near_thresholds(latent: &[f32], trits: &TernaryMatrix, near: f32) -> u64 {
    kernel! {
        fn count<S>(part: &[f32], half: f32, near: f32) -> usize {
            let mut count = 0;
            for w in part {
                count += ((w.abs() - half).abs() <= near * half) as usize;
            }
            count
        }
    }
    let (cols, group) = (trits.cols(), trits.group());
    assert_eq!(latent.len(), trits.rows() * cols, "latents of the projection");
    let rows = latent.par_chunks(cols.max(1)).zip(trits.scales().par_chunks(trits.row_groups().max(1)));
    let of_row = |(row, scales): (&[f32], &[f32])| {
        let parts = row.chunks(group).zip(scales).filter(|(_, scale)| **scale > 0.0);
        parts.map(|(part, scale)| count(part, 0.5 * scale, near) as u64).sum::<u64>()
    };
    rows.map(of_row).sum()
}
