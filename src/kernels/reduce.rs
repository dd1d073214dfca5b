//! Gradients of several processes added up: a piece at a time, on the one thread that talks to the others, so that the
//! threads of the backward pass are left alone.

use super::isa::kernel;

kernel! {
    /// `out = parts[0] + parts[1] + …`, in that order; `parts` are as long as `out` and lie one after the other.
    pub fn add_in_order<S>(parts: &[f32], out: &mut [f32]) {
        let len = out.len();
        assert!(len == 0 || parts.len().is_multiple_of(len), "{} values in parts of {len}", parts.len());
        for (nth, part) in parts.chunks_exact(len.max(1)).enumerate() {
            for (o, x) in out.iter_mut().zip(part) {
                *o = if nth == 0 { *x } else { *o + x };
            }
        }
    }
}

kernel! {
    /// [`add_in_order`] of bf16; sums are f32.
    pub fn add_in_order_bf16<S>(parts: &[u16], out: &mut [f32]) {
        let len = out.len();
        assert!(len == 0 || parts.len().is_multiple_of(len), "{} values in parts of {len}", parts.len());
        for (nth, part) in parts.chunks_exact(len.max(1)).enumerate() {
            for (o, x) in out.iter_mut().zip(part) {
                let x = wide(*x);
                *o = if nth == 0 { x } else { *o + x };
            }
        }
    }
}

kernel! {
    /// `codes = bf16(x + left)`, to nearest, ties to even; `left`, bf16 as well, keeps what that rounded away (error feedback,
    /// Seide et al., Interspeech 2014), so that over many calls nothing is lost.
    pub fn to_bf16<S>(x: &[f32], left: &mut [u16], codes: &mut [u16]) {
        assert_eq!([left.len(), codes.len()], [x.len(); 2], "what is left, and codes, of {} values", x.len());
        for ((x, left), code) in x.iter().zip(left).zip(codes) {
            let wanted = *x + wide(*left);
            *code = narrow(wanted);
            *left = narrow(wanted - wide(*code));
        }
    }
}

kernel! {
    /// The values of bf16 codes.
    pub fn from_bf16<S>(codes: &[u16], out: &mut [f32]) {
        assert_eq!(codes.len(), out.len(), "codes and values");
        for (o, x) in out.iter_mut().zip(codes) {
            *o = wide(*x);
        }
    }
}

#[inline(always)]
fn wide(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

/// To nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference;

    #[test]
    fn codes_are_the_nearest_bf16() {
        for x in [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, -3.3e-39, 1e-45, 3.3e38, f32::MAX, f32::INFINITY]
        {
            // Subnormal numbers stay, unlike where products meet them.
            assert_eq!(narrow(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(wide(narrow(f32::NAN)).is_nan() && wide(narrow(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn what_is_rounded_away_comes_back() {
        // Far below half a step of 1, beside it for a while.
        let (x, mut left, mut codes) = ([1.0 + 1.0 / 1024.0, -1e-3], [0; 2], [0; 2]);
        let mut sums = [0f64; 2];
        for _ in 0..1000 {
            to_bf16(&x, &mut left, &mut codes);
            sums.iter_mut().zip(codes).for_each(|(sum, code)| *sum += wide(code) as f64);
        }
        for (sum, x) in sums.iter().zip(x) {
            assert!(
                (sum / 1000.0 - x as f64).abs() < 1e-4 * x.abs() as f64,
                "{} instead of {x}",
                sum / 1000.0
            );
        }
        let rounded = reference::bf16(x[0]);
        assert!((rounded - x[0]).abs() > 5e-4, "without what is left, the mean would be {rounded}");
    }

    #[test]
    fn parts_are_added_in_their_order() {
        let parts = [1e8, 2.0, -1e8, 3.0, 1.0, 4.0];
        let mut out = [9.0; 2];
        add_in_order(&parts, &mut out);
        assert_eq!(out, [1.0, 9.0]);
        // The other order loses the 1.
        add_in_order(&[1.0, 4.0, 1e8, 2.0, -1e8, 3.0], &mut out);
        assert_eq!(out, [0.0, 9.0]);
        let mut codes = [0; 6];
        to_bf16(&parts, &mut [0; 6], &mut codes);
        add_in_order_bf16(&codes, &mut out);
        assert_eq!(out, [1.0, 9.0]);
        from_bf16(&codes[3..5], &mut out);
        assert_eq!(out, [3.0, 1.0]);
    }
}
