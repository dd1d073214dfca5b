//! Every kernel but products on every instruction set of this machine against the plain f64 reference.

mod common;

use common::{At, Rng, attention_gradient_rows, attention_row, close, frequencies, on_every_isa, wide};
use ternlm::config::{KvFormat, MomentFormat, Precision};
use ternlm::kernels::{
    self as k, Attended, AttentionGradients, AttentionShape, AttentionSpan, Heads, KvMemory, KvPage, KvRows,
    Latents, Moments, PAGE, Pass, Positions, RopeTable, Rule, Turn, reference,
};
use ternlm::ternary::{Grouping, TernaryMatrix};

#[test]
fn the_projection_equals_its_definition_bit_for_bit() {
    on_every_isa(|rng| {
        for (rows, cols) in [(1, 1), (3, 15), (2, 16), (5, 128), (33, 130), (4, 257), (40, 1000)] {
            for group in [Grouping::Size(128), Grouping::Size(7), Grouping::Size(1), Grouping::Tensor] {
                let mut latent = rng.normal(rows * cols);
                // Ties, zeros, a dead group, and values that vanish in f16.
                for (i, w) in latent.iter_mut().enumerate() {
                    match i % 11 {
                        0 => *w = 0.0,
                        1 => *w = -0.0,
                        2 => *w = 0.5,
                        3 => *w = -0.25,
                        _ => {}
                    }
                }
                latent.iter_mut().take(cols.min(128)).for_each(|w| *w *= 1e-9);
                // A group whose scale is 1, half of it at the threshold of 0.5, and what is next to that.
                if let Some(group) = latent.get_mut(cols..cols + 128).filter(|_| cols >= 128) {
                    for (i, w) in group.iter_mut().enumerate() {
                        let size = [0.5f32, 1.5, 0.5f32.next_up(), 1.5f32.next_down()][i % 4];
                        *w = if i % 3 == 0 { -size } else { size };
                    }
                }
                let want = TernaryMatrix::project("w", &latent, rows, cols, group).unwrap();
                let mut got = TernaryMatrix::zeros(rows, cols, group);
                let flips = k::project("w", &latent, group, &mut got).unwrap();
                assert_eq!(got, want, "[{rows}, {cols}] by {group}");
                let stats = ternlm::ternary::Stats::of(&got);
                assert_eq!(flips.from_zero, stats.minus + stats.plus);
                assert_eq!(k::project("w", &latent, group, &mut got).unwrap().total(), 0);
            }
        }
        let mut out = TernaryMatrix::zeros(2, 130, Grouping::default());
        let mut latent = vec![1.0f32; 260];
        latent[259] = f32::NAN;
        let error = k::project("the_tensor", &latent, Grouping::default(), &mut out).unwrap_err().to_string();
        assert!(error.contains("the_tensor") && error.contains("row 1, column 129"), "{error}");
    });
}

#[test]
fn attention_equals_the_reference() {
    on_every_isa(|rng| {
        for (queries, keys, causal) in
            [(1, 1, true), (5, 5, true), (70, 70, true), (130, 130, false), (1, 90, true), (3, 67, true)]
        {
            for (heads, kv_heads, dim) in
                [(1, 1, 2), (4, 2, 8), (6, 1, 20), (2, 2, 64), (2, 1, 128), (2, 1, 40)]
            {
                let s = AttentionShape { batch: 2, queries, keys, heads, kv_heads, dim, causal };
                let (q, kk, v) = (
                    rng.normal(2 * queries * heads * dim),
                    rng.normal(2 * keys * kv_heads * dim),
                    rng.normal(2 * keys * kv_heads * dim),
                );
                let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![0.0; 2 * heads * queries]);
                k::attention(&s, Precision::F32, &q, &kk, &v, &mut out, &mut lse);
                close(
                    &out,
                    &reference::attention(&s, &wide(&q), &wide(&kk), &wide(&v)),
                    4 * dim,
                    "attention",
                );
            }
        }
    });
}

/// Keys or values in pages, as a cache keeps them, and what they are after rounding.
struct Paged {
    pages: Vec<KvMemory>,
    rounded: Vec<f64>,
}

