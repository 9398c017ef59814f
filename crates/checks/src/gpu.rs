//! `gpu`: what a rare and brief hour with a GPU is for. Each result is appended to a file as it comes, so that
//! whatever ends the hour early costs only what was not yet tried.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use instruct_data::Packed;
use instruct_kernels::{DeviceChoice, Path as KernelPath, probe_device, token_logprob};
use instruct_model::{Config, Decoder, HeadKind, Pass, Request, Sampling, generate};
use instruct_optim::Compute;
use instruct_ppo as ppo;
use instruct_random::Source;
use instruct_reward_model as reward_model;
use instruct_rollout::Episode;
use instruct_runs::{Event, Flow};
use instruct_sft as sft;
use serde::Serialize;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use xtask::terminal::{print, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for results.jsonl, a line per result
    #[arg(long)]
    out: PathBuf,
    /// Seconds after which nothing new is begun
    #[arg(long, default_value_t = 240.0)]
    seconds: f64,
    /// Try the same on the processor, to see that all of it runs
    #[arg(long)]
    rehearse: bool,
}

/// One thing to try: its name, what it says, and what it does.
struct Part {
    name: &'static str,
    says: &'static str,
    run: fn(&Device, &mut Results) -> Result<()>,
}

/// In the order of their worth.
const PARTS: [Part; 7] = [
    Part { name: "machine", says: "driver and GPU, as the system tells", run: machine },
    Part {
        name: "operations",
        says: "every differentiable operation on Path::Composed, outputs and gradients, f32 and bf16 against f64 on the CPU",
        run: operations,
    },
    Part { name: "models", says: "log-probabilities and gradients of small decoders against the CPU", run: models },
    Part { name: "generation", says: "greedy text, and sampled text with what was recorded of it", run: generation },
    Part { name: "sft", says: "one step of supervised fine-tuning against the CPU", run: sft_step },
    Part { name: "reward-model", says: "one step of the reward model against the CPU", run: reward_model_step },
    Part { name: "ppo", says: "one iteration of PPO with the mix, and its first ratio", run: ppo_iteration },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let device = match (args.rehearse, probe_device(DeviceChoice::Cuda)) {
        (true, _) => Device::Cpu,
        (false, Ok(device)) => device,
        (false, Err(error)) => {
            print(&format!("no GPU here ({error}); with one, this would try, in this order:"));
            PARTS.iter().for_each(|part| print(&format!("  {:>12}  {}", part.name, part.says)));
            print("--rehearse tries the same on the processor. A GPU needs a build with --features cuda.");
            return Ok(());
        }
    };
    let mut results = Results::create(&args.out)?;
    for part in &PARTS {
        if results.begun.elapsed().as_secs_f64() > args.seconds {
            results.add(part.name, "everything", Outcome::Skipped("the time was up".to_owned()))?;
            continue;
        }
        say(&format!("gpu: {}: {}", part.name, part.says));
        if let Err(error) = (part.run)(&device, &mut results) {
            results.add(part.name, "the rest of it", Outcome::Failed(format!("{error:#}")))?;
        }
    }
    print(&results.summary());
    if results.failed > 0 {
        bail!("{} of {} results are not as they should be: {}", results.failed, results.tried, results.path.display());
    }
    Ok(())
}

/// What became of one thing.
enum Outcome {
    /// Something was compared: how far off it may be, and how far it is.
    Compared {
        off: f64,
        tolerance: f64,
    },
    /// Something was measured or read.
    Found(serde_json::Value),
    Failed(String),
    Skipped(String),
}

/// A line of results.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since the beginning.
    at: f64,
    part: &'a str,
    case: &'a str,
    passed: Option<bool>,
    off: Option<f64>,
    tolerance: Option<f64>,
    found: Option<serde_json::Value>,
}

struct Results {
    path: PathBuf,
    file: File,
    begun: Instant,
    tried: usize,
    failed: usize,
}

