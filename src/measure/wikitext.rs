//! WikiText as people write: the artifacts of its tokenisation undone.

/// Undoes what the makers of WikiText (Merity et al., arXiv 1609.07843) did to their articles: `@-@` inside words and
/// numbers, a space before every punctuation mark, inside brackets and quotation marks, `= =` around headings. That is
/// the text that models trained on anything else can be measured on.
pub fn detokenize_wikitext(text: &str) -> String {
    let lines = text.lines().map(|line| line_of(line.trim()));
    let mut out = lines.collect::<Vec<_>>().join("\n");
    if text.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn line_of(line: &str) -> String {
    // ` = = Early life = = ` is a heading.
    let heading = line.strip_prefix("= ").and_then(|l| l.strip_suffix(" ="));
    if let Some(mut title) = heading {
        while let Some(inner) = title.strip_prefix("= ").and_then(|t| t.strip_suffix(" =")) {
            title = inner;
        }
        return line_of(title.trim());
    }
    let line = line.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".");
    let mut out = String::with_capacity(line.len());
    // Whether the next word is joined to what stands before it.
    let mut join = true;
    let mut open_quotes = [false; 2];
    for word in line.split_whitespace() {
        let mut after = false;
        match word {
            "," | "." | ";" | ":" | "!" | "?" | "%" | ")" | "]" | "}" | "°" => join = true,
            "(" | "[" | "{" | "$" | "£" => after = true,
            "\"" | "'" => {
                let open = &mut open_quotes[(word == "'") as usize];
                (join, after) = if *open { (true, false) } else { (join, true) };
                *open = !*open;
            }
            // Endings that were cut off: 's, n't, 'll …
            _ if is_ending(word) => join = true,
            _ => {}
        }
        if !join && !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        join = after;
    }
    out
}

fn is_ending(word: &str) -> bool {
    matches!(word, "'s" | "'t" | "'m" | "'re" | "'ve" | "'ll" | "'d" | "n't")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_artifact_is_undone() {
        for (raw, want) in [
            (" = Robert Boulter = \n", "Robert Boulter\n"),
            (" = = Early life = = ", "Early life"),
            (" a well @-@ known 1 @,@ 000 @.@ 5 case ", "a well-known 1,000.5 case"),
            ("He said , \" no ! \" ( and left ) .", "He said, \"no!\" (and left)."),
            ("Boulter 's play didn 't open : it closed ;", "Boulter's play didn't open: it closed;"),
            ("one\n \ntwo", "one\n\ntwo"),
            ("", ""),
        ] {
            assert_eq!(detokenize_wikitext(raw), want);
        }
    }
}
