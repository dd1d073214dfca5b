//! The curves of a run, read off its metrics.

use crate::train::{Advisor, Record, TensorPoint};

/// Step and value.
pub(super) type Point = (f64, f64);

/// All that the charts show.
#[derive(Clone, Default)]
pub(super) struct Curves {
    pub loss: Vec<Point>,
    pub val: Vec<Point>,
    pub lr: Vec<Point>,
    pub grad_norm: Vec<Point>,
    /// Fractions of all ternary weights that are −1, 0, +1.
    pub trits: Vec<(f64, [f64; 3])>,
    /// Fractions of all ternary weights that became zero, stopped being zero, changed sign since the record before.
    pub changes: Vec<(f64, [f64; 3])>,
    /// Of the changes, the share that was undone before the record; of the latents, the share near a threshold.
    pub undone: Vec<Point>,
    pub near: Vec<Point>,
    /// Root mean square of the last step of latents, in scales.
    pub updates: Vec<Point>,
    /// Of what a step multiplied with, the share of the latents, by kind of weight.
    pub residuals: Vec<(&'static str, Vec<Point>)>,
    /// What the diary gives reason to say.
    pub remarks: Vec<String>,
    /// The tensors at the end.
    pub tensors: Vec<TensorPoint>,
}

impl Curves {
    pub fn new(records: &[Record]) -> Self {
        let mut curves = Self::default();
        let mut advisor = Advisor::default();
        for record in records {
            curves.remarks.extend(advisor.hear(record));
            let x = record.step() as f64;
            match record {
                Record::Train { loss, lr, grad_norm, residual, residuals, .. } => {
                    curves.loss.push((x, *loss));
                    curves.lr.push((x, *lr));
                    curves.grad_norm.push((x, *grad_norm));
                    curves.leaves("all ternary weights", residual.map(|left| (x, left)));
                    if let Some(each) = residuals {
                        curves.leaves("feed-forward", Some((x, each.feed_forward as f64)));
                        curves.leaves("attention", Some((x, each.attention as f64)));
                        curves.leaves("embedding and head", each.ends.map(|left| (x, left as f64)));
                    }
                }
                Record::Val { nll, .. } => curves.val.push((x, *nll)),
                Record::Ternary { tensors, .. } => {
                    let total: f64 = tensors.iter().map(|t| t.weights as f64).sum();
                    if total == 0.0 {
                        continue;
                    }
                    let share = |f: fn(&TensorPoint) -> f64| tensors.iter().map(f).sum::<f64>() / total;
                    let trits = [
                        share(|t| t.minus * t.weights as f64),
                        share(|t| t.zero * t.weights as f64),
                        share(|t| t.plus * t.weights as f64),
                    ];
                    let changes = [
                        share(|t| t.to_zero as f64),
                        share(|t| t.from_zero as f64),
                        share(|t| t.sign_flips as f64),
                    ];
                    // The first record has nothing before it to differ from.
                    if !curves.trits.is_empty() {
                        curves.changes.push((x, changes));
                    }
                    curves.trits.push((x, trits));
                    curves.undone.extend(weighted(tensors, changes_of, |t| t.undone).map(|y| (x, y)));
                    curves.near.extend(weighted(tensors, weights_of, |t| t.near).map(|y| (x, y)));
                    let squares = weighted(tensors, weights_of, |t| t.rms_update.map(|u| u * u));
                    curves.updates.extend(squares.map(|y| (x, y.sqrt())));
                    curves.tensors.clone_from(tensors);
                }
            }
        }
        curves
    }

    fn leaves(&mut self, kind: &'static str, point: Option<Point>) {
        let Some(point) = point else { return };
        match self.residuals.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, points)) => points.push(point),
            None => self.residuals.push((kind, vec![point])),
        }
    }

    /// With the losses in `points` where they say more than the diary, which has those of log lines only.
    pub fn with_losses(&self, points: &[(u64, f64)]) -> Self {
        let mut curves = self.clone();
        if points.len() > self.loss.len() {
            curves.loss = points.iter().map(|&(x, y)| (x as f64, y)).collect();
        }
        curves
    }

    /// The training loss as at most `max` points, for `report.json`.
    pub fn loss_points(&self, max: usize) -> Vec<(u64, f64)> {
        thinned(&self.loss, max).into_iter().map(|(x, y)| (x as u64, y)).collect()
    }
}

