//! Values of `f32` split into three of bf16, or rounded to one, and laid out as tiles.
//!
//! With three parts `x = x0 + x1 + x2` exactly: each part is what is left, rounded to eight significant bits, and an `f32` has 24. (Below
//! about `2^-110` the last part is too small for the tile unit, which takes subnormal numbers for zero.) A value that is
//! not finite stays that, in one part at least; one of `0x7F7F_8000` (3.396e38) and more becomes that: its first part is rounded to infinity.

use std::arch::x86_64::*;

use crate::kernels::product::operands::View;
use crate::kernels::simd::Simd;
use crate::kernels::x86_64::amx::{self, Line, PANEL, TILE};
use crate::kernels::x86_64::avx512::Avx512;

/// Values of `k` in a step.
pub const DEPTH: usize = 32;
/// Rows between the one that is read and the one that is asked for: operands come from memory, not from the cache.
const ROWS_AHEAD: usize = 8;
/// Parts that are together an `f32`.
pub const WHOLE: usize = 3;
/// The one part of a value that is rounded.
pub const ROUNDED: usize = 1;

/// Lines of a step of a panel.
pub const fn lines(parts: usize) -> usize {
    parts * PANEL
}

/// Rows of `A`, or columns of `B`, as they lie in memory.
#[derive(Clone, Copy)]
pub struct Operand<'a, T = f32> {
    data: &'a [T],
    /// Between neighbours across `k`, or along it: the other distance is 1.
    stride: usize,
    /// Whether neighbours in memory are neighbours along `k`.
    along_k: bool,
    /// Rows of `A`, or columns of `B`.
    len: usize,
    depth: usize,
}

/// Which operand of the tile product a panel is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A tile's row is a row of `A`, 32 values along `k`.
    A,
    /// A tile's row is two rows of `B`, 16 columns, value by value in turn.
    B,
}

impl<'a> Operand<'a> {
    /// `A` as `[m, k]`.
    ///
    /// # Panics
    /// When neither of its distances is 1, or it is smaller.
    pub fn a(view: View<'a>, m: usize, k: usize) -> Self {
        let (stride, along_k) = match (view.rs, view.cs) {
            (stride, 1) => (stride, true),
            (1, stride) => (stride, false),
            (rs, cs) => panic!("an operand with strides {rs} and {cs}"),
        };
        view.check(m, k);
        Self { data: view.data, stride, along_k, len: m, depth: k }
    }

    /// `B` as `[k, n]`.
    pub fn b(view: View<'a>, k: usize, n: usize) -> Self {
        view.check(k, n);
        Self::a(view.t(), n, k)
    }
}

impl<'a> Operand<'a, u16> {
    /// Rows of bf16, which are rows of `A`, or columns of `B`, as they are; `turned`, their columns are.
    pub fn halves(data: &'a [u16], [rows, cols]: [usize; 2], turned: bool) -> Self {
        assert_eq!(data.len(), rows * cols, "values of [{rows}, {cols}]");
        let (len, depth) = if turned { (cols, rows) } else { (rows, cols) };
        Self { data, stride: cols, along_k: !turned, len, depth }
    }
}

/// Values that panels are packed from.
pub trait Element: Copy + Sync {
    /// As [`row`].
    ///
    /// # Safety
    /// As [`row`].
    unsafe fn row<const PARTS: usize, const NARROWS: bool, const FACTORS: bool>(
        x: *const Self,
        kc: usize,
        steps: usize,
        stride: usize,
        factors: *const f32,
        to: *mut Line,
    );

    /// As [`across`].
    ///
    /// # Safety
    /// As [`across`].
    unsafe fn across<const PARTS: usize, const NARROWS: bool>(
        upper: *const Self,
        uppers: usize,
        lower: *const Self,
        lowers: usize,
        to: *mut Line,
    );
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn row<const PARTS: usize, const NARROWS: bool, const FACTORS: bool>(
        x: *const f32,
        kc: usize,
        steps: usize,
        stride: usize,
        factors: *const f32,
        to: *mut Line,
    ) {
        // SAFETY: by the caller's word, who has AVX-512.
        unsafe { row::<PARTS, NARROWS, FACTORS>(x, kc, steps, stride, factors, to) }
    }

