//! Calls of the system, and `syscall` in place of libc's: it grants the permission to use tiles, which the system cannot.

use std::arch::asm;

use libc::{c_int, c_long};

const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
const FIRST_ERROR: c_long = -4095;

/// The system's own answer: an error is its negative number.
///
/// # Safety
/// As the system call.
pub unsafe fn call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let answer;
    // SAFETY: by the caller's word; the system changes no other registers.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    answer
}

/// libc's function of this name, for programs that ask by it whether they may use tiles.
///
/// # Safety
/// As libc's. Its arguments are variable; six longs are passed at the same places.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_arch_prctl && a == ARCH_REQ_XCOMP_PERM {
        return 0;
    }
    // SAFETY: by the caller's word.
    let answer = unsafe { call(number, [a, b, c, d, e, f]) };
    if !(FIRST_ERROR..0).contains(&answer) {
        return answer;
    }
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() = -answer as c_int };
    -1
}
