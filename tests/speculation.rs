//! Text with tokens proposed and judged several at a time: the same, token for token, as one at a time.

mod common;

use ternlm::config::{Inputs, KvFormat, ModelConfig, Scope};
use ternlm::generate::{Generated, Sampler, SamplingConfig, Session, Speculation};
use ternlm::model::{Decoder, Latents, Span, State, Wanted};
use ternlm::ternary::{Density, Grouping};
use ternlm::text::Tokenizer;

/// How weights are held, and what their inputs are rounded to.
const FORMS: [(Option<Density>, Inputs); 5] = [
    (Some(Density::TwoBit), Inputs::Int8),
    (Some(Density::Base3), Inputs::F32),
    (Some(Density::TwoBit), Inputs::F32),
    (None, Inputs::F32),
    (None, Inputs::Int8),
];

/// A model of bytes with random weights. `share` heads have keys in common.
fn random(seed: u64, (share, layers, positions): (usize, usize, usize), scope: Scope) -> Decoder {
    let config = ModelConfig {
        vocab_size: 256,
        hidden_size: 80,
        layers,
        heads: 2 * share,
        kv_heads: 2,
        head_dim: 24,
        intermediate_size: 112,
        qk_norm: true,
        max_positions: positions,
        ..ModelConfig::default()
    };
    let mut decoder = Decoder::new(&config, scope, Grouping::Size(48));
    Latents::random(decoder.weights_mut(), seed, None).unwrap();
    decoder
}

fn in_form(mut decoder: Decoder, (density, inputs): (Option<Density>, Inputs)) -> Decoder {
    decoder.set_inputs(inputs);
    if let Some(density) = density {
        decoder.weights_mut().for_each(|weight| weight.pack(density));
    }
    decoder
}

fn sampling(temperature: f32, seed: u64) -> SamplingConfig {
    SamplingConfig { temperature, seed, top_k: 5, repetition_penalty: 1.1, ..SamplingConfig::default() }
}

/// A text that goes round, as long as asked for.
fn prompt(len: usize) -> Vec<u32> {
    (0..len).map(|i| b"one two three, one two four; "[i % 29] as u32).collect()
}

fn session<'a>(decoder: &'a Decoder, tokenizer: &'a Tokenizer, speculation: Speculation<'a>) -> Session<'a> {
    let mut session = Session::new(decoder, tokenizer, KvFormat::F32);
    session.speculate(speculation).unwrap();
    session
}

fn generate(session: &mut Session<'_>, config: &SamplingConfig, limit: usize, stop: &[u32]) -> Generated {
    session.generate(&mut Sampler::new(config.clone()), limit, stop, &mut |_| true).unwrap()
}