impl Paged {
    fn new(format: KvFormat, heads: &Heads, x: &[f32]) -> Self {
        let (kv, dim) = (heads.kv_heads, heads.dim);
        let mut paged = Paged { pages: Vec::new(), rounded: Vec::new() };
        for rows in x.chunks(PAGE * kv * dim) {
            let mut page = KvMemory::zeros(format, 2, kv, dim);
            // What stands behind the last key of a page is never read.
            page.write(1, 0, &vec![f32::NAN; PAGE * kv * dim]);
            page.write(1, 0, rows);
            for at in 0..rows.len() / (kv * dim) {
                for head in 0..kv {
                    let of_row = at * dim..(at + 1) * dim;
                    match page.section(1).head(head) {
                        KvRows::F32(x) => paged.rounded.extend(wide(&x[of_row])),
                        KvRows::F16(x) => paged.rounded.extend(x[of_row].iter().map(|x| x.to_f64())),
                        KvRows::Int8 { codes, scales } => {
                            let scale = scales[at] as f64;
                            paged.rounded.extend(codes[of_row].iter().map(|code| *code as f64 * scale));
                        }
                    }
                }
            }
            paged.pages.push(page);
        }
        paged
    }

    fn views(&self) -> Vec<KvPage<'_>> {
        self.pages.iter().map(|page| page.section(1)).collect()
    }
}

/// Spans of different lengths whose keys and values stand in pages of every format, against one sequence at a time.
#[test]
fn attention_of_spans_in_pages_equals_the_reference() {
    on_every_isa(|rng| {
        for (format, dim) in [
            (KvFormat::F32, 12),
            (KvFormat::F16, 76),
            (KvFormat::Int8, 12),
            (KvFormat::Int8, 64),
            (KvFormat::F16, 128),
            (KvFormat::F32, 40),
        ] {
            let heads = Heads { heads: 4, kv_heads: 2, dim, causal: true, precision: Precision::F32 };
            let (width, kv_width) = (4 * dim, 2 * dim);
            // The last ones are cut into parts, which the first query does not all see.
            let sizes =
                [(1, 1), (1, 2 * PAGE), (5, PAGE + 3), (40, 40), (130, 3 * PAGE + 17), (3, 16 * PAGE + 1)];
            let rows: usize = sizes.iter().map(|(queries, _)| queries).sum();
            let q = rng.normal(rows * width);
            let kept: Vec<[Paged; 2]> = sizes
                .iter()
                .map(|(_, keys)| [(); 2].map(|_| Paged::new(format, &heads, &rng.normal(keys * kv_width))))
                .collect();
            let views: Vec<[Vec<KvPage>; 2]> =
                kept.iter().map(|kv| [0, 1].map(|i: usize| kv[i].views())).collect();
            let spans: Vec<AttentionSpan> = sizes
                .iter()
                .zip(&views)
                .map(|(&(queries, keys), [k, v])| AttentionSpan {
                    queries,
                    keys,
                    k: Positions::Pages(k),
                    v: Positions::Pages(v),
                })
                .collect();
            let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; rows * heads.heads]);
            k::attention_spans(heads, &spans, &q, &mut out, &mut lse);
            let mut row = 0;
            for (((queries, keys), [k, v]), span) in sizes.into_iter().zip(&kept).zip(&spans) {
                let part = row * width..(row + queries) * width;
                let Heads { heads: h, kv_heads, dim, causal, .. } = heads;
                let s = AttentionShape { batch: 1, queries, keys, heads: h, kv_heads, dim, causal };
                let want = reference::attention(&s, &wide(&q[part.clone()]), &k.rounded, &v.rounded);
                close(&out[part], &want, 4 * dim, &format!("{format:?}, {queries} queries of {keys} keys"));
                // A few queries get what each gets alone, to the bit: what speculation accepts is what would be made.
                for i in 0..if queries < 16 { queries } else { 0 } {
                    let alone = AttentionSpan { queries: 1, keys: keys - queries + i + 1, ..*span };
                    let at = (row + i) * width..(row + i + 1) * width;
                    let (mut one, mut lse) = (vec![f32::NAN; width], vec![f32::NAN; heads.heads]);
                    k::attention_spans(heads, &[alone], &q[at.clone()], &mut one, &mut lse);
                    assert!(one == out[at], "{format:?}: query {i} of {queries} after {keys} keys");
                }
                row += queries;
            }
            assert!(lse.iter().all(|x| x.is_finite()));
        }
    });
}

