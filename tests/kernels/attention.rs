//! Attention forwards and backwards, of rows and of pages.

use ternlm::config::{KvFormat, Precision};
use ternlm::kernels::{
    self as k, Attended, AttentionGradients, AttentionShape, AttentionSpan, Heads, KvMemory, KvPage, KvRows,
    PAGE, Positions, reference,
};

use super::common::{At, attention_gradient_rows, attention_row, close, on_every_isa, wide};

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