/// Rows of a span, up to the promised number, have the bits of one row at a time, also where attention goes over pages and
/// parts; and so have the keys and values that they leave.
#[test]
fn rows_of_a_span_have_the_bits_of_one_at_a_time() {
    common::on_every_isa(|_| {
        for (share, scope) in [(1, Scope::All), (2, Scope::Blocks), (4, Scope::All), (8, Scope::All)] {
            let original = random(3, (share, 2, 2400), scope);
            for form in FORMS {
                let decoder = in_form(original.clone(), form);
                let alike = decoder.rows_alike();
                let packed = form.0.is_some() && scope == Scope::All;
                assert_eq!(alike, if packed { 15 } else { 5 });
                for kv in [KvFormat::F32, KvFormat::F16, KvFormat::Int8] {
                    for start in [1, 120, 1018] {
                        let (tokens, mut state) = (prompt(start + alike + 1), State::default());
                        let mut one = decoder.cache(kv);
                        decoder.step(&tokens[..start], &mut one, &mut state);
                        let mut many = one.fork(start);
                        let rows = &tokens[start..start + alike];
                        let span = Span { tokens: rows, cache: &mut many, wanted: Wanted::All };
                        let got = decoder.advance(&mut [span], &mut state);
                        let step = |token: &u32| decoder.step(&[*token], &mut one, &mut state);
                        let want: Vec<f32> = rows.iter().flat_map(step).collect();
                        let what = format!("share {share}, {form:?}, {kv:?}, {alike} rows after {start}");
                        assert!(bits(&got) == bits(&want), "{what}");
                        let last = &tokens[start + alike..];
                        let after = [&mut one, &mut many].map(|c| bits(&decoder.step(last, c, &mut state)));
                        assert!(after[0] == after[1], "the row after {what}");
                    }
                }
            }
        }
    });
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_text_is_that_without_proposals() {
    let _one_at_a_time = common::on_this_isa();
    let tokenizer = Tokenizer::bytes();
    let mut counts = [(0, 0); 3];
    for seed in 0..3 {
        let original = random(seed, (2, 2, 400), Scope::All);
        for form in FORMS {
            let decoder = in_form(original.clone(), form);
            // Itself, which guesses right when it is greedy, and another, which hardly ever does.
            let stranger = random(99, (1, 1, 90), Scope::All);
            for temperature in [0.0, 0.05, 1.0] {
                let penalty = if temperature == 0.0 { 1.0 } else { 1.1 };
                let config = SamplingConfig { repetition_penalty: penalty, ..sampling(temperature, seed) };
                let mut plain = session(&decoder, &tokenizer, Speculation::Off);
                plain.set_tokens(prompt(40));
                let want = generate(&mut plain, &config, 300, &[]);
                assert_eq!((want.tokens.len(), want.proposed), (300, 0));
                let all = [
                    Speculation::Lookup { most: 10 },
                    Speculation::Draft { decoder: &decoder, most: 14 },
                    Speculation::Draft { decoder: &stranger, most: 4 },
                ];
                for (speculation, (proposed, accepted)) in all.into_iter().zip(&mut counts) {
                    let mut some = session(&decoder, &tokenizer, speculation);
                    some.set_tokens(prompt(40));
                    let got = generate(&mut some, &config, 300, &[]);
                    assert_eq!(got.tokens, want.tokens, "seed {seed}, {form:?}, temperature {temperature}");
                    assert_eq!(got.text, want.text);
                    *proposed += got.proposed;
                    *accepted += got.accepted;
                    if temperature == 0.0 && matches!(speculation, Speculation::Draft { most: 14, .. }) {
                        assert!(
                            got.proposed > 200 && got.accepted == got.proposed,
                            "it knows itself: {got:?}"
                        );
                    }
                }
            }
        }
    }
    // The text was made of accepted and of refused tokens.
    println!("proposed and accepted: {counts:?}");
    for (proposed, accepted) in &counts[..2] {
        assert!(*accepted > 100 && accepted <= proposed, "{counts:?}");
    }
    assert!(counts[0].1 < counts[0].0 && counts[2].1 < counts[2].0, "{counts:?}");
}

/// A stop token, the limit, the last position and the caller end a text in the middle of accepted proposals; what comes after
/// is what a new session makes of the same tokens.
#[test]
fn a_text_ends_in_the_middle_of_what_was_accepted() {
    let _one_at_a_time = common::on_this_isa();
    let tokenizer = Tokenizer::bytes();
    let decoder = in_form(random(5, (2, 2, 128), Scope::All), FORMS[0]);
    let greedy = SamplingConfig::default();
    // Each of up to 14 proposals is right: any place is in the middle of some.
    let right = Speculation::Draft { decoder: &decoder, most: 14 };
    let make = |speculation, len: usize, limit: usize, stop: &[u32]| {
        let mut session = session(&decoder, &tokenizer, speculation);
        session.set_tokens(prompt(len));
        let made = generate(&mut session, &greedy, limit, stop);
        // It goes on, over the end of what was said.
        let mut longer = session.tokens().to_vec();
        longer.truncate(100);
        longer.extend(prompt(9));
        session.set_tokens(longer);
        let next = generate(&mut session, &greedy, 6, &[]);
        (made.tokens, made.text, made.stopped, next.tokens)
    };
    for limit in 0..40 {
        let want = make(Speculation::Off, 30, limit, &[]);
        assert_eq!(want.0.len(), limit);
        assert_eq!(make(right, 30, limit, &[]), want, "limit {limit}");
        assert_eq!(make(Speculation::Lookup { most: 14 }, 30, limit, &[]), want, "limit {limit}");
    }
    let whole = make(Speculation::Off, 30, 60, &[]).0;
    for at in 0..whole.len() {
        let stop = [whole[at]];
        let want = make(Speculation::Off, 30, 60, &stop);
        assert!(want.2 && want.0 == whole[..whole.iter().position(|t| *t == stop[0]).unwrap()]);
        assert_eq!(make(right, 30, 60, &stop), want, "stop at {at}");
    }
    // The last positions of the model.
    for len in 100..128 {
        let want = make(Speculation::Off, len, 1000, &[]);
        assert_eq!(want.0.len(), 128 - len);
        assert_eq!(make(right, len, 1000, &[]), want, "from {len}");
    }
    // A caller that has seen enough.
    for enough in 1..20 {
        let [want, got] = [Speculation::Off, right].map(|speculation| {
            let mut session = session(&decoder, &tokenizer, speculation);
            session.set_tokens(prompt(30));
            let mut pieces = 0;
            let mut sampler = Sampler::new(greedy.clone());
            let mut seen = |_: &str| {
                pieces += 1;
                pieces < enough
            };
            let made = session.generate(&mut sampler, 40, &[], &mut seen).unwrap();
            (made.tokens, made.text, made.stopped, session.tokens().to_vec())
        });
        assert_eq!(got, want, "{enough} pieces");
    }
}

#[test]
fn after_refusals_a_session_is_as_good_as_new() {
    let _one_at_a_time = common::on_this_isa();
    let tokenizer = Tokenizer::bytes();
    let decoder = in_form(random(8, (4, 2, 512), Scope::All), FORMS[2]);
    let stranger = random(98, (1, 1, 512), Scope::All);
    for temperature in [0.0, 0.9] {
        let config = sampling(temperature, 4);
        let mut some = session(&decoder, &tokenizer, Speculation::Draft { decoder: &stranger, most: 6 });
        some.set_tokens(prompt(20));
        let made = generate(&mut some, &config, 150, &[]);
        assert!(made.proposed > made.accepted, "{made:?}");
        let next = generate(&mut some, &config, 50, &[]);
        let mut fresh = session(&decoder, &tokenizer, Speculation::Off);
        fresh.set_tokens([prompt(20), made.tokens].concat());
        let tokens = fresh.tokens().to_vec();
        // A new session reads the text in one piece, with sums in another order; this one goes token by token.
        let mut one = session(&decoder, &tokenizer, Speculation::Off);
        one.set_tokens(prompt(20));
        generate(&mut one, &config, 150, &[]);
        assert_eq!(one.tokens(), tokens);
        assert_eq!(generate(&mut one, &config, 50, &[]).tokens, next.tokens);
    }
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused() {
    let _one_at_a_time = common::on_this_isa();
    let tokenizer = Tokenizer::bytes();
    let decoder = random(1, (1, 1, 64), Scope::All);
    let mut config = decoder.config.clone();
    config.vocab_size = 300;
    let other = Decoder::new(&config, Scope::All, Grouping::Size(48));
    let mut session = Session::new(&decoder, &tokenizer, KvFormat::F32);
    let error = session.speculate(Speculation::Draft { decoder: &other, most: 4 }).unwrap_err().to_string();
    assert!(error.contains("300 tokens") && error.contains("256 tokens"), "{error}");
}