fn weights_of(t: &TensorPoint) -> f64 {
    t.weights as f64
}

fn changes_of(t: &TensorPoint) -> f64 {
    (t.to_zero + t.from_zero + t.sign_flips) as f64
}

/// Mean over the tensors that have the figure.
fn weighted(
    tensors: &[TensorPoint],
    weight: fn(&TensorPoint) -> f64,
    figure: impl Fn(&TensorPoint) -> Option<f64>,
) -> Option<f64> {
    let known = tensors.iter().filter_map(|t| Some((weight(t), figure(t)?)));
    let (sum, total) = known.fold((0.0, 0.0), |(sum, total), (w, x)| (sum + w * x, total + w));
    (total > 0.0).then(|| sum / total)
}

/// At most `max` points: means of neighbours, at the step of the last of them. Points that are not finite are left out.
pub(super) fn thinned(points: &[Point], max: usize) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let size = finite.len().div_ceil(max).max(1);
    let mean = |c: &[Point]| c.iter().map(|p| p.1).sum::<f64>() / c.len() as f64;
    // Whole chunks count from the end, so that the last point is no outlier of a short chunk.
    let first = finite.len() % size;
    let chunks = finite[..first].chunks(size).chain(finite[first..].chunks(size));
    chunks.map(|c| (c[c.len() - 1].0, mean(c))).collect()
}

/// Centred moving average over about a thirtieth of the run. The window is shorter at both ends: evenly at the start,
/// where the loss falls steeply.
pub(super) fn smoothed(points: &[Point]) -> Vec<Point> {
    let finite: Vec<Point> = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let half = finite.len() / 60;
    let mut sums = vec![0.0];
    sums.extend(finite.iter().scan(0.0, |sum, p| {
        *sum += p.1;
        Some(*sum)
    }));
    let mean = |i: usize| {
        let low = i - half.min(i);
        let high = (i + half.min(i) + 1).min(finite.len());
        (sums[high] - sums[low]) / (high - low) as f64
    };
    (0..finite.len()).map(|i| (finite[i].0, mean(i))).collect()
}

/// The highest value behind the first `skipped` points, `f64::MIN` of none. Charts of losses end there: the fall of the
/// first steps would leave little room for all others.
pub(super) fn highest(points: &[Point], skipped: usize) -> f64 {
    points[skipped..].iter().map(|p| p.1).fold(f64::MIN, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_mean_and_the_end() {
        let points: Vec<Point> = (1..=4999).map(|i| (i as f64, (i % 7) as f64)).collect();
        let thin = thinned(&points, 2000);
        assert_eq!(thin.len(), 1667);
        assert_eq!(thin.last().unwrap().0, 4999.0);
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(thinned(&points[..10], 2000), points[..10]);
        assert_eq!(thinned(&[(1.0, f64::NAN), (2.0, 3.0)], 5), [(2.0, 3.0)]);
        assert!(thinned(&[], 5).is_empty());
    }

    #[test]
    fn smoothing_follows_a_slope_and_spreads_a_step() {
        let slope: Vec<Point> = (0..600).map(|i| (i as f64, -3.0 * i as f64)).collect();
        let smooth = smoothed(&slope);
        assert!(slope[..590].iter().zip(&smooth).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-9));
        let step: Vec<Point> = (0..600).map(|i| (i as f64, f64::from(i32::from(i >= 300)))).collect();
        let smooth = smoothed(&step);
        assert_eq!([smooth[289].1, smooth[310].1, smooth[599].1], [0.0, 1.0, 1.0]);
        assert!((smooth[300].1 - 11.0 / 21.0).abs() < 1e-12);
        assert_eq!(smoothed(&[(1.0, f64::NAN), (2.0, 3.0)]), [(2.0, 3.0)]);
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn averages_are_weighted_by_size() {
        let tensor = |weights, zero, to_zero| TensorPoint { weights, zero, to_zero, ..Default::default() };
        let record =
            |step| Record::Ternary { step, tensors: vec![tensor(300, 0.5, 30), tensor(100, 0.1, 2)] };
        let curves = Curves::new(&[record(0), record(5), Record::Ternary { step: 6, tensors: vec![] }]);
        assert_eq!(curves.trits.len(), 2);
        assert!((curves.trits[0].1[1] - 0.4).abs() < 1e-12);
        assert_eq!(curves.changes, [(5.0, [0.08, 0.0, 0.0])]);
    }
}
