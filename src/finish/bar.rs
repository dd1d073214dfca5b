//! What the figures of a run must reach.

use crate::config::ReportConfig;
use crate::report::{Check, Goal};

/// The figures that the recipe has bars for, held against them. `accuracy` is that of a synthetic task.
pub(super) fn checks(bars: &ReportConfig, train_loss: f64, accuracy: Option<f64>) -> Vec<Check> {
    let most = bars.max_train_loss.map(|most| Check::new(Goal::TrainLoss, train_loss, most));
    let least = bars.min_accuracy.zip(accuracy);
    let least = least.map(|(least, found)| Check::new(Goal::Accuracy, found, least));
    most.into_iter().chain(least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_on_its_bar_passes_and_one_that_is_no_number_fails() {
        let bars =
            ReportConfig { max_train_loss: Some(0.5), min_accuracy: Some(0.9), ..ReportConfig::default() };
        let passes =
            |loss, accuracy| checks(&bars, loss, accuracy).iter().map(|c| c.pass).collect::<Vec<_>>();
        assert_eq!(passes(0.5, Some(0.9)), [true, true]);
        assert_eq!(passes(0.51, Some(0.89)), [false, false]);
        assert_eq!(passes(f64::NAN, Some(f64::NAN)), [false, false]);
        assert_eq!(passes(0.1, None), [true], "a text has no accuracy");
        assert!(checks(&ReportConfig::default(), f64::NAN, Some(0.0)).is_empty(), "no bars");
    }
}
