//! Results that replace what is there, or are added to it.

/// What becomes of the values that a result is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// They are replaced.
    Set,
    /// The result is added to them.
    Add,
}

impl To {
    /// How the parts of a sum are written, one after the other: the first as asked for, the others added.
    #[inline(always)]
    pub fn part(self, first: bool) -> To {
        if first { self } else { To::Add }
    }

    #[inline(always)]
    pub fn adds(self) -> bool {
        self == To::Add
    }
}
