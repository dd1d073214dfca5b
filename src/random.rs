//! Random numbers that are a function of a counter: the n-th needs no earlier one. (Streams are ChaCha's.)

/// The step of SplitMix64's counter: 2^64 over the golden ratio.
pub(crate) const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014), of its counter.
#[inline(always)]
pub(crate) fn splitmix64(counter: u64) -> u64 {
    let z = (counter ^ (counter >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_published_generator() {
        let of = |n: u64| splitmix64(n.wrapping_mul(GAMMA).wrapping_add(1_234_567));
        assert_eq!(
            [1, 2, 3].map(of),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
