//! Vector and mask registers in the area where the system saved them for a signal.
//!
//! SDM, volume 1, chapter 13: the standard form of the XSAVE area. A part whose bit in the header is not set holds its
//! initial value, zero, whatever its bytes say.

use std::arch::x86_64::__cpuid_count;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A register's 64 bytes, of which a vector of fewer is the first.
pub type Bytes = [u8; 64];

/// Parts of the area, by their bit in the header.
const SSE: usize = 1;
const AVX: usize = 2;
const MASKS: usize = 5;
/// The upper halves of the registers below 16.
const UPPER: usize = 6;
/// The registers from 16 on.
const HIGH: usize = 7;

const XMM_AT: usize = 160;
const HEADER_AT: usize = 512;
/// Linux, `arch/x86/include/uapi/asm/sigcontext.h`: the area is one of XSAVE.
const MAGIC_AT: usize = 464;
const MAGIC: u32 = 0x4650_5853;

/// Where each part begins, and its bytes.
static OFFSETS: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
static SIZES: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

/// Asks the processor, before CPUID is made to fault.
pub fn find_offsets() {
    OFFSETS[SSE].store(XMM_AT, Relaxed);
    SIZES[SSE].store(16 * 16, Relaxed);
    for part in [AVX, MASKS, UPPER, HIGH] {
        let answer = __cpuid_count(0xD, part as u32);
        OFFSETS[part].store(answer.ebx as usize, Relaxed);
        SIZES[part].store(answer.eax as usize, Relaxed);
    }
}

pub struct Vectors(*mut u8);

impl Vectors {
    /// `None` where the system saved no vectors.
    ///
    /// # Safety
    /// The area of a signal's context.
    pub unsafe fn new(area: *mut u8) -> Option<Self> {
        // SAFETY: the first 512 bytes are there in any form of the area.
        let whole = !area.is_null() && unsafe { area.add(MAGIC_AT).cast::<u32>().read_unaligned() } == MAGIC;
        whole.then_some(Self(area))
    }

    fn header(&self) -> *mut u64 {
        // SAFETY: the area has one.
        unsafe { self.0.add(HEADER_AT).cast() }
    }

    fn at(&self, part: usize, offset: usize) -> *mut u8 {
        // SAFETY: offsets lie inside of their part.
        unsafe { self.0.add(OFFSETS[part].load(Relaxed) + offset) }
    }

    fn read(&self, part: usize, offset: usize, to: &mut [u8]) {
        // SAFETY: inside of the part; the header stands in the area.
        unsafe {
            if *self.header() >> part & 1 == 1 {
                std::ptr::copy_nonoverlapping(self.at(part, offset), to.as_mut_ptr(), to.len());
            } else {
                to.fill(0);
            }
        }
    }

    fn write(&mut self, part: usize, offset: usize, from: &[u8]) {
        // SAFETY: as above.
        unsafe {
            if *self.header() >> part & 1 == 0 {
                self.at(part, 0).write_bytes(0, SIZES[part].load(Relaxed));
                *self.header() |= 1 << part;
            }
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.at(part, offset), from.len());
        }
    }

    /// Which bytes of a register stand in which part, and where.
    fn parts(register: usize) -> [(usize, usize, std::ops::Range<usize>); 3] {
        if register >= 16 {
            return [(HIGH, 64 * (register - 16), 0..64), (HIGH, 0, 0..0), (HIGH, 0, 0..0)];
        }
        [(SSE, 16 * register, 0..16), (AVX, 16 * register, 16..32), (UPPER, 32 * register, 32..64)]
    }

    pub fn vector(&self, register: usize) -> Bytes {
        let mut bytes = [0; 64];
        for (part, offset, range) in Self::parts(register) {
            self.read(part, offset, &mut bytes[range]);
        }
        bytes
    }

    pub fn set_vector(&mut self, register: usize, bytes: &Bytes) {
        for (part, offset, range) in Self::parts(register) {
            self.write(part, offset, &bytes[range]);
        }
    }

    /// Mask register `register`; register 0 stands for none.
    pub fn mask(&self, register: usize) -> u64 {
        let mut bytes = [0xFF; 8];
        if register != 0 {
            self.read(MASKS, 8 * register, &mut bytes);
        }
        u64::from_le_bytes(bytes)
    }
}
