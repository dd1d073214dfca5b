//! Large buffers on large pages.

/// Bytes from which a buffer is worth it: two pages of 2 MiB.
const LARGE: usize = 4 << 20;

/// `len` zeros. Where the system has them for the asking (Linux), a large buffer is given pages of 2 MiB: the first touch
/// then costs a five-hundredth of the page faults, and columns of a wide matrix do not miss the translation buffer.
pub fn zeros(len: usize) -> Vec<f32> {
    let buffer = vec![0.0; len];
    advise(&buffer);
    buffer
}

/// As [`Vec::resize`] with zeros, for a buffer whose content does not matter.
pub fn reserve(buffer: &mut Vec<f32>, len: usize) {
    if buffer.capacity() < len {
        *buffer = zeros(len);
    }
    buffer.resize(len, 0.0);
}

#[cfg(target_os = "linux")]
fn advise(buffer: &[f32]) {
    const HUGE_PAGE: usize = 2 << 20;
    let bytes = buffer.as_ptr_range();
    let (start, end) =
        ((bytes.start as usize).next_multiple_of(HUGE_PAGE), bytes.end as usize / HUGE_PAGE * HUGE_PAGE);
    if size_of_val(buffer) >= LARGE && start < end {
        // SAFETY: whole pages inside the buffer; the advice changes how they are backed and not what they hold. Should
        // the system refuse, nothing is lost.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(buffer: &[f32]) {
    let _ = (buffer, LARGE);
}
