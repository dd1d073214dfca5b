//! Cross-entropy mixed with the divergence from a teacher, over rows of logits of both.

use rayon::prelude::*;

use super::cross_entropy::{IGNORE, Objective, maximum};
use super::elementwise::exp;
use super::isa::kernel;
use super::profile::{Phase, scope};
use crate::config::Direction;

/// What a student learns of its teacher: `(1 - weight) CE + weight T² KL`. The soft-max of both is taken at the temperature
/// `T`; `T²` keeps gradients as large as they are at 1 (Hinton et al., arXiv 1503.02531).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// 0 to 1.
    pub weight: f32,
    /// Above 0.
    pub temperature: f32,
    pub direction: Direction,
}

/// For each row of `classes` logits, `stride` apart: writes `-ln softmax(row)[target]` to `loss` and the divergence at the
/// temperature to `divergence`, in nats, both 0 where the target is [`IGNORE`], and replaces the row of `logits` by its
/// gradient of `scale * ((1 - weight) loss + weight T² divergence + z_loss (ln Z)²)`, `Z` that of the student at the
/// temperature 1.
#[allow(clippy::too_many_arguments)]
pub fn distill(
    logits: &mut [f32],
    teacher: &[f32],
    classes: usize,
    stride: usize,
    targets: &[u32],
    how: Distillation,
    objective: Objective,
    loss: &mut [f32],
    divergence: &mut [f32],
) {
    let _time = scope(Phase::CrossEntropy);
    let rows = targets.len();
    assert!(stride >= classes, "{classes} classes, rows {stride} apart");
    assert_eq!([logits.len(), teacher.len()], [rows * stride; 2], "logits of {rows} rows {stride} apart");
    assert_eq!([loss.len(), divergence.len()], [rows; 2], "losses of {rows} rows");
    let both = logits.par_chunks_mut(stride).zip(teacher.par_chunks(stride));
    let results = loss.par_iter_mut().zip(divergence);
    both.zip(targets).zip(results).for_each(|(((row, teacher), &target), (loss, divergence))| {
        let (row, teacher) = (&mut row[..classes], &teacher[..classes]);
        if target == IGNORE {
            (*loss, *divergence) = (0.0, 0.0);
            row.fill(0.0);
            return;
        }
        let at = row[target as usize];
        let sums = sums(row, teacher, 1.0 / how.temperature);
        *loss = sums.ln_student - at;
        *divergence = sums.divergence(how.direction);
        gradient(row, teacher, &sums, how, objective);
        row[target as usize] -= (1.0 - how.weight) * objective.scale;
    });
}

/// Of a row of a student's logits `z` and a teacher's `u`.
struct Sums {
    /// `1 / T`
    inverse: f32,
    /// `ln sum e^z`, and the same of `z / T` and `u / T`.
    ln_student: f32,
    ln_student_soft: f32,
    ln_teacher_soft: f32,
    /// Means of `(u - z) / T` under the soft-max of the student and of the teacher, at the temperature.
    ahead_student: f32,
    ahead_teacher: f32,
}

impl Sums {
    fn divergence(&self, direction: Direction) -> f32 {
        match direction {
            Direction::Forward => self.ahead_teacher - self.ln_teacher_soft + self.ln_student_soft,
            Direction::Reverse => self.ln_teacher_soft - self.ln_student_soft - self.ahead_student,
        }
    }
}

/// What the classes from a multiple of 16 on add to the sums; `N` of them.
#[derive(Clone, Copy)]
struct Lanes<const N: usize> {
    student: [f32; N],
    student_soft: [f32; N],
    teacher_soft: [f32; N],
    ahead_student: [f32; N],
    ahead_teacher: [f32; N],
}

impl<const N: usize> Lanes<N> {
    const ZERO: Self = Self {
        student: [0.0; N],
        student_soft: [0.0; N],
        teacher_soft: [0.0; N],
        ahead_student: [0.0; N],
        ahead_teacher: [0.0; N],
    };

    #[inline(always)]
    fn add<S: super::simd::Simd>(&mut self, z: &[f32], u: &[f32], [max_z, max_u, inverse]: [f32; 3]) {
        for i in 0..N {
            let soft = exp::<S>((z[i] - max_z) * inverse);
            let taught = exp::<S>((u[i] - max_u) * inverse);
            let ahead = (u[i] - z[i]) * inverse;
            self.student[i] += exp::<S>(z[i] - max_z);
            self.student_soft[i] += soft;
            self.teacher_soft[i] += taught;
            self.ahead_student[i] += soft * ahead;
            self.ahead_teacher[i] += taught * ahead;
        }
    }

    #[inline(always)]
    fn total(&self) -> [f32; 5] {
        [self.student, self.student_soft, self.teacher_soft, self.ahead_student, self.ahead_teacher]
            .map(|lanes| lanes.iter().sum())
    }
}

kernel! {
    fn sums<S>(z: &[f32], u: &[f32], inverse: f32) -> Sums {
        let (max_student, max_teacher) = (maximum(z), maximum(u));
        let by = [max_student, max_teacher, inverse];
        let (mut lanes, mut rest) = (Lanes::<16>::ZERO, Lanes::<1>::ZERO);
        let (zs, us) = (z.chunks_exact(16), u.chunks_exact(16));
        for (z, u) in zs.remainder().iter().zip(us.remainder()) {
            rest.add::<S>(std::slice::from_ref(z), std::slice::from_ref(u), by);
        }
        for (z, u) in zs.zip(us) {
            lanes.add::<S>(z, u, by);
        }
        let (lanes, rest) = (lanes.total(), rest.total());
        let [student, student_soft, teacher_soft, ahead_student, ahead_teacher] =
            std::array::from_fn(|i| lanes[i] + rest[i]);
        Sums {
            inverse,
            ln_student: max_student + student.ln(),
            ln_student_soft: max_student * inverse + student_soft.ln(),
            ln_teacher_soft: max_teacher * inverse + teacher_soft.ln(),
            ahead_student: ahead_student / student_soft,
            ahead_teacher: ahead_teacher / teacher_soft,
        }
    }
}

kernel! {
    /// Replaces `z` by `scale ((1 - w + 2 z_loss ln Z) softmax(z) + w T d)`, where `d` is `q - p` of the forward divergence, and of the
    /// reverse one `q (ln q - ln p - divergence)`: `q` and `p` are student and teacher at the temperature.
    fn gradient<S>(z: &mut [f32], u: &[f32], sums: &Sums, how: Distillation, objective: Objective) {
        let Objective { scale, z_loss } = objective;
        let hard = scale * (1.0 - how.weight + 2.0 * z_loss * sums.ln_student);
        let soft = scale * how.weight * how.temperature;
        let (inverse, student) = (sums.inverse, sums.ln_student);
        let (ln_q, ln_p) = (sums.ln_student_soft, sums.ln_teacher_soft);
        match how.direction {
            Direction::Forward => for (z, u) in z.iter_mut().zip(u) {
                let (q, p) = (exp::<S>(*z * inverse - ln_q), exp::<S>(*u * inverse - ln_p));
                *z = hard * exp::<S>(*z - student) + soft * (q - p);
            },
            // `ln q - ln p - divergence` is the mean of `ahead` less that of the class.
            Direction::Reverse => for (z, u) in z.iter_mut().zip(u) {
                let q = exp::<S>(*z * inverse - ln_q);
                let behind = sums.ahead_student - (*u - *z) * inverse;
                *z = hard * exp::<S>(*z - student) + soft * q * behind;
            },
        }
    }
}
