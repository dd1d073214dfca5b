//! GGUF files made by hand, from the format's description and not by the code under test.

use ternlm::ternary::TernaryMatrix;

/// Types of values and of tensors, by their numbers.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q2_0: u32 = 42;
pub const TQ2_0: u32 = 35;
pub const PQ2_0: u32 = 142;
const TEXT: u32 = 8;

/// A file that is being put together; `Clone`, so that a test can change one thing.
#[derive(Clone, Default)]
pub struct File {
    /// Key, type, and the value's bytes.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Outermost dimension first; a file has them the other way around.
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// In the data; `None`: after the one before.
    pub offset: Option<u64>,
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub fn list(kind: u32, values: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let values: Vec<Vec<u8>> = values.into_iter().collect();
    [kind.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec(), values.concat()].concat()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl File {
    /// Sets a key, in its old place if it is there.
    pub fn key(&mut self, key: &str, kind: u32, bytes: Vec<u8>) -> &mut Self {
        match self.keys.iter_mut().find(|(name, ..)| name == key) {
            Some(found) => (found.1, found.2) = (kind, bytes),
            None => self.keys.push((key.into(), kind, bytes)),
        }
        self
    }
    pub fn u32(&mut self, key: &str, n: u32) -> &mut Self {
        self.key(key, 4, n.to_le_bytes().to_vec())
    }
    pub fn f32(&mut self, key: &str, x: f32) -> &mut Self {
        self.key(key, 6, x.to_le_bytes().to_vec())
    }
    pub fn flag(&mut self, key: &str, flag: bool) -> &mut Self {
        self.key(key, 7, vec![flag as u8])
    }
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, TEXT, text(value))
    }
    pub fn texts<'a>(&mut self, key: &str, values: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.key(key, 9, list(TEXT, values.into_iter().map(text)))
    }
    pub fn i32s(&mut self, key: &str, values: impl IntoIterator<Item = i32>) -> &mut Self {
        self.key(key, 9, list(5, values.into_iter().map(|n| n.to_le_bytes().to_vec())))
    }
    pub fn f32s(&mut self, key: &str, values: impl IntoIterator<Item = f32>) -> &mut Self {
        self.key(key, 9, list(6, values.into_iter().map(|x| x.to_le_bytes().to_vec())))
    }

    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) -> &mut Self {
        let shape = shape.iter().map(|&n| n as u64).collect();
        self.tensors.push(Tensor { name: name.into(), shape, kind, bytes, offset: None });
        self
    }

    /// The file, version 3, aligned to 32.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.keys {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend(text(&tensor.name));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

fn f16_bytes(x: f32) -> [u8; 2] {
    half_bits(x).to_le_bytes()
}

/// Of a number that f16 holds: sign, exponent and the first ten bits, by hand.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let (exponent, fraction) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    match exponent {
        _ if x == 0.0 => 0,
        -14..=15 => ((bits >> 16 & 0x8000) as i32 | (exponent + 15) << 10 | (fraction >> 13) as i32) as u16,
        _ => ((0x80_0000 | fraction) >> (13 - 14 - exponent)) as u16,
    }
}

/// Rows of f16 scales and two-bit codes, a scale for each `block` weights: `Q2_0` of 64, `PQ2_0` of 128.
pub fn two_bits(matrix: &TernaryMatrix, block: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..matrix.rows() {
        for start in (0..matrix.cols()).step_by(block) {
            out.extend(f16_bytes(matrix.scale(row, start)));
            for at in (start..start + block).step_by(4) {
                out.push((0..4).map(|j| ((matrix.trit(row, at + j) + 1) as u8) << (2 * j)).sum());
            }
        }
    }
    out
}

/// Rows of `TQ2_0`: in halves of 128, byte m has the trits m, 32 + m, 64 + m, 96 + m; the scale comes last.
pub fn tq2_0(matrix: &TernaryMatrix) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..matrix.rows() {
        for start in (0..matrix.cols()).step_by(256) {
            for half in [0, 128] {
                for m in 0..32 {
                    let code = |l: usize| (matrix.trit(row, start + half + 32 * l + m) + 1) as u8;
                    out.push((0..4).map(|l| code(l) << (2 * l)).sum());
                }
            }
            out.extend(f16_bytes(matrix.scale(row, start)));
        }
    }
    out
}

/// The shape of a model with keys of this architecture.
pub struct Shape {
    pub architecture: &'static str,
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub context: usize,
}

impl Shape {
    /// A file with the keys of this shape, and no tensors yet.
    pub fn file(&self) -> File {
        let mut file = File::default();
        let a = self.architecture;
        file.text("general.architecture", a);
        for (key, n) in [
            ("context_length", self.context),
            ("embedding_length", self.width),
            ("block_count", self.layers),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
        ] {
            file.u32(&format!("{a}.{key}"), n as u32);
        }
        file.f32(&format!("{a}.attention.layer_norm_rms_epsilon"), 1e-6);
        file.f32(&format!("{a}.rope.freq_base"), 10_000.0);
        file
    }
}
