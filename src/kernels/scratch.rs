//! Buffers that a thread keeps from call to call: one set of each kind, which is a type.

use std::any::Any;
use std::cell::RefCell;

/// Bytes of a cache line.
const LINE: usize = 64;

thread_local! {
    static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with this thread's `K`, as the last call left it. A call for the same kind inside of `f`, from a task that the
/// thread took over while it waited, gets a new one.
pub(super) fn with<K: Default + 'static, R>(f: impl FnOnce(&mut K) -> R) -> R {
    let mut one = take();
    let out = f(&mut one);
    give(one);
    out
}

/// This thread's `K` as it was given back last, for as long as it takes.
pub(super) fn take<K: Default + 'static>() -> K {
    let kept = KEPT.with_borrow_mut(|all| {
        let at = all.iter().position(|one| one.is::<K>())?;
        all.swap_remove(at).downcast::<K>().ok()
    });
    kept.map_or_else(K::default, |kept| *kept)
}

/// Keeps one for the next call.
pub(super) fn give<K: 'static>(one: K) {
    KEPT.with_borrow_mut(|all| match all.iter().position(|other| other.is::<K>()) {
        Some(at) => all[at] = Box::new(one),
        None => all.push(Box::new(one)),
    });
}

/// Values that begin at a cache line, and grow but never shrink: vectors that span two lines are loaded twice.
#[derive(Default)]
pub(super) struct Aligned<T>(Vec<T>);

impl<T: Copy + Default> Aligned<T> {
    /// The first `len`, whatever was left in them.
    pub fn first(&mut self, len: usize) -> &mut [T] {
        let spare = LINE / size_of::<T>();
        if self.0.len() < len + spare {
            self.0.resize(len + spare, T::default());
        }
        let at = self.start();
        &mut self.0[at..at + len]
    }

    /// What [`Aligned::first`] gave.
    #[cfg(target_arch = "x86_64")]
    pub fn as_slice(&self, len: usize) -> &[T] {
        let at = self.start();
        &self.0[at..at + len]
    }

    fn start(&self) -> usize {
        self.0.as_ptr().align_offset(LINE).min(LINE / size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct One(Aligned<f32>);
    #[derive(Default)]
    struct Other(Aligned<u16>);

    #[test]
    fn buffers_are_kept_by_kind_and_begin_at_a_line() {
        with(|one: &mut One| {
            one.0.first(3).fill(7.0);
            with(|other: &mut Other| assert_eq!(other.0.first(5), [0; 5]));
            with(|inner: &mut One| assert_eq!(inner.0.first(3), [0.0; 3], "another one inside"));
        });
        with(|one: &mut One| {
            assert_eq!(one.0.first(3), [7.0; 3], "what was left");
            for len in [1, 100, 5000] {
                assert!(one.0.first(len).as_ptr().addr().is_multiple_of(LINE));
            }
        });
    }
}
