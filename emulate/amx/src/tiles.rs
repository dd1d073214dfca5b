//! AMX: the tiles of each thread, their configuration, and the instructions on them.

use std::cell::UnsafeCell;

use crate::bf16::{flush, lower, multiply_add, upper};
use crate::decode::{Instruction, Place, Prefix};

const TILES: usize = 8;
const ROWS: usize = 16;
/// Of a row.
const BYTES: usize = 64;
/// Of a row, 32 bits each.
const WORDS: usize = BYTES / 4;

type Tile = [[u32; WORDS]; ROWS];

/// What LDTILECFG reads.
#[derive(Clone, Copy)]
#[repr(C)]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Configuration>() == 64);

const RELEASED: Configuration =
    Configuration { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };

struct State {
    configuration: Configuration,
    tiles: [Tile; TILES],
}

const EMPTY: Tile = [[0; WORDS]; ROWS];
const INITIAL: State = State { configuration: RELEASED, tiles: [EMPTY; TILES] };

thread_local! {
    static STATE: UnsafeCell<State> = const { UnsafeCell::new(INITIAL) };
}

type Done = Result<(), &'static str>;

/// Carries out an instruction, whose operand is at `place`, or says what the processor would refuse.
///
/// # Safety
/// Memory is what the program's instruction names.
pub unsafe fn run(instruction: &Instruction, place: Place) -> Done {
    let Instruction { prefix, opcode, reg, vvvv, .. } = *instruction;
    let state = STATE.with(UnsafeCell::get);
    // SAFETY: this thread's own, and a handler does not interrupt itself; memory by the caller's word.
    unsafe {
        let state = &mut *state;
        match (prefix, opcode, place) {
            (Prefix::None, 0x49, Place::Memory { at, index, .. }) if reg == 0 => {
                state.configure((at.wrapping_add(index) as *const Configuration).read_unaligned())
            }
            (Prefix::X66, 0x49, Place::Memory { at, index, .. }) if reg == 0 => {
                (at.wrapping_add(index) as *mut Configuration).write_unaligned(state.configuration);
                Ok(())
            }
            (Prefix::None, 0x49, Place::Register(0)) if reg == 0 => {
                *state = INITIAL;
                Ok(())
            }
            (Prefix::F2, 0x49, Place::Register(0)) => {
                state.shape(reg)?;
                state.tiles[reg] = EMPTY;
                state.configuration.start_row = 0;
                Ok(())
            }
            // TILELOADD, and TILELOADDT1 with a hint.
            (Prefix::F2 | Prefix::X66, 0x4B, Place::Memory { at, index, sib: true }) => {
                state.load(reg, at, index)
            }
            (Prefix::F3, 0x4B, Place::Memory { at, index, sib: true }) => state.store(reg, at, index),
            (prefix, 0x5E, Place::Register(a)) => {
                let (c, a, b) = state.operands(reg, a, vvvv)?;
                match prefix {
                    Prefix::F2 => multiply_bytes::<true, true>(c, a, b),
                    Prefix::F3 => multiply_bytes::<true, false>(c, a, b),
                    Prefix::X66 => multiply_bytes::<false, true>(c, a, b),
                    Prefix::None => multiply_bytes::<false, false>(c, a, b),
                }
                Ok(())
            }
            (Prefix::F3, 0x5C, Place::Register(a)) => {
                let (c, a, b) = state.operands(reg, a, vvvv)?;
                multiply_bf16(c, a, b);
                Ok(())
            }
            _ => Err("an instruction that is not emulated"),
        }
    }
}

impl State {
    fn configure(&mut self, new: Configuration) -> Done {
        let valid = new.reserved == [0; 14]
            && new.row_bytes[TILES..].iter().all(|&b| b == 0)
            && new.rows[TILES..].iter().all(|&r| r == 0)
            && new.row_bytes.iter().zip(&new.rows).all(|(&bytes, &rows)| {
                bytes as usize <= BYTES && rows as usize <= ROWS && (bytes == 0) == (rows == 0)
            });
        match new.palette {
            0 => *self = INITIAL,
            1 if valid => *self = State { configuration: new, ..INITIAL },
            _ => return Err("ldtilecfg with a configuration that is none"),
        }
        Ok(())
    }

