//! The forward pass against itself: sharing, company, paths, heads and noise change nothing that
//! they should not.

use crate::{families, ids, random};
use candle_core::{DType, Device, Tensor};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, CacheRow, Path};
use instruct_model::{Config, Decoder, Dropout, Error, HeadKind, Pass};
use instruct_random::Source;

const HEADS: [HeadKind; 4] =
    [HeadKind::LanguageModel, HeadKind::Score, HeadKind::Value, HeadKind::LanguageModelWithValue];
const PATHS: [Path; 2] = [Path::Fused, Path::Composed];

/// Three prompts, the first with three completions.
fn questions() -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    vec![
        (ids(1, 7), vec![ids(2, 5), ids(3, 1), ids(4, 9)]),
        (ids(5, 1), vec![ids(6, 3)]),
        (ids(7, 4), vec![ids(8, 2), ids(9, 2)]),
    ]
}

/// The questions in one batch: each prompt once, or once per completion.
fn pack(shared: bool) -> Packed {
    let mut batch = Packed::new();
    for (example, (prompt, completions)) in (0..).zip(&questions()) {
        let prefix = shared.then(|| batch.push(prompt, example));
        for completion in completions {
            match prefix {
                Some(prefix) => batch.push_completion(prefix, completion, example, 1.0),
                None => batch.push_pair(prompt, completion, example, 1.0),
            };
        }
    }
    batch
}

fn rows(batch: &Packed) -> Vec<u32> {
    batch.predictions().iter().map(|p| p.row).collect()
}

fn targets(batch: &Packed) -> Vec<u32> {
    batch.predictions().iter().map(|p| p.target).collect()
}

/// A loss that every head can see: weighted token losses, squared scalars, or both.
fn loss(decoder: &Decoder, batch: &Packed, pass: Pass) -> Tensor {
    let hidden = decoder.hidden(batch, pass).unwrap();
    let rows = rows(batch);
    let weights: Vec<f32> = (0..rows.len()).map(|m| 0.05 + 0.01 * m as f32).collect();
    let tokens = || kernels::token_nll(&hidden, decoder.unembedding().unwrap(), &rows, &targets(batch), &weights);
    let scalars = || {
        let values = decoder.scalars(&hidden, &rows).unwrap();
        let weights = Tensor::new(&*weights, &Device::Cpu).unwrap();
        ((values + 0.5).unwrap().sqr().unwrap() * weights).unwrap().sum_all().unwrap()
    };
    match decoder.head() {
        HeadKind::LanguageModel => tokens().unwrap(),
        HeadKind::Score | HeadKind::Value => scalars(),
        HeadKind::LanguageModelWithValue => (tokens().unwrap() + scalars()).unwrap(),
    }
}

/// Hidden states at the predictions, and every gradient by name.
type Outcome = (Vec<Vec<f32>>, Vec<(String, Vec<f32>)>);

