//! Decoding against slow readings of the same definitions.

use crate::{families, ids, random, random_in};
use candle_core::DType;
use instruct_claims::{holds, worst};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{
    Completion, Decoder, Error, HeadKind, Pass, Request, SLOTS, Sampling, generate, generate_reporting,
};
use instruct_random::Source;
use std::collections::BTreeMap;

const STOP: [u32; 2] = [3, 17];

/// Seventy episodes with prompts of 1 to 30 tokens in a context of 32.
fn requests() -> Vec<Request> {
    let prompt = |episode: u64| ids(episode, 1 + (episode as usize * 7) % 30);
    (0..70).map(|episode| Request { episode: 100 + episode, prompt: prompt(episode) }).collect()
}

fn sampling(temperature: f32) -> Sampling {
    Sampling { temperature, ..Sampling::plain(STOP.into(), 12) }
}

fn draw(decoder: &Decoder, requests: &[Request], sampling: &Sampling) -> Vec<Completion> {
    draw_in(SLOTS, decoder, requests, sampling)
}

fn draw_in(slots: usize, decoder: &Decoder, requests: &[Request], sampling: &Sampling) -> Vec<Completion> {
    let mut finished = 0;
    let source = Source::new(9, "sampling");
    let drawn = generate_reporting(decoder, requests, sampling, slots, source, &mut |n| finished += n).unwrap();
    assert_eq!(finished, requests.len());
    drawn
}

#[test]
fn an_episode_says_the_same_in_any_company() {
    for config in families() {
        let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
        let requests = requests();
        let alone: BTreeMap<u64, Completion> = requests
            .iter()
            .map(|request| (request.episode, draw(&decoder, std::slice::from_ref(request), &sampling(0.9)).remove(0)))
            .collect();
        assert!(alone.values().any(|c| c.ended_by_eos) && alone.values().any(|c| c.ids.len() == 12));
        for slots in [0, 1, 3, 64] {
            for order in 0..3 {
                let mut mixed = requests.clone();
                Source::new(order, "order").at([]).shuffle(&mut mixed);
                let together = draw_in(slots, &decoder, &mixed, &sampling(0.9));
                assert_eq!(together.len(), mixed.len());
                let others = mixed.iter().zip(together).filter(|(request, c)| *c != alone[&request.episode]).count();
                holds("generation/any-batch", &format!("{:?}, {slots} slots", config.family), others as f64, 0.0);
            }
        }
    }
}

