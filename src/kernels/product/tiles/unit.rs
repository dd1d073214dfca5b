//! What multiplies panels: tile registers, or, for operands of one part, dot products of pairs.

use super::split::ROUNDED;
use crate::kernels::isa::Isa;
use crate::kernels::x86_64::amx::{self, Accumulators, Line, Tiles};
use crate::kernels::x86_64::bf16;

pub enum Unit {
    Tiles(Tiles),
    Pairs,
}

impl Unit {
    /// That of the current instruction set, on this thread until it is dropped.
    ///
    /// # Safety
    /// The current instruction set is AMX or AVX-512 BF16.
    pub unsafe fn current() -> Self {
        match Isa::current() {
            // SAFETY: named only where it was found.
            Isa::Amx => Unit::Tiles(unsafe { Tiles::configure() }),
            _ => Unit::Pairs,
        }
    }

    /// A panel of `A` in parts times one of `B`, trits.
    ///
    /// # Safety
    /// `a` holds `PARTS * steps * STEP` lines, `b` `steps * STEP`; `to` 32 rows of 32 values.
    #[inline(always)]
    pub unsafe fn times_trits<const PARTS: usize>(
        &self,
        steps: usize,
        a: &[Line],
        b: &[Line],
        to: Accumulators,
    ) {
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: by the caller's word.
        unsafe {
            match self {
                Unit::Tiles(tiles) if PARTS == ROUNDED => amx::times_rounded(tiles, steps, a, b, to),
                Unit::Tiles(tiles) => amx::times_trits(tiles, steps, a, b, to),
                Unit::Pairs => Self::pairs::<PARTS>(steps, a, b, to),
            }
        }
    }

    /// A panel of `A` times one of `B`, both in parts.
    ///
    /// # Safety
    /// `a` and `b` hold `PARTS * steps * STEP` lines; `to` 32 rows of 32 values.
    #[inline(always)]
    pub unsafe fn times_dense<const PARTS: usize>(
        &self,
        steps: usize,
        a: &[Line],
        b: &[Line],
        to: Accumulators,
    ) {
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: by the caller's word.
        unsafe {
            match self {
                Unit::Tiles(tiles) if PARTS == ROUNDED => amx::times_rounded(tiles, steps, a, b, to),
                Unit::Tiles(tiles) => amx::times_dense(tiles, steps, a, b, to),
                Unit::Pairs => Self::pairs::<PARTS>(steps, a, b, to),
            }
        }
    }

    /// # Safety
    /// As [`bf16::times_rounded`].
    #[inline(always)]
    unsafe fn pairs<const PARTS: usize>(steps: usize, a: *const Line, b: *const Line, to: Accumulators) {
        assert_eq!(PARTS, ROUNDED, "dot products of pairs take operands of one part");
        // SAFETY: by the caller's word.
        unsafe { bf16::times_rounded(steps, a, b, to) }
    }
}