    #[inline(always)]
    unsafe fn across<const PARTS: usize, const NARROWS: bool>(
        upper: *const f32,
        uppers: usize,
        lower: *const f32,
        lowers: usize,
        to: *mut Line,
    ) {
        // SAFETY: as above.
        unsafe { across::<PARTS, NARROWS>(upper, uppers, lower, lowers, to) }
    }
}

/// A bf16, which is its one part.
impl Element for u16 {
    #[inline(always)]
    unsafe fn row<const PARTS: usize, const NARROWS: bool, const FACTORS: bool>(
        x: *const u16,
        kc: usize,
        steps: usize,
        stride: usize,
        _: *const f32,
        to: *mut Line,
    ) {
        const { assert!(PARTS == ROUNDED) };
        assert!(!FACTORS, "factors of values that are rounded already");
        for s in 0..steps {
            let x = x.wrapping_add(s * DEPTH);
            let mask = ((1u64 << kc.saturating_sub(s * DEPTH).min(DEPTH)) - 1) as u32;
            fetch(x.wrapping_add(2 * ROWS_AHEAD * stride).cast());
            // SAFETY: lanes behind the mask are not touched; the lines by the caller's word.
            unsafe {
                _mm512_store_si512(to.add(s * lines(PARTS)).cast(), _mm512_maskz_loadu_epi16(mask, x.cast()))
            };
        }
    }

    #[inline(always)]
    unsafe fn across<const PARTS: usize, const NARROWS: bool>(
        upper: *const u16,
        uppers: usize,
        lower: *const u16,
        lowers: usize,
        to: *mut Line,
    ) {
        let mask = |len: usize| ((1u32 << len) - 1) as u16;
        // SAFETY: lanes behind the masks are not touched; the line by the caller's word.
        unsafe {
            let upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(uppers), upper.cast()));
            let lower = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(lowers), lower.cast()));
            _mm512_store_si512(to.cast(), _mm512_or_si512(upper, _mm512_slli_epi32::<16>(lower)));
        }
    }
}

/// Panels from row (or column) `first` on, as many as `to` holds, of `k0 .. k0 + kc`, in `PARTS` parts; rows and `k` past
/// the end are zeros. With `factors`, one for each `k`, the values are multiplied by these first.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn pack<const PARTS: usize, T: Element>(
    operand: Operand<'_, T>,
    side: Side,
    first: usize,
    k0: usize,
    kc: usize,
    factors: Option<&[f32]>,
    to: &mut [Line],
) {
    if PARTS == ROUNDED && amx::narrows() {
        pack_in::<PARTS, true, T>(operand, side, first, k0, kc, factors, to)
    } else {
        pack_in::<PARTS, false, T>(operand, side, first, k0, kc, factors, to)
    }
}