/// Many tiles, the last of them short: what is carried from tile to tile is right to the end of a long sequence.
#[test]
fn long_attention_and_its_gradients_equal_the_reference_at_a_few_rows() {
    on_every_isa(|rng| {
        for causal in [true, false] {
            let t = 1100;
            let s = AttentionShape { batch: 2, queries: t, keys: t, heads: 4, kv_heads: 2, dim: 16, causal };
            let (width, kv_width) = (s.heads * s.dim, s.kv_heads * s.dim);
            let (q, kk, v, dout) = (
                // Larger scores than usual: soft-maxes with a few large terms, and new maxima late in a row.
                rng.normal(2 * t * width).iter().map(|x| 3.0 * x).collect::<Vec<_>>(),
                rng.normal(2 * t * kv_width),
                rng.normal(2 * t * kv_width),
                rng.normal(2 * t * width),
            );
            let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; 2 * s.heads * t]);
            k::attention(&s, Precision::F32, &q, &kk, &v, &mut out, &mut lse);
            let (mut dq, mut dk, mut dv) =
                (vec![f32::NAN; q.len()], vec![f32::NAN; kk.len()], vec![f32::NAN; v.len()]);
            let forward = Attended { q: &q, k: &kk, v: &v, out: &out, lse: &lse };
            let grads = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            k::attention_backward(&s, Precision::F32, forward, &dout, grads);

            let (q, kk, v, dout) = (wide(&q), wide(&kk), wide(&v), wide(&dout));
            for (b, i) in [(0, 0), (0, 63), (1, 64), (1, 777), (0, 1087), (1, t - 1)] {
                let row = (b * t + i) * width;
                let want = attention_row(&s, &q, &kk, &v, b, i);
                close(&out[row..row + width], &want, s.dim + t, &format!("query {i}, causal {causal}"));
            }
            for at in [
                At { b: 0, kv: 0, i: 63, j: 0 },
                At { b: 1, kv: 1, i: 640, j: 639 },
                At { b: 1, kv: 0, i: t - 1, j: 1087 },
                At { b: 0, kv: 1, i: 1088, j: t - 1 },
            ] {
                let [want_q, want_k, want_v] = attention_gradient_rows(&s, &q, &kk, &v, &dout, at);
                let share = s.heads / s.kv_heads;
                let query = ((at.b * t + at.i) * s.heads + at.kv * share) * s.dim;
                let key = ((at.b * t + at.j) * s.kv_heads + at.kv) * s.dim;
                let terms = s.dim + share * t;
                close(&dq[query..][..share * s.dim], &want_q, terms, &format!("dq, {at:?}, causal {causal}"));
                close(&dk[key..][..s.dim], &want_k, terms, &format!("dk, {at:?}, causal {causal}"));
                close(&dv[key..][..s.dim], &want_v, terms, &format!("dv, {at:?}, causal {causal}"));
            }
        }
    });
}

