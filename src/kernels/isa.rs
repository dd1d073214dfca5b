//! Which instruction set runs: found once at the first use, kept, and reported by `ternlm info`.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust; the compiler's own vectorisation for the target's baseline.
    Portable = 1,
    /// AVX2 with FMA, 8 lanes.
    Avx2 = 2,
    /// AVX-512 F/BW/DQ/VL, 16 lanes.
    Avx512 = 3,
    /// AVX-512 with VNNI and VBMI: dot products of 8-bit integers.
    Vnni = 4,
    /// The same, and AMX tiles of bf16 and 8-bit integers for the products of matrices.
    Amx = 5,
    /// NEON, 8 lanes in two registers.
    Neon = 6,
    /// NEON with dot products of 8-bit integers (`dotprod`).
    NeonDot = 7,
    /// AVX2 with AVX-VNNI: dot products of 8-bit integers without AVX-512.
    AvxVnni = 8,
    /// [`Vnni`](Isa::Vnni) with AVX-512 BF16: dot products of pairs of bf16.
    Bf16 = 9,
}

/// 0: not yet looked.
static CURRENT: AtomicU8 = AtomicU8::new(0);

impl Isa {
    /// The one in use. `TERNLM_ISA` (`portable`, `avx2`, `avx-vnni`, `avx512`, `vnni`, `avx512-bf16`, `amx`,
    /// `neon`, `neon-dot`) lowers the choice, for comparison.
    #[inline]
    pub fn current() -> Isa {
        match CURRENT.load(Ordering::Relaxed) {
            1 => Isa::Portable,
            2 => Isa::Avx2,
            3 => Isa::Avx512,
            4 => Isa::Vnni,
            5 => Isa::Amx,
            6 => Isa::Neon,
            7 => Isa::NeonDot,
            8 => Isa::AvxVnni,
            9 => Isa::Bf16,
            _ => Isa::detect(),
        }
    }

    #[cold]
    fn detect() -> Isa {
        let available = Isa::available();
        let wanted = std::env::var("TERNLM_ISA").ok();
        let found = match wanted.as_deref() {
            None | Some("") => *available.last().unwrap_or(&Isa::Portable),
            Some(name) => *available.iter().find(|isa| isa.to_string() == name).unwrap_or_else(|| {
                let names: Vec<String> = available.iter().map(Isa::to_string).collect();
                tracing::warn!("TERNLM_ISA={name}: not on this machine, which has {}", names.join(", "));
                available.last().unwrap_or(&Isa::Portable)
            }),
        };
        CURRENT.store(found as u8, Ordering::Relaxed);
        tracing::debug!("instruction set: {found}");
        found
    }

    /// All that this machine can run, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            // Exactly the features that `kernel!` enables.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 {
                found.push(Isa::Avx2);
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                found.push(Isa::AvxVnni);
            }
            if avx2 && avx512 {
                found.push(Isa::Avx512);
            }
            let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi");
            if avx2 && avx512 && vnni {
                found.push(Isa::Vnni);
            }
            if avx2 && avx512 && vnni && is_x86_feature_detected!("avx512bf16") {
                // Intel's has fewer units for pairs than for f32: there the ways of f32 are faster (PERFORMANCE.md).
                let before = found.len() - is_intel() as usize;
                found.insert(before, Isa::Bf16);
            }
            if avx2 && avx512 && vnni && super::x86_64::amx::available() {
                found.push(Isa::Amx);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Isa::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Isa::NeonDot);
            }
        }
        found
    }

    /// Makes this one current for the whole process: for tests and comparisons. Panics if the machine lacks it.
    ///
    /// # Safety
    /// No kernel runs meanwhile: one that began with tables for this instruction set would end with those of another.
    pub unsafe fn force(self) {
        assert!(Isa::available().contains(&self), "this machine cannot run {self}");
        CURRENT.store(self as u8, Ordering::Relaxed);
    }
}

