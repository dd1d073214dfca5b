//! A rotated model is the same function: kernels against their definition, whole models by their logits.

mod common;

use common::{Rng, close, fixture, on_every_isa, on_this_isa, transpose, wide};
use ternlm::config::{Activation, ModelConfig, Scope, TernaryConfig};
use ternlm::kernels::{Hadamard, scale_columns};
use ternlm::model::{self, Decoder, Latents, Role, Sequences, State};
use ternlm::ternary::Grouping;

/// `R`, row-major, from the definition.
fn matrix(width: usize) -> Vec<f64> {
    let turn = Hadamard::new(width);
    let mut r = vec![0.0; width * width];
    for (at, size) in turn.blocks() {
        for i in 0..size {
            for j in 0..size {
                let sign = if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                r[(at + i) * width + at + j] = sign * turn.signs()[at + j] as f64 / (size as f64).sqrt();
            }
        }
    }
    r
}

fn product(a: &[f64], b: &[f64], k: usize, n: usize) -> Vec<f64> {
    ternlm::kernels::reference::matmul(a, b, a.len() / k, k, n)
}

#[test]
fn rotations_are_products_with_an_orthogonal_matrix() {
    let blocks = |width| Hadamard::new(width).blocks().iter().map(|b| b.1).collect::<Vec<_>>();
    assert_eq!(blocks(576), [128, 128, 128, 128, 64]);
    assert_eq!((blocks(64), blocks(7), blocks(200)), (vec![64], vec![4, 2, 1], vec![128, 64, 8]));
    let signs = Hadamard::new(128).signs().iter().filter(|s| **s < 0.0).count();
    assert!((40..=88).contains(&signs), "{signs} of 128 are negative");
    on_every_isa(|rng| {
        for width in [1, 2, 7, 64, 200, 576] {
            let r = matrix(width);
            let unit: Vec<f32> = (0..width * width).map(|i| (i % (width + 1) == 0) as u8 as f32).collect();
            let square: Vec<f32> =
                product(&r, &transpose(&r, width, width), width, width).iter().map(|x| *x as f32).collect();
            close(&square, &wide(&unit), width, "R Rᵀ");
            let turn = Hadamard::new(width);
            let x = rng.normal(3 * width);
            let mut rows = x.clone();
            turn.rows(&mut rows);
            close(&rows, &product(&wide(&x), &transpose(&r, width, width), width, width), width, "rows");
            let mut columns = x.clone();
            turn.columns(&mut columns, 3);
            close(&columns, &product(&r, &wide(&x), width, 3), width, "columns");
            let gain = rng.normal(width);
            let mut scaled = x.clone();
            scale_columns(&mut scaled, &gain);
            assert!(scaled.iter().enumerate().all(|(i, y)| *y == x[i] * gain[i % width]));
        }
    });
}

/// Everything that a model without BitNet's norms may have.
fn shapes() -> Vec<ModelConfig> {
    let first = ModelConfig {
        vocab_size: 23,
        hidden_size: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        intermediate_size: 56,
        tie_embeddings: true,
        rope_theta: 100.0,
        rms_norm_eps: 1e-5,
        max_positions: 16,
        ..ModelConfig::default()
    };
    let more = ModelConfig {
        activation: Activation::Gelu,
        qk_norm: true,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        tie_embeddings: false,
        ..first.clone()
    };
    vec![first, more]
}

#[test]
fn a_rotated_model_has_the_same_logits() {
    let _isa = on_this_isa();
    for config in shapes() {
        let mut rng = Rng::new(3);
        let mut decoder = Decoder::new(&config, Scope::None, Grouping::default());
        Latents::random(decoder.weights_mut(), 5, None).unwrap();
        for weight in decoder.weights_mut().filter(|w| matches!(w.role, Role::Gain | Role::Bias)) {
            let values: Vec<f32> = rng.normal(weight.len()).iter().map(|x| 1.0 + 0.5 * x).collect();
            weight.dense_mut().copy_from_slice(&values);
        }
        let (tokens, seqs) = (vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3], Sequences::new(2, 5));
        let logits = |decoder: &Decoder| decoder.logits(&tokens, seqs, &mut State::default());
        let before = logits(&decoder);
        let old = decoder.clone();
        model::rotate(&mut decoder).unwrap();
        assert!(!decoder.config.tie_embeddings);
        // Rounding errors of a few hundred operations on the way.
        close(&logits(&decoder), &wide(&before), 2000, "logits");
        let gains = decoder.weights().filter(|w| w.role == Role::Gain && !w.name.contains("_norm.weight"));
        assert!(gains.flat_map(|w| w.dense()).all(|g| *g == 1.0));
        for (was, is) in old.weights().zip(decoder.weights()).filter(|(w, _)| w.role.is_matrix()) {
            assert_ne!(was.dense(), is.dense(), "{} was not turned", was.name);
        }
        assert!(decoder.weights().enumerate().all(|(place, w)| w.index() == place));
    }
    let mut bitnet =
        Decoder::new(&ModelConfig { sub_norm: true, ..shapes().remove(0) }, Scope::None, Grouping::default());
    assert!(model::rotate(&mut bitnet).unwrap_err().to_string().contains("norms before the output"));
}

#[test]
fn a_rotated_start_is_the_projection_of_the_rotated_model() {
    let _isa = on_this_isa();
    let dir = fixture("architectures/smollm2");
    let ternary = TernaryConfig { scope: Scope::Blocks, ..TernaryConfig::default() };
    let (started, latents) = model::load_rotated_to_train(&dir, &ternary).unwrap();
    let in_full = TernaryConfig { scope: Scope::None, ..TernaryConfig::default() };
    let mut turned = model::load(&dir, Some(&in_full)).unwrap().decoder;
    model::rotate(&mut turned).unwrap();
    assert_eq!(started.description.model, turned.config);
    for (weight, turned) in started.decoder.weights().zip(turned.weights()) {
        assert_eq!((&weight.name, latents.of(weight)), (&turned.name, turned.dense()));
        assert_eq!(weight.ternary().is_some(), weight.role.is_projection(), "{}", weight.name);
    }
    // What is written is read again, without a word of a tied head.
    let out = tempfile::tempdir().unwrap();
    model::save(out.path(), &started.decoder, &started.description, None).unwrap();
    let read = model::load(out.path(), None).unwrap();
    assert!(!read.description.said_tied && !read.decoder.config.tie_embeddings);
}
