//! One ternary layer, trained by hand to reproduce another: forward, loss, backward, AdamW, projection.
//!
//!     cargo run --release --example train_layer

use ternlm::config::MomentFormat;
use ternlm::kernels::{self, AdamW, Moments, Pass, Rule, To};
use ternlm::model::{Gradients, Latents, Linear, Role, Weight};
use ternlm::ternary::Grouping;

const N: usize = 256; // rows of a batch
const INPUTS: usize = 256;
const OUT: usize = 32;
const STEPS: u64 = 1000;

fn main() -> ternlm::Result<()> {
    let layer = |name| Linear::new(name, INPUTS, OUT, Role::FeedForward, Some(Grouping::Size(128)), false);
    let (mut teacher, mut student) = (layer("teacher"), layer("student"));
    Latents::random(teacher.weights_mut(), 0, None)?;
    // What a training keeps beside a weight: latents, gradients, moments.
    let mut latents = Latents::random(student.weights_mut(), 0, None)?;
    let mut grads = Gradients::zeros(student.weights());
    let x = Weight::new("x", &[N, INPUTS], Role::FeedForward, None); // here only for its random numbers
    let (mut y, mut target) = (vec![0.0; N * OUT], vec![0.0; N * OUT]);
    let mut dx = vec![0.0; N * INPUTS];
    let mut moments = Moments::zeros(MomentFormat::F32, 2, OUT, INPUTS);
    for step in 0..STEPS {
        let x = x.normal(1.0, step);
        teacher.forward(&x, &mut target, To::Set);
        student.forward(&x, &mut y, To::Set);

        // loss = sum (y - target)^2 / N, and its gradient by y.
        kernels::scale_add(1.0, &mut y, -1.0, &target);
        let loss = kernels::sum_squares(&y) / N as f64;
        let dy: Vec<f32> = y.iter().map(|error| 2.0 * error / N as f32).collect();

        student.backward(&x, &dy, &mut dx, &mut grads);
        let rule = Rule::AdamW(AdamW {
            lr: 5e-3 * (1.0 - step as f32 / STEPS as f32),
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
            step: step + 1,
        });
        // Latents, then trits and scales from them, then the gradient to zero: one pass.
        let grad = grads.of(&student.weight);
        latents.update(&mut student.weight, grad, |l| {
            kernels::update(&rule, l, &mut moments, Pass::default())
        })?;

        if step % 100 == 0 || step + 1 == STEPS {
            let (a, b) = (teacher.weight.ternary().unwrap(), student.weight.ternary().unwrap());
            let same = (0..OUT * INPUTS)
                .filter(|i| a.trit(i / INPUTS, i % INPUTS) == b.trit(i / INPUTS, i % INPUTS));
            let same = 100.0 * same.count() as f64 / (OUT * INPUTS) as f64;
            let flips = latents.take_flips(&student.weight).total();
            println!(
                "step {step:4}  loss {loss:9.5}  flips {flips:6}  trits like the teacher's {same:6.2} %"
            );
        }
    }
    Ok(())
}
