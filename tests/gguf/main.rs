//! GGUF files: blocks against the reference implementation's numbers, models against the same ones in other files,
//! vocabularies against the ids of other programs.

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod model;
mod vocabulary;
