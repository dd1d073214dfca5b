//! Where the time of a step goes. Off unless [`start`] was called on the thread that runs the step, whose time alone is
//! counted: of a batch taken in parts that of one part, and the wait for others as [`Phase::Other`].

use std::cell::RefCell;
use std::time::Instant;

/// What a stretch of time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum Phase {
    /// Latents to trits in a pass of its own: at the start, and with one scale for a whole matrix. Elsewhere the
    /// optimizer's pass does it row by row, and it counts there.
    Projection,
    /// Products of forward passes, the head's too.
    Forward,
    /// Products `dy W` of backward passes, the head's too.
    InputGradient,
    /// Products `dyᵀ x` of backward passes, the head's too.
    WeightGradient,
    Attention,
    /// Soft-max and loss over the logits.
    CrossEntropy,
    /// Norms, activations, rotations, residual sums.
    Elementwise,
    /// The gradient norm and the pass that updates, projects and sets gradients to zero.
    Optimizer,
    /// Batches, and the embedding's rows.
    Data,
    Other,
}

impl Phase {
    pub const ALL: [Phase; 10] = [
        Phase::Forward,
        Phase::InputGradient,
        Phase::WeightGradient,
        Phase::Attention,
        Phase::CrossEntropy,
        Phase::Elementwise,
        Phase::Projection,
        Phase::Optimizer,
        Phase::Data,
        Phase::Other,
    ];
}

struct Clock {
    phase: Phase,
    since: Instant,
    seconds: [f64; Phase::ALL.len()],
}

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

/// Begins to count on this thread.
pub fn start() {
    let seconds = [0.0; Phase::ALL.len()];
    CLOCK.set(Some(Clock { phase: Phase::Other, since: Instant::now(), seconds }));
}

/// Ends the count: seconds of each phase, in the order of [`Phase::ALL`].
pub fn stop() -> Vec<(Phase, f64)> {
    enter(Phase::Other);
    let clock = CLOCK.take();
    let seconds = |phase: Phase| clock.as_ref().map_or(0.0, |c| c.seconds[phase as usize]);
    Phase::ALL.into_iter().map(|phase| (phase, seconds(phase))).collect()
}

/// Time is counted to another phase until this is dropped, then to the one before.
pub struct Guard(Option<Phase>);

/// Counts what follows to `phase`; the outermost call of a stack that ends in a kernel is the one that counts less.
#[must_use]
pub fn scope(phase: Phase) -> Guard {
    Guard(enter(phase))
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            enter(before);
        }
    }
}

/// The phase before, where time is counted at all.
fn enter(phase: Phase) -> Option<Phase> {
    CLOCK.with_borrow_mut(|clock| {
        let clock = clock.as_mut()?;
        let now = Instant::now();
        clock.seconds[clock.phase as usize] += now.duration_since(clock.since).as_secs_f64();
        clock.since = now;
        Some(std::mem::replace(&mut clock.phase, phase))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_counted_once_and_to_the_innermost_phase() {
        drop(scope(Phase::Data)); // off: nothing happens
        let around = Instant::now();
        start();
        {
            let _outer = scope(Phase::Optimizer);
            std::thread::sleep(Duration::from_millis(20));
            let _inner = scope(Phase::Projection);
            std::thread::sleep(Duration::from_millis(40));
        }
        let seconds = stop();
        let around = around.elapsed().as_secs_f64();
        let of = |phase| seconds.iter().find(|(p, _)| *p == phase).unwrap().1;
        // A sleep may take longer, never less.
        assert!(of(Phase::Optimizer) >= 0.02 && of(Phase::Projection) >= 0.04, "{seconds:?}");
        assert_eq!(of(Phase::Data), 0.0, "{seconds:?}");
        let total: f64 = seconds.iter().map(|(_, seconds)| seconds).sum();
        assert!(total <= around + 1e-9, "{total} s were counted in {around} s: {seconds:?}");
    }
}
