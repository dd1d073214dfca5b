//! Weights as the bytes of blocks: the ternary types from trits and scales as they are, F32, F16 and BF16 from numbers.

use half::{bf16, f16};

use super::types::{BlockType, Coding};
use crate::ternary::TernaryMatrix;

/// Appends a row of a matrix, whose columns are whole blocks. A block takes the scale of its weights that are not 0, which
/// is one ([`scales_of`]).
pub fn trits(kind: &BlockType, matrix: &TernaryMatrix, row: usize, out: &mut Vec<u8>) {
    let mut codes = vec![0u8; kind.block];
    for first in (0..matrix.cols()).step_by(kind.block) {
        for (code, col) in codes.iter_mut().zip(first..) {
            *code = matrix.code(row, col);
        }
        let scale = scales_of(matrix, row, first, kind.block).next();
        let scale = scale.map_or(matrix.scale(row, first), |(scale, _)| scale);
        block(kind.coding, &codes, f16::from_f32(scale), out);
    }
}

/// The scales in a block of `size` weights from column `first`, each with the number of its weights that are not 0; without
/// those that have none, which say nothing.
pub fn scales_of(
    matrix: &TernaryMatrix,
    row: usize,
    first: usize,
    size: usize,
) -> impl Iterator<Item = (f32, usize)> + '_ {
    let (group, end) = (matrix.group(), (first + size).min(matrix.cols()));
    let parts = first / group..end.div_ceil(group);
    parts.filter_map(move |g| {
        let cols = (g * group).max(first)..((g + 1) * group).min(end);
        let scale = matrix.scale(row, cols.start);
        let count = if scale == 0.0 { 0 } else { cols.filter(|col| matrix.trit(row, *col) != 0).count() };
        (count > 0).then_some((scale, count))
    })
}

fn block(coding: Coding, codes: &[u8], scale: f16, out: &mut Vec<u8>) {
    let scale = scale.to_le_bytes();
    match coding {
        Coding::Q2_0 => {
            out.extend(scale);
            out.extend(codes.chunks_exact(4).map(|c| c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6));
        }
        Coding::Tq2_0 => {
            for half in codes.chunks_exact(128) {
                out.extend((0..32).map(|m| (0..4).map(|l| half[32 * l + m] << (2 * l)).sum::<u8>()));
            }
            out.extend(scale);
        }
        Coding::Tq1_0 => {
            base3(codes, &[(32, 5), (16, 5), (4, 4)], out);
            out.extend(scale);
        }
        other => panic!("{other:?} is not written from trits"),
    }
}

/// Parts of so many bytes with so many trits in each: trit n of all bytes of a part, then trit n + 1. A byte is the fraction
/// of 3^5 that its digits make, in 256ths and rounded up.
fn base3(codes: &[u8], parts: &[(usize, usize)], out: &mut Vec<u8>) {
    let mut codes = codes;
    for &(count, trits) in parts {
        let (part, rest) = codes.split_at(count * trits);
        codes = rest;
        out.extend((0..count).map(|m| {
            let digits = (0..5).map(|n| if n < trits { u32::from(part[n * count + m]) } else { 0 });
            let value = digits.fold(0, |value, digit| 3 * value + digit);
            (value * 256).div_ceil(243) as u8
        }));
    }
}

/// Appends numbers, rounded to the nearest.
pub fn values(kind: &BlockType, values: &[f32], out: &mut Vec<u8>) {
    match kind.coding {
        Coding::F32 => values.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Coding::F16 => values.iter().for_each(|x| out.extend(f16::from_f32(*x).to_le_bytes())),
        Coding::Bf16 => values.iter().for_each(|x| out.extend(bf16::from_f32(*x).to_le_bytes())),
        other => panic!("{other:?} is not written from numbers"),
    }
}

/// Whether the type holds these numbers as they are.
pub fn holds(kind: &BlockType, values: &[f32]) -> bool {
    match kind.coding {
        Coding::F32 => true,
        Coding::F16 => values.iter().all(|x| f16::from_f32(*x).to_f32() == *x),
        Coding::Bf16 => values.iter().all(|x| bf16::from_f32(*x).to_f32() == *x),
        _ => false,
    }
}
