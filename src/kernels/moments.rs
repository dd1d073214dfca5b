//! What an optimizer remembers of each value of a tensor.

/// Moving averages, row-major like the tensor; one that the rule does not need is empty.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// AdamW's first moment, or the momentum.
    pub first: Vec<f32>,
    /// AdamW's second moment.
    pub second: Vec<f32>,
}

/// Some rows of [`Moments`].
pub(super) struct MomentsMut<'a> {
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

impl Moments {
    /// `count` of them (none to two) for each of `len` values, at zero.
    pub fn zeros(count: usize, len: usize) -> Self {
        let zeros = |nth: usize| vec![0.0; if nth < count { len } else { 0 }];
        Self { first: zeros(0), second: zeros(1) }
    }

    /// Panics unless these are `count` moments of `len` values.
    pub(super) fn check(&self, name: &str, count: usize, len: usize) {
        let wanted = [count > 0, count > 1].map(|there| if there { len } else { 0 });
        assert_eq!([self.first.len(), self.second.len()], wanted, "{name}: moments");
    }

    pub(super) fn as_mut(&mut self) -> MomentsMut<'_> {
        MomentsMut { first: &mut self.first, second: &mut self.second }
    }
}

impl<'a> MomentsMut<'a> {
    pub fn split_at(self, rows: usize, cols: usize) -> (MomentsMut<'a>, MomentsMut<'a>) {
        let cut = |x: &'a mut [f32]| {
            let at = if x.is_empty() { 0 } else { rows * cols };
            x.split_at_mut(at)
        };
        let ((first, first_after), (second, second_after)) = (cut(self.first), cut(self.second));
        (MomentsMut { first, second }, MomentsMut { first: first_after, second: second_after })
    }
}
