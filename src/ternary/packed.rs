//! A ternary matrix as it is stored and run: in the order in which products read it, so that it can stay where a file is
//! mapped into memory.

use std::fmt;
use std::ops::Range;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Grouping, TernaryMatrix, ZERO_WORD};
use crate::files::Bytes;

/// Rows that stand side by side.
pub const BLOCK_ROWS: usize = 16;
/// Inputs of a segment at most: their 8-bit products with codes fit where sums are kept.
pub const SEGMENT: usize = 128;
/// Scales of a segment, one f16 for each row of the block.
pub const SCALE_BYTES: usize = 2 * BLOCK_ROWS;
/// Bytes of a line: four for each row of the block.
pub const LINE_BYTES: usize = 4 * BLOCK_ROWS;

/// How many trits are in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Density {
    /// Four: 2.125 bits a weight with one scale for 128.
    #[serde(rename = "2bit")]
    TwoBit,
    /// Five: 1.75 bits a weight with one scale for 128.
    #[serde(rename = "base3")]
    Base3,
}

impl Density {
    /// Trits of a byte.
    pub fn trits(self) -> usize {
        match self {
            Density::TwoBit => 4,
            Density::Base3 => 5,
        }
    }

    /// Inputs of a line: of each row of a block as many as four bytes hold.
    pub fn line(self) -> usize {
        4 * self.trits()
    }

    /// Bytes of each row in a line where `left` inputs are left: half of them where that is enough.
    fn width(self, left: usize) -> usize {
        if self == Density::Base3 && left <= self.line() / 2 { 2 } else { 4 }
    }

    /// Lines of `inputs` inputs, in bytes.
    fn code_bytes(self, inputs: usize) -> usize {
        let (whole, rest) = (inputs / self.line(), inputs % self.line());
        whole * LINE_BYTES + if rest == 0 { 0 } else { BLOCK_ROWS * self.width(rest) }
    }

    /// What the code at `place` adds to its byte.
    fn weight(self, place: usize) -> u8 {
        match self {
            Density::TwoBit => 1 << (2 * place),
            Density::Base3 => [1, 3, 9, 27, 81][place],
        }
    }

    /// Whether no codes make this byte.
    fn is_bad(self, byte: u8) -> bool {
        match self {
            Density::TwoBit => byte & (byte >> 1) & 0x55 != 0,
            Density::Base3 => byte >= 243,
        }
    }
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Density::TwoBit => "2bit",
            Density::Base3 => "base3",
        })
    }
}

/// Where the parts of a packed matrix stand.
///
/// Rows are taken in *blocks* of 16, inputs in *segments*: the groups that share a scale, cut after every 128 inputs. The
/// matrix is block after block, a block segment after segment, and a segment is its *lines*, then 16 scales, f16,
/// little-endian, one for each row.
///
/// A line holds four bytes of each row of the block, row after row. Byte `j` of a row holds the trits of the inputs
/// `first + j`, `first + j + 4`, `first + j + 8` and so on, as many as its density says: a code is `trit + 1`, and the byte
/// is the sum of `code * 4^i` (two bits) or `code * 3^i` (base 3). A line is 64 bytes; the last line of a segment in base 3
/// has two bytes a row, `first + j + 2 i`, where these hold all that is left.
///
/// Places past the end of a segment have code 0, and rows past the end of the matrix have codes and scales of 0: such places
/// add nothing to a sum of codes times inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: usize,
    cols: usize,
    group: usize,
    density: Density,
    /// Inputs of each segment, and where its lines begin in a block.
    segments: Vec<(Range<usize>, usize)>,
    block_bytes: usize,
}

