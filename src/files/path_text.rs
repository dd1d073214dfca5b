//! Paths in TOML and JSON, whose strings are UTF-8 where a path need not be.
//!
//! A path that is UTF-8 stands as it is. Any other is `file:` and its bytes, percent-encoded where they are not plain
//! ASCII: an absolute one is a URI of RFC 8089. A path that itself begins with `file:` is written so, too, so that every
//! path is read back as it was.
//!
//! ```
//! use std::path::Path;
//! use ternlm::files::path_text;
//! assert_eq!(path_text::write(Path::new("/data/café.txt")), "/data/café.txt");
//! assert_eq!(path_text::read("file:/data/caf%C3%A9.txt").unwrap(), Path::new("/data/café.txt"));
//! assert!(path_text::read("file:100%").is_err());
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};

const PREFIX: &str = "file:";

/// The text that stands for `path`.
pub fn write(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.starts_with(PREFIX) => text.to_string(),
        _ => {
            let mut text = PREFIX.to_string();
            for &byte in path.as_os_str().as_encoded_bytes() {
                if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
                    text.push(byte as char);
                } else {
                    write!(text, "%{byte:02X}").expect("writing to a String");
                }
            }
            text
        }
    }
}

/// The path that `text` stands for; the error says what is wrong with it.
pub fn read(text: &str) -> Result<PathBuf, String> {
    let Some(coded) = text.strip_prefix(PREFIX) else { return Ok(text.into()) };
    let mut bytes = Vec::with_capacity(coded.len());
    let mut rest = coded.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |d: &u8| (*d as char).to_digit(16).expect("a hexadecimal digit") as u8;
                bytes.push(digit(high) << 4 | digit(low));
                tail
            }
            (b'%', _) => return Err(format!("found {text:?}, wanted two hexadecimal digits after each %")),
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    if bytes.contains(&0) {
        return Err(format!("found {text:?}, wanted a path without %00"));
    }
    from_bytes(bytes).ok_or_else(|| format!("found {text:?}, wanted a path of this system"))
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

/// For `#[serde(with = "path_text::option")]`.
pub mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use std::path::PathBuf;

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, out: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(super::write).serialize(out)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<PathBuf>, D::Error> {
        let text = Option::<String>::deserialize(input)?;
        text.map(|text| super::read(&text)).transpose().map_err(D::Error::custom)
    }
}

/// For `#[serde(with = "path_text::list")]`. One path may stand without its list.
pub mod list {
    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;
    use std::fmt;
    use std::path::PathBuf;

    pub fn serialize<S: Serializer>(paths: &[PathBuf], out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(paths.iter().map(|path| super::write(path)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<PathBuf>, D::Error> {
        input.deserialize_any(Paths)
    }

    struct Paths;

    impl<'de> Visitor<'de> for Paths {
        type Value = Vec<PathBuf>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path or a list of paths")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<PathBuf>, E> {
            super::read(text).map(|path| vec![path]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<PathBuf>, A::Error> {
            let mut paths = Vec::new();
            while let Some(text) = list.next_element::<String>()? {
                paths.push(super::read(&text).map_err(A::Error::custom)?);
            }
            Ok(paths)
        }
    }
}

/// For `#[serde(serialize_with = "path_text::serialize")]`.
pub fn serialize<S: serde::Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&write(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(unix)]
    use proptest::prelude::*;

    #[test]
    fn texts_and_their_paths() {
        for (text, path) in [
            ("a b%20.txt", "a b%20.txt"),
            ("file:a%20b", "a b"),
            ("file:%66ile%3ax", "file:x"),
            ("file:", ""),
        ] {
            assert_eq!(read(text).unwrap(), Path::new(path));
        }
        assert_eq!(write(Path::new("file:x y")), "file:file%3Ax%20y");
        for bad in ["file:%", "file:%4", "file:%4g", "file:%+1", "file:a%00"] {
            assert!(read(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[cfg(unix)]
    proptest! {
        #[test]
        fn every_path_is_read_back(bytes in prop::collection::vec(1u8.., 0..40), prefixed: bool) {
            let prefix = if prefixed { &b"file:"[..] } else { b"" };
            let path = from_bytes([prefix, &bytes].concat()).unwrap();
            let text = write(&path);
            let back = read(&text).unwrap();
            prop_assert_eq!(back.as_os_str(), path.as_os_str());
            prop_assert!(path.to_str().is_none_or(|plain| prefixed || plain.starts_with(PREFIX) || plain == text));
        }
    }
}
