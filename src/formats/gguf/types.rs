//! The types that tensors of a GGUF file may have: so many weights in a block of so many bytes.

/// How the weights of a block are stored. Of ggml's types those that are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// Ternary: an f16 scale, then two bits a trit in the order of the weights.
    Q2_0,
    /// Ternary: base 3, 256 weights, then the scale.
    Tq1_0,
    /// Ternary: two bits a trit, 256 weights, then the scale.
    Tq2_0,
    /// Ternary: base 3, 128 weights, then the scale.
    Ptq1_0,
    /// Known by name and size only.
    Unread,
}

/// A type of ggml.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockType {
    /// Its number in a file.
    pub id: u32,
    pub name: &'static str,
    /// Weights in a block; they are neighbours in a row.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    pub coding: Coding,
}

impl BlockType {
    /// Whether its weights are −s, 0 and +s, one `s` a block.
    pub fn is_ternary(&self) -> bool {
        matches!(self.coding, Coding::Q2_0 | Coding::Tq1_0 | Coding::Tq2_0 | Coding::Ptq1_0)
    }

    /// By its number in a file.
    pub fn by_id(id: u32) -> Option<&'static BlockType> {
        TYPES.iter().find(|kind| kind.id == id)
    }

    /// By its name.
    pub fn by_name(name: &str) -> Option<&'static BlockType> {
        TYPES.iter().chain([&OLD_Q2_0]).find(|kind| kind.name == name)
    }
}

const fn of(id: u32, name: &'static str, block: usize, bytes: usize, coding: Coding) -> BlockType {
    BlockType { id, name, block, bytes, coding }
}

/// The number of `Q2_0`, which older files use for [`OLD_Q2_0`].
pub const Q2_0: u32 = 42;

/// What `PQ2_0` was called before it had a number of its own; told from `Q2_0` by the sizes of tensors.
pub static OLD_Q2_0: BlockType = of(Q2_0, "Q2_0 of 128", 128, 34, Coding::Q2_0);

/// ggml's types, but for those that files no longer hold; 142 and 143 are those of a fork.
pub static TYPES: &[BlockType] = &[
    of(0, "F32", 1, 4, Coding::F32),
    of(1, "F16", 1, 2, Coding::F16),
    of(2, "Q4_0", 32, 18, Coding::Q4_0),
    of(3, "Q4_1", 32, 20, Coding::Q4_1),
    of(6, "Q5_0", 32, 22, Coding::Q5_0),
    of(7, "Q5_1", 32, 24, Coding::Q5_1),
    of(8, "Q8_0", 32, 34, Coding::Q8_0),
    of(9, "Q8_1", 32, 40, Coding::Unread),
    of(10, "Q2_K", 256, 84, Coding::Unread),
    of(11, "Q3_K", 256, 110, Coding::Unread),
    of(12, "Q4_K", 256, 144, Coding::Q4K),
    of(13, "Q5_K", 256, 176, Coding::Q5K),
    of(14, "Q6_K", 256, 210, Coding::Q6K),
    of(15, "Q8_K", 256, 292, Coding::Unread),
    of(16, "IQ2_XXS", 256, 66, Coding::Unread),
    of(17, "IQ2_XS", 256, 74, Coding::Unread),
    of(18, "IQ3_XXS", 256, 98, Coding::Unread),
    of(19, "IQ1_S", 256, 50, Coding::Unread),
    of(20, "IQ4_NL", 32, 18, Coding::Unread),
    of(21, "IQ3_S", 256, 110, Coding::Unread),
    of(22, "IQ2_S", 256, 82, Coding::Unread),
    of(23, "IQ4_XS", 256, 136, Coding::Unread),
    of(24, "I8", 1, 1, Coding::Unread),
    of(25, "I16", 1, 2, Coding::Unread),
    of(26, "I32", 1, 4, Coding::Unread),
    of(27, "I64", 1, 8, Coding::Unread),
    of(28, "F64", 1, 8, Coding::Unread),
    of(29, "IQ1_M", 256, 56, Coding::Unread),
    of(30, "BF16", 1, 2, Coding::Bf16),
    of(34, "TQ1_0", 256, 54, Coding::Tq1_0),
    of(35, "TQ2_0", 256, 66, Coding::Tq2_0),
    of(39, "MXFP4", 32, 17, Coding::Unread),
    of(40, "NVFP4", 64, 36, Coding::Unread),
    of(41, "Q1_0", 128, 18, Coding::Unread),
    of(Q2_0, "Q2_0", 64, 18, Coding::Q2_0),
    of(142, "PQ2_0", 128, 34, Coding::Q2_0),
    of(143, "PTQ1_0", 128, 28, Coding::Ptq1_0),
];