fn outcome(decoder: &Decoder, batch: &Packed) -> Outcome {
    let hidden = decoder.hidden(batch, Pass::Infer).unwrap();
    let hidden = kernels::gather_rows(&hidden, &rows(batch)).unwrap().to_vec2().unwrap();
    decoder.params().zero_grad();
    decoder.params().backward(&loss(decoder, batch, Pass::Train)).unwrap();
    let grad = |slot: &kernels::Slot| (slot.name.clone(), decoder.params().grad(&slot.name).unwrap());
    (hidden, decoder.params().slots().iter().map(grad).collect())
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Hidden states within `tolerance` of each other (0 asks for the same bits), gradients within
/// 1e-4 of their size.
#[track_caller]
fn check((hidden, grads): &Outcome, wanted: &Outcome, tolerance: f32, label: &str) {
    for (found, wanted) in hidden.iter().flatten().zip(wanted.0.iter().flatten()) {
        assert!((found - wanted).abs() <= tolerance, "{label}: hidden {found}, wanted {wanted}");
    }
    assert_eq!(hidden.len(), wanted.0.len());
    for ((name, found), (_, wanted)) in grads.iter().zip(&wanted.1) {
        let off = norm(found.iter().zip(wanted).map(|(a, b)| a - b));
        let size = norm(wanted.iter().copied());
        assert!(off <= 1e-4 * size, "{label}: the gradient of {name} is off by {off} of {size}");
    }
}

#[test]
fn a_shared_prompt_changes_nothing_and_fused_is_composed() {
    for config in families() {
        for head in [HeadKind::LanguageModel, HeadKind::Value] {
            let label = format!("{:?} {head:?}", config.family);
            let [fused, composed] = PATHS.map(|path| random(&config, head, path));
            let [shared, whole] = [true, false].map(pack);
            let wanted = outcome(&composed, &whole);
            check(&outcome(&composed, &shared), &wanted, 1e-5, &format!("{label} composed, shared"));
            check(&outcome(&fused, &whole), &wanted, 1e-5, &format!("{label} fused, whole"));
            check(&outcome(&fused, &shared), &outcome(&fused, &whole), 0.0, &format!("{label} fused, shared"));
        }
    }
}

#[test]
fn log_probabilities_do_not_see_the_company() {
    for config in families() {
        let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
        let logprobs = |batch: &Packed| {
            let hidden = decoder.hidden(batch, Pass::Infer).unwrap();
            let unembedding = decoder.unembedding().unwrap();
            let both = kernels::token_logprob(&hidden, unembedding, &rows(batch), &targets(batch), 1.0).unwrap();
            both.to_vec2::<f32>().unwrap()
        };
        let together = logprobs(&pack(true));
        assert_eq!(together, logprobs(&pack(false)), "{:?}", config.family);
        let mut alone = Vec::new();
        for (prompt, completions) in questions() {
            for completion in completions {
                let mut batch = Packed::new();
                batch.push_pair(&prompt, &completion, 0, 1.0);
                alone.extend(logprobs(&batch));
            }
        }
        assert_eq!(together, alone, "{:?}", config.family);
    }
}

#[test]
fn every_parameter_learns_under_every_head() {
    for config in families() {
        for head in HEADS {
            for path in PATHS {
                let decoder = random(&config, head, path);
                for (name, grad) in outcome(&decoder, &pack(true)).1 {
                    let label = format!("{:?} {head:?} {path:?}: {name}", config.family);
                    assert!(grad.iter().all(|g| g.is_finite()), "{label} is not finite");
                    assert!(grad.iter().any(|g| *g != 0.0), "{label} receives nothing");
                }
            }
        }
    }
}

fn dropped(decoder: &Decoder, batch: &Packed, step: u64) -> Vec<Vec<f32>> {
    let dropout = Dropout { rate: 0.3, source: Source::new(5, "dropout"), step };
    decoder.hidden(batch, Pass::TrainWithDropout(dropout)).unwrap().to_vec2().unwrap()
}

#[test]
fn dropout_is_keyed_by_step_example_and_position() {
    for config in families() {
        let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
        let batch = pack(true);
        let all = dropped(&decoder, &batch, 3);
        for (example, (prompt, _)) in (0..).zip(&questions()) {
            let mut alone = Packed::new();
            alone.push(prompt, example);
            let segment = batch.segments().iter().find(|s| s.example == example && s.prefix.is_none()).unwrap();
            let wanted = &all[segment.tokens.clone()];
            assert_eq!(dropped(&decoder, &alone, 3), wanted, "an example keeps its masks in any company");
            assert_ne!(dropped(&decoder, &alone, 4), wanted, "another step, other masks");
            let mut other = Packed::new();
            other.push(prompt, example + 1);
            assert_ne!(dropped(&decoder, &other, 3), wanted, "another example, other masks");
        }
        let whole = dropped(&decoder, &pack(false), 3);
        let at = |hidden: &[Vec<f32>], batch: &Packed| {
            rows(batch).iter().map(|&row| hidden[row as usize].clone()).collect::<Vec<_>>()
        };
        assert_eq!(at(&all, &batch), at(&whole, &pack(false)), "sharing a prompt keeps its masks");
        let rate_0 = Dropout { rate: 0.0, source: Source::new(5, "dropout"), step: 3 };
        let plain = decoder.hidden(&batch, Pass::TrainWithDropout(rate_0)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(plain, decoder.hidden(&batch, Pass::Infer).unwrap().to_vec2::<f32>().unwrap());
    }
}

#[test]
fn an_untrained_model_knows_nothing() {
    for config in families() {
        let decoder =
            Decoder::zeros(config.clone(), HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        decoder.initialise(1).unwrap();
        let mut batch = Packed::new();
        for example in 0..40 {
            batch.push_text(&ids(example, 30), example, 1.0);
        }
        let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
        let weights = vec![1.0 / batch.predictions().len() as f32; batch.predictions().len()];
        let unembedding = decoder.unembedding().unwrap();
        let loss = kernels::token_nll(&hidden, unembedding, &rows(&batch), &targets(&batch), &weights).unwrap();
        let (loss, ln_v) = (loss.to_scalar::<f32>().unwrap(), (config.vocab as f32).ln());
        assert!((loss / ln_v - 1.0).abs() < 0.01, "{:?}: {loss}, ln V is {ln_v}", config.family);
    }
}

#[test]
fn a_copy_has_storage_of_its_own() {
    let [config, ..] = families();
    for path in PATHS {
        let decoder = random(&config, HeadKind::LanguageModel, path);
        let before = outcome(&decoder, &pack(true)).0;
        let copy = decoder.deep_copy().unwrap();
        assert_eq!(outcome(&copy, &pack(true)).0, before);
        decoder.params().update(|weights, _| weights.iter_mut().for_each(|w| *w *= 0.5)).unwrap();
        assert_eq!(outcome(&copy, &pack(true)).0, before, "{path:?}: the copy followed");
        assert_ne!(outcome(&decoder, &pack(true)).0, before);
        decoder.params().zero_grad();
        outcome(&copy, &pack(true));
        assert!(decoder.params().with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap(), "{path:?}");
        decoder.copy_from(&copy).unwrap();
        assert_eq!(outcome(&decoder, &pack(true)).0, before);
    }
}

#[test]
fn another_head_keeps_the_trunk_and_a_scalar_head_its_scores() {
    let [config, ..] = families();
    let language = random(&config, HeadKind::LanguageModel, Path::Fused);
    let score = language.with_head(HeadKind::Score, 7).unwrap();
    score.params().set("score.bias", &[0.25]).unwrap();
    let value = score.with_head(HeadKind::Value, 8).unwrap();
    for (from, to) in [(&language, &score), (&score, &value)] {
        for slot in from.params().slots() {
            assert_eq!(to.params().read(&slot.name).unwrap(), from.params().read(&slot.name).unwrap(), "{}", slot.name);
        }
    }
    assert_eq!(value.head(), HeadKind::Value);
    let mut drawn = [0.0; 18];
    config.initial("score.weight", 7, &mut drawn);
    assert_eq!(score.params().read("score.weight").unwrap(), drawn);
    let mut batch = Packed::new();
    batch.push(&ids(1, 5), 0);
    let read = |model: &Decoder| {
        let hidden = model.hidden(&batch, Pass::Infer).unwrap();
        model.scalars(&hidden, &[0, 4, 4]).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(read(&score), read(&value));
    assert_eq!(read(&score)[1], read(&score)[2]);
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, message: &str) {
    let found = result.unwrap_err().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    for config in families() {
        let language = random(&config, HeadKind::LanguageModel, Path::Fused);
        let score = random(&config, HeadKind::Score, Path::Fused);
        let of = |tokens: &[u32]| {
            let mut batch = Packed::new();
            batch.push(tokens, 0);
            batch
        };
        let hidden = language.hidden(&of(&[1; 32]), Pass::Infer).unwrap();
        refused(language.hidden(&of(&[1; 33]), Pass::Infer), "33 tokens does not fit a context of 32");
        let mut continued = of(&[1; 30]);
        continued.push_completion(0, &[1, 2, 3], 0, 1.0);
        refused(language.hidden(&continued, Pass::Train), "33 tokens does not fit a context of 32");
        let mut cache = language.cache(1, 64).unwrap();
        let late = [CacheRow { slot: 0, position: 32 }];
        refused(language.extend(&[1], &late, &[0], &mut cache), "33 tokens does not fit a context of 32");
        refused(language.hidden(&of(&[1, 53]), Pass::Infer), "53");
        refused(score.unembedding(), "this needs a language head, but the decoder's head is Score");
        refused(language.scalars(&hidden, &[0]), "this needs a scalar head, but the decoder's head is LanguageModel");
        let wider = Config { width: 36, ..config.clone() };
        if wider.validate().is_ok() {
            refused(random(&wider, HeadKind::Score, Path::Fused).copy_from(&score), "embed.weight");
        }
        let held = language.held_in_bf16().unwrap();
        let held_in_bf16 = "is held in bf16, for inference alone; open the model again";
        refused(held.with_head(HeadKind::Score, 1), held_in_bf16);
        refused(language.copy_from(&held), held_in_bf16);
        refused(held.copy_from(&language), held_in_bf16);
        if !config.tied {
            let tied = random(&Config { tied: true, ..config.clone() }, HeadKind::LanguageModel, Path::Fused);
            refused(language.copy_from(&tied), "lm_head.weight");
        }
        let broken = Config { kv_heads: 5, ..config.clone() };
        let made = |config, dtype| Decoder::zeros(config, HeadKind::Score, &Device::Cpu, Path::Fused, dtype);
        refused(made(broken, DType::F32), "kv_heads (5) does not divide heads");
        refused(made(config, DType::F16), "f16");
    }
}

/// What a loss reads is the same, gradients included, whether the last block computes all rows or those.
#[test]
fn rows_that_nobody_reads_may_be_left_out() {
    for config in families() {
        for path in PATHS {
            let decoder = random(&config, HeadKind::LanguageModel, path);
            for batch in [pack(true), pack(false)] {
                let dropout = Dropout { rate: 0.3, source: Source::new(3, "dropout"), step: 2 };
                for pass in [Pass::Infer, Pass::Train, Pass::TrainWithDropout(dropout)] {
                    let rows = rows(&batch);
                    let all = decoder.hidden(&batch, pass).unwrap();
                    let some = decoder.predicting(&batch, pass).unwrap();
                    let picked = kernels::gather_rows(&all, &rows).unwrap();
                    let numbers = |x: &Tensor| x.to_vec2::<f32>().unwrap();
                    if path == Path::Fused {
                        assert_eq!(numbers(&some), numbers(&picked));
                    }
                    if matches!(pass, Pass::Infer) {
                        continue;
                    }
                    let gradient = |hidden: &Tensor| {
                        decoder.params().zero_grad();
                        decoder.params().backward(&hidden.sqr().unwrap().sum_all().unwrap()).unwrap();
                        decoder.params().with_grads(|grads| grads.to_vec()).unwrap()
                    };
                    let difference = instruct_claims::relative(&gradient(&some), &gradient(&picked), 1e-3);
                    assert!(difference < 1e-5, "{:?} {path:?}: {difference}", config.family);
                }
            }
        }
    }
}
