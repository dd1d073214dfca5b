//! Products of matrices: one room with four ways through it, and one place that chooses.
//!
//! | product | instruction set | shape | way |
//! |---|---|---|---|
//! | `x Wᵀ`, `W` packed, inputs of 8 bits | AMX | enough rows of `x` | tiles (`tiles/packed.rs`) |
//! | `x Wᵀ`, `W` packed, inputs of 8 bits | any | any other | dot products of integers from the packed bytes (`packed/integer.rs`) |
//! | `x Wᵀ`, `W` packed | any | fewer than 16 rows of `x` | look-up from the packed bytes (`packed/float.rs`); more: some rows of `W` unpacked at a time, and then as below |
//! | `x Wᵀ`, any other `W`; in bf16 with inputs of 8 bits alone | any | fewer than 6 rows of `x` | dot products (`dots.rs`): `W` is read once a row, and not packed |
//! | `x Wᵀ`, `dy W`, `W` ternary | AMX; in bf16 also AVX-512 BF16 | enough rows, and groups of whole words | tiles (`tiles/`) |
//! | `x Wᵀ`, `W` ternary, inputs of 8 bits | any | any other | look-up of integers (`lookup/int8.rs`) |
//! | `x Wᵀ`, `dy W`, `W` ternary | any | 32 rows, 64 outputs, groups of 64, or more of each | look-up (`lookup/`) |
//! | `dy W`, `W` ternary, in bf16 | any | any other | look-up |
//! | `A B`, both dense | AMX; in bf16 also AVX-512 BF16 | enough of each | tiles |
//! | a head and its loss, rounded | AMX | thousands of outputs | tiles, no logits kept (`tiles/head.rs`) |
//! | any | any | any other | blocked (`blocked.rs`), trits decoded on the way |
//!
//! The first line that fits holds; [`way`] is that table. Rounded operands take the same ways, which round them where they
//! pack them. Rows of a weight's gradient, of attention and of Muon are products of two dense matrices, [`gemm`].

mod blocked;
mod dots;
mod halves;
pub mod head;
pub mod linear;
mod lookup;
mod operands;
mod pack;
mod packed;
mod register_tile;
pub(super) mod rounding;
mod symmetric;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_tiles.rs"]
mod tiles;
mod way;

pub use halves::Halves;
pub use operands::{Rhs, Target, Threads, View};
pub(super) use pack::decode;
pub use packed::pack;
pub use symmetric::symmetric_gemm;

use crate::kernels::threads;
use operands::Sizes;
use way::Way;

/// Multiplications below which a fork costs more than it brings.
const SERIAL: usize = 1 << 18;

/// `C (+)= A B` with `A` `[m, k]` and `B` `[k, n]`.
///
/// ```
/// use ternlm::kernels::{Rhs, Target, Threads, To, View, gemm};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
/// let mut c = [0.0; 4];
/// let target = Target { data: &mut c, stride: 2, to: To::Set };
/// gemm(2, 2, 2, View::rows(&a, 2), Rhs::Dense(View::rows(&b, 2)), target, Threads::All);
/// assert_eq!(c, [19.0, 22.0, 43.0, 50.0]);
///
/// // A transpose is another reading of the same slice.
/// let target = Target { data: &mut c, stride: 2, to: To::Set };
/// gemm(2, 2, 2, View::rows(&a, 2), Rhs::Dense(View::rows(&b, 2).t()), target, Threads::All);
/// assert_eq!(c, [17.0, 23.0, 39.0, 53.0]);
/// ```
///
/// # Panics
/// When an operand or the result is smaller than the sizes say, or one dense operand is rounded and the other is not.
pub fn gemm(m: usize, n: usize, k: usize, a: View<'_>, b: Rhs<'_>, c: Target<'_>, threads: Threads) {
    a.check(m, k);
    b.check(k, n);
    if let Rhs::Dense(b) = b {
        assert_eq!(a.precision, b.precision, "the precision of both operands");
    }
    if m == 0 || n == 0 {
        return;
    }
    c.check(m, n);
    if k == 0 {
        if !c.to.adds() {
            c.data.chunks_mut(c.stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let size = Sizes { m, n, k };
    let tasks = if threads == Threads::All && m * n * k >= SERIAL { threads::tasks() } else { 1 };
    match (way::gemm(size, a, b), b) {
        (Way::Tiles, Rhs::Dense(b)) => tiles::gemm(size, a, b, c, tasks),
        _ => blocked::product(size, a, b, c, tasks),
    }
}
