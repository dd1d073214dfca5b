//! AVX512-BF16, and the arithmetic of bf16 that tiles share with it.
//!
//! Rounding is to the nearest, ties to even; denormal numbers are zeros, as operands and as results. MXCSR has no say.

use crate::decode::{Evex, Instruction, Place, Prefix, Registers};
use crate::vectors::Vectors;

/// A denormal number as the zero of its sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// The lower or the upper of two bf16 in a word.
#[inline(always)]
pub fn lower(pair: u32) -> f32 {
    flush(f32::from_bits(pair << 16))
}

#[inline(always)]
pub fn upper(pair: u32) -> f32 {
    flush(f32::from_bits(pair & 0xFFFF_0000))
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    flush(a.mul_add(b, c))
}

/// SDM, `convert_fp32_to_bfloat16`.
fn from_f32(bits: u32) -> u16 {
    let x = f32::from_bits(bits);
    if x.is_nan() {
        return (bits >> 16) as u16 | 1 << 6;
    }
    let bits = flush(x).to_bits();
    // An infinity stays one: nothing below its upper half carries.
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// The last operand, element by element: only what a mask asks for is read.
struct Source {
    register: [u8; 64],
    memory: Option<usize>,
    step: usize,
}

impl Source {
    fn new(place: Place, broadcast: bool, vectors: &Vectors) -> Self {
        match place {
            Place::Register(number) => Self { register: vectors.vector(number), memory: None, step: 4 },
            Place::Memory { at, index, .. } => Self {
                register: [0; 64],
                memory: Some(at.wrapping_add(index)),
                step: if broadcast { 0 } else { 4 },
            },
        }
    }

    /// # Safety
    /// Memory is what the program's instruction names.
    unsafe fn word(&self, i: usize) -> u32 {
        match self.memory {
            None => word(&self.register, i),
            // SAFETY: by the caller's word; a fault is the program's own.
            Some(at) => unsafe { ((at + i * self.step) as *const u32).read_unaligned() },
        }
    }
}

fn word(bytes: &[u8; 64], i: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b]))
}

/// Carries out an instruction on the registers, or says why not.
///
/// # Safety
/// The registers are those of a thread that stopped at it.
#[target_feature(enable = "fma")]
pub unsafe fn run(
    instruction: &Instruction,
    evex: Evex,
    registers: &mut Registers,
) -> Result<(), &'static str> {
    let place = registers.place_of(instruction);
    if evex.broadcast && matches!(place, Place::Register(_)) {
        return Err("a bf16 instruction with a rounding mode");
    }
    let mut vectors = registers.vectors().ok_or("the system saved no vector registers")?;
    let (source, mask) = (Source::new(place, evex.broadcast, &vectors), vectors.mask(evex.mask));
    let (first, before) = (vectors.vector(instruction.vvvv), vectors.vector(instruction.reg));
    let lanes = evex.size / 4;
    let mut to = [0; 64];
    // `bytes` of a lane, and what it becomes.
    let mut put = |lane: usize, bytes: usize, value: &dyn Fn() -> u32| {
        let (lane, on) = (lane * bytes..(lane + 1) * bytes, mask >> lane & 1 == 1);
        if on {
            to[lane].copy_from_slice(&value().to_le_bytes()[..bytes]);
        } else if !evex.zeroing {
            to[lane.clone()].copy_from_slice(&before[lane]);
        }
    };
    // SAFETY: by the caller's word.
    unsafe {
        match (instruction.prefix, instruction.opcode) {
            // VDPBF16PS
            (Prefix::F3, 0x52) => {
                for lane in 0..lanes {
                    put(lane, 4, &|| {
                        let (a, b) = (word(&first, lane), source.word(lane));
                        let c = flush(f32::from_bits(word(&before, lane)));
                        let c = multiply_add(upper(a), upper(b), c);
                        multiply_add(lower(a), lower(b), c).to_bits()
                    });
                }
            }
            // VCVTNEPS2BF16
            (Prefix::F3, 0x72) if instruction.vvvv == 0 => {
                (0..lanes).for_each(|lane| put(lane, 2, &|| from_f32(source.word(lane)).into()));
            }
            // VCVTNE2PS2BF16: the last operand comes first.
            (Prefix::F2, 0x72) => {
                for lane in 0..2 * lanes {
                    put(lane, 2, &|| {
                        let x = if lane < lanes { source.word(lane) } else { word(&first, lane - lanes) };
                        from_f32(x).into()
                    });
                }
            }
            _ => return Err("an instruction that is not emulated"),
        }
    }
    vectors.set_vector(instruction.reg, &to);
    Ok(())
}
