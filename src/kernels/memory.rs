//! An allocator for vectors that SIMD reads: lines of the cache, and large pages.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with buffers of a page or more at the start of a cache line, and large ones on pages of 2 MiB
/// where the system (Linux) has these for the asking.
///
/// A vector that spans two lines is loaded twice, and a wide matrix on pages of 4 KiB misses the translation buffer in
/// every row. A program that computes much makes it its global allocator, as `ternlm` does; without it everything works,
/// more slowly.
///
/// ```
/// use ternlm::kernels::LargePages;
///
/// #[global_allocator]
/// static MEMORY: LargePages = LargePages;
/// assert!(vec![0f32; 1 << 22].as_ptr().is_aligned_to_line());
/// # trait Line { fn is_aligned_to_line(self) -> bool; }
/// # impl Line for *const f32 { fn is_aligned_to_line(self) -> bool { self as usize % 64 == 0 } }
/// ```
pub struct LargePages;

/// Bytes from which a buffer starts at a line of the cache.
const ALIGNED: usize = 4096;
const LINE: usize = 64;
/// Bytes from which a buffer is given pages of its own, and of a large page.
const LARGE: usize = 4 << 20;
const HUGE: usize = 2 << 20;

/// What the system is asked for in place of `layout`.
fn wider(layout: Layout) -> Layout {
    let align = if layout.size() >= ALIGNED { layout.align().max(LINE) } else { layout.align() };
    // Of a size that no system has, rounding up to 64 may overflow.
    Layout::from_size_align(layout.size(), align).unwrap_or(layout)
}

fn is_large(layout: Layout) -> bool {
    cfg!(target_os = "linux") && layout.size() >= LARGE && layout.align() <= HUGE
}

// SAFETY: every method gives what the same method of `System` would give for a layout at least as strict, or fresh pages;
// which of the two it was depends on the layout alone, and `dealloc` gets the layout of `alloc`.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's word for `layout`.
        unsafe { if is_large(layout) { pages::map(layout.size()) } else { System.alloc(wider(layout)) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above; fresh pages are zeros.
        unsafe {
            if is_large(layout) { pages::map(layout.size()) } else { System.alloc_zeroed(wider(layout)) }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` with this layout.
        unsafe {
            if is_large(layout) { pages::unmap(at, layout.size()) } else { System.dealloc(at, wider(layout)) }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's word for `size`, `at` and `layout`.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            let small = !is_large(layout) && !is_large(new);
            if small && wider(layout).align() == wider(new).align() {
                return System.realloc(at, wider(layout), size);
            }
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(at, layout.size().min(size));
                self.dealloc(at, layout);
            }
            moved
        }
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use super::HUGE;
    use std::ptr;

    /// A multiple of the pages that Linux has on any processor: 4, 16 or 64 KiB.
    const PAGE: usize = 64 << 10;

    /// Zeroed pages, from a multiple of [`HUGE`] on; null when the system has no more.
    pub fn map(size: usize) -> *mut u8 {
        let Some(room) = size.checked_next_multiple_of(PAGE).and_then(|size| size.checked_add(HUGE)) else {
            return ptr::null_mut();
        };
        // SAFETY: asks for new pages; of these, only such are given back as no one has seen yet.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(ptr::null_mut(), room, access, kind, -1, 0);
            if start == libc::MAP_FAILED {
                return ptr::null_mut();
            }
            let before = (start as usize).next_multiple_of(HUGE) - start as usize;
            let after = HUGE - before;
            let at = start.byte_add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            if after > 0 {
                libc::munmap(start.byte_add(room - after), after);
            }
            // Only advice: should the system not follow it, pages are small.
            libc::madvise(at, room - HUGE, libc::MADV_HUGEPAGE);
            at.cast()
        }
    }

    /// # Safety
    /// `at` came from [`map`] with this size, and is not used any more.
    pub unsafe fn unmap(at: *mut u8, size: usize) {
        // SAFETY: by the caller's word.
        unsafe { libc::munmap(at.cast(), size.next_multiple_of(PAGE)) };
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    pub fn map(_: usize) -> *mut u8 {
        unreachable!("no size is large here")
    }
    pub unsafe fn unmap(_: *mut u8, _: usize) {
        unreachable!("no size is large here")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_every_size_are_aligned_zeroed_and_kept_when_they_grow() {
        for size in [1, 100, 4095, 4096, 10_000, LARGE - 1, LARGE, LARGE + 1, 9 << 20] {
            let layout = Layout::from_size_align(size, 4).unwrap();
            // SAFETY: each block is freed with the layout that it has, and written inside.
            unsafe {
                let at = LargePages.alloc_zeroed(layout);
                assert!(!at.is_null());
                if size >= ALIGNED {
                    assert_eq!(at as usize % LINE, 0, "{size} bytes");
                }
                if is_large(layout) {
                    assert_eq!(at as usize % HUGE, 0, "{size} bytes");
                }
                assert!(std::slice::from_raw_parts(at, size).iter().all(|b| *b == 0));
                at.write(7);
                at.add(size - 1).write(9);
                let grown = Layout::from_size_align(2 * size, 4).unwrap();
                let at = LargePages.realloc(at, layout, 2 * size);
                assert_eq!((*at, *at.add(size - 1)), (if size == 1 { 9 } else { 7 }, 9), "{size} bytes");
                at.add(2 * size - 1).write(1);
                let at = LargePages.realloc(at, grown, size);
                assert_eq!(*at.add(size - 1), 9, "{size} bytes");
                LargePages.dealloc(at, layout);
            }
        }
        // Too much to ask for is null, not a crash.
        let layout = Layout::from_size_align(isize::MAX as usize - 64, 4).unwrap();
        // SAFETY: nothing is touched.
        assert!(unsafe { LargePages.alloc(layout) }.is_null());
    }
}
