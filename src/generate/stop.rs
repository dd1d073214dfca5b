//! Texts that end an answer, found as it comes in pieces.

/// Looks for texts that end an answer and are not part of it. What may be the beginning of one is held back.
///
/// ```
/// use ternlm::generate::StopStrings;
/// let mut stops = StopStrings::new(vec!["END".into()]);
/// assert_eq!(stops.push("a E"), ("a ".to_string(), false));
/// assert_eq!(stops.push("Nd "), ("ENd ".to_string(), false));
/// assert_eq!(stops.push("bEND c"), ("b".to_string(), true));
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty texts are left out: they would end everything.
    pub fn new(mut strings: Vec<String>) -> Self {
        strings.retain(|text| !text.is_empty());
        Self { strings, held: String::new() }
    }

    /// The text that `piece` makes certain, and whether the answer ends after it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|text| self.held.find(text)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.strings.iter().map(|text| begun(&self.held, text)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Whether text is held back.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// What was held back, where the answer ends without any of the texts.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that `stop` begins with, the most of them.
pub fn begun(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().skip(1).map(|(end, _)| end);
    ends.filter(|&end| text.ends_with(&stop[..end])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the pieces, the answer is the text before the first stop string that is complete.
        #[test]
        fn pieces_make_no_difference(
            pieces in prop::collection::vec("[abé]{0,3}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let mut found = StopStrings::new(stops.clone());
            let (mut text, mut ended) = (String::new(), false);
            for piece in &pieces {
                let (more, end) = found.push(piece);
                text.push_str(&more);
                ended = end;
                if end {
                    break;
                }
            }
            if !ended {
                text.push_str(&found.finish());
            }
            // Of several that end in one piece the one that begins first counts.
            let read = (1..=pieces.len()).map(|n| pieces[..n].concat());
            let mut first = read.filter_map(|read| {
                let at = stops.iter().filter_map(|stop| read.find(stop.as_str())).min()?;
                Some(read[..at].to_string())
            });
            match first.next() {
                Some(wanted) => prop_assert!(ended && text == wanted, "{:?}, wanted {:?}", text, wanted),
                None => prop_assert!(!ended && text == pieces.concat()),
            }
            prop_assert!(stops.iter().all(|stop| !text.contains(stop.as_str())));
        }
    }
}
