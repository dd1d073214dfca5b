//! GPT-2's reversible alphabet: each byte as one printable character, so that a JSON vocabulary can hold any bytes.

use std::sync::LazyLock;

/// Bytes that stand for themselves; the others are numbered from U+0100 on.
fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// All bytes in the order of GPT-2's vocabulary: the printable ones ("!" first), then the rest.
pub fn byte_order() -> impl Iterator<Item = u8> {
    (0..=255).filter(|&b| printable(b)).chain((0..=255).filter(|&b| !printable(b)))
}

static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut chars = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        chars[usize::from(byte)] = if printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("below U+0144")
        };
    }
    chars
});

static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut bytes = [None; 0x144];
    for byte in 0..=255u8 {
        bytes[CHARS[usize::from(byte)] as usize] = Some(byte);
    }
    bytes
});

/// The vocabulary form of some bytes.
pub fn to_chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| CHARS[usize::from(b)]).collect()
}

/// Appends what a vocabulary entry stands for: its bytes, or its own UTF-8 if it is not in the alphabet.
pub fn push_bytes(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in token.chars() {
        match BYTES.get(c as usize).copied().flatten() {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: Vec<u8> = byte_order().collect();
        assert_eq!(all.len(), 256);
        assert_eq!(&all[..3], b"!\"#");
        assert_eq!(all[188], 0);
        let text = to_chars(&all);
        let mut back = Vec::new();
        push_bytes(&text, &mut back);
        assert_eq!(back, all);
        assert_eq!(to_chars(b" the\n"), "ĠtheĊ");
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_own_text() {
        let mut out = vec![7];
        push_bytes("<a b>", &mut out);
        assert_eq!(out, b"\x07<a b>");
    }
}
