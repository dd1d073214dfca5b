//! Tiles and what a program sees of them, against what plain loops make of the same numbers.
//!
//! Linked with the emulator instead of preloaded.

mod common;

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::process::Command;

use common::{Aligned, Rng, emulated, no_denormal, wide};
use ternlm_amx::emulate_behind_ud2;

/// A configuration of tiles of these rows and bytes.
fn configuration(tiles: [(u8, u16); 8]) -> Aligned<64> {
    let mut to = Aligned([0; 64]);
    to.0[0] = 1;
    for (tile, (rows, bytes)) in tiles.into_iter().enumerate() {
        to.set_half(8 + tile, bytes);
        to.0[48 + tile] = rows;
    }
    to
}

fn configure(tiles: [(u8, u16); 8]) {
    unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration(tiles)) };
}

#[test]
fn programs_find_what_is_emulated_on_every_thread() {
    let found = || {
        let (tiles, bf16) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        assert_eq!([22, 24, 25].map(|bit| tiles.edx >> bit & 1), [1; 3]);
        assert!(tiles.eax >= 1 && bf16.eax >> 5 & 1 == 1);
        // The rest is the processor's.
        assert!(tiles.ebx >> 16 & 1 == 1, "AVX-512 F");
    };
    emulated(|| {
        found();
        std::thread::spawn(move || std::thread::spawn(found).join().unwrap()).join().unwrap();
        assert!(std::is_x86_feature_detected!("avx512bf16"));
        // Other system calls, with and without an error.
        assert_eq!(unsafe { libc::syscall(libc::SYS_getpid) }, std::process::id() as libc::c_long);
        assert_eq!(unsafe { libc::syscall(libc::SYS_close, -1 as libc::c_long) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn tiles_are_read_and_written_at_every_kind_of_address() {
    emulated(|| {
        let from = Rng(1).bytes::<4096>();
        // Rows of these bytes from `first` on, as they stand 128 apart.
        let want = |first: usize, stride: usize, (rows, bytes): (u8, u16)| {
            let mut want = [0xEE; 2048];
            for row in 0..rows as usize {
                let from = &from.0[first + row * stride..][..bytes as usize];
                want[row * 128..][..from.len()].copy_from_slice(from);
            }
            want
        };
        macro_rules! copy {
            ($load:literal, $stride:literal) => {{
                let mut to = Aligned([0xEE; 2048]);
                // SAFETY: what is read lies in `from`, what is written in `to`.
                unsafe {
                    asm!(
                        $load,
                        "tilestored [{to} + {width}*4 + 256], tmm3",
                        to = in(reg) to.0.as_mut_ptr().wrapping_sub(256),
                        width = in(reg) 32usize,
                        in("r8") $stride as usize,
                        in("r12") from.0.as_ptr(),
                        in("r13") from.0.as_ptr(),
                        in("r15") from.0.as_ptr().wrapping_add(300),
                        out("tmm3") _,
                    );
                }
                to.0
            }};
        }
        for shape in [(16, 64), (5, 12), (1, 4), (16, 60)] {
            configure([(16, 64), (0, 0), (16, 64), shape, (0, 0), (0, 0), (0, 0), (0, 0)]);
            assert_eq!(copy!("tileloadd tmm3, [r12 + r8]", 64), want(0, 64, shape));
            assert_eq!(copy!("tileloaddt1 tmm3, [r13 + r8*2 + 64]", 50), want(64, 100, shape));
            assert_eq!(copy!("tileloadd tmm3, [r15 + r8*8 - 128]", 25), want(172, 200, shape));
            assert_eq!(copy!("tileloadd tmm3, [r12 + r8 + 1024]", 128), want(1024, 128, shape));
            assert_eq!(copy!("tileloadd tmm3, [r13]", 64), want(0, 0, shape));
        }
    });
}

#[test]
fn a_configuration_is_what_was_written() {
    emulated(|| {
        let wanted = configuration([(16, 64), (3, 8), (0, 0), (1, 4), (0, 0), (0, 0), (16, 4), (2, 64)]);
        let (mut got, mut released) = (Aligned([0xEE; 64]), Aligned([0xEE; 64]));
        configure([(1, 4); 8]);
        // SAFETY: 64 bytes each.
        unsafe {
            asm!(
                "push rax", "push rcx",
                "ldtilecfg [{from} + 8*{back} + 16]",
                "sttilecfg [{to}]",
                "tilerelease",
                "sttilecfg [{released}]",
                "pop rcx", "pop rax",
                from = in(reg) wanted.0.as_ptr(), back = in(reg) -2isize,
                to = in(reg) got.0.as_mut_ptr(), released = in(reg) released.0.as_mut_ptr(),
            );
        }
        assert_eq!((got, released), (wanted, Aligned([0; 64])));
    });
}

/// `C += A B` by the given instruction: tiles of 7 rows of 36 bytes, 5 words deep.
macro_rules! product {
    ($op:literal, $a:expr, $b:expr, $c:expr) => {{
        configure([(7, 36), (7, 20), (5, 36), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]);
        let mut to = $c;
        // SAFETY: tiles of at most 16 rows of 64 bytes.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{a} + {row}]",
                "tileloadd tmm2, [{b} + {row}]",
                concat!($op, " tmm0, tmm1, tmm2"),
                "tilestored [{c} + {row}], tmm0",
                c = in(reg) to.0.as_mut_ptr(), a = in(reg) $a.0.as_ptr(), b = in(reg) $b.0.as_ptr(),
                row = in(reg) 64usize, out("tmm0") _, out("tmm1") _, out("tmm2") _,
            );
        }
        to
    }};
}

#[test]
fn products_of_bytes() {
    emulated(|| {
        let mut rng = Rng(2);
        let (mut a, mut b, mut c) = (rng.bytes::<1024>(), rng.bytes::<1024>(), rng.bytes::<1024>());
        // The largest sums, and one past the largest number.
        a.0[..8].fill(0x80);
        b.0[..8].fill(0x80);
        a.0[64..84].fill(0xFF);
        (0..5).for_each(|k| b.0[64 * k..64 * k + 4].fill(0xFF));
        c.set_word(0, i32::MAX as u32);
        c.set_word(16, u32::MAX);
        let want = |signed: [bool; 2]| {
            let mut want = c;
            for (i, j) in (0..7).flat_map(|i| (0..9).map(move |j| (i, j))) {
                let value = |byte: u8, signed| if signed { byte as i8 as i64 } else { byte as i64 };
                let sum: i64 = (0..20)
                    .map(|k| {
                        let (a, b) = (a.0[64 * i + k], b.0[64 * (k / 4) + 4 * j + k % 4]);
                        value(a, signed[0]) * value(b, signed[1])
                    })
                    .sum();
                want.set_word(16 * i + j, (c.word(16 * i + j) as i64 + sum) as u32);
            }
            want
        };
        assert_eq!(product!("tdpbssd", a, b, c), want([true, true]));
        assert_eq!(product!("tdpbsud", a, b, c), want([true, false]));
        assert_eq!(product!("tdpbusd", a, b, c), want([false, true]));
        assert_eq!(product!("tdpbuud", a, b, c), want([false, false]));
    });
}

#[test]
fn products_of_bf16_in_tiles() {
    emulated(|| {
        let mut rng = Rng(3);
        for _ in 0..50 {
            let (a, b, mut c) = (rng.bf16::<1024>(), rng.bf16::<1024>(), rng.bf16::<1024>());
            c.set_word(0, 1);
            let mut want = c;
            for (i, j) in (0..7).flat_map(|i| (0..9).map(move |j| (i, j))) {
                let mut sums = [0f32; 2];
                for k in 0..10 {
                    let (a, b) = (wide(a.half(32 * i + k)), wide(b.half(32 * (k / 2) + 2 * j + k % 2)));
                    sums[k % 2] = no_denormal(a.mul_add(b, sums[k % 2]));
                }
                let sum = no_denormal(sums[0] + sums[1]);
                let before = no_denormal(f32::from_bits(c.word(16 * i + j)));
                want.set_word(16 * i + j, no_denormal(before + sum).to_bits());
            }
            assert_eq!(product!("tdpbf16ps", a, b, c), want);
        }
    });
}

/// The order of additions, in numbers that can be followed: 2^24 swallows what is less than 1 when it is added to it.
#[test]
fn halves_of_a_tile_are_summed_apart() {
    emulated(|| {
        let one = |x: f32| (x.to_bits() >> 16) as u16;
        let (mut a, mut b) = (Aligned([0; 1024]), Aligned([0; 1024]));
        // Lower halves: 2^24 + 1 − 2^24, which is 0 in f32; upper halves: 0.5 + 0.5. All in a row would be 0.5, and
        // without rounding 2.
        let row = [16_777_216.0, 0.0, 1.0, 0.5, -16_777_216.0, 0.5, 0.0, 0.0, 0.0, 0.0];
        row.into_iter().enumerate().for_each(|(k, x)| a.set_half(k, one(x)));
        (0..5).for_each(|k| (0..2).for_each(|half| b.set_half(32 * k + half, one(1.0))));
        let c = product!("tdpbf16ps", a, b, Aligned([0; 1024]));
        assert_eq!(f32::from_bits(c.word(0)), 1.0);
    });
}

#[test]
fn each_thread_has_tiles_of_its_own() {
    emulated(|| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                std::thread::spawn(move || {
                    for round in 0..200 {
                        let a = Rng(seed * 1000 + round).bytes::<1024>();
                        let mut to = Aligned([0; 1024]);
                        configure([(16, 64); 8]);
                        // SAFETY: tiles of 16 rows of 64 bytes.
                        unsafe {
                            asm!("tileloadd tmm5, [{} + {}]", in(reg) a.0.as_ptr(), in(reg) 64usize);
                            std::thread::yield_now();
                            asm!("tilestored [{} + {}], tmm5", in(reg) to.0.as_mut_ptr(), in(reg) 64usize);
                        }
                        assert_eq!(to, a);
                        let zero = Aligned([0; 1024]);
                        // SAFETY: as above.
                        unsafe {
                            asm!(
                                "tilezero tmm5", "tilestored [{} + {}], tmm5", "tilerelease",
                                in(reg) to.0.as_mut_ptr(), in(reg) 64usize,
                            );
                        }
                        assert_eq!(to, zero);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
#[ignore = "no test: the next one runs it, in a process that dies of it"]
fn refused() {
    emulated(|| {
        // SAFETY: none of these comes back.
        unsafe {
            match std::env::var("REFUSED").as_deref() {
                Ok("unknown") => asm!("ud2"),
                Ok("unconfigured") => asm!("tilerelease", "tilezero tmm1"),
                Ok("shapes") => {
                    configure([(7, 36), (7, 20), (6, 36), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]);
                    asm!("tdpbssd tmm0, tmm1, tmm2");
                }
                Ok("same") => {
                    configure([(16, 64); 8]);
                    // `tdpbssd tmm0, tmm1, tmm0`, which no assembler takes.
                    asm!(".byte 0xc4, 0xe2, 0x7b, 0x5e, 0xc1");
                }
                Ok("configuration") => configure([(17, 64); 8]),
                Ok("address") => {
                    configure([(16, 64); 8]);
                    asm!("tileloadd tmm0, [{} + {}]", in(reg) 16usize, in(reg) 64usize);
                }
                _ => {}
            }
        }
    });
}

#[test]
fn what_a_processor_refuses_is_refused() {
    use std::os::unix::process::ExitStatusExt;
    emulate_behind_ud2();
    for (what, signal, message) in [
        ("unknown", libc::SIGILL, "an instruction that is not emulated: 0f 0b"),
        ("unconfigured", libc::SIGILL, "tiles are used that nobody configured: c4 e2 7b 49 c8"),
        ("shapes", libc::SIGILL, "shapes do not fit"),
        ("same", libc::SIGILL, "tiles that are not three"),
        ("configuration", libc::SIGILL, "a configuration that is none"),
        ("address", libc::SIGSEGV, ""),
    ] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let output = program.args(["--ignored", "--exact", "refused"]).env("REFUSED", what).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal), "{what}: {error}");
        assert!(error.contains(message), "{what}: {error}");
    }
}