impl Results {
    fn create(folder: &Path) -> Result<Results> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("results.jsonl");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Results { path, file, begun: Instant::now(), tried: 0, failed: 0 })
    }

    /// Writes one result down at once.
    fn add(&mut self, part: &str, case: &str, outcome: Outcome) -> Result<()> {
        let mut line = Line {
            at: self.begun.elapsed().as_secs_f64(),
            part,
            case,
            passed: None,
            off: None,
            tolerance: None,
            found: None,
        };
        match outcome {
            Outcome::Compared { off, tolerance } => {
                // Written so that what is no number fails.
                line.passed = Some(off <= tolerance);
                (line.off, line.tolerance) = (Some(off), Some(tolerance));
            }
            Outcome::Found(value) => line.found = Some(value),
            Outcome::Failed(message) => (line.passed, line.found) = (Some(false), Some(message.into())),
            Outcome::Skipped(why) => line.found = Some(format!("skipped: {why}").into()),
        }
        self.tried += usize::from(line.passed.is_some());
        if line.passed == Some(false) {
            self.failed += 1;
            say(&format!("gpu: {part}: {case}: off by {:?} of {:?} {:?}", line.off, line.tolerance, line.found));
        }
        let text = serde_json::to_string(&line)? + "\n";
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()).context("cannot write a result")
    }

    fn compare(&mut self, part: &str, case: &str, found: &[f32], wanted: &[f32], tolerance: f64) -> Result<()> {
        self.add(part, case, Outcome::Compared { off: instruct_claims::relative(found, wanted, 1e-6), tolerance })
    }

    fn summary(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        format!(
            "gpu: {} passed, {} failed in {seconds:.0} s: {}",
            self.tried - self.failed,
            self.failed,
            self.path.display()
        )
    }
}

