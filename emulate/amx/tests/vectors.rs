//! AVX512-BF16, as in `tiles.rs`. A processor may have these instructions while CPUID denies them: they are run twice, as
//! programs do, and behind `ud2`, which leaves them to the emulator.

mod common;

use std::arch::asm;

use common::{Aligned, Rng, emulated, no_denormal, wide};

fn rounded(x: u32) -> u16 {
    let value = f32::from_bits(x);
    if value.is_nan() {
        return (x >> 16) as u16 | 0x40;
    }
    if value.is_infinite() {
        return (x >> 16) as u16;
    }
    // The nearer of the two neighbours, by distance, in f64. An infinite one stands where the next number would.
    let value = no_denormal(value);
    let (value, down) = (value as f64, value.to_bits() >> 16);
    let up = down + 1;
    let wide = |half: u32| {
        if half & 0x7FFF == 0x7F80 { 2f64.powi(128) } else { f32::from_bits(half << 16).abs() as f64 }
    };
    let (below, above) = (value.abs() - wide(down), wide(up) - value.abs());
    (if below < above || (below == above && down % 2 == 0) { down } else { up }) as u16
}

/// Runs an instruction on registers that hold `to`, `a`, `b` and the mask, and returns `to`; `$b` names the last operand.
macro_rules! vector {
    ($op:literal, $to:literal, $a:literal, $b:literal, $mask:expr, $values:expr) => {{
        let plain = run!("", $op, $to, $a, $b, $mask, $values);
        assert_eq!(plain, run!("ud2", $op, $to, $a, $b, $mask, $values));
        plain
    }};
}

macro_rules! run {
    ($before:literal, $op:literal, $to:literal, $a:literal, $b:literal, $mask:expr, $values:expr) => {{
        let (mut to, a, b): (Aligned<64>, Aligned<64>, &Aligned<256>) = $values;
        // SAFETY: registers and memory that hold so much.
        unsafe {
            asm!(
                concat!("vmovups zmm", $to, ", [{to}]"),
                concat!("vmovups zmm", $a, ", [{a}]"),
                "vmovups zmm17, [{b}]",
                "kmovw k3, {mask:e}",
                $before,
                concat!($op, $b),
                concat!("vmovups [{to}], zmm", $to),
                to = in(reg) to.0.as_mut_ptr(), a = in(reg) a.0.as_ptr(), b = in(reg) b.0.as_ptr(),
                mask = in(reg) $mask as u32, out("k3") _,
                out("xmm1") _, out("xmm2") _, out("xmm17") _, out("xmm30") _, out("xmm9") _,
            );
        }
        to
    }};
}

/// What `lane` makes of each lane of `bytes`, under a mask; zeros past `size`.
fn lanes(
    before: Aligned<64>,
    size: usize,
    bytes: usize,
    (mask, zeroing): (u32, bool),
    lane: impl Fn(usize) -> u32,
) -> Aligned<64> {
    let mut to = Aligned([0; 64]);
    for i in 0..size / bytes {
        let at = i * bytes..(i + 1) * bytes;
        if mask >> i & 1 == 1 {
            to.0[at].copy_from_slice(&lane(i).to_le_bytes()[..bytes]);
        } else if !zeroing {
            to.0[at.clone()].copy_from_slice(&before.0[at]);
        }
    }
    to
}

#[test]
fn dot_products_of_bf16_in_vectors() {
    emulated(|| {
        let mut rng = Rng(4);
        for _ in 0..50 {
            let (to, a, b) = (rng.bf16::<64>(), rng.bf16::<64>(), rng.bf16::<256>());
            // The last operand: words from `first` on, or that one for all.
            let want = |size, first: usize, step, mask| {
                lanes(to, size, 4, mask, |i| {
                    let mut c = no_denormal(f32::from_bits(to.word(i)));
                    for half in [1, 0] {
                        let (a, b) =
                            (wide(a.half(2 * i + half)), wide(b.half(2 * (first + i * step) + half)));
                        c = no_denormal(a.mul_add(b, c));
                    }
                    c.to_bits()
                })
            };
            let (v, all) = ((to, a, &b), (u32::MAX, false));
            assert_eq!(vector!("vdpbf16ps zmm1, zmm2, ", "1", "2", "zmm17", 0, v), want(64, 0, 1, all));
            assert_eq!(vector!("vdpbf16ps zmm30, zmm9, ", "30", "9", "zmm17", 0, v), want(64, 0, 1, all));
            assert_eq!(vector!("vdpbf16ps ymm1, ymm30, ", "1", "30", "ymm17", 0, v), want(32, 0, 1, all));
            assert_eq!(vector!("vdpbf16ps xmm9, xmm2, ", "9", "2", "xmm17", 0, v), want(16, 0, 1, all));
            let masked = vector!("vdpbf16ps zmm1{{k3}}, zmm2, ", "1", "2", "[{b} + 64]", 0xA5C3, v);
            assert_eq!(masked, want(64, 16, 1, (0xA5C3, false)));
            let zeroed = vector!("vdpbf16ps ymm30{{k3}}{{z}}, ymm2, ", "30", "2", "[{b} + 96]", 0x5A, v);
            assert_eq!(zeroed, want(32, 24, 1, (0x5A, true)));
            let broadcast =
                vector!("vdpbf16ps zmm9, zmm2, ", "9", "2", "dword ptr [{b} + 12]{{1to16}}", 0, v);
            assert_eq!(broadcast, want(64, 3, 0, all));
        }
    });
}