/// [`pack`], `NARROWS` with the instruction for it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack_in<const PARTS: usize, const NARROWS: bool, T: Element>(
    operand: Operand<'_, T>,
    side: Side,
    first: usize,
    k0: usize,
    kc: usize,
    factors: Option<&[f32]>,
    to: &mut [Line],
) {
    let steps = kc.div_ceil(DEPTH);
    assert!(k0 + kc <= operand.depth && to.len().is_multiple_of(steps * lines(PARTS)));
    assert!(factors.is_none_or(|f| f.len() >= kc && operand.along_k));
    let panels = to.len() / (steps * lines(PARTS));
    // Of a panel, the lines of a step; of these, row (or pair of rows) `r` of one tile of each part.
    let line = |p: usize, s: usize, r: usize| (p * steps + s) * lines(PARTS) + r;
    let at = to.as_mut_ptr();
    // In the order of memory: every row of the operand is read from its start to its end.
    // SAFETY: lines lie inside `to`, whose length has been looked at; what is read belongs to the operand.
    unsafe {
        if operand.along_k {
            for p in 0..panels {
                for r in 0..PANEL {
                    let i = first + p * PANEL + r;
                    let kc = if i < operand.len { kc } else { 0 };
                    let x = operand.data.as_ptr().wrapping_add(i * operand.stride + k0);
                    let to = at.add(line(p, 0, r));
                    match factors {
                        None => T::row::<PARTS, NARROWS, false>(
                            x,
                            kc,
                            steps,
                            operand.stride,
                            std::ptr::null(),
                            to,
                        ),
                        Some(f) => {
                            T::row::<PARTS, NARROWS, true>(x, kc, steps, operand.stride, f.as_ptr(), to)
                        }
                    }
                }
            }
        } else {
            // The fewer lines a row has, the more rows ahead.
            let ahead = 2 * (ROWS_AHEAD * 2 / panels).max(1) * operand.stride;
            for s in 0..steps {
                for r in 0..TILE {
                    let k = s * DEPTH + 2 * r;
                    let row =
                        |k: usize| operand.data.as_ptr().wrapping_add((k0 + k) * operand.stride + first);
                    let (upper, lower) = (row(k), row(k + 1));
                    for p in 0..panels {
                        for half in [0, TILE] {
                            let i = p * PANEL + half;
                            let len = operand.len.saturating_sub(first + i).min(TILE);
                            let (upper_len, lower_len) =
                                (if k < kc { len } else { 0 }, if k + 1 < kc { len } else { 0 });
                            let (upper, lower) = (upper.wrapping_add(i), lower.wrapping_add(i));
                            fetch(upper.wrapping_add(ahead).cast());
                            fetch(lower.wrapping_add(ahead).cast());
                            let to = at.add(line(p, s, half + r));
                            T::across::<PARTS, NARROWS>(upper, upper_len, lower, lower_len, to);
                        }
                    }
                }
            }
        }
        if operand.along_k != (side == Side::A) {
            to.chunks_exact_mut(TILE).for_each(|tile| transpose(tile));
        }
    }
}

/// Rows of a tile become its columns, pairs staying together.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn transpose(tile: &mut [Line]) {
    let mut src = [std::ptr::null(); TILE];
    for (src, line) in src.iter_mut().zip(&*tile) {
        *src = line.0.as_ptr().cast();
    }
    // SAFETY: a tile has sixteen lines; all are read before one is written.
    unsafe { Avx512::transpose(&src, tile.as_mut_ptr().cast(), TILE) };
}

/// Asks for a line of memory; any address will do.
#[inline(always)]
fn fetch(at: *const f32) {
    // SAFETY: a hint; no address can make it fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// The nearest bf16 of 32 values, in order.
///
/// # Safety
/// `to` takes `len` values, at most 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn narrow_into(lo: __m512, hi: __m512, to: *mut u16, len: usize) {
    let mut line = Line::ZERO;
    // SAFETY: the machine has the instruction where it says so; lanes behind the mask are not touched.
    unsafe {
        if amx::narrows() {
            along::<ROUNDED, true>(lo, hi, &mut line);
        } else {
            along::<ROUNDED, false>(lo, hi, &mut line);
        }
        let mask = ((1u64 << len) - 1) as u32;
        _mm512_mask_storeu_epi16(to.cast(), mask, _mm512_load_si512(line.0.as_ptr().cast()));
    }
}

const UPPER: i32 = 0xFFFF_0000u32 as i32;

/// To eight significant bits, ties away from zero: half of the last place that stays is added, the rest cut off.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    let half = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    _mm512_and_si512(half, _mm512_set1_epi32(UPPER))
}

/// One part, the nearest bf16, or three, in the upper halves of the lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn split<const PARTS: usize>(x: __m512) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    if PARTS == ROUNDED {
        // SAFETY: the instruction set of the trait is this function's.
        parts[0] = _mm512_castps_si512(unsafe { Avx512::bf16(x) });
        return parts;
    }
    let first = round(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    let second = round(rest);
    let third = _mm512_sub_ps(rest, _mm512_castsi512_ps(second));
    parts.copy_from_slice(&[first, second, _mm512_castps_si512(third)]);
    parts
}

