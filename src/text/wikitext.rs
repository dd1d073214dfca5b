//! WikiText as people write: the artifacts of its tokenisation undone.

/// A text, and where each part of it stood in the original.
#[derive(Debug, Default)]
pub struct Detokenized {
    pub text: String,
    /// Places of `text` and of the original that correspond, ascending; between two of them both advance together, as far
    /// as the later one allows.
    marks: Vec<(usize, usize)>,
}

impl Detokenized {
    /// How much of the original the first `at` bytes stand for.
    pub fn origin(&self, at: usize) -> usize {
        let after = self.marks.partition_point(|mark| mark.0 <= at);
        let (here, original) = self.marks[..after].last().copied().unwrap_or_default();
        let next = self.marks.get(after).map_or(original, |mark| mark.1);
        (original + at - here).min(next.max(original))
    }

    fn mark(&mut self, original: usize) {
        self.marks.push((self.text.len(), original));
    }

    fn push(&mut self, text: &str, original: std::ops::Range<usize>) {
        self.mark(original.start);
        self.text.push_str(text);
        self.mark(original.end);
    }
}

/// Undoes what the makers of WikiText (Merity et al., arXiv 1609.07843) did to their articles: `@-@` inside words and
/// numbers, a space before every punctuation mark, inside brackets and quotation marks, `= =` around headings. That is
/// the text that models trained on anything else can be measured on.
pub fn detokenize(text: &str) -> Detokenized {
    let mut out = Detokenized::default();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let body = line.strip_suffix('\n').unwrap_or(line);
        detokenize_line(text, heading(body.trim()), &mut out);
        if body.len() < line.len() {
            out.push("\n", start + body.len()..start + line.len());
        }
        start += line.len();
    }
    out.mark(text.len());
    out
}

/// ` = = Early life = = ` is a heading.
fn heading(mut line: &str) -> &str {
    while let Some(inner) = line.strip_prefix("= ").and_then(|l| l.strip_suffix(" =")) {
        line = inner.trim();
    }
    line
}

/// `line` is a part of `text`.
fn detokenize_line(text: &str, line: &str, out: &mut Detokenized) {
    let begin = out.text.len();
    // Whether the next word is joined to what stands before it.
    let mut join = true;
    let mut open_quotes = [false; 2];
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let at = word.as_ptr().addr() - text.as_ptr().addr();
        let mut after = false;
        let mut shown = word;
        match word {
            "@-@" | "@,@" | "@.@" if out.text.len() > begin && words.peek().is_some() => {
                // A second space was there before.
                after = text[at + word.len()..].chars().nth(1) != Some(' ');
                (shown, join) = (&word[1..2], true);
            }
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
        if !join && out.text.len() > begin {
            out.text.push(' ');
        }
        out.push(shown, at..at + word.len());
        join = after;
    }
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
            (" 1 @.@  hrvatski ", "1. hrvatski"),
            ("He said , \" no ! \" ( and left ) .", "He said, \"no!\" (and left)."),
            ("Boulter 's play didn 't open : it closed ;", "Boulter's play didn't open: it closed;"),
            ("one\n \ntwo", "one\n\ntwo"),
            ("@-@ a @-@", "@-@ a @-@"),
            // White space of more than a byte.
            ("a @-@\u{a0}b @,@\u{3000}\u{2009}c", "a-b,c"),
            ("", ""),
        ] {
            assert_eq!(detokenize(raw).text, want);
        }
    }

    #[test]
    fn each_part_knows_where_it_stood() {
        //         0123456789012345678901234
        let raw = " = A b = \n\n 1 @,@ 5 , c \n";
        let out = detokenize(raw);
        assert_eq!(out.text, "A b\n\n1,5, c\n");
        let origins: Vec<usize> = (0..=out.text.len()).map(|at| out.origin(at)).collect();
        // What was removed goes with what stands before it.
        assert_eq!(origins, [3, 4, 5, 9, 10, 12, 14, 18, 20, 21, 22, 24, 25]);
        assert_eq!(detokenize("").origin(0), 0);
    }
}