#[test]
fn numbers_rounded_to_bf16_in_vectors() {
    emulated(|| {
        let mut rng = Rng(5);
        for _ in 0..50 {
            let (to, a, b) = (rng.f32::<64>(), rng.f32::<64>(), rng.f32::<256>());
            let (v, all) = ((to, a, &b), (u32::MAX, false));
            let one = |size: usize, first: usize, step, mask| {
                lanes(to, size / 2, 2, mask, |i| rounded(b.word(first + i * step)).into())
            };
            assert_eq!(vector!("vcvtneps2bf16 ymm1, ", "1", "2", "zmm17", 0, v), one(64, 0, 1, all));
            assert_eq!(vector!("vcvtneps2bf16 xmm30, ", "30", "2", "ymm17", 0, v), one(32, 0, 1, all));
            assert_eq!(vector!("vcvtneps2bf16 xmm9, ", "9", "2", "xmm17", 0, v), one(16, 0, 1, all));
            let far = vector!("vcvtneps2bf16 ymm1{{k3}}, ", "1", "2", "zmmword ptr [{b} + 128]", 0x0FF3, v);
            assert_eq!(far, one(64, 32, 1, (0x0FF3, false)));
            let broadcast = vector!("vcvtneps2bf16 ymm1, ", "1", "2", "dword ptr [{b} + 8]{{1to16}}", 0, v);
            assert_eq!(broadcast, one(64, 2, 0, all));

            let two = |size: usize, first: usize, mask| {
                lanes(to, size, 2, mask, |i| {
                    let half = size / 4;
                    rounded(if i < half { b.word(first + i) } else { a.word(i - half) }).into()
                })
            };
            assert_eq!(vector!("vcvtne2ps2bf16 zmm1, zmm2, ", "1", "2", "zmm17", 0, v), two(64, 0, all));
            assert_eq!(
                vector!("vcvtne2ps2bf16 xmm30, xmm9, ", "30", "9", "[{b} + 16]", 0, v),
                two(16, 4, all)
            );
            let zeroed = vector!("vcvtne2ps2bf16 ymm9{{k3}}{{z}}, ymm1, ", "9", "1", "ymm17", 0xC35A, v);
            assert_eq!(zeroed, two(32, 0, (0xC35A, true)));
        }
    });
}

/// Registers that the system did not save, because they hold their initial value, zero.
#[test]
fn registers_in_their_initial_state_are_zero_and_can_be_written() {
    emulated(|| {
        // An area of XSAVE whose header names no part: all that are asked for are initialised.
        let area = Aligned([0; 4096]);
        let from = Rng(6).f32::<64>();
        let mut to = [Aligned([0xEE; 64]); 3];
        // SAFETY: masks, upper halves and registers from 16 on, all of which the compiler is told of.
        unsafe {
            asm!(
                "vmovups zmm29, [rdi]",
                "vmovups zmm30, [rdi]",
                "xrstor [rsi]",
                "ud2",
                "vcvtneps2bf16 ymm30, zmmword ptr [rdi]",
                "ud2",
                "vcvtneps2bf16 ymm31, zmm29",
                "vmovups [r8], zmm30",
                "vmovups [r8 + 64], zmm29",
                "vmovups [r8 + 128], zmm31",
                in("eax") 0xE0, in("edx") 0, in("rsi") area.0.as_ptr(), in("rdi") from.0.as_ptr(),
                in("r8") to.as_mut_ptr(), clobber_abi("sysv64"),
            );
        }
        let zero = Aligned([0; 64]);
        let want = lanes(zero, 32, 2, (u32::MAX, false), |i| rounded(from.word(i)).into());
        assert_eq!(to, [want, zero, zero]);
    });
}
