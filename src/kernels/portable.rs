//! The vector of machines without a hand-written one: four lanes, which every 64-bit target has in hardware.

use half::f16;

use super::lines::Lines;
use super::simd::Simd;

#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    const MR: usize = 4;
    const KC: usize = 256;
    const HOLDS_B: bool = true;
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| super::simd::fma::<Self>(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn bf16(v: [f32; 4]) -> [f32; 4] {
        v.map(super::simd::nearest_bf16)
    }
    #[inline(always)]
    unsafe fn decode(codes: u32, scale: f32) -> [f32; 4] {
        let table = [-scale, 0.0, scale, 0.0];
        std::array::from_fn(|i| table[(codes >> (2 * i)) as usize & 3])
    }
    #[inline(always)]
    unsafe fn encode(p: *const f32, half: f32) -> u32 {
        let w = unsafe { Self::load(p) };
        (0..4).fold(0, |codes, i| codes | (1 + (w[i] > half) as u32 - (w[i] < -half) as u32) << (2 * i))
    }
    #[inline(always)]
    unsafe fn transpose(src: &[*const f32; 16], dst: *mut f32, dst_stride: usize) {
        for j in 0..4 {
            for (i, row) in src.iter().take(4).enumerate() {
                unsafe { *dst.add(j * dst_stride + i) = *row.add(j) };
            }
        }
    }

    type V16 = [i16; 8];
    #[inline(always)]
    unsafe fn zero16() -> [i16; 8] {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load16(p: *const i16) -> [i16; 8] {
        unsafe { p.cast::<[i16; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store16(p: *mut i16, v: [i16; 8]) {
        unsafe { p.cast::<[i16; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add16(a: [i16; 8], b: [i16; 8]) -> [i16; 8] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn sub16(a: [i16; 8], b: [i16; 8]) -> [i16; 8] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn widen16(p: *const i16) -> Self::V {
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() } as f32)
    }
    #[inline(always)]
    unsafe fn widen_half(p: *const f16) -> Self::V {
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }
    #[inline(always)]
    unsafe fn widen8(p: *const i8) -> Self::V {
        std::array::from_fn(|i| unsafe { p.add(i).read() } as f32)
    }
}

/// [`Lines`] in plain Rust.
#[derive(Clone, Copy)]
pub struct PortableLines;

impl Lines for PortableLines {
    type F = Portable;
    type Codes = [u32; 4];
    type Sum = [i32; 4];
    const TOKENS: usize = 4;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [u32; 4] {
        std::array::from_fn(|i| u32::from_le_bytes(unsafe { p.add(4 * i).cast::<[u8; 4]>().read() }))
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> [u32; 4] {
        let half = |i: usize| u16::from_le_bytes(unsafe { p.add(2 * i).cast::<[u8; 2]>().read() });
        std::array::from_fn(|i| half(i) as u32)
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, codes: [u32; 4]) {
        let bytes = codes.map(u32::to_le_bytes);
        bytes.iter().enumerate().for_each(|(i, four)| unsafe { p.add(4 * i).cast::<[u8; 4]>().write(*four) });
    }
    #[inline(always)]
    unsafe fn join(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i] | b[i] << 16)
    }
    #[inline(always)]
    unsafe fn two_bit(line: [u32; 4]) -> [[u32; 4]; 4] {
        std::array::from_fn(|d| line.map(|lane| lane >> (2 * d) & 0x0303_0303))
    }
    #[inline(always)]
    unsafe fn base3(line: [u32; 4]) -> [[u32; 4]; 5] {
        let digit = |lane: u32, power: u8| u32::from_le_bytes(lane.to_le_bytes().map(|b| b / power % 3));
        [1, 3, 9, 27, 81].map(|power| line.map(|lane| digit(lane, power)))
    }
    const IN_PLACE: bool = false;
    #[inline(always)]
    unsafe fn in_place<const BASE3: bool>(_: [u32; 4]) -> [[u32; 4]; 5] {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn sized(_: [[i32; 4]; 5]) -> [i32; 4] {
        unreachable!("not for this instruction set")
    }
    #[inline(always)]
    unsafe fn zero() -> [i32; 4] {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn dot(sum: [i32; 4], codes: [u32; 4], x: *const i8) -> [i32; 4] {
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        let dot = |codes: u32| {
            let codes = codes.to_le_bytes();
            (0..4).map(|j| codes[j] as i32 * x[j] as i32).sum::<i32>()
        };
        std::array::from_fn(|i| sum[i] + dot(codes[i]))
    }
    #[inline(always)]
    unsafe fn add(a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn total(sum: [i32; 4], offset: i32) -> [f32; 4] {
        sum.map(|sum| (sum - offset) as f32)
    }
    #[inline(always)]
    unsafe fn base3_as_two_bit(line: [u32; 4]) -> [[u32; 4]; 2] {
        let digits = unsafe { Self::base3(line) };
        let four = |i: usize| (0..4).fold(0, |lane, d| lane | digits[d][i] << (2 * d));
        [std::array::from_fn(four), digits[4].map(|lane| lane | lane >> 6)]
    }
    #[inline(always)]
    unsafe fn look_up(table: *const f32, line: [u32; 4]) -> [f32; 4] {
        line.map(|lane| unsafe { *table.add(lane as usize & 3) })
    }
    #[inline(always)]
    unsafe fn next(line: [u32; 4]) -> [u32; 4] {
        line.map(|lane| lane >> 2)
    }
    #[inline(always)]
    unsafe fn upper(line: [u32; 4]) -> [u32; 4] {
        line.map(|lane| lane >> 16)
    }
    #[inline(always)]
    unsafe fn scales(p: *const u8) -> [f32; 4] {
        let half = |i: usize| unsafe { p.add(2 * i).cast::<[u8; 2]>().read() };
        std::array::from_fn(|i| half::f16::from_le_bytes(half(i)).to_f32())
    }
}