fn machine(device: &Device, results: &mut Results) -> Result<()> {
    let query = ["--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"];
    let said = Command::new("nvidia-smi").args(query).output();
    let said =
        said.map_or_else(|error| error.to_string(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let cpu = xtask::machine::cpu_model();
    results.add(
        "machine",
        "what it is",
        Outcome::Found(serde_json::json!({ "device": format!("{device:?}"), "gpu": said, "cpu": cpu })),
    )
}

fn operations(device: &Device, results: &mut Results) -> Result<()> {
    for comparison in instruct_kernels::compare_on(device) {
        let case = format!("{}, {}, {:?}", comparison.operation, comparison.case, comparison.dtype);
        let outcome = match comparison.found {
            Err(error) => Outcome::Failed(error),
            Ok(found) => Outcome::Compared { off: found.output.max(found.gradient), tolerance: comparison.tolerance },
        };
        results.add("operations", &case, outcome)?;
    }
    Ok(())
}

/// The formats of numbers that are tried on a device, with how far off a model may be in them.
const FORMATS: [(DType, f64); 2] = [(DType::F32, 1e-3), (DType::BF16, 0.1)];

/// The decoder whose text and steps are compared.
fn shape() -> Config {
    Config::tiny_gpt2(97, 64, 3, 4, 64)
}

/// A decoder with the same weights wherever it is.
fn decoder(config: &Config, head: HeadKind, device: &Device, dtype: DType) -> Result<Decoder> {
    let path = if device.is_cpu() && dtype == DType::F32 { KernelPath::Fused } else { KernelPath::Composed };
    let decoder = Decoder::zeros(config.clone(), head, device, path, dtype)?;
    for slot in decoder.params().slots().to_vec() {
        let centre = if slot.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut draws = Source::new(1, &slot.name).at([]);
        let values: Vec<f32> = (0..slot.len).map(|_| centre + 0.1 * draws.normal()).collect();
        decoder.params().set(&slot.name, &values)?;
    }
    Ok(decoder)
}

/// The reference: the fused path on the CPU, which is held to torch.
fn reference(config: &Config, head: HeadKind) -> Result<Decoder> {
    decoder(config, head, &Device::Cpu, DType::F32)
}

fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut draws = Source::new(seed, "ids").at([]);
    (0..count).map(|_| 1 + draws.below(96) as u32).collect()
}

/// Shared prompts, so that gradients of one row add several times.
fn batch() -> Packed {
    let mut batch = Packed::new();
    for example in 0..4 {
        let prompt = batch.push(&ids(example, 9), example);
        for k in 0..3 {
            batch.push_completion(prompt, &ids(10 * example + k, 7), example, 1.0);
        }
    }
    batch
}

fn models(device: &Device, results: &mut Results) -> Result<()> {
    for (name, config) in [("gpt2", shape()), ("wide vocabulary", Config::tiny_gpt2(5_000, 64, 2, 2, 64))] {
        let wanted = logprobs_and_gradient(&reference(&config, HeadKind::LanguageModel)?)?;
        for (dtype, tolerance) in FORMATS {
            let found = logprobs_and_gradient(&decoder(&config, HeadKind::LanguageModel, device, dtype)?)?;
            results.compare(
                "models",
                &format!("{name}, log-probabilities, {dtype:?}"),
                &found.0,
                &wanted.0,
                tolerance,
            )?;
            results.compare("models", &format!("{name}, gradient, {dtype:?}"), &found.1, &wanted.1, tolerance)?;
        }
    }
    Ok(())
}

/// Log-probabilities of the batch's predictions, and the gradient of their sum.
fn logprobs_and_gradient(decoder: &Decoder) -> Result<(Vec<f32>, Vec<f32>)> {
    let batch = batch();
    let hidden = decoder.predicting(&batch, Pass::Train)?;
    let logprobs = instruct_rollout::token_logprobs(decoder, &hidden, &batch, 1.0)?.narrow(1, 0, 1)?.flatten_all()?;
    decoder.params().backward(&logprobs.sum_all()?)?;
    Ok((logprobs.to_vec1()?, decoder.params().with_grads(|grads| grads.to_vec())?))
}

fn generation(device: &Device, results: &mut Results) -> Result<()> {
    let requests: Vec<Request> = (0..70).map(|i| Request { episode: i, prompt: ids(i, 1 + i as usize % 9) }).collect();
    let greedy = Sampling { temperature: 0.0, ..Sampling::plain([0].into(), 24) };
    let source = Source::new(1, "gpu");
    let wanted = generate(&reference(&shape(), HeadKind::LanguageModel)?, &requests, &greedy, source)?;
    for (dtype, share) in [(DType::F32, 0.02), (DType::BF16, 0.6)] {
        let policy = decoder(&shape(), HeadKind::LanguageModel, device, dtype)?;
        let found = generate(&policy, &requests, &greedy, source)?;
        let other = found.iter().zip(&wanted).filter(|(a, b)| a.ids != b.ids).count() as f64 / wanted.len() as f64;
        let case = format!("share of greedy texts that differ from the CPU's, {dtype:?}");
        results.add("generation", &case, Outcome::Compared { off: other, tolerance: share })?;
        // What is recorded while sampling is what the training forward says of the same tokens.
        let sampled = generate(&policy, &requests, &Sampling::plain([0].into(), 24), source)?;
        let gap = sampled.iter().zip(&requests).map(|(completion, request)| gap(&policy, &request.prompt, completion));
        let gap = gap.collect::<Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
        let tolerance = if dtype == DType::F32 { 1e-3 } else { 0.3 };
        let case = format!("largest gap between recorded and recomputed log-probabilities, {dtype:?}");
        results.add("generation", &case, Outcome::Compared { off: gap, tolerance })?;
    }
    Ok(())
}

fn gap(policy: &Decoder, prompt: &[u32], completion: &instruct_model::Completion) -> Result<f64> {
    let mut batch = Packed::new();
    let segment = batch.push(prompt, 0);
    batch.push_completion(segment, &completion.ids, 0, 1.0);
    let hidden = policy.predicting(&batch, Pass::Infer)?;
    let (rows, targets): (Vec<u32>, Vec<u32>) = (0..).zip(batch.predictions()).map(|(m, p)| (m, p.target)).unzip();
    let both = token_logprob(&hidden, policy.unembedding()?, &rows, &targets, 1.0)?.to_dtype(DType::F32)?;
    let found: Vec<f32> = both.narrow(1, 0, 1)?.flatten_all()?.to_vec1()?;
    Ok(instruct_claims::worst(&found, &completion.logprobs))
}

/// Metrics of the first step, by the listener of a loop.
fn first_step<S>(seen: &mut Vec<(&'static str, f64)>) -> impl FnMut(Event<'_, S>) -> instruct_runs::Result<Flow> {
    |event| {
        if let Event::Step { step: 1, metrics, .. } = event {
            seen.extend_from_slice(metrics);
        }
        Ok(if matches!(event, Event::Boundary { .. }) { Flow::Stop } else { Flow::Continue })
    }
}

/// Compares one step's metrics, and where it left the weights, with the CPU's.
fn compare_steps(
    part: &str,
    device: &Device,
    results: &mut Results,
    step: &dyn Fn(&Device, DType) -> Result<Stepped>,
) -> Result<()> {
    let wanted = step(&Device::Cpu, DType::F32)?;
    for (dtype, tolerance) in FORMATS {
        let begun = Instant::now();
        let found = step(device, dtype)?;
        let seconds = serde_json::json!({ "seconds": begun.elapsed().as_secs_f64(), "metrics": found.metrics });
        results.add(part, &format!("one step, {dtype:?}"), Outcome::Found(seconds))?;
        for ((name, found), (_, wanted)) in found.metrics.iter().zip(&wanted.metrics) {
            let off = (found - wanted).abs() / (wanted.abs() + 1e-2);
            results.add(part, &format!("{name}, {dtype:?}"), Outcome::Compared { off, tolerance })?;
        }
        results.compare(
            part,
            &format!("weights after the step, {dtype:?}"),
            &found.weights,
            &wanted.weights,
            tolerance,
        )?;
    }
    Ok(())
}

struct Stepped {
    metrics: Vec<(&'static str, f64)>,
    weights: Vec<f32>,
}

fn weights(decoder: &Decoder) -> Result<Vec<f32>> {
    Ok(decoder.params().with_weights(<[f32]>::to_vec)?)
}

fn sft_step(device: &Device, results: &mut Results) -> Result<()> {
    let examples: Vec<sft::Example> =
        (0..8).map(|i| sft::Example { prompt: ids(i, 5), completion: ids(100 + i, 9) }).collect();
    let windows: Vec<Vec<u32>> = (0..4).map(|i| ids(200 + i, 20)).collect();
    let plan =
        sft::Plan { epochs: 1, batch: 8, lr: 1e-3, dropout: 0.0, pretraining_share: 0.2, ..sft::Plan::default() };
    compare_steps("sft", device, results, &|device, dtype| {
        let mut state = sft::State::new(decoder(&shape(), HeadKind::LanguageModel, device, dtype)?, &plan)?;
        let data = sft::Data { demonstrations: &examples, pretraining: &windows };
        let mut metrics = Vec::new();
        sft::train(&mut state, &data, &plan, Compute::default(), &mut first_step(&mut metrics))?;
        Ok(Stepped { metrics, weights: weights(&state.model)? })
    })
}

fn reward_model_step(device: &Device, results: &mut Results) -> Result<()> {
    let group = |i: u64| reward_model::Group {
        prompt: ids(i, 6),
        completions: (0..4).map(|k| ids(10 * i + k, 5 + k as usize)).collect(),
        ranks: vec![1, 3, 2, 3],
    };
    let groups: Vec<reward_model::Group> = (0..6).map(group).collect();
    let plan = reward_model::Plan { batch: 6, lr: 1e-3, ..reward_model::Plan::default() };
    compare_steps("reward-model", device, results, &|device, dtype| {
        let mut state = reward_model::State::new(decoder(&shape(), HeadKind::Score, device, dtype)?, &plan)?;
        let mut metrics = Vec::new();
        reward_model::train(&mut state, &groups, &plan, Compute::default(), &mut first_step(&mut metrics))?;
        Ok(Stepped { metrics, weights: weights(&state.model)? })
    })
}

/// What a device samples is its own, so that an iteration is held to itself: its first ratio, its divergence
/// from a reference that is its start, and finite losses.
fn ppo_iteration(device: &Device, results: &mut Results) -> Result<()> {
    let plan = ppo::Plan {
        episodes: 32,
        batch: 32,
        minibatch: 8,
        max_new_tokens: 12,
        gamma_ptx: 1.0,
        ptx_examples: 1,
        guards: ppo::Guards { ratio_tolerance: 0.0, negative_kl: 0.0, ..ppo::Guards::default() },
        ..ppo::Plan::preset(ppo::Preset::InstructGpt)
    };
    let prompts: Vec<Vec<u32>> = (0..16).map(|i| ids(i, 1 + i as usize % 7)).collect();
    let windows: Vec<Vec<u32>> = (0..16).map(|i| ids(300 + i, 20)).collect();
    let sevens = |e: &Episode| e.completion.iter().filter(|&&id| id % 7 == 0).count() as f32;
    for (dtype, tolerance) in [(DType::F32, 1e-3), (DType::BF16, 0.3)] {
        let policy = decoder(&shape(), HeadKind::LanguageModel, device, dtype)?;
        let (reference, value) = (policy.deep_copy()?, decoder(&shape(), HeadKind::Value, device, dtype)?);
        let task = ppo::Task {
            reference: &reference,
            prompts: &prompts,
            pretraining: &windows,
            score: &|episodes| Ok(episodes.iter().map(sevens).collect()),
            decode: &|_| Ok(String::new()),
            stop: [0].into(),
            compute: Compute::default(),
        };
        let mut state = ppo::State::new(policy, Some(value), &plan)?;
        let (mut metrics, begun) = (Vec::new(), Instant::now());
        ppo::train(&mut state, &task, &plan, &mut first_step(&mut metrics))?;
        let seconds = serde_json::json!({ "seconds": begun.elapsed().as_secs_f64(), "metrics": metrics });
        results.add("ppo", &format!("an iteration, {dtype:?}"), Outcome::Found(seconds))?;
        for name in ["ppo/policy/ratio_first_minibatch", "objective/kl", "ppo/sampling_gap"] {
            let found = metrics.iter().find(|(key, _)| *key == name).map_or(f64::NAN, |(_, value)| value.abs());
            results.add("ppo", &format!("{name}, {dtype:?}"), Outcome::Compared { off: found, tolerance })?;
        }
        let finite = metrics.iter().all(|(_, value)| value.is_finite());
        let off = if finite { 0.0 } else { f64::NAN };
        results.add(
            "ppo",
            &format!("every metric is a number, {dtype:?}"),
            Outcome::Compared { off, tolerance: 0.0 },
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_on_the_processor_passes() {
        let folder = tempfile::tempdir().unwrap();
        run(&Args { out: folder.path().to_owned(), seconds: f64::INFINITY, rehearse: true }).unwrap();
        let text = fs::read_to_string(folder.path().join("results.jsonl")).unwrap();
        for part in &PARTS {
            assert!(text.contains(&format!("\"part\":\"{}\"", part.name)), "{} left nothing", part.name);
        }
        assert!(text.lines().filter(|line| line.contains("\"passed\":true")).count() > 60, "{text}");
    }

    #[test]
    fn what_is_off_or_no_number_fails() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        for (off, failed) in [(0.5, 0), (1.5, 1), (f64::NAN, 2)] {
            results.add("a", "b", Outcome::Compared { off, tolerance: 1.0 }).unwrap();
            assert_eq!(results.failed, failed);
        }
        results.add("a", "b", Outcome::Failed("no kernel".to_owned())).unwrap();
        assert_eq!((results.tried, results.failed), (4, 3));
    }
}
