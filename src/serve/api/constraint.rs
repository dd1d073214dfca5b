//! What answers must be: JSON by a schema, or calls of tools, as llguidance follows them.

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;

use super::error::{ApiError, REASON};
use super::served::Inner;

/// A constraint, compiled within llguidance's limits of time and size.
pub fn compile(served: &Inner, field: &str, grammar: TopLevelGrammar) -> Result<Matcher, ApiError> {
    let factory = served.grammars()?;
    // The parser is other people's code, and the schema is a stranger's.
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Matcher::new(factory.create_parser(grammar))
    }));
    let matcher = made.map_err(|_| ApiError::field(field, "a schema that cannot be compiled", "another"))?;
    match matcher.get_error() {
        None => Ok(matcher),
        Some(why) => {
            let error = ApiError::invalid(format_args!("{field}: {why:.REASON$}"));
            Err(ApiError { param: Some(field.into()), ..error })
        }
    }
}
