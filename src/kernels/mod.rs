//! All arithmetic, behind one safe door: slices in, slices out.
//!
//! Only this folder names an instruction set, and `unsafe` is here, around the crate's memory map and in `train/group/library.rs` alone.
//! [`mod@reference`] says in plain loops over f64 what each kernel means; the tests hold every instruction set of the
//! machine against it.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod anneal;
mod attention;
mod buffer;
mod calibrate;
mod cross_entropy;
mod distillation;
mod dropout;
mod elementwise;
mod embedding;
mod hadamard;
mod isa;
mod kv;
mod likely;
mod lines;
mod matrix;
mod memory;
mod moments;
mod norm;
mod optimizer;
pub mod peak;
mod portable;
mod product;
pub mod profile;
mod project;
mod reduce;
pub mod reference;
mod relations;
mod rope;
mod scales;
mod scratch;
mod simd;
mod team;
mod threads;
mod to;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use anneal::anneal;
pub use attention::{
    Attended, AttentionGradients, AttentionSpan, Heads, Positions, QUERIES_ALIKE, attention,
    attention_backward, attention_spans,
};
pub use buffer::Buffer;
pub use calibrate::{InputProducts, calibrate};
pub use cross_entropy::{IGNORE, Objective, cross_entropy, logits_stride, most_likely};
pub use distillation::{Distillation, distill};
pub use dropout::{Dropout, dropout};
pub use elementwise::{
    absorb, add_assign, all_finite, copy, fill_zero, gelu, gelu_backward, relu2, relu2_backward, relu2_mul,
    relu2_mul_backward, silu_mul, silu_mul_backward, sum_squares,
};
pub use embedding::{gather, scatter_add, unpack_row};
pub use hadamard::{Hadamard, scale_columns};
pub use isa::Isa;
pub use kv::{KvMemory, KvPage, KvRows, PAGE};
pub use likely::{Likely, distill_likely, likeliest};
pub use matrix::{Matrix, Values};
pub use memory::LargePages;
pub use moments::{BLOCK, Codes, Moments, dither_key};
pub use norm::{rms_norm, rms_norm_backward};
pub use optimizer::{AdamW, Latents, Pass, Rule, Updated, cautious, scale_add, update};
pub use product::{Halves, Rhs, Target, Threads, View, gemm, head, linear, pack, symmetric_gemm};
pub use project::{near_thresholds, project};
pub use reduce::{add_in_order, add_in_order_bf16, from_bf16, to_bf16};
pub use reference::{AttentionShape, RelationShape};
pub use relations::relations;
pub use rope::{RopeTable, Turn, rope};
pub use scales::{LearnedScales, learn_scales};
pub(crate) use team::share_each;
pub(crate) use threads::side_by_side;
pub use to::To;
