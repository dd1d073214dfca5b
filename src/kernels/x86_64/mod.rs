//! The vectors and tiles of x86-64.

pub mod amx;
pub mod avx2;
pub mod avx512;
pub mod avx_vnni;
pub mod bf16;
pub mod lines;