/// Two parts of queries, a group of heads larger than a tile, fewer queries than keys.
#[test]
fn gradients_of_attention_are_the_same_for_any_number_of_threads() {
    on_every_isa(|rng| {
        for (queries, keys, heads, kv_heads, dim) in
            [(1030, 1100, 2, 1, 20), (1024, 1024, 3, 3, 8), (40, 41, 300, 1, 3), (3, 200, 4, 2, 16)]
        {
            for causal in [true, false] {
                let s = AttentionShape { batch: 1, queries, keys, heads, kv_heads, dim, causal };
                let (q_len, k_len) = (queries * heads * dim, keys * kv_heads * dim);
                let [q, kk, v, dout] = [q_len, k_len, k_len, q_len].map(|n| rng.normal(n));
                let run = |threads: usize| {
                    let (mut out, mut lse) = (vec![f32::NAN; q_len], vec![f32::NAN; heads * queries]);
                    let [mut dq, mut dk, mut dv] = [q_len, k_len, k_len].map(|n| vec![f32::NAN; n]);
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| {
                        k::attention(&s, Precision::F32, &q, &kk, &v, &mut out, &mut lse);
                        let forward = Attended { q: &q, k: &kk, v: &v, out: &out, lse: &lse };
                        let grads = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
                        k::attention_backward(&s, Precision::F32, forward, &dout, grads);
                    });
                    [out, lse, dq, dk, dv]
                };
                let got = run(1);
                for threads in [2, 5] {
                    assert!(got == run(threads), "{s:?}, {threads} threads");
                }
                let [_, _, dq, dk, dv] = got;
                let (q, kk, v, dout) = (wide(&q), wide(&kk), wide(&v), wide(&dout));
                for (i, j) in [(0, 0), (queries - 1, keys - 1), (queries / 2, keys / 2)] {
                    let at = At { b: 0, kv: kv_heads - 1, i, j };
                    let [want_q, want_k, want_v] = attention_gradient_rows(&s, &q, &kk, &v, &dout, at);
                    let share = heads / kv_heads;
                    let (query, key) = ((i * heads + at.kv * share) * dim, (j * kv_heads + at.kv) * dim);
                    let terms = dim + share * keys;
                    if causal && i + keys == queries {
                        // One key alone has no gradient: what is left is the rounding of two equal dot products.
                        let most = |x: &[f64]| x.iter().fold(0f64, |a, b| a.max(b.abs()));
                        let product = (dim as f64).sqrt() * most(&dout) * most(&v) * most(&kk);
                        let bound = 4.0 * (dim as f64).sqrt() * f32::EPSILON as f64 * product;
                        assert!(most(&want_q) < 1e-12 && most(&wide(&dq[query..][..share * dim])) < bound);
                    } else {
                        close(&dq[query..][..share * dim], &want_q, terms, &format!("dq, {at:?} of {s:?}"));
                    }
                    close(&dk[key..][..dim], &want_k, terms, &format!("dk, {at:?} of {s:?}"));
                    close(&dv[key..][..dim], &want_v, terms, &format!("dv, {at:?} of {s:?}"));
                }
            }
        }
    });
}

#[test]
fn elementwise_kernels_equal_the_reference() {
    on_every_isa(|rng| {
        for n in [1, 15, 64, 1000, 40_000] {
            let (x, y): (Vec<f32>, Vec<f32>) =
                (rng.normal(n).iter().map(|x| 4.0 * x).collect(), rng.normal(n));
            let mut out = vec![f32::NAN; n];
            k::silu_mul(&x, &y, &mut out);
            let want: Vec<f64> =
                x.iter().zip(&y).map(|(x, y)| reference::silu(*x as f64) * *y as f64).collect();
            close(&out, &want, 4, "silu_mul");
            k::relu2_mul(&x, &y, &mut out);
            let want: Vec<f64> =
                x.iter().zip(&y).map(|(x, y)| reference::relu2(*x as f64) * *y as f64).collect();
            close(&out, &want, 4, "relu2_mul");
            k::gelu(&x, &mut out);
            close(&out, &x.iter().map(|x| reference::gelu(*x as f64)).collect::<Vec<_>>(), 4, "gelu");
            k::relu2(&x, &mut out);
            close(&out, &x.iter().map(|x| reference::relu2(*x as f64)).collect::<Vec<_>>(), 4, "relu2");
            k::copy(&mut out, &x);
            assert!(out == x, "copy");
            let mut added = y.clone();
            k::absorb(&mut out, &mut added);
            assert!(out.iter().zip(x.iter().zip(&y)).all(|(sum, (x, y))| *sum == x + y), "absorb");
            assert!(added.iter().all(|x| *x == 0.0), "absorb leaves zeros");
            let squares: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
            assert!((k::sum_squares(&x) - squares).abs() <= 1e-12 * squares);
        }
        // The extremes: no overflow, no NaN made of finite numbers, and NaN stays NaN.
        let x = [-1e30, -100.0, -87.0, 0.0, 87.0, 100.0, 1e30, f32::NAN];
        let mut out = [0.0; 8];
        k::silu_mul(&x, &[1.0; 8], &mut out);
        for (x, y) in x.iter().zip(&out) {
            let want = reference::silu(*x as f64);
            assert!(
                if x.is_nan() {
                    y.is_nan()
                } else {
                    (*y as f64 - want).abs() <= 1e-6 * x.abs().max(1.0) as f64
                },
                "silu({x}) = {y}"
            );
        }
    });
}

