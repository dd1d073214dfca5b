//! The vector operations of products with packed matrices: four bytes of a row in each lane, a lane for each row.
//!
//! The layout is that of [`Layout`](crate::ternary::Layout): what a vector loads is a line, or a part of one.

use super::simd::Simd;

/// One instruction set's sums of codes times inputs.
///
/// # Safety
/// As [`Simd`]: to be called inside a function compiled for the instruction set, with pointers that are valid for what a
/// method says it touches.
pub trait Lines: Copy + 'static {
    /// Its floats; one lane for each row.
    type F: Simd;
    /// Four codes of each row, a byte each; or a line before it is taken apart.
    type Codes: Copy;
    /// Integers that add up in each row.
    type Sum: Copy;
    /// Tokens of a group, 4, 8 or 12, whose sums with two vectors of rows each fill the registers.
    const TOKENS: usize;
    /// Tokens of a group, up to 8, whose sums with one vector of rows leave registers for a line and its codes, where that is
    /// faster than storing codes for two; 0 where it is not.
    const DIRECT: usize = 0;
    /// Whether a look-up of [`Lines::look_up`] takes two codes, or one.
    const PAIRS: bool;

    /// Four bytes of each row.
    unsafe fn load(p: *const u8) -> Self::Codes;
    /// Two bytes of each row, and two of 0.
    unsafe fn load_half(p: *const u8) -> Self::Codes;
    /// Writes what [`Lines::load`] reads.
    unsafe fn store(p: *mut u8, codes: Self::Codes);
    /// The low halves of each lane, those of `b` in the upper halves; the upper ones are 0.
    unsafe fn join(a: Self::Codes, b: Self::Codes) -> Self::Codes;
    /// The four codes of every byte.
    unsafe fn two_bit(line: Self::Codes) -> [Self::Codes; 4];
    /// The five codes of every byte.
    unsafe fn base3(line: Self::Codes) -> [Self::Codes; 5];

    /// Whether codes may stay where they are in their bytes, each in a sum of its own that is brought to size at the end of
    /// a segment: for a single token, whose products do not hide the shifts.
    const IN_PLACE: bool;
    /// As [`Lines::two_bit`], or [`Lines::base3`] where `BASE3`, not shifted; the last of four is 0.
    unsafe fn in_place<const BASE3: bool>(line: Self::Codes) -> [Self::Codes; 5];
    /// The sum of what codes in place added up to, place by place.
    unsafe fn sized(sums: [Self::Sum; 5]) -> Self::Sum;

    unsafe fn zero() -> Self::Sum;
    /// Adds to each row its four codes times the four bytes at `x`. A segment's products, of codes up to 2 and inputs up
    /// to 127, fit.
    unsafe fn dot(sum: Self::Sum, codes: Self::Codes, x: *const i8) -> Self::Sum;
    /// The same sum, to which what follows is added in order: a compiler that first adds up the products of several steps has
    /// more of them than registers.
    #[inline(always)]
    unsafe fn in_order(sum: Self::Sum) -> Self::Sum {
        sum
    }
    unsafe fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// The sums, less `offset`.
    unsafe fn total(sum: Self::Sum, offset: i32) -> <Self::F as Simd>::V;

    /// A line of base 3 as one of two bits a code, and what does not fit there: the fifth codes, two of them in the low
    /// bits of each lane and of its upper half.
    unsafe fn base3_as_two_bit(line: Self::Codes) -> [Self::Codes; 2];
    /// The entry of a table that the low bits of each lane name: of 16 values by four bits, or of 4 by two.
    unsafe fn look_up(table: *const f32, line: Self::Codes) -> <Self::F as Simd>::V;
    /// Each lane shifted down past what [`Lines::look_up`] takes.
    unsafe fn next(line: Self::Codes) -> Self::Codes;
    /// Each lane's upper half in its lower one.
    unsafe fn upper(line: Self::Codes) -> Self::Codes;

    /// One f16 for each row.
    unsafe fn scales(p: *const u8) -> <Self::F as Simd>::V;
}
