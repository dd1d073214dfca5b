//! The options of everything that guesses the tokens to come.

use clap::Args;
use std::path::{Path, PathBuf};

use super::Precision;
use crate::error::{Error, Result};
use crate::generate::Speculation;
use crate::model::Decoder;
use crate::text::Tokenizer;

#[derive(Args)]
pub struct SpeculationArgs {
    /// Guess tokens from the text so far, at most that many (10) at a time: the same text, faster where it repeats itself
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, require_equals = true, default_missing_value = "10")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=64))]
    lookup: Option<u64>,
    /// Guess tokens with this smaller model of the same tokenizer: the same text, faster where it guesses well
    #[arg(long, value_name = "MODEL", conflicts_with = "lookup")]
    draft: Option<PathBuf>,
    /// Most tokens that the draft model guesses at a time
    #[arg(long, value_name = "TOKENS", default_value_t = 4, requires = "draft")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=64))]
    draft_tokens: u64,
}

impl SpeculationArgs {
    /// The draft model that was asked for, packed, to guess for the model `of`.
    ///
    /// # Errors
    /// A tokenizer that is not that of the model.
    pub fn draft(&self, of: &Path, tokenizer: &Tokenizer, precision: Precision) -> Result<Option<Decoder>> {
        let Some(path) = &self.draft else { return Ok(None) };
        let dir = super::model_dir(path)?;
        same_tokens(&dir, &super::tokenizer_of(&dir)?, of, tokenizer)?;
        super::load_packed(&dir, precision).map(Some)
    }

    /// Who guesses for the model `of`.
    pub fn with<'a>(&self, draft: Option<&'a Decoder>, of: &Decoder) -> Speculation<'a> {
        let (asked, most) = match (draft, self.lookup) {
            (Some(_), _) => ("--draft-tokens", self.draft_tokens as usize),
            (None, Some(most)) => ("--lookup", most as usize),
            (None, None) => return Speculation::Off,
        };
        let judged = of.rows_alike() - 1;
        if most > judged {
            tell!(
                "note: {asked} {most}: {judged} at a time are as many as this model judges with the bits of one alone"
            );
        }
        draft.map_or(Speculation::Lookup { most }, |decoder| Speculation::Draft { decoder, most })
    }
}

/// That every id is the same token in both.
fn same_tokens(draft: &Path, its: &Tokenizer, of: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let different = |id: &u32| its.token(*id) != tokenizer.token(*id);
    let most = its.vocab_size().max(tokenizer.vocab_size()) as u32;
    match (0..most).find(different) {
        None => Ok(()),
        Some(id) => {
            let name = |token: Option<String>| token.map_or("nothing".into(), |token| format!("{token:?}"));
            let found = format!("token {id} is {}", name(its.token(id)));
            let wanted = format!("{}, as in the tokenizer of {}", name(tokenizer.token(id)), of.display());
            Err(Error::input(draft, "tokenizer of the draft model", found, wanted))
        }
    }
}