#[test]
fn norm_rope_and_cross_entropy_equal_the_reference() {
    on_every_isa(|rng| {
        for (rows, width) in [(1, 2), (3, 17), (70, 64), (200, 36)] {
            let (x, gain) = (rng.normal(rows * width), rng.normal(width));
            let mut y = vec![f32::NAN; x.len()];
            k::rms_norm(&x, &gain, 1e-6, &mut y);
            close(&y, &reference::rms_norm(&wide(&x), &wide(&gain), 1e-6), width, "rms_norm");
            if width % 2 == 0 {
                let frequencies = frequencies(width, 1e4);
                let table = RopeTable::new(rows, &frequencies, 1.25);
                let mut y = x.clone();
                let positions: Vec<u32> = (0..rows as u32).collect();
                k::rope(&mut y, 1, &table, &positions, Turn::Forward);
                // Position times frequency is rounded in f32, as in the models.
                close(&y, &reference::rope(&wide(&x), 1, &frequencies, 1.25, rows), rows, "rope");
                k::rope(&mut y, 1, &table, &positions, Turn::Backward);
                let twice: Vec<f64> = x.iter().map(|x| 1.5625 * *x as f64).collect();
                close(&y, &twice, 8, "rope there and back");
            }
            let targets: Vec<u32> =
                (0..rows as u32).map(|r| if r % 5 == 4 { k::IGNORE } else { r * 7 % width as u32 }).collect();
            let mut logits: Vec<f32> = x.iter().map(|x| 5.0 * x).collect();
            let mut loss = vec![f32::NAN; rows];
            let before = wide(&logits);
            let rows_of = |r: usize| &before[r * width..(r + 1) * width];
            let want: Vec<f64> = (0..rows)
                .map(|r| {
                    if targets[r] == k::IGNORE {
                        0.0
                    } else {
                        reference::cross_entropy(rows_of(r), targets[r] as usize)
                    }
                })
                .collect();
            // A loss is the difference of two numbers as large as the logits, and as exact as these.
            let scale = logits.iter().fold(0f32, |most, x| most.max(x.abs()));
            let close_losses = |loss: &[f32], what| {
                let want: Vec<f64> = want.iter().copied().chain([scale as f64]).collect();
                close(&[loss, &[scale]].concat(), &want, 16, what);
            };
            k::cross_entropy(&mut logits.clone(), width, width, &targets, None, &mut loss);
            close_losses(&loss, "loss");
            // Rows that stand apart, with what must be neither read nor written between them.
            let stride = width + 2;
            let mut apart: Vec<f32> =
                logits.chunks(width).flat_map(|row| [row, &[f32::NAN, 7.0]].concat()).collect();
            k::cross_entropy(&mut apart, width, stride, &targets, Some(k::Objective::scaled(0.5)), &mut loss);
            close_losses(&loss, "loss with gradient");
            assert!(apart.chunks(stride).all(|row| row[width].is_nan() && row[width + 1] == 7.0));
            logits = apart.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
            for r in 0..rows {
                let sum: f64 = rows_of(r).iter().map(|x| x.exp()).sum();
                let grad: Vec<f64> = rows_of(r)
                    .iter()
                    .enumerate()
                    .map(|(c, x)| match targets[r] {
                        k::IGNORE => 0.0,
                        t => 0.5 * (x.exp() / sum - (c == t as usize) as u8 as f64),
                    })
                    .collect();
                // The error is that of the soft-max, not of what is left after 1 is taken off: measured against the scale.
                let got: Vec<f32> = logits[r * width..(r + 1) * width].iter().copied().chain([0.5]).collect();
                close(&got, &grad.into_iter().chain([0.5]).collect::<Vec<_>>(), 16, "dlogits");
            }
        }
    });
}

fn latents<'a>(
    cols: usize,
    value: &'a mut [f32],
    grad: &'a mut [f32],
    ternary: Option<(Grouping, &'a mut TernaryMatrix)>,
) -> Latents<'a> {
    Latents { name: "the_tensor", cols, value, grad, ternary }
}

const ADAMW: k::AdamW =
    k::AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 3 };

