//! What is wrong in a TOML text, as a sentence takes it.

use toml::de::Error;

/// Without the picture of the text that the library draws.
pub fn one_line(error: &Error) -> String {
    error.message().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// With the line of `text`.
///
/// ```
/// use ternlm::config::toml_error::where_in;
/// let text = "a = 1\nb = ,\n";
/// let said = where_in(text, &text.parse::<toml::Table>().unwrap_err());
/// assert!(said.ends_with("(line 2)"), "{said}");
/// ```
pub fn where_in(text: &str, error: &Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    match line {
        Some(line) => format!("{} (line {line})", one_line(error)),
        None => one_line(error),
    }
}
