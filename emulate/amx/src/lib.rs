//! AMX and AVX512-BF16 in software, so that kernels for them can be tested on a machine without them.
//!
//! Loaded with `LD_PRELOAD`, or linked: a constructor takes over two signals of the process. SIGILL ends at an
//! instruction that the processor does not know; what is listed in the README is carried out on the registers that the
//! signal found, and the program goes on behind it. SIGSEGV ends at CPUID, whose answers get the bits of what is
//! emulated.
//!
//! The instructions are those of the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 ("SDM").

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod bf16;
mod cpuid;
mod decode;
mod signals;
mod system;
mod tiles;
mod vectors;

/// Before `main`, and in every program that this one starts.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start;

extern "C" fn start() {
    vectors::find_offsets();
    signals::take_over();
    if !cpuid::set_faulting(true) {
        signals::say(format_args!(
            "this system cannot let CPUID fault: programs will not find what is emulated"
        ));
    }
    // The standard library keeps what it finds here: it has to ask after CPUID has changed.
    let features = std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("fma");
    if !features {
        cpuid::set_faulting(false);
        signals::give_back();
        signals::say(format_args!("needs a processor with AVX-512; nothing is emulated"));
    }
}

pub use signals::emulate_behind_ud2;