#[test]
fn optimizer_steps_equal_the_formulas() {
    on_every_isa(|rng| {
        let n = 20_001; // 339 rows of 59
        let update = |rule: Rule, p: &mut [f32], g: &[f32], moments: &mut Moments| {
            k::update(&rule, latents(59, p, &mut g.to_vec(), None), moments, Pass::default()).unwrap();
        };
        let (mut p, g) = (rng.normal(n), rng.normal(n));
        let (first, second) = (rng.normal(n), rng.normal(n).iter().map(|x| x * x).collect::<Vec<_>>());
        let mut moments = Moments::F32 { first: first.clone(), second: second.clone() };
        let want: Vec<f64> = (0..n)
            .map(|i| {
                let g = 0.5 * g[i] as f64;
                let m = 0.9 * first[i] as f64 + 0.1 * g;
                let v = 0.95 * second[i] as f64 + 0.05 * g * g;
                let (mh, vh) = (m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.95f64.powi(3)));
                p[i] as f64 * (1.0 - 1e-3) - 1e-2 * mh / (vh.sqrt() + 1e-8)
            })
            .collect();
        update(Rule::AdamW(ADAMW), &mut p, &g, &mut moments);
        close(&p, &want, 64, "adamw");
        let (mut p, b) = (rng.normal(n), rng.normal(n));
        let mut moments = Moments::F32 { first: b.clone(), second: Vec::new() };
        let want: Vec<f64> = (0..n)
            .map(|i| p[i] as f64 - 0.02 * (0.9 * b[i] as f64 + 0.5 * g[i] as f64 + 0.1 * p[i] as f64))
            .collect();
        let sgd = Rule::Sgd { lr: 0.02, momentum: 0.9, weight_decay: 0.1, grad_scale: 0.5 };
        update(sgd, &mut p, &g, &mut moments);
        close(&p, &want, 8, "sgd");
        let mut moments = Moments::F32 { first: b.clone(), second: Vec::new() };
        let want: Vec<f64> =
            (0..n).map(|i| 0.5 * g[i] as f64 + 0.9 * (0.9 * b[i] as f64 + 0.5 * g[i] as f64)).collect();
        update(Rule::Momentum { momentum: 0.9, grad_scale: 0.5 }, &mut p, &g, &mut moments);
        close(&p, &want, 8, "momentum");
        let want: Vec<f64> = p.iter().zip(&g).map(|(p, g)| 0.75 * *p as f64 - 0.5 * *g as f64).collect();
        update(Rule::Add { keep: 0.75, step: -0.5 }, &mut p, &g, &mut Moments::default());
        close(&p, &want, 4, "add");
    });
}

#[test]
fn a_pass_of_the_optimizer_is_update_then_projection() {
    on_every_isa(|rng| {
        // One row; strips of one row; strips of many rows; rows that end within a word of codes.
        for (rows, cols) in [(1, 37), (3, 9000), (40, 1000), (1001, 17)] {
            for group in [Grouping::Size(128), Grouping::Size(7), Grouping::Tensor] {
                let n = rows * cols;
                let (before, g) = (rng.normal(n), rng.normal(n));
                let rule = Rule::AdamW(k::AdamW { step: 1, ..ADAMW });
                let (mut p, mut grad, mut moments) =
                    (before.clone(), g.clone(), Moments::zeros(MomentFormat::F32, 2, rows, cols));
                let tensor = latents(cols, &mut p, &mut grad, None);
                k::update(&rule, tensor, &mut moments, Pass::default()).unwrap();
                assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");
                let mut want = TernaryMatrix::project("w", &before, rows, cols, group).unwrap();
                let mut got = want.clone();
                let flips = k::project("w", &p, group, &mut want).unwrap();

                let (mut fused, mut grad, mut same) =
                    (before.clone(), g, Moments::zeros(MomentFormat::F32, 2, rows, cols));
                let tensor = latents(cols, &mut fused, &mut grad, Some((group, &mut got)));
                let done =
                    k::update(&rule, tensor, &mut same, Pass { measure: true, ..Pass::default() }).unwrap();
                assert!(fused == p && got == want && done.flips == flips, "[{rows}, {cols}] by {group}");
                assert!(same == moments);
                assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");
                let squares: f64 = p.iter().zip(&before).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
                assert!((done.squares - squares).abs() <= 1e-12 * squares);
            }
        }
        let (mut p, mut grad) = (vec![1.0f32; 60_000], vec![0.0; 60_000]);
        grad[259] = f32::NAN;
        for group in [Grouping::default(), Grouping::Tensor] {
            let mut out = TernaryMatrix::zeros(60, 1000, group);
            let tensor = latents(1000, &mut p, &mut grad, Some((group, &mut out)));
            let rule = Rule::Add { keep: 1.0, step: 1.0 };
            let error =
                k::update(&rule, tensor, &mut Moments::default(), Pass::default()).unwrap_err().to_string();
            assert!(error.contains("the_tensor") && error.contains("row 0, column 259"), "{error}");
        }
    });
}