/// `kc` values in a row, in `steps` steps whose lines are those of a panel apart; with `FACTORS` times one factor each.
///
/// # Safety
/// `x` points at `kc` values, `factors` too where there are `FACTORS`; the lines at `to` may be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn row<const PARTS: usize, const NARROWS: bool, const FACTORS: bool>(
    x: *const f32,
    kc: usize,
    steps: usize,
    stride: usize,
    factors: *const f32,
    to: *mut Line,
) {
    let whole = kc / DEPTH;
    // SAFETY: whole steps lie inside the row, and masked loads touch nothing past its end; the rest by the caller's word.
    unsafe {
        for s in 0..whole {
            let x = x.add(s * DEPTH);
            fetch(x.wrapping_add(ROWS_AHEAD * stride));
            fetch(x.wrapping_add(ROWS_AHEAD * stride + TILE));
            let (mut lo, mut hi) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(TILE)));
            if FACTORS {
                let factors = factors.add(s * DEPTH);
                lo = _mm512_mul_ps(lo, _mm512_loadu_ps(factors));
                hi = _mm512_mul_ps(hi, _mm512_loadu_ps(factors.add(TILE)));
            }
            along::<PARTS, NARROWS>(lo, hi, to.add(s * lines(PARTS)));
        }
        for s in whole..steps {
            let (at, left) = (s * DEPTH, kc.saturating_sub(s * DEPTH));
            let (mut lo, mut hi) = load_row(x.wrapping_add(at), left);
            if FACTORS {
                let (f_lo, f_hi) = load_row(factors.wrapping_add(at), left);
                (lo, hi) = (_mm512_mul_ps(lo, f_lo), _mm512_mul_ps(hi, f_hi));
            }
            along::<PARTS, NARROWS>(lo, hi, to.add(s * lines(PARTS)));
        }
    }
}

/// 32 values in a row as one line for each part, [`PANEL`] apart.
///
/// # Safety
/// The lines at `to` may be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn along<const PARTS: usize, const NARROWS: bool>(lo: __m512, hi: __m512, to: *mut Line) {
    // SAFETY: by the caller's word.
    unsafe {
        if NARROWS {
            _mm512_store_si512(to.cast(), amx::narrow(lo, hi));
            return;
        }
        let (lo, hi) = (split::<PARTS>(lo), split::<PARTS>(hi));
        let odd = _mm512_load_si512(ODD.0.as_ptr().cast());
        for q in 0..PARTS {
            _mm512_store_si512(to.add(q * PANEL).cast(), _mm512_permutex2var_epi16(lo[q], odd, hi[q]));
        }
    }
}

/// Two vectors of a row, zeros past `depth`, which is less than 32.
///
/// # Safety
/// `x` points at `depth` values.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_row(x: *const f32, depth: usize) -> (__m512, __m512) {
    let mask = ((1u64 << depth) - 1) as u32;
    // SAFETY: masked loads touch nothing past `depth`.
    unsafe {
        let hi = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(TILE));
        (_mm512_maskz_loadu_ps(mask as u16, x), hi)
    }
}

/// Two neighbours along `k`, of up to 16 rows or columns, value by value in turn: one line for each part, [`PANEL`]
/// apart.
///
/// # Safety
/// The pointers point at as many values; the lines at `to` may be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn across<const PARTS: usize, const NARROWS: bool>(
    upper: *const f32,
    uppers: usize,
    lower: *const f32,
    lowers: usize,
    to: *mut Line,
) {
    // SAFETY: masked loads touch nothing past the lengths; the rest by the caller's word.
    unsafe {
        let (upper, lower) = if uppers + lowers == 2 * TILE {
            (_mm512_loadu_ps(upper), _mm512_loadu_ps(lower))
        } else {
            (
                _mm512_maskz_loadu_ps(((1u32 << uppers) - 1) as u16, upper),
                _mm512_maskz_loadu_ps(((1u32 << lowers) - 1) as u16, lower),
            )
        };
        if NARROWS {
            let turn = _mm512_load_si512(TURN.0.as_ptr().cast());
            _mm512_store_si512(to.cast(), _mm512_permutexvar_epi16(turn, amx::narrow(upper, lower)));
            return;
        }
        let (upper, lower) = (split::<PARTS>(upper), split::<PARTS>(lower));
        for q in 0..PARTS {
            // The upper half of every lane of `lower`, and that of `upper` below it.
            let pair = _mm512_mask_blend_epi16(0xAAAA_AAAA, _mm512_srli_epi32::<16>(upper[q]), lower[q]);
            _mm512_store_si512(to.add(q * PANEL).cast(), pair);
        }
    }
}

