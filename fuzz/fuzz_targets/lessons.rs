//! `lessons.json`, and shards whose digests are right and whose contents are anybody's.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ternlm::formats::lessons::{FILE_NAME, Index, Lessons, write_shard};
use ternlm_fuzz::{file, folder, mutate_json, parts};

/// Tokens above which no shards are made: not a fault, but slow.
const MOST: usize = 1 << 12;
/// The same of files.
const MOST_SHARDS: usize = 8;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_json(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let [index, rows] = parts(data);
    file(FILE_NAME, index);
    let Ok(index) = Index::read(folder()) else { return };
    let values = index.positions.checked_mul(index.top).filter(|values| *values <= MOST);
    let Some(values) = values.filter(|_| index.shards() <= MOST_SHARDS) else { return };
    let mut bytes = rows.iter().chain([&0]).copied().cycle();
    let mut four = || u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or_default()));
    for shard in 0..index.shards() {
        let of_shard = index.positions_of(shard).len() * index.top;
        // One token more than there are.
        let mut token = || (u64::from(four()) % (index.vocabulary as u64 + 1)) as u32;
        let tokens: Vec<u32> = (0..of_shard).map(|_| token()).collect();
        let ln_p: Vec<f32> = (0..of_shard).map(|_| -f32::from_bits(four()).abs()).collect();
        if write_shard(folder(), &index, shard, &tokens, &ln_p).is_err() {
            return;
        }
    }
    let lessons = Lessons::open(folder()).expect("what was just written");
    let (mut tokens, mut ln_p) = (vec![0; values], vec![0.0; values]);
    if lessons.read(0, &mut tokens, &mut ln_p).is_ok() {
        assert!(tokens.iter().all(|token| (*token as usize) < index.vocabulary), "tokens that there are");
        assert!(ln_p.iter().all(|x| x.is_finite() && *x <= 0.0), "logarithms of probabilities");
    }
});