/// Whether the processor says that it is Intel's.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Vnni => "vnni",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
            Isa::AvxVnni => "avx-vnni",
            Isa::Bf16 => "avx512-bf16",
        })
    }
}

/// Defines a function whose body, generic over [`Simd`](super::simd::Simd), is compiled once for every instruction set
/// and chosen at run time; an `unsafe fn` where the caller must vouch for something. Everything the body calls must be
/// `#[inline(always)]`, or it is compiled without the instructions.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        $crate::kernels::isa::kernel!(@ [] [$(#[$meta])* $vis] $($rest)*);
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $($rest:tt)*) => {
        $crate::kernels::isa::kernel!(@ [unsafe] [$(#[$meta])* $vis] $($rest)*);
    };
    (@ [$($unsafe:tt)?] [$($head:tt)*] $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        #[allow(clippy::too_many_arguments)]
        $($head)* $($unsafe)? fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            $($unsafe)? fn body<$S: $crate::kernels::simd::Simd>($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,lzcnt,popcnt")]
            $($unsafe)? fn avx512($($arg: $ty),*) $(-> $out)? {
                // SAFETY: by the caller's word, if there is anything to vouch for; below too.
                #[allow(unused_unsafe)]
                unsafe { body::<$crate::kernels::x86_64::avx512::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,lzcnt,popcnt")]
            $($unsafe)? fn avx2($($arg: $ty),*) $(-> $out)? {
                #[allow(unused_unsafe)]
                unsafe { body::<$crate::kernels::x86_64::avx2::Avx2>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            $($unsafe)? fn neon($($arg: $ty),*) $(-> $out)? {
                #[allow(unused_unsafe)]
                unsafe { body::<$crate::kernels::aarch64::neon::Neon>($($arg),*) }
            }
            match $crate::kernels::isa::Isa::current() {
                // SAFETY: `Isa::current` names an instruction set only after it was detected on this machine.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::Avx512
                | $crate::kernels::isa::Isa::Vnni
                | $crate::kernels::isa::Isa::Bf16
                | $crate::kernels::isa::Isa::Amx => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::Avx2 | $crate::kernels::isa::Isa::AvxVnni => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::kernels::isa::Isa::Neon | $crate::kernels::isa::Isa::NeonDot => unsafe { neon($($arg),*) },
                #[allow(unused_unsafe)]
                _ => unsafe { body::<$crate::kernels::portable::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

/// As [`kernel!`], generic over [`Lines`](super::lines::Lines).
macro_rules! lines_kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$D:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body<$D: $crate::kernels::lines::Lines>($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c,bmi2,lzcnt,popcnt"
            )]
            fn vnni($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::x86_64::lines::Vnni>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,lzcnt,popcnt")]
            fn avx512($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::x86_64::lines::Avx512Lines>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,lzcnt,popcnt")]
            fn avx2($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::x86_64::lines::Avx2Lines>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,lzcnt,popcnt,avxvnni")]
            fn avx_vnni($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::x86_64::avx_vnni::AvxVnniLines>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            fn neon_dot($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::aarch64::lines::DotLines>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $ty),*) $(-> $out)? {
                body::<$crate::kernels::aarch64::lines::NeonLines>($($arg),*)
            }
            match $crate::kernels::isa::Isa::current() {
                // SAFETY: `Isa::current` names an instruction set only after it was detected on this machine.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::Vnni | $crate::kernels::isa::Isa::Bf16 | $crate::kernels::isa::Isa::Amx => unsafe {
                    vnni($($arg),*)
                },
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::AvxVnni => unsafe { avx_vnni($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::kernels::isa::Isa::NeonDot => unsafe { neon_dot($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::kernels::isa::Isa::Neon => unsafe { neon($($arg),*) },
                _ => body::<$crate::kernels::portable::PortableLines>($($arg),*),
            }
        }
    };
}
pub(crate) use lines_kernel;
