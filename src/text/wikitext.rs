//! WikiText as people write: the artifacts of its tokenisation undone.

/// A longer line is no heading: else nothing of it could be given out before its end.
const MAX_HEADING: usize = if cfg!(fuzzing) { 23 } else { 1 << 20 };

/// A text, and where each part of it stood in the original.
#[derive(Debug, Default)]
pub struct Detokenized {
    pub text: String,
    /// Places of `text` and of the original that correspond, ascending, besides their beginnings; behind each both advance
    /// together, as far as the next one allows.
    marks: Vec<(usize, usize)>,
}

impl Detokenized {
    /// How much of the original the first `at` bytes stand for.
    pub fn origin(&self, at: usize) -> usize {
        let after = self.marks.partition_point(|mark| mark.0 <= at);
        let (here, original) = self.marks[..after].last().copied().unwrap_or_default();
        let next = self.marks.get(after).map_or(usize::MAX, |mark| mark.1);
        (original + at - here).min(next)
    }

    fn mark(&mut self, original: usize) {
        let (here, before) = self.marks.last().copied().unwrap_or_default();
        // One that both come to together says nothing.
        if self.text.len() - here != original - before {
            self.marks.push((self.text.len(), original));
        }
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
///
/// A text may come in parts, each up to where [`settled`] says, the last one to the end of the text.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The line that goes on in the next part.
    line: Option<Line>,
}

/// How much of `text`, the beginning of what is left of one, is the same whatever follows it.
pub fn settled(text: &str) -> usize {
    match text.rfind('\n') {
        Some(end) => end + 1,
        None if text.len() <= MAX_HEADING => 0,
        // Behind the last word but one: the last may go on, and what stands before it is told by it.
        None => {
            let words = text.trim_end();
            words.rfind(char::is_whitespace).map_or(0, |space| words[..space].trim_end().len())
        }
    }
}

impl Detokenizer {
    /// The first `end` bytes of `text`, which begins where the part before ended.
    pub fn part(&mut self, text: &str, end: usize) -> Detokenized {
        let mut out = Detokenized::default();
        let mut start = 0;
        for line in text[..end].split_inclusive('\n') {
            let body = line.strip_suffix('\n').unwrap_or(line);
            let goes_on = body.len() == line.len() && end < text.len();
            let (mut state, words) = match self.line.take() {
                Some(state) => (state, body),
                None if goes_on || body.len() > MAX_HEADING => (Line::BEGIN, body),
                None => (Line::BEGIN, heading(body.trim())),
            };
            state.words(text, words, goes_on, &mut out);
            if goes_on {
                self.line = Some(state);
            }
            if body.len() < line.len() {
                out.push("\n", start + body.len()..start + line.len());
            }
            start += line.len();
        }
        out.mark(end);
        out
    }
}

/// ` = = Early life = = ` is a heading.
fn heading(mut line: &str) -> &str {
    while let Some(inner) = line.strip_prefix("= ").and_then(|l| l.strip_suffix(" =")) {
        line = inner.trim();
    }
    line
}

/// What the words of a line so far mean for those that follow.
#[derive(Debug)]
struct Line {
    /// There were some.
    begun: bool,
    /// Whether the next word is joined to what stands before it.
    join: bool,
    open_quotes: [bool; 2],
}

impl Line {
    const BEGIN: Line = Line { begun: false, join: true, open_quotes: [false; 2] };

    /// `words` is a part of `text`; `more`: others follow in the line.
    fn words(&mut self, text: &str, words: &str, more: bool, out: &mut Detokenized) {
        let mut words = words.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let at = word.as_ptr().addr() - text.as_ptr().addr();
            let mut join = self.join;
            let mut after = false;
            let mut shown = word;
            match word {
                "@-@" | "@,@" | "@.@" if self.begun && (more || words.peek().is_some()) => {
                    // A second space was there before.
                    after = text[at + word.len()..].chars().nth(1) != Some(' ');
                    (shown, join) = (&word[1..2], true);
                }
                "," | "." | ";" | ":" | "!" | "?" | "%" | ")" | "]" | "}" | "°" => join = true,
                "(" | "[" | "{" | "$" | "£" => after = true,
                "\"" | "'" => {
                    let open = &mut self.open_quotes[(word == "'") as usize];
                    (join, after) = if *open { (true, false) } else { (join, true) };
                    *open = !*open;
                }
                // Endings that were cut off: 's, n't, 'll …
                _ if is_ending(word) => join = true,
                _ => {}
            }
            if !join {
                out.text.push(' ');
            }
            out.push(shown, at..at + word.len());
            (self.begun, self.join) = (true, after);
        }
    }
}

fn is_ending(word: &str) -> bool {
    matches!(word, "'s" | "'t" | "'m" | "'re" | "'ve" | "'ll" | "'d" | "n't")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detokenize(text: &str) -> Detokenized {
        Detokenizer::default().part(text, text.len())
    }

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

    /// The text as it comes in parts of so many bytes, and where each byte of it stood.
    fn in_parts(raw: &str, size: usize) -> (String, Vec<usize>) {
        let mut detokenizer = Detokenizer::default();
        let (mut open, mut text, mut origins, mut given) = (String::new(), String::new(), Vec::new(), 0);
        let mut rest = raw;
        while !(rest.is_empty() && open.is_empty()) {
            let (part, left) = rest.split_at(size.min(rest.len()));
            rest = left;
            open.push_str(part);
            let end = if rest.is_empty() { open.len() } else { settled(&open) };
            let out = detokenizer.part(&open, end);
            origins.truncate(text.len());
            origins.extend((0..=out.text.len()).map(|at| given + out.origin(at)));
            text.push_str(&out.text);
            given += end;
            open.drain(..end);
            assert!(open.len() <= MAX_HEADING, "{} bytes are kept", open.len());
        }
        (text, origins)
    }

    #[test]
    fn a_line_without_an_end_is_not_kept() {
        let raw = "a @-@ b , c ( d ) 's @,@  \" q \" ".repeat(40_000);
        let text = "a-b, c (d)'s, \"q\" ".repeat(40_000);
        let text = text.trim_end();
        assert!(raw.len() > MAX_HEADING);
        // What would be a heading if it were shorter, and one that is.
        let raw = format!("{raw}\n = {raw} = \n = b @-@ c = \n{raw}");
        let text = format!("{text}\n= {text} =\nb-c\n{text}");
        let (whole, origins) = in_parts(&raw, raw.len());
        assert!(whole == text);
        for size in [100_003, 1 << 20] {
            let (parts, places) = in_parts(&raw, size);
            assert!(parts == text && places == origins, "{size} bytes at a time");
        }
    }
}
