//! From blocks of a GGUF tensor to f32, in the order of operations that gives ggml's own bits.

use half::f16;
use rayon::prelude::*;

use super::trits;
use super::types::{BlockType, Coding};

/// Weights of a super-block of the K types.
const SUPER: usize = 256;

/// The weights in `bytes`, whole blocks of `kind`, as f32; in parallel when they are many.
///
/// # Panics
/// On a type that is not read, or another number of bytes or of weights.
pub(super) fn read(kind: &BlockType, bytes: &[u8], out: &mut [f32]) {
    /// Blocks that one thread reads at a time, in weights.
    const PART: usize = 1 << 16;
    let part = PART / kind.block;
    assert_eq!(out.len() / kind.block * kind.bytes, bytes.len(), "{} weights of {}", out.len(), kind.name);
    let each = |(out, bytes): (&mut [f32], &[u8])| {
        let blocks = out.chunks_exact_mut(kind.block).zip(bytes.chunks_exact(kind.bytes));
        blocks.for_each(|(out, block)| read_block(kind.coding, block, out));
    };
    match out.len() {
        0..=PART => each((out, bytes)),
        _ => out.par_chunks_mut(part * kind.block).zip(bytes.par_chunks(part * kind.bytes)).for_each(each),
    }
}

/// The f16 number at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn read_block(coding: Coding, block: &[u8], out: &mut [f32]) {
    match coding {
        Coding::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        Coding::F16 => out[0] = half(block, 0),
        Coding::Bf16 => out[0] = f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16),
        Coding::Q8_0 => {
            let d = half(block, 0);
            out.iter_mut().zip(&block[2..]).for_each(|(x, &q)| *x = d * f32::from(q as i8));
        }
        Coding::Q4_0 => {
            let d = half(block, 0);
            nibbles(&block[2..], out, |q, _| d * f32::from(q as i8 - 8));
        }
        Coding::Q4_1 => {
            let (d, m) = (half(block, 0), half(block, 2));
            nibbles(&block[4..], out, |q, _| d * f32::from(q) + m);
        }
        Coding::Q5_0 => {
            let (d, high) = (half(block, 0), fifth_bits(block, 2));
            nibbles(&block[6..], out, |q, j| d * f32::from((q | high(j)) as i8 - 16));
        }
        Coding::Q5_1 => {
            let (d, m, high) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
            nibbles(&block[8..], out, |q, j| d * f32::from(q | high(j)) + m);
        }
        Coding::Q4K => four_and_five_bits(block, &[0; 32], &block[16..], out),
        Coding::Q5K => four_and_five_bits(block, &block[16..48], &block[48..], out),
        Coding::Q6K => six_bits(block, out),
        Coding::Q2_0 | Coding::Tq1_0 | Coding::Tq2_0 | Coding::Ptq1_0 => {
            let mut codes = [0; SUPER];
            let codes = &mut codes[..out.len()];
            let d = trits::read(coding, block, codes).to_f32();
            out.iter_mut().zip(codes).for_each(|(x, code)| *x = d * f32::from(*code as i8 - 1));
        }
        Coding::Unread => panic!("a type that is not read"),
    }
}

/// 32 weights of four bits: the low halves of 16 bytes, then the high ones. `value` gets bits and place.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (j, &byte) in bytes.iter().enumerate() {
        out[j] = value(byte & 15, j);
        out[j + 16] = value(byte >> 4, j + 16);
    }
}

/// The fifth bit of each of 32 weights, at its place.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| ((bits >> j & 1) as u8) << 4
}

/// The scale and the minimum, six bits each, of part `j` of eight.
fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4),
    }
}

/// Q4_K and Q5_K: eight parts of 32, a scale and a minimum each; two parts share 32 bytes of `low`, and bit `j` of each
/// byte of `high` is the fifth of part `j`.
fn four_and_five_bits(block: &[u8], high: &[u8], low: &[u8], out: &mut [f32]) {
    let (d, least) = (half(block, 0), half(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (d, m) = (d * f32::from(scale), least * f32::from(min));
        let low = &low[j / 2 * 32..][..32];
        for ((x, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (j % 2)) & 15 | (high >> j & 1) << 4;
            *x = d * f32::from(q) - m;
        }
    }
}

/// Q6_K: two halves of 128; four bits of each weight in `low`, two in `high`; sixteen weights share an i8 scale.
fn six_bits(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let d = half(rest, 16);
    for (i, x) in out.iter_mut().enumerate() {
        let (side, part, l) = (i / 128, i % 128 / 32, i % 32);
        let low = low[64 * side + 32 * (part % 2) + l] >> (4 * (part / 2)) & 15;
        let high = high[32 * side + l] >> (2 * part) & 3;
        let scale = f32::from(rest[i / 16] as i8);
        *x = d * scale * f32::from((low | high << 4) as i8 - 32);
    }
}
