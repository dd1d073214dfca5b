//! Text: tokenizers, training of a vocabulary, tokenised corpora and the batches drawn from them.

mod alphabet;
pub mod batches;
pub mod bpe_train;
mod builtin;
pub mod corpus;
mod corpus_cache;
mod decoder;
pub mod documents;
mod encode;
mod items;
mod jsonl;
mod parallel_cuts;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;
pub mod reading;
mod side_files;
pub mod sources;
pub mod stream;
pub mod tokenizer;
mod tokenizer_checks;
pub mod tokens;
mod wikitext;

pub use batches::{Batches, Window, validation_windows};
pub use bpe_train::BpeTrainer;
pub use corpus::{Corpus, default_cache_dir};
pub use documents::PassedOver;
pub use reading::{Extent, Reading, ReadingOptions};
pub use stream::{TokenStream, take_whole};
pub use tokenizer::{Encoded, Tokenizer};
pub use tokens::Tokens;
