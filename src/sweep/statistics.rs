//! Mean and spread of a few runs, and which differences are larger than the noise.

use statrs::distribution::{ContinuousCDF, FisherSnedecor, StudentsT};

/// A setting scatters more than the others where chance alone would make as much of it in fewer than one of so many cases.
const SURELY: f64 = 1000.0;

/// Runs of one setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub count: usize,
    pub mean: f64,
    /// Standard deviation of a run, `n − 1` in the denominator; `None` of one run.
    pub spread: Option<f64>,
}

impl Sample {
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let spread = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        (count > 0).then_some(Self { count, mean, spread })
    }
}

/// What seeds alone make of a figure: the standard deviation of a run, pooled over the settings but for those that scatter
/// more than these, as a learning rate at the edge of divergence does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    pub deviation: f64,
    /// Of freedom: runs less settings.
    pub degrees: usize,
    /// The largest variance among the pooled ones.
    largest: f64,
    /// Pairs of settings, any of which might differ by chance.
    pairs: usize,
}

impl Noise {
    /// `None` where no setting has two runs: then nothing is known of the noise.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let variance = |s: &Sample| Some((s.spread?.powi(2), s.count - 1));
        let mut variances: Vec<(f64, usize)> = samples.iter().filter_map(variance).collect();
        variances.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = variances.len();
        // The most of them say what is usual.
        while let [others @ .., (variance, degrees)] = &variances[..]
            && 2 * others.len() > all
        {
            let (pooled, of) = pooled(others);
            let f = FisherSnedecor::new(*degrees as f64, of as f64).expect("positive degrees of freedom");
            if *variance <= f.inverse_cdf(1.0 - 1.0 / SURELY) * pooled {
                break;
            }
            variances.pop();
        }
        let largest = variances.last()?.0;
        let (variance, degrees) = pooled(&variances);
        let pairs = samples.len() * (samples.len() - 1) / 2;
        Some(Self { deviation: variance.sqrt(), degrees, largest, pairs: pairs.max(1) })
    }

    /// The least difference of two means which noise makes between any two of all settings in fewer than one of twenty sweeps:
    /// t-tests (Welch's where one of the two is not among the pooled), with Bonferroni's correction for all pairs.
    pub fn least_difference(&self, a: &Sample, b: &Sample) -> f64 {
        let own = |s: &Sample| s.spread.map(|d| d * d).filter(|variance| *variance > self.largest);
        let of = |s: &Sample| match own(s) {
            Some(variance) => (variance / s.count as f64, (s.count - 1) as f64),
            None => (self.deviation.powi(2) / s.count as f64, self.degrees as f64),
        };
        let ((a_error, a_degrees), (b_error, b_degrees)) = (of(a), of(b));
        let error = a_error + b_error;
        if error == 0.0 {
            return 0.0;
        }
        let degrees = match (own(a), own(b)) {
            (None, None) => self.degrees as f64,
            _ => error.powi(2) / (a_error.powi(2) / a_degrees + b_error.powi(2) / b_degrees),
        };
        let t = StudentsT::new(0.0, 1.0, degrees).expect("positive degrees of freedom");
        t.inverse_cdf(1.0 - 0.025 / self.pairs as f64) * error.sqrt()
    }
}

/// The variance of all, and its degrees of freedom.
fn pooled(variances: &[(f64, usize)]) -> (f64, usize) {
    let degrees: usize = variances.iter().map(|v| v.1).sum();
    let squares: f64 = variances.iter().map(|(variance, degrees)| variance * *degrees as f64).sum();
    (squares / degrees as f64, degrees)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{GAMMA, splitmix64};

    #[test]
    fn spread_and_noise_are_those_of_the_textbook() {
        let a = Sample::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((a.count, a.mean), (8, 5.0));
        assert!((a.spread.unwrap() - (32f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(Sample::of(&[1.0]).unwrap().spread, None);
        assert_eq!(Sample::of(&[]), None);
        // Pooled variance of {1, 3} and {10, 10, 16}: (2 + 24) / 3.
        let samples = [Sample::of(&[1.0, 3.0]).unwrap(), Sample::of(&[10.0, 10.0, 16.0]).unwrap()];
        let noise = Noise::of(&samples).unwrap();
        assert_eq!(noise.degrees, 3);
        assert!((noise.deviation - (26f64 / 3.0).sqrt()).abs() < 1e-12);
        // Student's 97.5 % with three degrees of freedom, from a table.
        let least = noise.least_difference(&samples[0], &samples[1]);
        assert!((least / (26f64 / 3.0 * (0.5 + 1.0 / 3.0)).sqrt() - 3.182).abs() < 1e-3, "{least}");
        assert_eq!(Noise::of(&[Sample::of(&[1.0]).unwrap()]), None);
        // Three pairs among three settings: 99.1667 % with four degrees is 3.961.
        let three = [[1.0, 1.2], [2.0, 2.2], [3.0, 3.2]].map(|x| Sample::of(&x).unwrap());
        let noise = Noise { degrees: 4, ..Noise::of(&three).unwrap() };
        let least = noise.least_difference(&three[0], &three[1]);
        assert!((least / 0.02f64.sqrt() - 3.961).abs() < 1e-3, "{least}");
    }

    #[test]
    fn one_that_scatters_hides_no_difference_of_the_others() {
        let of = |x: [f64; 3]| Sample::of(&x).unwrap();
        let samples = [of([1.50, 1.51, 1.52]), of([1.60, 1.61, 1.62]), of([2.0, 5.0, 9.0])];
        let noise = Noise::of(&samples).unwrap();
        assert!((noise.deviation - 0.01).abs() < 1e-9 && noise.degrees == 4, "{noise:?}");
        assert!(noise.least_difference(&samples[0], &samples[1]) < 0.1);
        // Its own mean says little.
        assert!(noise.least_difference(&samples[0], &samples[2]) > 5.0);
        // Without any noise the others are told apart by anything.
        let samples = [of([1.0; 3]), of([2.0; 3]), of([3.0, 3.1, 3.0])];
        let noise = Noise::of(&samples).unwrap();
        assert_eq!((noise.deviation, noise.least_difference(&samples[0], &samples[1])), (0.0, 0.0));
    }

    /// Sweeps over nothing at all, of twelve settings with three seeds.
    #[test]
    fn few_sweeps_over_nothing_find_something() {
        let mut n = 0u64;
        let mut uniform = || {
            n += 1;
            (splitmix64(n.wrapping_mul(GAMMA)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut normal =
            || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let found = (0..2000).filter(|_| {
            let samples: Vec<Sample> =
                (0..12).map(|_| Sample::of(&[normal(), normal(), normal()]).unwrap()).collect();
            let noise = Noise::of(&samples).unwrap();
            let best = samples.iter().min_by(|a, b| a.mean.total_cmp(&b.mean)).unwrap();
            samples.iter().any(|s| s.mean - best.mean > noise.least_difference(s, best))
        });
        let found = found.count();
        assert!((10..100).contains(&found), "{found} of 2,000, where one of twenty is 100");
    }
}