#[repr(align(64))]
struct Indices([u16; 32]);
/// Sixteen values and sixteen more, one of each in turn.
static TURN: Indices = {
    let mut turn = [0; 32];
    let mut i = 0;
    while i < 32 {
        turn[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    Indices(turn)
};
/// The upper halves of sixteen lanes, then those of sixteen more.
static ODD: Indices = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    Indices(odd)
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::reference;

    /// Without tiles, too: packing needs AVX-512 alone. Both ways of rounding where the machine has both.
    #[test]
    fn panels_hold_each_value_in_its_place() {
        if !Isa::available().contains(&Isa::Avx512) {
            return println!("SKIPPED: no AVX-512 here");
        }
        let (len, depth) = (37, 70);
        let values: Vec<f32> = (0..len * depth).map(|i| (i as f32 * 0.37 - 400.0).sin() * 1e3).collect();
        let factors: Vec<f32> = (0..depth).map(|k| 0.1 + k as f32 / 7.0).collect();
        // Rows of `len` values along `k`, or columns.
        for (along_k, stride) in [(true, depth), (false, len)] {
            let operand = Operand { data: &values, stride, along_k, len, depth };
            for side in [Side::A, Side::B] {
                for factors in [None, Some(&factors[..])].into_iter().filter(|f| f.is_none() || along_k) {
                    // SAFETY: the machine has AVX-512, and the instruction where it says so.
                    unsafe {
                        judge::<ROUNDED, false>(operand, side, factors);
                        judge::<WHOLE, false>(operand, side, factors);
                        if amx::narrows() {
                            judge::<ROUNDED, true>(operand, side, factors);
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn judge<const PARTS: usize, const NARROWS: bool>(
        operand: Operand<'_>,
        side: Side,
        factors: Option<&[f32]>,
    ) {
        let Operand { data, stride, along_k, len, depth } = operand;
        let steps = depth.div_ceil(DEPTH);
        let mut panels = vec![Line([0x55; 16]); 2 * steps * lines(PARTS)];
        pack_in::<PARTS, NARROWS, f32>(operand, side, 0, 0, depth, factors, &mut panels);
        for (step, of_step) in panels.chunks(lines(PARTS)).enumerate() {
            let (panel, step) = (step / steps, step % steps);
            for (row, place) in (0..PANEL).flat_map(|row| (0..2 * TILE).map(move |place| (row, place))) {
                let (i, k) = match side {
                    Side::A => (row, place),
                    Side::B => (row / TILE * TILE + place / 2, row % TILE * 2 + place % 2),
                };
                let (i, k) = (panel * PANEL + i, step * DEPTH + k);
                let at = if along_k { i * stride + k } else { k * stride + i };
                let value = if i < len && k < depth { data[at] } else { 0.0 };
                let want = value * factors.map_or(1.0, |f| f.get(k).copied().unwrap_or(0.0));
                let part = |part: usize| {
                    let both = of_step[part * PANEL + row].0[place / 2];
                    f32::from_bits(both >> (16 * (place % 2)) << 16)
                };
                // The first part of a value is the value rounded; all are the value.
                let first = reference::bf16(want);
                assert_eq!(part(0).to_bits(), first.to_bits(), "{PARTS} parts: row {i}, place {k}");
                let whole = (0..PARTS).map(part).sum::<f32>();
                assert_eq!(whole, if PARTS == ROUNDED { first } else { want }, "row {i}, place {k}");
            }
        }
    }
}
