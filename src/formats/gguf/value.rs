//! The metadata of a GGUF file: typed values, where they lie in the file.

use std::fmt;

use crate::formats::quoted;

/// The type of a value; its number in a file is its place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Kind; 13] = {
        use Kind::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// By its number in a file.
    pub fn by_id(id: u32) -> Option<Kind> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of a value; `None` of texts and arrays, which say their own length.
    pub fn size(self) -> Option<usize> {
        use Kind::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// Bytes of the shortest value.
    pub(super) fn least(self) -> usize {
        self.size().unwrap_or(if self == Kind::String { 8 } else { 12 })
    }
}

/// One value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// A whole number, 0 or more.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A number with a point.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    pub fn as_str(&self) -> Option<&'a str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(array) = self { Some(*array) } else { None }
    }

    /// Reads one value off the front of `bytes`; `None` where they are too few, or no value of this kind.
    pub(super) fn read(kind: Kind, bytes: &mut &'a [u8]) -> Option<Value<'a>> {
        fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (first, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*first)
        }
        Some(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(number(bytes)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(number(bytes)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(number(bytes)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(number(bytes)?)),
            Kind::U32 => Value::U32(u32::from_le_bytes(number(bytes)?)),
            Kind::I32 => Value::I32(i32::from_le_bytes(number(bytes)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(number(bytes)?)),
            Kind::U64 => Value::U64(u64::from_le_bytes(number(bytes)?)),
            Kind::I64 => Value::I64(i64::from_le_bytes(number(bytes)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(number(bytes)?)),
            Kind::Bool => Value::Bool(match number(bytes)? {
                [0] => false,
                [1] => true,
                _ => return None,
            }),
            Kind::String => {
                let length = usize::try_from(u64::from_le_bytes(number(bytes)?)).ok()?;
                let (text, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                Value::String(str::from_utf8(text).ok()?)
            }
            Kind::Array => {
                let kind = Kind::by_id(u32::from_le_bytes(number(bytes)?))?;
                let len = usize::try_from(u64::from_le_bytes(number(bytes)?)).ok()?;
                let all = *bytes;
                match kind.size() {
                    Some(size) => *bytes = all.get(len.checked_mul(size)?..)?,
                    None => (0..len).try_for_each(|_| Value::read(kind, bytes).map(drop))?,
                }
                Value::Array(Array { kind, len, bytes: &all[..all.len() - bytes.len()] })
            }
        })
    }
}

/// For error messages: short, whatever the value.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(x) => write!(f, "{x}"),
            Value::I8(x) => write!(f, "{x}"),
            Value::U16(x) => write!(f, "{x}"),
            Value::I16(x) => write!(f, "{x}"),
            Value::U32(x) => write!(f, "{x}"),
            Value::I32(x) => write!(f, "{x}"),
            Value::F32(x) => write!(f, "{x}"),
            Value::U64(x) => write!(f, "{x}"),
            Value::I64(x) => write!(f, "{x}"),
            Value::F64(x) => write!(f, "{x}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::String(text) => f.write_str(&quoted(text)),
            Value::Array(array) => write!(f, "a list of {}", array.len),
        }
    }
}

/// A list of values of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub kind: Kind,
    pub len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The values, one after the other.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut bytes = self.bytes;
        (0..self.len).map_while(move |_| Value::read(self.kind, &mut bytes))
    }
}