impl Layout {
    pub fn new(rows: usize, cols: usize, grouping: Grouping, density: Density) -> Self {
        let group = grouping.size(cols);
        let (mut segments, mut block_bytes) = (Vec::new(), 0);
        for first in (0..cols).step_by(group.max(1)) {
            let end = (first + group).min(cols);
            for start in (first..end).step_by(SEGMENT) {
                let inputs = start..end.min(start + SEGMENT);
                segments.push((inputs.clone(), block_bytes));
                block_bytes += density.code_bytes(inputs.len()) + SCALE_BYTES;
            }
        }
        Self { rows, cols, group, density, segments, block_bytes }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Inputs that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }
    pub fn density(&self) -> Density {
        self.density
    }
    pub fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }
    /// Inputs of each segment.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.segments.iter().map(|(inputs, _)| inputs.clone())
    }
    /// Inputs of a segment, and where its lines begin in a block.
    pub fn segment(&self, index: usize) -> (Range<usize>, usize) {
        self.segments[index].clone()
    }
    /// Bytes of the whole matrix; `None` if no address reaches that far.
    pub fn bytes(&self) -> Option<usize> {
        self.blocks().checked_mul(self.block_bytes)
    }

    /// Which byte of a block holds a weight, and at which place.
    fn at(&self, row: usize, segment: usize, input: usize) -> (usize, usize) {
        let (inputs, start) = &self.segments[segment];
        let (line, within) = (self.density.line(), input - inputs.start);
        let (index, rest) = (within / line, within % line);
        let width = self.density.width(inputs.len() - index * line);
        (start + index * LINE_BYTES + row % BLOCK_ROWS * width + rest % width, rest / width)
    }

    /// Where the scale of a row stands in a block.
    fn scale_at(&self, row: usize, segment: usize) -> usize {
        let (inputs, start) = &self.segments[segment];
        start + self.density.code_bytes(inputs.len()) + 2 * (row % BLOCK_ROWS)
    }
}

/// A ternary matrix in the order of [`Layout`].
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    layout: Layout,
    grouping: Grouping,
    bytes: Bytes,
}

impl PackedMatrix {
    /// The same trits and scales.
    ///
    /// ```
    /// use ternlm::ternary::{Density, Grouping, PackedMatrix, TernaryMatrix};
    /// let latent: Vec<f32> = (0..256).map(|i| (i * i % 7) as f32 - 3.0).collect();
    /// let w = TernaryMatrix::project("w", &latent, 1, 256, Grouping::default())?;
    /// let packed = PackedMatrix::pack(&w, Grouping::default(), Density::Base3);
    /// assert_eq!(packed.bytes().len(), 16 * 2 * (26 + 2)); // a block of 16 rows, two groups of 26 bytes and a scale
    /// assert_eq!(packed.unpack(0..1).unwrap(), w);
    /// # Ok::<(), ternlm::Error>(())
    /// ```
    pub fn pack(matrix: &TernaryMatrix, grouping: Grouping, density: Density) -> Self {
        let layout = Layout::new(matrix.rows(), matrix.cols(), grouping, density);
        assert_eq!(matrix.group(), layout.group, "inputs that share a scale");
        let mut bytes = vec![0u8; layout.bytes().expect("no larger than the matrix")];
        for (block, bytes) in bytes.chunks_mut(layout.block_bytes.max(1)).enumerate() {
            pack_block(matrix, &layout, block, bytes);
        }
        Self { layout, grouping, bytes: bytes.into() }
    }

