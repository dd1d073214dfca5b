//! AMX: the tile registers, their configuration, and the register kernels of two by two tiles.
//!
//! Each kernel is one block of assembly: a panel of `A` (32 rows) against a panel of `B` (32 columns), step by step along
//! `k`, into four accumulators. Tiles 0 to 3 accumulate, 4 and 5 hold `A`, 6 and 7 hold `B`. A step is 32 values of 16
//! bits or 64 of 8 bits, a tile's row of 64 bytes.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, __m512, __m512i};
use std::marker::PhantomData;

use crate::kernels::to::To;

/// Rows of a panel of `A`, columns of a panel of `B`: two tiles.
pub const PANEL: usize = 32;
/// Rows of a tile.
pub const TILE: usize = 16;

/// A row of a tile.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

impl Line {
    pub const ZERO: Line = Line([0; 16]);
}

/// A panel's rows of one step and part.
pub const STEP: usize = PANEL;

/// Whether the machine has tiles of bf16 and 8-bit integers and the system lets this process use them.
pub fn available() -> bool {
    let (leaf1, leaf7) = (__cpuid(1), __cpuid_count(7, 0));
    let bit = |register: u32, bit: u32| register >> bit & 1 == 1;
    // XSAVE in use; AMX-BF16, AMX-TILE, AMX-INT8.
    if !(bit(leaf1.ecx, 27) && [22, 24, 25].iter().all(|&b| bit(leaf7.edx, b))) {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: asks for a permission, for all threads of the process; touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether the machine rounds to bf16 in one instruction ([`narrow`]).
pub fn narrows() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

/// The nearest bf16 of 32 values.
///
/// # Safety
/// [`narrows`] has said yes.
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn narrow(lo: __m512, hi: __m512) -> __m512i {
    let both;
    // SAFETY: the machine has the instruction, which reads and writes registers alone.
    unsafe {
        asm!(
            "vcvtne2ps2bf16 {both}, {hi}, {lo}",
            both = lateout(zmm_reg) both,
            hi = in(zmm_reg) hi,
            lo = in(zmm_reg) lo,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
    both
}

/// Eight tiles of 16 rows of 64 bytes, on this thread until it is dropped.
pub struct Tiles(PhantomData<*const ()>);

#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Configuration>() == 64);

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Tiles {
    /// # Safety
    /// [`available`] has said yes.
    pub unsafe fn configure() -> Self {
        // SAFETY: the machine has tiles, and the process may use them; the configuration is a valid one of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, preserves_flags, readonly))
        };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a value exists only where the machine has tiles. Released, the system need not save them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Where four tiles go: 32 rows of 32 values, `stride` bytes apart.
#[derive(Clone, Copy)]
pub struct Accumulators {
    pub at: *mut f32,
    /// In bytes.
    pub stride: usize,
    /// Start from what is there, or from zero.
    pub to: To,
}

/// Assembles a kernel: accumulators from zero or memory, the given body once a step, accumulators to memory. `a` and `b`
/// advance by the bytes of a step.
macro_rules! tile_kernel {
    ($(#[$meta:meta])* $name:ident, $a_step:expr, $b_step:expr, [$($line:expr),* $(,)?]) => {
        $(#[$meta])*
        #[inline(always)]
        pub unsafe fn $name(_: &Tiles, steps: usize, a: *const Line, b: *const Line, to: Accumulators) {
            debug_assert!(steps > 0);
            unsafe {
                asm!(
                    "test {add:e}, {add:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{upper} + {stride}*1]",
                    "tileloadd tmm1, [{upper} + {stride}*1 + 64]",
                    "tileloadd tmm2, [{lower} + {stride}*1]",
                    "tileloadd tmm3, [{lower} + {stride}*1 + 64]",
                    "3:",
                    $($line,)*
                    "add {a}, {a_step}",
                    "add {b}, {b_step}",
                    "sub {steps}, 1",
                    "jnz 3b",
                    "tilestored [{upper} + {stride}*1], tmm0",
                    "tilestored [{upper} + {stride}*1 + 64], tmm1",
                    "tilestored [{lower} + {stride}*1], tmm2",
                    "tilestored [{lower} + {stride}*1 + 64], tmm3",
                    add = in(reg) to.to.adds() as u32,
                    upper = in(reg) to.at,
                    lower = in(reg) to.at.byte_add(TILE * to.stride),
                    stride = in(reg) to.stride,
                    row = in(reg) 64usize,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    steps = inout(reg) steps => _,
                    a_step = const $a_step,
                    b_step = const $b_step,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Loads the upper or the lower tile of a panel's part. What is streamed goes past the first-level cache: a panel of `A` meets
/// many of `B`, which would push it out.
macro_rules! load {
    (A $part:literal upper) => {
        concat!("tileloadd tmm4, [{a} + {row}*1 + 2048*", $part, "]")
    };
    (A $part:literal lower) => {
        concat!("tileloadd tmm5, [{a} + {row}*1 + 2048*", $part, " + 1024]")
    };
    (B $part:literal) => {
        load!(B "tileloadd" $part)
    };
    (B streamed $part:literal) => {
        load!(B "tileloaddt1" $part)
    };
    (B $load:literal $part:literal) => {
        concat!(
            $load,
            " tmm6, [{b} + {row}*1 + 2048*",
            $part,
            "]\n",
            $load,
            " tmm7, [{b} + {row}*1 + 2048*",
            $part,
            " + 1024]"
        )
    };
}

/// The upper tile of `A`, or the lower one, times both of `B`.
macro_rules! multiply {
    ($op:literal upper) => {
        concat!($op, " tmm0, tmm4, tmm6\n", $op, " tmm1, tmm4, tmm7")
    };
    ($op:literal lower) => {
        concat!($op, " tmm2, tmm5, tmm6\n", $op, " tmm3, tmm5, tmm7")
    };
}

tile_kernel! {
    /// `A` in three parts times trits.
    ///
    /// # Safety
    /// `a` holds `3 * steps * STEP` lines, `b` `steps * STEP`; `to` 32 rows of 32 values.
    times_trits, 3 * 2048, 2048, [
        load!(B "0"),
        load!(A "2" upper), multiply!("tdpbf16ps" upper), load!(A "2" lower), multiply!("tdpbf16ps" lower),
        load!(A "1" upper), multiply!("tdpbf16ps" upper), load!(A "1" lower), multiply!("tdpbf16ps" lower),
        load!(A "0" upper), multiply!("tdpbf16ps" upper), load!(A "0" lower), multiply!("tdpbf16ps" lower),
    ]
}

tile_kernel! {
    /// `A` times `B`, both in three parts: the six products of parts `i` and `j` with `i + j <= 2`. What is left out is
    /// below `2^-24` of the product, the rounding of an `f32`. The order needs the fewest loads.
    ///
    /// # Safety
    /// `a` and `b` hold `3 * steps * STEP` lines; `to` 32 rows of 32 values.
    times_dense, 3 * 2048, 3 * 2048, [
        load!(B "2"),
        load!(A "0" upper), multiply!("tdpbf16ps" upper), load!(A "0" lower), multiply!("tdpbf16ps" lower),
        load!(B "1"),
        multiply!("tdpbf16ps" upper), multiply!("tdpbf16ps" lower),
        load!(A "1" upper), multiply!("tdpbf16ps" upper), load!(A "1" lower), multiply!("tdpbf16ps" lower),
        load!(B "0"),
        multiply!("tdpbf16ps" upper), multiply!("tdpbf16ps" lower),
        load!(A "2" upper), multiply!("tdpbf16ps" upper), load!(A "2" lower), multiply!("tdpbf16ps" lower),
        load!(A "0" upper), multiply!("tdpbf16ps" upper), load!(A "0" lower), multiply!("tdpbf16ps" lower),
    ]
}

tile_kernel! {
    /// `A` times `B`, both in one part: rounded values, or trits.
    ///
    /// # Safety
    /// `a` and `b` hold `steps * STEP` lines; `to` 32 rows of 32 values.
    times_rounded, 2048, 2048, [
        load!(B streamed "0"),
        load!(A "0" upper), multiply!("tdpbf16ps" upper), load!(A "0" lower), multiply!("tdpbf16ps" lower),
    ]
}

tile_kernel! {
    /// 8-bit integers times trits, into 32-bit integers (`to` points at those); always from zero.
    ///
    /// # Safety
    /// `a` and `b` hold `steps * STEP` lines; `to` 32 rows of 32 values.
    times_trits_int8, 2048, 2048, [
        load!(B "0"),
        load!(A "0" upper), multiply!("tdpbssd" upper), load!(A "0" lower), multiply!("tdpbssd" lower),
    ]
}
