//! What the figures of a run must reach.

use crate::config::ReportConfig;
use crate::report::Check;

/// What a figure must reach.
#[derive(Clone, Copy)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn value(self) -> f64 {
        match self {
            Bar::AtMost(value) | Bar::AtLeast(value) => value,
        }
    }

    /// A figure that is no number reaches nothing.
    fn holds(self, figure: f64) -> bool {
        match self {
            Bar::AtMost(most) => figure <= most,
            Bar::AtLeast(least) => figure >= least,
        }
    }

    fn check(self, name: &str, value: f64) -> Check {
        Check { name: name.into(), value, bar: self.value(), pass: self.holds(value) }
    }
}

/// The figures that the recipe has bars for, held against them. `accuracy` is that of a synthetic task.
pub(super) fn checks(bars: &ReportConfig, train_loss: f64, accuracy: Option<f64>) -> Vec<Check> {
    let most = bars.max_train_loss.map(|most| Bar::AtMost(most).check("train loss", train_loss));
    let least = bars.min_accuracy.zip(accuracy);
    let least = least.map(|(least, found)| Bar::AtLeast(least).check("min accuracy", found));
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