    /// Rows of a tile, and bytes of each.
    fn shape(&self, tile: usize) -> Result<(usize, usize), &'static str> {
        if self.configuration.palette == 0 {
            return Err("tiles are used that nobody configured");
        }
        if tile >= TILES || self.configuration.rows[tile] == 0 {
            return Err("a tile that the configuration leaves out");
        }
        Ok((self.configuration.rows[tile].into(), self.configuration.row_bytes[tile].into()))
    }

    /// # Safety
    /// Memory is what the program's instruction names.
    unsafe fn load(&mut self, tile: usize, at: usize, stride: usize) -> Done {
        let (rows, bytes) = self.shape(tile)?;
        let first = self.configuration.start_row as usize;
        for row in first..rows {
            let mut words = [0; WORDS];
            let from = at.wrapping_add(row.wrapping_mul(stride)) as *const u8;
            // SAFETY: by the caller's word; a fault is the program's own.
            unsafe { std::ptr::copy_nonoverlapping(from, words.as_mut_ptr().cast(), bytes) };
            self.tiles[tile][row] = words;
        }
        self.tiles[tile][rows..].fill([0; WORDS]);
        self.configuration.start_row = 0;
        Ok(())
    }

    /// # Safety
    /// Memory is what the program's instruction names.
    unsafe fn store(&mut self, tile: usize, at: usize, stride: usize) -> Done {
        let (rows, bytes) = self.shape(tile)?;
        let first = self.configuration.start_row as usize;
        for row in first..rows {
            let to = at.wrapping_add(row.wrapping_mul(stride)) as *mut u8;
            // SAFETY: by the caller's word; a fault is the program's own.
            unsafe { std::ptr::copy_nonoverlapping(self.tiles[tile][row].as_ptr().cast(), to, bytes) };
        }
        self.configuration.start_row = 0;
        Ok(())
    }

    /// `C`, `A` and `B` of `C += A B`, whose shapes must fit. Past their shapes tiles are zeros, so that all of them can
    /// be multiplied.
    fn operands(&mut self, c: usize, a: usize, b: usize) -> Result<(&mut Tile, &Tile, &Tile), &'static str> {
        let [(c_rows, c_bytes), (a_rows, a_bytes), (b_rows, b_bytes)] =
            [self.shape(c)?, self.shape(a)?, self.shape(b)?];
        if c_rows != a_rows || c_bytes != b_bytes || a_bytes.div_ceil(4) != b_rows || c_bytes % 4 != 0 {
            return Err("a product of tiles whose shapes do not fit");
        }
        self.configuration.start_row = 0;
        match self.tiles.get_disjoint_mut([c, a, b]) {
            Ok([c, a, b]) => Ok((c, a, b)),
            Err(_) => Err("a product of tiles that are not three"),
        }
    }
}

/// The four bytes of a word, the first in the lowest bits.
#[inline(always)]
fn bytes<const SIGNED: bool>(word: u32) -> [i32; 4] {
    std::array::from_fn(|i| {
        let top = word << (24 - 8 * i);
        if SIGNED { top as i32 >> 24 } else { (top >> 24) as i32 }
    })
}

/// TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD: which of `A` and `B` has a sign.
#[target_feature(enable = "avx512f,avx512bw")]
fn multiply_bytes<const A: bool, const B: bool>(c: &mut Tile, a: &Tile, b: &Tile) {
    for (c, a) in c.iter_mut().zip(a) {
        for (a, b) in a.iter().zip(b) {
            let a = bytes::<A>(*a);
            for (c, b) in c.iter_mut().zip(b) {
                let b = bytes::<B>(*b);
                let sum = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
                *c = c.wrapping_add(sum as u32);
            }
        }
    }
}

/// TDPBF16PS: the products of lower and of upper halves are summed apart, from zero, along a row of `A`; then one sum
/// is added to the other, and both to `C`.
#[target_feature(enable = "avx512f,fma")]
fn multiply_bf16(c: &mut Tile, a: &Tile, b: &Tile) {
    for (c, a) in c.iter_mut().zip(a) {
        let (mut lowers, mut uppers) = ([0f32; WORDS], [0f32; WORDS]);
        for (a, b) in a.iter().zip(b) {
            for ((low, up), b) in lowers.iter_mut().zip(&mut uppers).zip(b) {
                *low = multiply_add(lower(*a), lower(*b), *low);
                *up = multiply_add(upper(*a), upper(*b), *up);
            }
        }
        for ((c, low), up) in c.iter_mut().zip(lowers).zip(uppers) {
            *c = flush(flush(f32::from_bits(*c)) + flush(low + up)).to_bits();
        }
    }
}
