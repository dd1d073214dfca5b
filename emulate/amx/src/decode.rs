//! Instructions with a VEX or EVEX prefix taken apart, and the registers that they name.
//!
//! SDM, volume 2, chapter 2: all here are of opcode map `0F 38`, with `W` 0 and without an immediate value.

use libc::{
    REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX, REG_RCX,
    REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP, greg_t, ucontext_t,
};
use std::arch::x86_64::CpuidResult;

use crate::vectors::Vectors;

/// In the order of their numbers.
const GENERAL: [i32; 16] = [
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
    REG_R12, REG_R13, REG_R14, REG_R15,
];

/// The prefix that is part of an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    None,
    X66,
    F3,
    F2,
}

#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub prefix: Prefix,
    pub opcode: u8,
    /// Of the ModRM byte.
    pub reg: usize,
    pub vvvv: usize,
    /// What the ModRM byte's `rm` names.
    pub operand: Operand,
    pub evex: Option<Evex>,
    /// In bytes.
    pub length: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Evex {
    /// Of a vector, in bytes.
    pub size: usize,
    /// The mask register; 0 is none.
    pub mask: usize,
    /// Lanes that the mask leaves out become zero, or stay.
    pub zeroing: bool,
    /// Memory holds one element for all lanes.
    pub broadcast: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(usize),
    Memory {
        base: Base,
        /// A register and the shift of its value.
        index: Option<(usize, u8)>,
        displacement: isize,
        /// It has a SIB byte.
        sib: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Base {
    None,
    Register(usize),
    /// The address of the next instruction.
    Next,
}

/// Where an operand is.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Register(usize),
    Memory {
        /// Base and displacement.
        at: usize,
        /// The scaled index: for a tile, the bytes between rows.
        index: usize,
        sib: bool,
    },
}

/// The bytes of an instruction, one after the other.
struct Reader {
    at: *const u8,
    read: usize,
}

impl Reader {
    /// # Safety
    /// There is another byte of the instruction.
    unsafe fn byte(&mut self) -> u8 {
        // SAFETY: by the caller's word.
        let byte = unsafe { *self.at.add(self.read) };
        self.read += 1;
        byte
    }
}

fn bit(byte: u8, bit: u8) -> usize {
    (byte >> bit & 1) as usize
}

/// A bit that is stored inverted.
fn not_bit(byte: u8, number: u8) -> usize {
    1 - bit(byte, number)
}

impl Instruction {
    /// The instruction at which the registers stopped, if it may be one of ours.
    ///
    /// # Safety
    /// The registers are those of a stopped thread.
    pub unsafe fn decode(registers: &Registers) -> Option<Self> {
        let mut reader = Reader { at: registers.instruction(), read: 0 };
        // SAFETY: only bytes that belong to the instruction are read.
        unsafe {
            match reader.byte() {
                0xC4 => Self::vex(&mut reader),
                0x62 => Self::evex(&mut reader),
                _ => None,
            }
        }
    }

    unsafe fn vex(reader: &mut Reader) -> Option<Self> {
        // SAFETY: by the caller's word.
        unsafe {
            let (first, second) = (reader.byte(), reader.byte());
            let (map, long, w) = (first & 31, bit(second, 2), bit(second, 7));
            if map != 2 || long != 0 || w != 0 {
                return None;
            }
            let extensions = [not_bit(first, 7), not_bit(first, 6), not_bit(first, 5)];
            let vvvv = !second as usize >> 3 & 15;
            Some(Self::rest(reader, second, extensions, vvvv, None))
        }
    }

    unsafe fn evex(reader: &mut Reader) -> Option<Self> {
        // SAFETY: by the caller's word.
        unsafe {
            let (first, second, third) = (reader.byte(), reader.byte(), reader.byte());
            let (map, w, length) = (first & 15, bit(second, 7), third >> 5 & 3);
            if map != 2 || w != 0 || bit(second, 2) != 1 || length == 3 {
                return None;
            }
            let evex = Evex {
                size: 16 << length,
                mask: third as usize & 7,
                zeroing: bit(third, 7) == 1,
                broadcast: bit(third, 4) == 1,
            };
            let extensions = [not_bit(first, 7), not_bit(first, 6), not_bit(first, 5)];
            let vvvv = !second as usize >> 3 & 15 | not_bit(third, 3) << 4;
            let mut all = Self::rest(reader, second, extensions, vvvv, Some(evex));
            all.reg |= not_bit(first, 4) << 4;
            if let Operand::Register(number) = &mut all.operand {
                *number |= not_bit(first, 6) << 4;
            }
            Some(all)
        }
    }

    /// From the opcode on. `[r, x, b]` are the fourth bits of register numbers.
    unsafe fn rest(
        reader: &mut Reader,
        second: u8,
        [r, x, b]: [usize; 3],
        vvvv: usize,
        evex: Option<Evex>,
    ) -> Self {
        let prefix = [Prefix::None, Prefix::X66, Prefix::F3, Prefix::F2][second as usize & 3];
        // SAFETY: by the caller's word.
        unsafe {
            let (opcode, modrm) = (reader.byte(), reader.byte());
            let reg = modrm as usize >> 3 & 7 | r << 3;
            let (mode, rm) = (modrm >> 6, modrm as usize & 7);
            let operand = if mode == 3 {
                Operand::Register(rm | b << 3)
            } else {
                // Every memory operand here is a whole vector, or one element of 32 bits.
                let unit = evex.map_or(1, |e| if e.broadcast { 4 } else { e.size });
                Self::memory(reader, mode, rm, [x, b], unit as isize)
            };
            Self { prefix, opcode, reg, vvvv, operand, evex, length: reader.read }
        }
    }

    /// `unit`: bytes that a displacement of eight bits counts.
    unsafe fn memory(reader: &mut Reader, mode: u8, rm: usize, [x, b]: [usize; 2], unit: isize) -> Operand {
        // SAFETY: by the caller's word.
        unsafe {
            let sib = rm == 4;
            let (mut base, mut index) = (rm, None);
            if sib {
                let byte = reader.byte();
                base = byte as usize & 7;
                let number = byte as usize >> 3 & 7 | x << 3;
                // The number of the stack pointer stands for none.
                index = (number != 4).then_some((number, byte >> 6));
            }
            let base = match (mode, base) {
                (0, 5) if sib => Base::None,
                (0, 5) => Base::Next,
                _ => Base::Register(base | b << 3),
            };
            let displacement = match (mode, base) {
                (1, _) => reader.byte() as i8 as isize * unit,
                (2, _) | (_, Base::None | Base::Next) => {
                    let mut bytes = [0; 4];
                    for byte in &mut bytes {
                        *byte = reader.byte();
                    }
                    i32::from_le_bytes(bytes) as isize
                }
                _ => 0,
            };
            Operand::Memory { base, index, displacement, sib }
        }
    }
}

/// The registers of a thread that a signal has stopped; it goes on with what they then hold.
pub struct Registers(*mut ucontext_t);

impl Registers {
    /// # Safety
    /// What the system handed to the signal's handler.
    pub unsafe fn new(context: *mut ucontext_t) -> Self {
        Self(context)
    }

    fn general(&self, number: i32) -> greg_t {
        // SAFETY: by the word of `new`.
        unsafe { (*self.0).uc_mcontext.gregs[number as usize] }
    }

    fn set_general(&mut self, number: i32, value: greg_t) {
        // SAFETY: by the word of `new`.
        unsafe { (*self.0).uc_mcontext.gregs[number as usize] = value }
    }

    pub fn instruction(&self) -> *const u8 {
        self.general(REG_RIP) as *const u8
    }

    /// Goes on so many bytes further.
    pub fn skip(&mut self, length: isize) {
        self.set_general(REG_RIP, self.general(REG_RIP) + length as greg_t);
    }

    pub fn vectors(&mut self) -> Option<Vectors> {
        // SAFETY: by the word of `new`, where the system saves vectors.
        unsafe { Vectors::new((*self.0).uc_mcontext.fpregs.cast()) }
    }

    pub fn place_of(&self, instruction: &Instruction) -> Place {
        match instruction.operand {
            Operand::Register(number) => Place::Register(number),
            Operand::Memory { base, index, displacement, sib } => {
                let value = |number: usize| self.general(GENERAL[number]) as usize;
                let base = match base {
                    Base::None => 0,
                    Base::Register(number) => value(number),
                    Base::Next => self.instruction() as usize + instruction.length,
                };
                let index = index.map_or(0, |(number, shift)| value(number) << shift);
                Place::Memory { at: base.wrapping_add_signed(displacement), index, sib }
            }
        }
    }

    /// Answers CPUID.
    pub fn cpuid(&mut self, answer: impl Fn(u32, u32) -> CpuidResult) {
        let answer = answer(self.general(REG_RAX) as u32, self.general(REG_RCX) as u32);
        self.set_general(REG_RAX, answer.eax.into());
        self.set_general(REG_RBX, answer.ebx.into());
        self.set_general(REG_RCX, answer.ecx.into());
        self.set_general(REG_RDX, answer.edx.into());
    }
}
