//! How many neighbouring inputs share one scale.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The group that shares a scale, along the input (last) dimension of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// That many inputs; a shorter last group of a row is a group of its own.
    Size(usize),
    /// One scale for the whole matrix, as in BitNet b1.58; here for comparison.
    Tensor,
}

impl Default for Grouping {
    fn default() -> Self {
        Grouping::Size(128)
    }
}

impl Grouping {
    /// Inputs a scale covers in a row of `cols` inputs. With [`Grouping::Tensor`] every row repeats the one scale.
    pub fn size(self, cols: usize) -> usize {
        match self {
            Grouping::Size(size) => size.min(cols.max(1)),
            Grouping::Tensor => cols.max(1),
        }
    }
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grouping::Size(size) => write!(f, "{size}"),
            Grouping::Tensor => f.write_str("tensor"),
        }
    }
}

impl FromStr for Grouping {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(size) if size > 0 => Ok(Grouping::Size(size)),
            _ if text == "tensor" => Ok(Grouping::Tensor),
            _ => Err(format!("group {text:?}: wanted a number of inputs, 1 or more, or \"tensor\"")),
        }
    }
}

impl Serialize for Grouping {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Grouping::Size(size) => out.serialize_u64(*size as u64),
            Grouping::Tensor => out.serialize_str("tensor"),
        }
    }
}

impl<'de> Deserialize<'de> for Grouping {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of inputs, 1 or more, or \"tensor\"")]
        enum Raw {
            Size(i64),
            Name(String),
        }
        let text = match Raw::deserialize(input)? {
            Raw::Size(size) => size.to_string(),
            Raw::Name(name) => name,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}