/// Moments of one tensor, encoded and decoded by the reference.
fn reference_moments(m: &[f32], v: &[f32], cols: usize, key: u32) -> (Moments, Vec<f32>, Vec<f32>) {
    let (mut first, mut second) = (k::Codes::default(), k::Codes::default());
    let (mut m_out, mut v_out) = (Vec::new(), Vec::new());
    for (row, (m, v)) in m.chunks(cols).zip(v.chunks(cols)).enumerate() {
        for (nth, (m, v)) in m.chunks(k::BLOCK).zip(v.chunks(k::BLOCK)).enumerate() {
            let at = row * cols + nth * k::BLOCK;
            let (codes, scale) = reference::encode_first_moments(m, key, at);
            m_out.extend(reference::decode_first_moments(&codes, scale));
            first.codes.extend(codes);
            first.scales.push(scale);
            let (codes, scale) = reference::encode_second_moments(v, key, at);
            v_out.extend(reference::decode_second_moments(&codes, scale));
            second.codes.extend(codes);
            second.scales.push(scale);
        }
    }
    (Moments::Int8 { first, second }, m_out, v_out)
}

#[test]
fn moments_of_8_bits_equal_their_definition_bit_for_bit() {
    on_every_isa(|rng| {
        // Rows shorter than a block and longer, several strips of several rows, a row that is a strip.
        for (rows, cols) in [(3, 7), (2, 128), (3, 130), (70, 300), (2, 9000)] {
            let n = rows * cols;
            let mut g = rng.normal(n);
            g.iter_mut().for_each(|g| *g *= (-8.0 * rng.uniform()).exp() as f32);
            // Zeros, the smallest sizes that there are beside ordinary ones, then a row of zeros or near it.
            g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
            g.iter_mut().skip(3).step_by(11).for_each(|g| *g *= 1e-20);
            let last = [0.0, 1e-42, 1e-30][rows % 3];
            g[n - cols..].iter_mut().for_each(|g| *g *= last);
            let zeros = Moments::zeros(MomentFormat::Int8, 2, rows, cols);
            let (mut p, mut grad, mut got) = (rng.normal(n), g.clone(), zeros.clone());
            // Without memory, moments are what the gradient says.
            let at_once = k::AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, grad_scale: 1.0, step: 1, ..ADAMW };
            let pass = Pass { measure: false, dither: 77, ..Pass::default() };
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(at_once), tensor, &mut got, pass).unwrap();
            let squares: Vec<f32> = g.iter().map(|g| g * g).collect();
            let (want, m, v) = reference_moments(&g, &squares, cols, 77);
            assert!(got == want, "[{rows}, {cols}]");
            // With memory alone, they are half of what was remembered, rounded by other numbers.
            let half = k::AdamW { beta1: 0.5, beta2: 0.5, step: 2, ..at_once };
            let pass = Pass { measure: false, dither: 78, ..Pass::default() };
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(half), tensor, &mut got, pass).unwrap();
            let halves = |x: &[f32]| x.iter().map(|x| 0.5 * x).collect::<Vec<_>>();
            let (want, m, v) = reference_moments(&halves(&m), &halves(&v), cols, 78);
            assert!(got == want, "[{rows}, {cols}], decoded and encoded again");

            // The latents move by moments as they are before they are rounded.
            let g = rng.normal(n);
            let want: Vec<f64> = (0..n)
                .map(|i| {
                    let g = 0.5 * g[i] as f64;
                    let (m, v) = (0.9 * m[i] as f64 + 0.1 * g, 0.95 * v[i] as f64 + 0.05 * g * g);
                    let (mh, vh) = (m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.95f64.powi(3)));
                    p[i] as f64 * (1.0 - 1e-3) - 1e-2 * mh / (vh.sqrt() + 1e-8)
                })
                .collect();
            let (mut grad, b) = (g.clone(), got.clone());
            let tensor = latents(cols, &mut p, &mut grad, None);
            k::update(&Rule::AdamW(ADAMW), tensor, &mut got, pass).unwrap();
            close(&p, &want, 64, "adamw");
            assert!(grad.iter().all(|g| *g == 0.0), "the gradient is zero afterwards");

            let Moments::Int8 { first, .. } = b else { unreachable!() };
            let mut b = Moments::Int8 { first, second: k::Codes::default() };
            let (mut grad, pass) = (g.clone(), Pass { measure: false, dither: 79, ..Pass::default() });
            let rule = Rule::Momentum { momentum: 0.5, grad_scale: 0.0 };
            k::update(&rule, latents(cols, &mut p, &mut grad, None), &mut b, pass).unwrap();
            close(&p, &m.iter().map(|m| 0.25 * *m as f64).collect::<Vec<_>>(), 4, "momentum");
            let Moments::Int8 { first: got, .. } = b else { unreachable!() };
            let (want, _, _) = reference_moments(&halves(&m), &halves(&v), cols, 79);
            assert!(
                matches!(want, Moments::Int8 { first, .. } if first == got),
                "[{rows}, {cols}], one moment"
            );
        }
    });
}

