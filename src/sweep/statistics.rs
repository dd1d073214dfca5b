//! Mean and spread of a few runs, and which differences are larger than the noise.

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

/// What seeds alone make of a figure: the standard deviation of a run, pooled over all settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    pub deviation: f64,
    /// Of freedom: runs less settings.
    pub degrees: usize,
}

impl Noise {
    /// `None` where no setting has two runs: then nothing is known of the noise.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let degrees: usize = samples.iter().map(|s| s.count - 1).sum();
        let squares: f64 =
            samples.iter().filter_map(|s| s.spread.map(|d| d * d * (s.count - 1) as f64)).sum();
        (degrees > 0).then(|| Self { deviation: (squares / degrees as f64).sqrt(), degrees })
    }

    /// The least difference of two means that noise makes in fewer than one of twenty cases (two-sided t-test).
    pub fn least_difference(&self, a: &Sample, b: &Sample) -> f64 {
        let error = self.deviation * (1.0 / a.count as f64 + 1.0 / b.count as f64).sqrt();
        quantile(self.degrees) * error
    }
}

/// The 97.5 % quantile of Student's t-distribution.
fn quantile(degrees: usize) -> f64 {
    const FIRST: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    match degrees {
        0 => f64::INFINITY,
        1..=10 => FIRST[degrees - 1],
        // Cornish and Fisher's expansion about the normal quantile z: to 0.001 from here on.
        _ => {
            let (z, n) = (1.959_964f64, degrees as f64);
            let third = 3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z;
            z + (z.powi(3) + z) / (4.0 * n)
                + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n.powi(2))
                + third / (384.0 * n.powi(3))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let least = noise.least_difference(&samples[0], &samples[1]);
        assert!((least - 3.182 * (26f64 / 3.0 * (0.5 + 1.0 / 3.0)).sqrt()).abs() < 1e-9);
        assert_eq!(Noise::of(&[Sample::of(&[1.0]).unwrap()]), None);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, wanted) in
            [(1, 12.706), (10, 2.228), (12, 2.179), (20, 2.086), (30, 2.042), (120, 1.980)]
        {
            assert!((quantile(degrees) - wanted).abs() < 1.5e-3, "{degrees}: {}", quantile(degrees));
        }
    }
}
