//! What the tests share: numbers, memory that is aligned, and a way into the emulator.
#![allow(dead_code)]

use ternlm_amx::emulate_behind_ud2;

const PERMISSION: libc::c_long = 0x1023;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn bytes<const N: usize>(&mut self) -> Aligned<N> {
        Aligned(std::array::from_fn(|_| self.next() as u8))
    }

    /// Numbers in bf16 from 2^-8 to 2^8, with zeros and denormals among them.
    pub fn bf16<const N: usize>(&mut self) -> Aligned<N> {
        let mut to = [0; N];
        for pair in to.chunks_exact_mut(2) {
            let r = self.next();
            let exponent = if r.is_multiple_of(11) { 0 } else { 119 + (r >> 8) % 16 };
            let bits = (r >> 16) as u16 & 0x807F | (exponent as u16) << 7;
            pair.copy_from_slice(&bits.to_le_bytes());
        }
        Aligned(to)
    }

    /// Numbers in f32, a few of them special.
    pub fn f32<const N: usize>(&mut self) -> Aligned<N> {
        const SPECIAL: [u32; 10] = [
            0,
            1 << 31,
            1,
            0x807F_FFFF,
            0x7F80_0000,
            0xFF80_0000,
            0x7FC0_0000,
            0x7F80_0001,
            0x7F7F_FFFF,
            0x3F80_8000,
        ];
        let mut to = [0; N];
        for four in to.chunks_exact_mut(4) {
            let r = self.next();
            let bits = if r.is_multiple_of(3) {
                SPECIAL[(r >> 32) as usize % SPECIAL.len()]
            } else {
                r as u32 & 0x807F_FFFF | (119 + (r >> 40) as u32 % 16) << 23
            };
            four.copy_from_slice(&bits.to_le_bytes());
        }
        Aligned(to)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Aligned<const N: usize>(pub [u8; N]);

impl<const N: usize> Aligned<N> {
    pub fn word(&self, i: usize) -> u32 {
        u32::from_le_bytes(self.0[4 * i..][..4].try_into().unwrap())
    }

    pub fn half(&self, i: usize) -> u16 {
        u16::from_le_bytes(self.0[2 * i..][..2].try_into().unwrap())
    }

    pub fn set_word(&mut self, i: usize, word: u32) {
        self.0[4 * i..][..4].copy_from_slice(&word.to_le_bytes());
    }

    pub fn set_half(&mut self, i: usize, half: u16) {
        self.0[2 * i..][..2].copy_from_slice(&half.to_le_bytes());
    }
}

/// Runs `f` where the program may use what it asks for, as programs ask.
#[track_caller]
pub fn emulated(f: impl FnOnce()) {
    emulate_behind_ud2();
    assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, PERMISSION, 18 as libc::c_long) }, 0);
    f();
    unsafe { std::arch::asm!("tilerelease") };
}

pub fn wide(half: u16) -> f32 {
    no_denormal(f32::from_bits((half as u32) << 16))
}

pub fn no_denormal(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
