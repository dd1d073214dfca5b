//! Trits and scales of the ternary types, taken over as they are.

use half::f16;

use super::types::{BlockType, Coding};
use crate::ternary::{CODES_PER_WORD, Grouping, TernaryMatrix};

/// Reads a block: the code of each weight, its trit plus 1 (3 where a damaged file has it), and the scale.
pub(super) fn read(coding: Coding, block: &[u8], codes: &mut [u8]) -> f16 {
    let (scale, bytes) = match coding {
        Coding::Q2_0 => (&block[..2], &block[2..]),
        _ => (&block[block.len() - 2..], &block[..block.len() - 2]),
    };
    match coding {
        Coding::Q2_0 => {
            for (codes, byte) in codes.chunks_exact_mut(4).zip(bytes) {
                codes.iter_mut().enumerate().for_each(|(j, code)| *code = byte >> (2 * j) & 3);
            }
        }
        Coding::Tq2_0 => {
            for (codes, bytes) in codes.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
                for (l, codes) in codes.chunks_exact_mut(32).enumerate() {
                    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> (2 * l) & 3);
                }
            }
        }
        Coding::Tq1_0 => base3(bytes, &[(32, 5), (16, 5), (4, 4)], codes),
        Coding::Ptq1_0 => base3(bytes, &[(16, 5), (8, 5), (2, 4)], codes),
        other => panic!("{other:?} is no ternary type"),
    }
    f16::from_le_bytes([scale[0], scale[1]])
}

/// Parts of so many bytes with so many trits in each: trit n of all bytes of a part, then trit n + 1.
fn base3(bytes: &[u8], parts: &[(usize, usize)], codes: &mut [u8]) {
    let (mut bytes, mut codes) = (bytes, codes.iter_mut());
    for &(count, trits) in parts {
        let (part, rest) = bytes.split_at(count);
        bytes = rest;
        for n in 0..trits {
            let power = 3u8.pow(n as u32);
            for (byte, code) in part.iter().zip(&mut codes) {
                // The byte is a fraction of 3^5 in 256ths: its first digit after it has been moved by n.
                *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
            }
        }
    }
}

/// The scales of the blocks in `bytes`, in order.
fn scales<'a>(kind: &'a BlockType, bytes: &'a [u8]) -> impl Iterator<Item = [u8; 2]> + 'a {
    let at = if kind.coding == Coding::Q2_0 { 0 } else { kind.bytes - 2 };
    bytes.chunks_exact(kind.bytes).map(move |block| [block[at], block[at + 1]])
}

/// Whether the blocks of every row of `cols` weights have equal scales in pairs, but for a last one without a second.
pub(super) fn scales_in_pairs(kind: &BlockType, bytes: &[u8], cols: usize) -> bool {
    let blocks = cols / kind.block;
    bytes.chunks_exact(blocks * kind.bytes).all(|row| {
        let mut scales = scales(kind, row);
        std::iter::from_fn(|| scales.next().map(|first| scales.next().is_none_or(|next| next == first)))
            .all(|same| same)
    })
}

/// The matrix whose row `r` is row `order(r)` of `bytes`, `[rows, cols]` in whole blocks of `kind`, with scales by
/// `group`, a divisor or a multiple of the block. The error says what is wrong.
pub(super) fn matrix(
    kind: &BlockType,
    bytes: &[u8],
    [rows, cols]: [usize; 2],
    group: usize,
    order: impl Fn(usize) -> usize,
) -> Result<TernaryMatrix, String> {
    let row_bytes = cols / kind.block * kind.bytes;
    let mut words = Vec::with_capacity(rows * cols.div_ceil(CODES_PER_WORD));
    let mut all_scales = Vec::with_capacity(rows * cols.div_ceil(group));
    let mut codes = vec![0; kind.block];
    for row in 0..rows {
        let first = all_scales.len();
        let stored = &bytes[order(row) * row_bytes..][..row_bytes];
        for (i, block) in stored.chunks_exact(kind.bytes).enumerate() {
            let scale = read(kind.coding, block, &mut codes).to_f32();
            words.extend(
                codes
                    .chunks(CODES_PER_WORD)
                    .map(|codes| codes.iter().rev().fold(0u32, |word, &code| word << 2 | u32::from(code))),
            );
            for group in i * kind.block / group..((i + 1) * kind.block).div_ceil(group) {
                match all_scales.get(first + group) {
                    None => all_scales.push(scale),
                    Some(&same) if same == scale => {}
                    Some(other) => {
                        let at = i * kind.block;
                        return Err(format!("row {row}, column {at}: scale {scale} in a group of {other}"));
                    }
                }
            }
        }
    }
    TernaryMatrix::from_parts(rows, cols, Grouping::Size(group), words, all_scales)
}