#[test]
fn moments_of_8_bits_are_right_in_the_mean() {
    let mut rng = Rng::new(1);
    let m: Vec<f32> = rng.normal(128).iter().map(|x| x * (-6.0 * rng.uniform()).exp() as f32).collect();
    let v: Vec<f32> = m.iter().map(|m| m * m).collect();
    const DRAWS: usize = 4000;
    let (mut m_sum, mut v_sum) = ([[0f64; 2]; 128], [[0f64; 2]; 128]);
    for step in 0..DRAWS as u64 {
        let (_, m, v) = reference_moments(&m, &v, 128, k::dither_key(step, 3));
        for (sums, values) in [(&mut m_sum, &m), (&mut v_sum, &v)] {
            for ([sum, squares], x) in sums.iter_mut().zip(values) {
                *sum += *x as f64;
                *squares += (*x as f64).powi(2);
            }
        }
    }
    let scale = wide(&m).iter().fold(0f64, |a, x| a.max(x.abs()));
    for (what, sums, values, smallest) in
        [("first", m_sum, &m, scale / 16129.0), ("second", v_sum, &v, (scale / 65025.0).powi(2))]
    {
        for ([sum, squares], x) in sums.into_iter().zip(values).filter(|(_, x)| x.abs() as f64 > smallest) {
            let mean = sum / DRAWS as f64;
            let variance = (squares / DRAWS as f64 - mean * mean).max(0.0);
            // Five standard errors, and the rounding of f32.
            let bound = 5.0 * (variance / DRAWS as f64).sqrt() + 1e-5 * x.abs() as f64;
            assert!((mean - *x as f64).abs() <= bound, "{what} moment {x}: {mean} in the mean, +- {bound}");
        }
    }
}

#[test]
fn the_test_helper_can_fail() {
    let failed = std::panic::catch_unwind(|| close(&[1.0], &[1.001], 1, "x")).is_err();
    assert!(failed, "a difference of 1e-3 must not pass");
    let failed = std::panic::catch_unwind(|| close(&[f32::NAN], &[1.0], 1, "x")).is_err();
    assert!(failed, "NaN must not pass");
    let _ = Rng::new(1);
}

#[test]
fn a_cautious_update_keeps_what_agrees_with_the_gradient() {
    on_every_isa(|_| {
        let mut update = [1.0, -2.0, 3.0, -4.0, 5.0, 0.0, 7.0, 8.0];
        k::cautious(&mut update, &[2.0, 1.0, -1.0, -1e-20, 0.0, 3.0, f32::INFINITY, 1e-3]);
        // Four of eight are kept.
        assert_eq!(update, [2.0, 0.0, 0.0, -8.0, 0.0, 0.0, 14.0, 16.0]);
        let mut none = [1.0, -1.0];
        k::cautious(&mut none, &[-1.0, 1.0]);
        assert_eq!(none, [0.0; 2]);
    });
}
