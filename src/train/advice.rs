//! What the diary of a training says for certain, in words.

use super::Record;

/// Steps without a change of any trit after which the learning rate is called too low.
const QUIET: u64 = 500;
/// Of the highest learning rate so far: below it nothing is expected to change.
const DECAYED: f64 = 0.1;
/// Records whose mean loss is compared with that of the first.
const WINDOW: usize = 10;
/// Nats by which a loss has risen that is worth a word.
const RISEN: f64 = 0.05;

/// Reads records in their order, and says each thing once.
#[derive(Clone, Debug, Default)]
pub struct Advisor {
    highest_lr: f64,
    lr: f64,
    /// Training losses since the last validation, the mean of those before it, and all.
    since_validation: Vec<f64>,
    trained: Option<f64>,
    losses: Vec<f64>,
    /// The record after which no trit has changed.
    quiet_from: Option<u64>,
    best: Option<Validation>,
    /// The last step multiplied with something else than trits.
    soft: bool,
    /// Validations in a row that were worse than the best, while the training loss was lower than then.
    worse: u32,
    said: [bool; 3],
}

#[derive(Clone, Copy, Debug)]
struct Validation {
    step: u64,
    nll: f64,
    /// Mean training loss before it, where one was recorded.
    trained: Option<f64>,
}

impl Advisor {
    /// A sentence, if the record gives reason for one that was not said yet.
    pub fn hear(&mut self, record: &Record) -> Option<String> {
        let (nth, text) = match record {
            Record::Train { loss, lr, residual, residuals, .. } => {
                if *lr > self.highest_lr {
                    // Still warming up.
                    (self.highest_lr, self.quiet_from) = (*lr, None);
                }
                self.lr = *lr;
                let left = residuals.map_or(residual.unwrap_or(0.0), |each| each.largest() as f64);
                self.soft = left > 0.0;
                // A loss of other weights than trits is no start for theirs, nor does it compare with validations.
                if self.soft {
                    return None;
                }
                self.since_validation.push(*loss);
                self.losses.push(*loss);
                (0, self.diverged()?)
            }
            Record::Ternary { step, tensors } => {
                let changed: u64 = tensors.iter().map(|t| t.to_zero + t.from_zero + t.sign_flips).sum();
                let from = *self.quiet_from.get_or_insert(*step);
                if self.soft || changed > 0 || tensors.is_empty() {
                    self.quiet_from = Some(*step);
                    return None;
                }
                let size = tensors.iter().filter_map(|t| t.rms_update).fold(0.0, f64::max);
                (1, self.quiet(step - from, size)?)
            }
            Record::Val { .. } if self.soft => return None,
            Record::Val { step, nll, .. } => (2, self.validated(*step, *nll)?),
        };
        (!std::mem::replace(&mut self.said[nth], true)).then_some(text)
    }

    fn diverged(&self) -> Option<String> {
        if self.losses.len() < 3 * WINDOW {
            return None;
        }
        let [first, last] = [&self.losses[..WINDOW], &self.losses[self.losses.len() - WINDOW..]];
        // Batches differ, and are asked many times: five standard errors of the difference.
        let noise = 5.0 * ((variance(first) + variance(last)) / WINDOW as f64).sqrt();
        let [first, last] = [first, last].map(mean);
        let text = format!(
            "the loss is {last:.3} where it began at {first:.3}: the learning rate is too high, or its warm-up too short"
        );
        (last > first + noise.max(RISEN)).then_some(text)
    }

    fn quiet(&self, steps: u64, size: f64) -> Option<String> {
        let text = format!(
            "no trit has changed for {steps} steps: the learning rate is too low for ternary weights. The last step moved \
             latents by {size:.1e} of a scale at most, and a trit changes where one crosses half of it"
        );
        (steps >= QUIET && self.lr >= DECAYED * self.highest_lr).then_some(text)
    }

