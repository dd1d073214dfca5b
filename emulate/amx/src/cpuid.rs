//! CPUID with the bits of what is emulated.
//!
//! `arch_prctl(ARCH_SET_CPUID, 0)` makes the instruction a fault in this thread and in those that it starts; a program
//! that it starts has its own constructor.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

use crate::system::call;

const ARCH_SET_CPUID: libc::c_long = 0x1012;

/// Of leaf 7: AMX-BF16, AMX-TILE and AMX-INT8 in `edx`.
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Of leaf 7, subleaf 1: AVX512_BF16 in `eax`.
const AVX512_BF16: u32 = 1 << 5;

/// Likewise: AVX-VNNI. It is not emulated, and said only where `EMULATE_SHOWS_AVX_VNNI` asks for it.
const AVX_VNNI: u32 = 1 << 4;

/// Whether the system can do it.
pub fn set_faulting(on: bool) -> bool {
    // SAFETY: touches no memory.
    unsafe { call(libc::SYS_arch_prctl, [ARCH_SET_CPUID, !on as libc::c_long, 0, 0, 0, 0]) == 0 }
}

/// What the instruction answers a program; it is faulting on this thread, and stays so.
pub fn answer(leaf: u32, subleaf: u32) -> CpuidResult {
    set_faulting(false);
    let mut answer = __cpuid_count(leaf, subleaf);
    set_faulting(true);
    match (leaf, subleaf) {
        (7, 0) => {
            answer.edx |= AMX;
            // The last subleaf.
            answer.eax = answer.eax.max(1);
        }
        (7, 1) => {
            answer.eax |= AVX512_BF16;
            if std::env::var_os("EMULATE_SHOWS_AVX_VNNI").is_some() {
                answer.eax |= AVX_VNNI;
            }
        }
        _ => {}
    }
    answer
}
