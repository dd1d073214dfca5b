//! Times a kernel whose operands come from memory, once its result is checked.

use ternlm::kernels::{self, Isa, peak};

use super::common::{fill, line, median, noise, seconds};

/// Bytes read before each round, so that the caches hold nothing of the operands. The largest cache we have met, shared
/// by many machines, has 480 MiB.
const CACHES: usize = 640 << 20;
/// Bytes of operands in a round, at least: enough for the clock.
pub const ROUND: usize = 128 << 20;

const COLUMNS: [usize; 4] = [34, 10, 15, 8];

/// One slice that a kernel gets.
#[derive(Clone, Copy)]
pub struct Operand {
    pub len: usize,
    /// Values that a call must read or write.
    pub moved: usize,
    /// Whether a call leaves other numbers there than it needs: filled anew before each round.
    pub changed: bool,
}

pub fn read(len: usize) -> Operand {
    Operand { len, moved: len, changed: false }
}

/// A write counts once, though most processors read the line first.
pub fn written(len: usize) -> Operand {
    Operand { len, moved: len, changed: false }
}

pub fn both(len: usize) -> Operand {
    Operand { len, moved: 2 * len, changed: true }
}

/// What limits a kernel, if all goes well.
pub enum Limit {
    /// Multiplications and additions.
    Flop(f64),
    Memory,
}

pub struct Bench {
    pub filter: String,
    gflops: f64,
    gbps: f64,
    caches: Vec<f32>,
    seed: u64,
    pub matched: usize,
}

impl Bench {
    /// Of kernels whose names contain `filter`. Begins the table.
    pub fn new(filter: String) -> Self {
        let (gflops, gbps) = (peak::fma_gflops(), peak::read_gbps());
        let (isa, threads) = (Isa::current(), rayon::current_num_threads());
        println!("{isa}, {threads} threads, FMA peak {gflops:.0} GFLOP/s, reads at {gbps:.1} GB/s");
        line(COLUMNS, ["kernel", "ms", "speed        ", "of peak"]);
        // Ones: pages of zeros that nobody wrote are all the same page.
        let caches = vec![1.0; CACHES / 4];
        Self { filter, gflops, gbps, caches, seed: 0, matched: 0 }
    }

    /// Checks and times `call`, which is given the number of the operands' set. `check` gets the first set before and
    /// after a call.
    pub fn run<const K: usize>(
        &mut self,
        name: &str,
        limit: Limit,
        operands: [Operand; K],
        call: impl FnMut(usize, &mut [Vec<f32>; K]),
        check: impl FnOnce(&[Vec<f32>; K], &[Vec<f32>; K]),
    ) {
        self.run_prepared(name, limit, operands, |_| {}, call, check);
    }

    /// [`Bench::run`] for operands that are not any numbers: `prepare` makes them from random ones, untimed.
    pub fn run_prepared<const K: usize>(
        &mut self,
        name: &str,
        limit: Limit,
        operands: [Operand; K],
        mut prepare: impl FnMut(&mut [Vec<f32>; K]),
        mut call: impl FnMut(usize, &mut [Vec<f32>; K]),
        check: impl FnOnce(&[Vec<f32>; K], &[Vec<f32>; K]),
    ) {
        if !name.contains(&self.filter) {
            return;
        }
        self.matched += 1;
        let size: usize = operands.iter().map(|o| 4 * o.len).sum();
        let mut sets: Vec<[Vec<f32>; K]> = Vec::new();
        for _ in 0..ROUND.div_ceil(size) {
            sets.push(operands.map(|o| {
                self.seed += 1;
                noise(o.len, self.seed)
            }));
        }
        sets.iter_mut().for_each(&mut prepare);
        let before = sets[0].clone();
        call(0, &mut sets[0]);
        check(&before, &sets[0]);
        drop(before);
        let changed = operands.iter().any(|o| o.changed);
        let each = median(|| {
            for set in sets.iter_mut().filter(|_| changed) {
                for (x, _) in set.iter_mut().zip(operands).filter(|(_, o)| o.changed) {
                    self.seed += 1;
                    fill(x, self.seed);
                }
                prepare(set);
            }
            std::hint::black_box(kernels::sum_squares(&self.caches));
            let round = seconds(|| sets.iter_mut().enumerate().for_each(|(i, set)| call(i, set)));
            round / sets.len() as f64
        });
        let (speed, unit, peak) = match limit {
            Limit::Flop(flop) => (flop / each / 1e9, "GFLOP/s", self.gflops),
            Limit::Memory => {
                let moved: usize = operands.iter().map(|o| 4 * o.moved).sum();
                (moved as f64 / each / 1e9, "GB/s", self.gbps)
            }
        };
        let (ms, share) = (format!("{:.3}", 1e3 * each), format!("{:.0} %", 100.0 * speed / peak));
        line(COLUMNS, [name, &ms, &format!("{speed:.1} {unit:<7}"), &share]);
    }
}