/// The most probable continuation, each token from a forward over everything so far.
fn greedy(decoder: &Decoder, prompt: &[u32]) -> Vec<u32> {
    let (mut text, mut out) = (prompt.to_vec(), Vec::new());
    while out.len() < 12 && text.len() < 32 && !out.last().is_some_and(|id| STOP.contains(id)) {
        let mut batch = Packed::new();
        batch.push(&text, 0);
        let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
        let last = kernels::gather_rows(&hidden, &[batch.last_row(0)]).unwrap();
        let logits = kernels::logits(&last, decoder.unembedding().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let best = (0..53).max_by(|&a, &b| logits[0][a].total_cmp(&logits[0][b]).then(b.cmp(&a))).unwrap() as u32;
        text.push(best);
        out.push(best);
    }
    out
}

#[test]
fn the_cache_changes_no_token() {
    for config in families() {
        for path in [Path::Fused, Path::Composed] {
            let decoder = random(&config, HeadKind::LanguageModelWithValue, path);
            let requests = &requests()[..20];
            for (request, completion) in requests.iter().zip(draw(&decoder, requests, &sampling(0.0))) {
                let others = crate::other_tokens(&completion.ids, &greedy(&decoder, &request.prompt));
                holds("generation/uncached", &format!("{:?} {path:?}", config.family), others as f64, 0.0);
            }
        }
    }
}

#[test]
fn what_was_recorded_is_what_training_computes() {
    for (config, compute) in
        families().into_iter().flat_map(|config| [DType::F32, DType::BF16].map(|d| (config.clone(), d)))
    {
        let decoder = random_in(&config, HeadKind::LanguageModel, Path::Fused, compute);
        for temperature in [0.0, 0.7, 1.0, 1.5] {
            for (top_k, top_p) in [(0, 1.0), (5, 0.9)] {
                let requests = requests();
                let completions = draw(&decoder, &requests, &Sampling { top_k, top_p, ..sampling(temperature) });
                let mut batch = Packed::new();
                for (request, completion) in requests.iter().zip(&completions) {
                    let prompt = batch.push(&request.prompt, request.episode);
                    batch.push_completion(prompt, &completion.ids, request.episode, 1.0);
                }
                let hidden = decoder.hidden(&batch, Pass::Train).unwrap();
                let (rows, targets): (Vec<u32>, Vec<u32>) =
                    batch.predictions().iter().map(|p| (p.row, p.target)).unzip();
                let at = if temperature == 0.0 { 1.0 } else { temperature };
                let unembedding = decoder.unembedding().unwrap();
                let trained = kernels::token_logprob(&hidden, unembedding, &rows, &targets, at).unwrap();
                let trained = trained.to_vec2::<f32>().unwrap().concat();
                let both = |c: &Completion| c.logprobs.iter().zip(&c.entropies).flat_map(|(&l, &e)| [l, e]).collect();
                let recorded: Vec<f32> = completions.iter().flat_map(|c| -> Vec<f32> { both(c) }).collect();
                let case = format!("{:?} in {compute:?} at {temperature}, top-k {top_k}, top-p {top_p}", config.family);
                holds("generation/recorded-logprobs", &case, worst(&recorded, &trained), 0.0);
            }
        }
    }
}

/// Chi-square (Pearson 1900) of the first tokens of 100,000 episodes against the softmax at this
/// temperature, cut to `top_k`.
#[track_caller]
fn check_frequencies(temperature: f32, top_k: usize) {
    let [config, ..] = families();
    let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
    let n = 100_000;
    let prompt = vec![7, 8];
    let requests: Vec<Request> = (0..n).map(|episode| Request { episode, prompt: prompt.clone() }).collect();
    let sampling = Sampling { temperature, top_k, ..Sampling::plain([].into(), 1) };
    let mut counts = [0.0; 53];
    for completion in draw_in(512, &decoder, &requests, &sampling) {
        counts[completion.ids[0] as usize] += 1.0;
    }
    let (mut chi, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (count, share) in counts.iter().zip(shares(&decoder, &prompt, temperature, top_k)) {
        let expected = n as f64 * share;
        if expected < 5.0 {
            // Too rare for the approximation: counted as one.
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            chi += (count - expected).powi(2) / expected;
            bins += 1.0;
        }
    }
    if rare.1 >= 5.0 {
        chi += (rare.0 - rare.1).powi(2) / rare.1;
        bins += 1.0;
    }
    assert!(bins >= 5.0 && (top_k == 0 || rare == (0.0, 0.0)), "{bins} bins, and beyond them {rare:?}");
    let case = format!("temperature {temperature}, top-k {top_k}: {chi:.1} over {bins} tokens");
    holds("generation/frequencies", &case, chi / critical(bins - 1.0), 1.0);
}

/// The softmax after the prompt, in double precision from a forward over all of it.
fn shares(decoder: &Decoder, prompt: &[u32], temperature: f32, top_k: usize) -> Vec<f64> {
    let mut batch = Packed::new();
    batch.push(prompt, 0);
    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
    let logits = kernels::logits(&hidden, decoder.unembedding().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let weight = |&z: &f32| (f64::from(z) / f64::from(temperature)).exp();
    let weights: Vec<f64> = logits[prompt.len() - 1].iter().map(weight).collect();
    let mut sorted = weights.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = if top_k == 0 { 0.0 } else { sorted[top_k - 1] };
    let total: f64 = weights.iter().filter(|&&w| w >= least).sum();
    weights.iter().map(|&w| if w >= least { w / total } else { 0.0 }).collect()
}

/// What chi-square exceeds once in a million times: its density, summed from far out.
fn critical(freedom: f64) -> f64 {
    let density = |cell: &i32| {
        let x = (f64::from(*cell) + 0.5) * 1e-3;
        ((freedom / 2.0 - 1.0) * x.ln() - x / 2.0).exp()
    };
    let cells = 0..400_000;
    let (whole, mut tail) = (cells.clone().map(|cell| density(&cell)).sum::<f64>(), 0.0);
    let reached = cells.rev().find(|cell| {
        tail += density(cell);
        tail > 1e-6 * whole
    });
    f64::from(reached.unwrap()) * 1e-3
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_probable() {
    // For an even number the tail is a sum of Poisson's: exp(-x / 2) for 2.
    assert!((critical(2.0) - 2.0 * 1e6f64.ln()).abs() < 0.01);
    check_frequencies(1.0, 0);
    check_frequencies(0.7, 0);
    check_frequencies(1.7, 0);
    check_frequencies(1.0, 6);
}

/// Lengths and ends of the seventy completions under a change of the settings.
#[track_caller]
fn check_ends(change: impl Fn(&mut Sampling)) {
    let [config, ..] = families();
    let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
    let (requests, mut sampling) = (requests(), sampling(1.0));
    change(&mut sampling);
    for (request, completion) in requests.iter().zip(draw(&decoder, &requests, &sampling)) {
        let Completion { episode, ids, logprobs, entropies, ended_by_eos } = completion;
        assert_eq!((episode, logprobs.len(), entropies.len()), (request.episode, ids.len(), ids.len()));
        let (last, before) = ids.split_last().unwrap();
        assert!(before.iter().all(|id| !sampling.stop.contains(id)), "it went on after a stop");
        assert_eq!(ended_by_eos, sampling.stop.contains(last));
        let room = 32 - request.prompt.len();
        let cap = sampling.max_new_tokens.clamp(1, room);
        assert!(ids.len() <= cap && (ended_by_eos || ids.len() == cap), "{} tokens of {cap}", ids.len());
        assert!(logprobs.iter().all(|l| l.is_finite() && *l <= 0.0));
    }
}

#[test]
fn completions_end_at_a_stop_at_the_cap_or_with_the_context() {
    check_ends(|_| {});
    check_ends(|s| s.stop = [].into());
    check_ends(|s| s.stop = (0..53).collect());
    check_ends(|s| s.max_new_tokens = 1);
    check_ends(|s| s.max_new_tokens = 0);
    check_ends(|s| s.max_new_tokens = usize::MAX);
    check_ends(|s| (s.max_new_tokens, s.stop) = (1000, [].into()));
}

#[track_caller]
fn refused(prompt: Vec<u32>, change: impl Fn(&mut Sampling), message: &str) {
    let [config, ..] = families();
    let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
    let mut sampling = sampling(1.0);
    change(&mut sampling);
    let requests = [Request { episode: 1, prompt: vec![1] }, Request { episode: 42, prompt }];
    let found = generate(&decoder, &requests, &sampling, Source::new(1, "sampling")).unwrap_err().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
}

#[test]
fn what_cannot_be_generated_is_refused() {
    refused(vec![], |_| {}, "episode 42: the prompt is empty");
    refused(vec![1; 32], |_| {}, "episode 42: the prompt leaves no room in the context");
    refused(vec![1; 400], |_| {}, "episode 42: the prompt leaves no room in the context");
    refused(vec![53], |_| {}, "53");
    refused(vec![1], |s| s.temperature = -1.0, "the temperature must be finite");
    refused(vec![1], |s| s.temperature = f32::NAN, "the temperature must be finite");
    refused(vec![1], |s| s.top_p = 0.0, "top-p must be above 0");
    refused(vec![1], |s| s.top_p = f32::NAN, "top-p must be above 0");
    let [config, ..] = families();
    let score = random(&config, HeadKind::Score, Path::Fused);
    let request = [Request { episode: 1, prompt: vec![1] }];
    let found = generate(&score, &request, &sampling(1.0), Source::new(1, "sampling")).unwrap_err().to_string();
    assert!(found.contains("this needs a language head"), "{found}");
    let language = random(&config, HeadKind::LanguageModel, Path::Fused);
    assert!(generate(&language, &[], &sampling(1.0), Source::new(1, "sampling")).unwrap().is_empty());
    for broken in [f32::NAN, f32::INFINITY] {
        language.params().set("norm.weight", &[broken; 18]).unwrap();
        for temperature in [0.0, 1.0] {
            let found = generate(&language, &request, &sampling(temperature), Source::new(1, "sampling")).unwrap_err();
            assert!(matches!(found, Error::Logits { episode: 1, token: 0 }), "{found}");
        }
    }
}