    /// Bytes in the order of [`Layout`], which are judged by [`PackedMatrix::unpack`] alone: products with bytes that no
    /// trits make give wrong numbers, and nothing worse.
    ///
    /// # Errors
    /// A number of bytes that is not that of the shape.
    pub fn from_bytes(
        [rows, cols]: [usize; 2],
        grouping: Grouping,
        density: Density,
        bytes: Bytes,
    ) -> Result<Self, String> {
        // Before anything is made that is as long as a row: a segment takes scales and half a line at least.
        let segments = cols.div_ceil(grouping.size(cols).min(SEGMENT));
        if rows == 0 || cols == 0 || segments > bytes.len() / (SCALE_BYTES + LINE_BYTES / 2) {
            return Err(format!("{} bytes for [{rows}, {cols}]", bytes.len()));
        }
        let layout = Layout::new(rows, cols, grouping, density);
        if layout.bytes() != Some(bytes.len()) {
            let wanted = layout.bytes().map_or("too many".to_string(), |n| n.to_string());
            return Err(format!("{} bytes, wanted {wanted} for [{rows}, {cols}]", bytes.len()));
        }
        Ok(Self { layout, grouping, bytes })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }
    pub fn rows(&self) -> usize {
        self.layout.rows
    }
    pub fn cols(&self) -> usize {
        self.layout.cols
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The same bytes in memory of their own, which no change of a mapped file reaches.
    pub fn in_memory(&self) -> Self {
        Self { bytes: self.bytes.to_vec().into(), ..self.clone() }
    }
    /// The bytes of a block of rows.
    pub fn block(&self, block: usize) -> &[u8] {
        &self.bytes[block * self.layout.block_bytes..][..self.layout.block_bytes]
    }

    /// Some rows as they were packed.
    ///
    /// # Errors
    /// A byte that no trits make, a scale that is not a finite number of 0 or more, or, where the segments of a group repeat
    /// one, that differs.
    pub fn unpack(&self, rows: Range<usize>) -> Result<TernaryMatrix, String> {
        let mut out = TernaryMatrix::zeros(rows.len(), self.cols(), self.grouping);
        let (row_words, row_groups) = (out.row_words(), out.row_groups());
        let (words, scales) = out.parts_mut();
        for (to, row) in rows.enumerate() {
            self.judge_row(row)?;
            let words = &mut words[to * row_words..][..row_words];
            self.unpack_row(row, words, &mut scales[to * row_groups..][..row_groups]);
        }
        out.clear_unused();
        Ok(out)
    }

    /// The codes and scales of a row in the order of [`TernaryMatrix`]; of bytes that no trits make, some or other.
    pub fn unpack_row(&self, row: usize, words: &mut [u32], scales: &mut [f32]) {
        let (layout, block) = (&self.layout, self.block(row / BLOCK_ROWS));
        let (density, lane) = (layout.density, row % BLOCK_ROWS);
        let spread = &SPREAD[density as usize];
        // Codes so far that make no whole word, and bits of them.
        let (mut codes, mut bits) = (0u128, 0);
        let mut words = words.iter_mut();
        for (s, (inputs, start)) in layout.segments.iter().enumerate() {
            let at = layout.scale_at(row, s);
            scales[inputs.start / layout.group] = f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            let mut at = *start;
            for first in inputs.clone().step_by(density.line()) {
                let left = inputs.end - first;
                let width = density.width(left);
                let bytes = &block[at + width * lane..];
                let line = if width == 2 {
                    bytes[..2].iter().rev().fold(0, |line, byte| line << 2 | closer(spread[*byte as usize]))
                } else {
                    bytes[..4].iter().rev().fold(0, |line, byte| line << 2 | spread[*byte as usize])
                };
                at += BLOCK_ROWS * width;
                let count = left.min(density.line());
                codes |= ((line & ((1 << (2 * count)) - 1)) as u128) << bits;
                bits += 2 * count;
                while bits >= 32 {
                    *words.next().expect("words of a row") = codes as u32;
                    (codes, bits) = (codes >> 32, bits - 32);
                }
            }
        }
        if bits > 0 {
            *words.next().expect("words of a row") = codes as u32 | ZERO_WORD << bits;
        }
    }

    fn judge_row(&self, row: usize) -> Result<(), String> {
        let (layout, block) = (&self.layout, self.block(row / BLOCK_ROWS));
        let bad = |what: String| Err(format!("row {row}: {what}"));
        let scale_at = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let mut common = 0.0;
        for (s, (inputs, _)) in layout.segments.iter().enumerate() {
            let scale = scale_at(block, layout.scale_at(row, s));
            if !scale.is_finite() || scale.is_sign_negative() {
                return bad(format!("scale {scale}, wanted a finite number, 0 or more"));
            }
            let first = scale_at(self.block(0), layout.scale_at(0, 0));
            if self.grouping == Grouping::Tensor && scale != first {
                return bad(format!("scale {scale}, wanted {first}, the one of the whole matrix"));
            }
            if inputs.start % layout.group != 0 && common != scale {
                return bad(format!("scales {common} and {scale} of one group"));
            }
            common = scale;
            for input in inputs.clone() {
                let (at, _) = layout.at(row, s, input);
                if layout.density.is_bad(block[at]) {
                    return bad(format!("byte {} at input {input}, wanted one that trits make", block[at]));
                }
            }
        }
        Ok(())
    }

    /// Judges every byte.
    ///
    /// # Errors
    /// As [`PackedMatrix::unpack`], and anything but 0 in a place past an end.
    pub fn judge(&self) -> Result<(), String> {
        let layout = &self.layout;
        let mut again = vec![0u8; layout.block_bytes];
        for block in 0..layout.blocks() {
            let rows = block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(layout.rows);
            let matrix = self.unpack(rows.clone())?;
            again.fill(0);
            pack_block(&matrix, layout, 0, &mut again);
            let bytes = self.block(block);
            if let Some(at) = again.iter().zip(bytes).position(|(a, b)| a != b) {
                let (found, wanted) = (bytes[at], again[at]);
                return Err(format!(
                    "rows {rows:?}: byte {at} of the block: {found}, wanted {wanted}, 0 past an end and under a scale of 0"
                ));
            }
        }
        Ok(())
    }
}

/// The codes of every byte of either density, eight bits apart: those of four bytes of a row, each shifted by two bits
/// more, are the codes of a line in order.
static SPREAD: [[u64; 256]; 2] = {
    let mut table = [[0; 256]; 2];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u64;
        let mut i = 0;
        while i < 5 {
            if i < 4 {
                table[0][byte] |= (byte as u64 >> (2 * i) & 3) << (8 * i);
            }
            table[1][byte] |= (rest % 3) << (8 * i);
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
};

/// Codes eight bits apart brought to four: those of half a line.
fn closer(codes: u64) -> u64 {
    (0..5).fold(0, |out, i| out | (codes >> (8 * i) & 3) << (4 * i))
}

/// Fills the bytes, zeros so far, of block `block` of a matrix.
pub(crate) fn pack_block(matrix: &TernaryMatrix, layout: &Layout, block: usize, bytes: &mut [u8]) {
    let density = layout.density;
    let mut codes = [0u8; SEGMENT + 20];
    for row in block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(matrix.rows()) {
        for (s, (inputs, start)) in layout.segments.iter().enumerate() {
            for (code, input) in codes.iter_mut().zip(inputs.clone()) {
                *code = matrix.code(row, input);
            }
            // Places past the end have code 0.
            codes[inputs.len()..].fill(0);
            let mut at = *start;
            for first in (0..inputs.len()).step_by(density.line()) {
                let width = density.width(inputs.len() - first);
                let to = &mut bytes[at + width * (row % BLOCK_ROWS)..][..width];
                for (j, byte) in to.iter_mut().enumerate() {
                    let of = |i: usize| density.weight(i) * codes[first + j + width * i];
                    *byte = (0..density.trits()).map(of).sum();
                }
                at += BLOCK_ROWS * width;
            }
            let at = layout.scale_at(row, s);
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(matrix.scale(row, inputs.start)).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(rows: usize, cols: usize, grouping: Grouping, seed: u64) -> TernaryMatrix {
        let mut state = seed | 1;
        let latent: Vec<f32> = (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        TernaryMatrix::project("w", &latent, rows, cols, grouping).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            rows in 1usize..40, cols in 1usize..400, size in prop_oneof![Just(0usize), 1usize..300], base3: bool, seed: u64,
        ) {
            let grouping = if size == 0 { Grouping::Tensor } else { Grouping::Size(size) };
            let density = if base3 { Density::Base3 } else { Density::TwoBit };
            let matrix = random(rows, cols, grouping, seed);
            let packed = PackedMatrix::pack(&matrix, grouping, density);
            prop_assert_eq!(packed.unpack(0..rows).unwrap(), matrix);
            prop_assert_eq!(packed.judge(), Ok(()));
        }
    }

    #[test]
    fn bits_of_a_weight() {
        for (density, bits) in [(Density::TwoBit, 2.125), (Density::Base3, 1.75)] {
            let layout = Layout::new(64, 1024, Grouping::default(), density);
            assert_eq!(8.0 * layout.bytes().unwrap() as f64 / (64.0 * 1024.0), bits);
        }
    }

    /// By hand: one row in base 3, 21 inputs: a line of 20 and a half line with one input in it.
    #[test]
    fn the_bytes_of_a_row() {
        let mut trits = [0i8; 21];
        trits[..5].copy_from_slice(&[1, -1, 0, 1, 1]); // inputs 0 and 4 share a byte
        trits[20] = 1;
        let values: Vec<f32> = trits.iter().map(|t| *t as f32 * 0.5).collect();
        let grouping = Grouping::Size(21);
        let matrix = TernaryMatrix::from_values(&values, 1, 21, grouping).unwrap();
        let packed = PackedMatrix::pack(&matrix, grouping, Density::Base3);
        let zeros = 3 + 9 + 27 + 81; // the trit 0 at the other places of a byte
        let bytes = packed.bytes();
        assert_eq!(bytes.len(), 64 + 32 + 32);
        assert_eq!(bytes[..4], [2 + 2 * 3 + 9 + 27 + 81, zeros, 1 + zeros, 2 + zeros]);
        assert_eq!(bytes[64..66], [2, 0], "what is past the end has code 0");
        assert_eq!(bytes[96..98], f16::from_f32(0.5).to_le_bytes());
        assert!(bytes[4..64].iter().chain(&bytes[66..96]).chain(&bytes[98..]).all(|b| *b == 0));
    }

    #[test]
    fn bytes_that_no_trits_make_are_found() {
        let matrix = random(18, 150, Grouping::Size(64), 3);
        for density in [Density::TwoBit, Density::Base3] {
            let grouping = Grouping::Size(64);
            let packed = PackedMatrix::pack(&matrix, grouping, density);
            let with = |at: usize, byte: u8| {
                let mut bytes = packed.bytes().to_vec();
                bytes[at] = byte;
                PackedMatrix::from_bytes([18, 150], grouping, density, bytes.into()).unwrap().judge()
            };
            assert!(with(0, 255).unwrap_err().contains("row 0: byte 255 at input 0"));
            let block = packed.layout().block_bytes();
            assert!(with(block + 2 * 4, 1).unwrap_err().contains("rows 16..18"), "a row past the end");
            assert!(with(2 * block - 31, 1).is_ok(), "another scale is a scale");
            assert!(with(2 * block - 31, 0x80).unwrap_err().contains("row 16: scale -"));
            // Row 16's last scale.
            let mut bytes = packed.bytes().to_vec();
            bytes[2 * block - 32..2 * block - 30].fill(0);
            let dead = PackedMatrix::from_bytes([18, 150], grouping, density, bytes.into()).unwrap();
            assert!(dead.judge().unwrap_err().contains("under a scale of 0"));
            let unpacked = dead.unpack(16..17).unwrap();
            assert!((128..150).all(|col| unpacked.trit(0, col) == 0), "a group without a scale has no trits");
            // Of a whole matrix there is one.
            let whole = PackedMatrix::pack(&random(18, 150, Grouping::Tensor, 3), Grouping::Tensor, density);
            let mut bytes = whole.bytes().to_vec();
            let last = bytes.len() - 32;
            bytes[last] ^= 1;
            let other = PackedMatrix::from_bytes([18, 150], Grouping::Tensor, density, bytes.into()).unwrap();
            assert!(other.judge().unwrap_err().contains("the one of the whole matrix"));
            assert!(with(2 * block - 31, 0x7C).unwrap_err().contains("row 16: scale"));
            let short = packed.bytes()[1..].to_vec();
            let error = PackedMatrix::from_bytes([18, 150], grouping, density, short.into()).unwrap_err();
            assert!(error.contains("bytes, wanted"), "{error}");
        }
    }
}