    fn validated(&mut self, step: u64, nll: f64) -> Option<String> {
        let losses = std::mem::take(&mut self.since_validation);
        if !losses.is_empty() {
            self.trained = Some(mean(&losses));
        }
        let Some(best) = self.best.filter(|best| nll >= best.nll) else {
            (self.best, self.worse) = (Some(Validation { step, nll, trained: self.trained }), 0);
            return None;
        };
        let (before, trained) = best.trained.zip(self.trained)?;
        let memorised = nll > best.nll + RISEN && trained < before;
        self.worse = if memorised { self.worse + 1 } else { 0 };
        let text = format!(
            "the validation loss has risen from {:.3} after {} steps to {nll:.3}, while the training loss fell from \
             {before:.3} to {trained:.3}: the text is being learnt by heart. Fewer steps or more text would do better",
            best.nll, best.step
        );
        (self.worse >= 2).then_some(text)
    }
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

fn variance(losses: &[f64]) -> f64 {
    let middle = mean(losses);
    losses.iter().map(|loss| (loss - middle).powi(2)).sum::<f64>() / (losses.len() - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::{Residuals, TensorPoint};
    use super::*;

    fn train(step: u64, loss: f64, lr: f64) -> Record {
        Record::Train {
            step,
            loss,
            divergence: None,
            relations: None,
            residual: None,
            residuals: None,
            lr,
            grad_norm: 1.0,
            tokens: 0,
            tok_per_s: 1.0,
            elapsed_s: 1.0,
        }
    }

    fn val(step: u64, nll: f64) -> Record {
        Record::Val { step, nll, ppl: nll.exp(), bits_per_byte: None, tokens: 1 }
    }

    fn ternary(step: u64, to_zero: u64) -> Record {
        let tensor = TensorPoint { to_zero, rms_update: Some(2e-6), ..Default::default() };
        Record::Ternary { step, tensors: vec![tensor] }
    }

    fn all(records: impl IntoIterator<Item = Record>) -> Vec<String> {
        let mut advisor = Advisor::default();
        records.into_iter().filter_map(|record| advisor.hear(&record)).collect()
    }

    #[test]
    fn trits_that_stand_still_are_told_once() {
        let run = |lr: fn(u64) -> f64, changes: fn(u64) -> u64| {
            let step = |n: u64| [train(n, 3.0, lr(n)), ternary(n, changes(n))];
            all((0..2000).step_by(10).flat_map(step))
        };
        let found = run(|_| 1e-6, |_| 0);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("no trit has changed for 500 steps") && found[0].contains("2.0e-6"),
            "{found:?}"
        );
        assert_eq!(run(|_| 1e-6, |n| n % 400).len(), 0, "some changed");
        assert_eq!(
            run(|n| if n < 1000 { 1e-3 } else { 1e-5 }, |n| if n < 1000 { 5 } else { 0 }).len(),
            0,
            "decayed"
        );
    }

    #[test]
    fn a_text_learnt_by_heart_is_told_after_the_second_sign() {
        let rounds = |losses: &[(f64, f64)]| {
            let mut step = 0;
            let mut records = Vec::new();
            for &(trained, nll) in losses {
                step += 100;
                records.extend([train(step - 50, trained, 1e-3), train(step, trained, 1e-3), val(step, nll)]);
            }
            all(records)
        };
        assert_eq!(rounds(&[(5.0, 5.1), (4.0, 4.5), (3.0, 4.6), (2.5, 4.55)]).len(), 0, "once, then hardly");
        let found = rounds(&[(5.0, 5.1), (4.0, 4.5), (3.0, 4.6), (2.5, 4.7), (2.0, 4.9)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("from 4.500 after 200 steps to 4.700"), "{found:?}");
        assert_eq!(rounds(&[(4.0, 4.5), (4.2, 4.7), (4.3, 4.9)]).len(), 0, "the training loss rose too");
    }

    #[test]
    fn without_a_training_loss_nothing_is_known_of_it() {
        let losses = [(100, 5.1), (200, 5.3), (300, 5.4), (400, 5.5)];
        let one = [train(1, 5.0, 1e-3)].into_iter();
        assert_eq!(all(one.chain(losses.map(|(step, nll)| val(step, nll)))), Vec::<String>::new());
        assert_eq!(all(losses.map(|(step, nll)| val(step, nll))), Vec::<String>::new());
        // One line for every two validations.
        let rare = [
            train(50, 5.0, 1e-3),
            val(100, 5.1),
            val(200, 5.2),
            train(250, 4.0, 1e-3),
            val(300, 5.3),
            val(400, 5.4),
        ];
        assert_eq!(all(rare).len(), 1);
    }

    #[test]
    fn the_noise_of_batches_is_no_rise() {
        // An easy first batch of a model that no longer learns.
        let steady = |n: u64| train(n, 3.0 + if n.is_multiple_of(2) { -0.1 } else { 0.1 }, 1e-3);
        assert_eq!(all((0..200).map(steady)), Vec::<String>::new());
        let drawn = |n: u64| {
            train(n, 3.0 + 0.4 * (crate::random::splitmix64(n) as f64 / u64::MAX as f64 - 0.5), 1e-3)
        };
        for seed in 0..50 {
            assert_eq!(all((0..200).map(|n| drawn(1000 * seed + n))), Vec::<String>::new(), "{seed}");
        }
    }

    #[test]
    fn a_loss_above_its_start_is_told() {
        assert_eq!(all((0..40).map(|n| train(n, 5.5 - 0.1 * n as f64, 1e-3))).len(), 0);
        let found = all((0..40).map(|n| train(n, 5.5 + 0.1 * n as f64, 1e-3)));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("began at 5.950"), "{found:?}");
    }

    #[test]
    fn what_other_weights_than_trits_do_is_no_reason_for_a_word() {
        // A conversion: the pretrained loss, the jump to trits, and down from there.
        let annealed = |n: u64| {
            let soft = n < 20;
            let mut record = train(n, if soft { 2.0 } else { 6.0 - 0.01 * n as f64 }, 1e-3);
            if let Record::Train { residual, .. } = &mut record {
                *residual = Some(if soft { 0.5 } else { 0.0 });
            }
            record
        };
        assert_eq!(all((0..80).map(annealed)), Vec::<String>::new());
        // No trit changes while latents learn, nor while the rate is still rising.
        let still = |residual: f64, lr: fn(u64) -> f64| {
            all((0..2000).step_by(10).flat_map(|n| {
                let mut record = train(n, 3.0, lr(n));
                if let Record::Train { residual: left, .. } = &mut record {
                    *left = Some(residual);
                }
                [record, ternary(n, 0)]
            }))
        };
        assert_eq!(still(1.0, |_| 1e-6), Vec::<String>::new());
        assert_eq!(still(0.0, |n| 1e-9 * (n + 1) as f64), Vec::<String>::new());
        assert_eq!(still(0.0, |_| 1e-6).len(), 1);
        // Latents that learn, while what their trits would do gets worse.
        let staged = |n: u64| {
            let mut record = train(n, 5.0 - 0.1 * n as f64, 1e-3);
            if let Record::Train { residuals, .. } = &mut record {
                *residuals = Some(Residuals { feed_forward: 0.0, attention: 1.0, ends: None });
            }
            [record, val(n, 5.0 + 0.2 * n as f64)]
        };
        assert_eq!(all((0..20).flat_map(staged)), Vec::<String>::new());
    }
}
