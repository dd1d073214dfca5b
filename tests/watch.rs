//! What a training says of its ternary weights, against a count by hand.

use ternlm::config::Recipe;
use ternlm::train::{self, NEAR, Share, Trainer};

const RECIPE: &str = r#"
name = "tiny"
task = "copy"
seed = 3
[model]
vocab_size = 16
hidden_size = 40
layers = 1
heads = 2
kv_heads = 1
head_dim = 20
intermediate_size = 56
max_positions = 32
[ternary]
group = 24
[train]
steps = 40
batch = 4
seq = 12
lr = 2e-2
log_every = 5
"#;

/// Trits of every ternary tensor.
fn trits(trainer: &Trainer) -> Vec<Vec<i8>> {
    let of = |t: &ternlm::ternary::TernaryMatrix| {
        (0..t.rows()).flat_map(|r| (0..t.cols()).map(move |c| t.trit(r, c))).collect()
    };
    trainer.model.decoder.weights().filter_map(|w| w.ternary()).map(of).collect()
}

/// Latents of every ternary tensor.
fn latents(trainer: &Trainer) -> Vec<Vec<f32>> {
    let ternary = trainer.model.decoder.weights().filter(|w| w.ternary().is_some());
    ternary.map(|w| trainer.latents.of(w).to_vec()).collect()
}

fn differing(a: &[i8], b: &[i8]) -> u64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
}

#[test]
fn what_is_said_is_what_happened() {
    let recipe: Recipe = toml::from_str(RECIPE).unwrap();
    let mut trainer = train::setup_random(recipe, Share::WHOLE).unwrap();
    let start = trits(&trainer);
    trainer.tensor_points();
    let mut seen_undone = 0;
    for round in 0..6 {
        let before = trits(&trainer);
        let mut changes = vec![0; start.len()];
        let mut now = before.clone();
        let mut last = Vec::new();
        for _ in 0..5 {
            last = latents(&trainer);
            trainer.step(true).unwrap();
            let next = trits(&trainer);
            for (tensor, changes) in changes.iter_mut().enumerate() {
                *changes += differing(&now[tensor], &next[tensor]);
            }
            now = next;
        }
        let points = trainer.tensor_points();
        let ternary = trainer.model.decoder.weights().filter(|w| w.ternary().is_some());
        for (tensor, (weight, point)) in ternary.zip(&points).enumerate() {
            assert_eq!(point.name, weight.name);
            assert_eq!(point.to_zero + point.from_zero + point.sign_flips, changes[tensor], "{}", point.name);
            let count = now[tensor].len() as f64;
            assert_eq!(point.moved, Some(differing(&start[tensor], &now[tensor]) as f64 / count));
            let left = differing(&before[tensor], &now[tensor]);
            let undone =
                (changes[tensor] > 0).then(|| (changes[tensor] - left) as f64 / changes[tensor] as f64);
            assert_eq!(point.undone, undone, "{} in round {round}", point.name);
            seen_undone += undone.is_some_and(|share| share > 0.0) as u32;
            let (matrix, latents) = (weight.ternary().unwrap(), trainer.latents.of(weight));
            let near = latents.iter().enumerate().filter(|(i, w)| {
                let half = 0.5 * matrix.scale(i / matrix.cols(), i % matrix.cols());
                (w.abs() - half).abs() <= NEAR * half
            });
            assert_eq!(point.near, Some(near.count() as f64 / count), "{}", point.name);
            let squares = latents.iter().zip(&last[tensor]).map(|(a, b)| (*a as f64 - *b as f64).powi(2));
            let scales =
                matrix.scales().iter().map(|s| f64::from(*s)).sum::<f64>() / matrix.scales().len() as f64;
            let (found, wanted) = (point.rms_update.unwrap(), (squares.sum::<f64>() / count).sqrt() / scales);
            assert!((found - wanted).abs() < 1e-4 * wanted, "{}: {found}, wanted {wanted}", point.name);
        }
    }
    assert!(seen_undone > 0, "no trit went and came back: the test says nothing of it");
}
