//! What goes from process to process.

use std::ops::Range;

/// Numbers of one type.
#[derive(Debug)]
pub enum Values<'a> {
    F32(&'a mut [f32]),
    /// bf16, as bits.
    Bf16(&'a mut [u16]),
    Bytes(&'a mut [u8]),
}

impl Values<'_> {
    pub fn len(&self) -> usize {
        match self {
            Values::F32(x) => x.len(),
            Values::Bf16(x) => x.len(),
            Values::Bytes(x) => x.len(),
        }
    }

    pub fn reborrow(&mut self) -> Values<'_> {
        match self {
            Values::F32(x) => Values::F32(x),
            Values::Bf16(x) => Values::Bf16(x),
            Values::Bytes(x) => Values::Bytes(x),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of some of them, in the order of this machine.
    pub(super) fn copied(&self, part: Range<usize>) -> Vec<u8> {
        match self {
            Values::F32(x) => x[part].iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Values::Bf16(x) => x[part].iter().flat_map(|x| x.to_ne_bytes()).collect(),
            Values::Bytes(x) => x[part].to_vec(),
        }
    }

    /// Takes bytes that [`Values::copied`] gave for as many values, from `first` on.
    pub(super) fn set(&mut self, first: usize, bytes: &[u8]) {
        match self {
            Values::F32(x) => {
                let bytes = bytes.as_chunks().0;
                x[first..first + bytes.len()]
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(x, b)| *x = f32::from_ne_bytes(*b));
            }
            Values::Bf16(x) => {
                let bytes = bytes.as_chunks().0;
                x[first..first + bytes.len()]
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(x, b)| *x = u16::from_ne_bytes(*b));
            }
            Values::Bytes(x) => x[first..first + bytes.len()].copy_from_slice(bytes),
        }
    }
}
