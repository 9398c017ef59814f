//! `fixtures`: the embedded instruction world, its base and its rankings, from one seed. All of it
//! is a simulation.

use crate::copying::lay_copying;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use instruct_data::{
    Caps, Content, Demonstration, Encoder, Limits, Loss, Origin, Overlong, PretrainText, Tokenizer, read, text_windows,
    train_bpe,
};
use instruct_model::{Decoder, Request, Sampling, generate};
use instruct_optim::{Compute, Schedule};
use instruct_random::Source;
use instruct_runs::{Event, Flow};
use instruct_sft::{Data, Example, Plan, State, nll, perplexity, train};
use instruct_world::World;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};
use xtask::{
    END, Recipe,
    config::Precision,
    fresh,
    prepare::{Base, Wording, open_base, open_decoder},
    pretrain, save_model,
    terminal::{print, say},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare the committed files with what would be generated, and write nothing
    #[arg(long)]
    check: bool,
    /// The first thing to make anew; what stands before it in this list is kept
    #[arg(long, value_enum, default_value = "base", conflicts_with = "check")]
    from: From,
    /// The folder of the fixtures
    #[arg(long, default_value = "fixtures")]
    folder: PathBuf,
}

/// What models and labelers make, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum From {
    Base,
    Completions,
    Rankings,
}

/// Seed of the committed world.
const SEED: u64 = 1;
/// Prompts whose sampled completions are ranked.
const RANKED: usize = 2_400;
/// Rankings of each: completions sampled anew, a labeler drawn anew.
const RANKINGS: usize = 3;
/// The template of the embedded configuration; a test holds the two equal.
pub(crate) const TEMPLATE: &str = "User: {prompt}\nAssistant:";
/// Cap on sampled completions, as in configs/fixtures.toml.
const MAX_NEW_TOKENS: usize = 64;
/// Length of the pretraining windows in the fixtures' own fine-tuning, in tokens.
const WINDOW: usize = 96;
/// Text that the base is trained on, in bytes: more of the committed text's kind, so that no document
/// is read twice.
const BASE_BYTES: usize = 36_000_000;
/// How far the held-out loss of a regenerated model may lie from the recorded one, in nats: models
/// are made in floating point, which differs between machines.
const LOSS_TOLERANCE: f64 = 0.02;

/// What the models in the fixtures were made from, and how good they are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    seed: u64,
    /// SHA-256 of everything the base was made from.
    base_inputs: String,
    /// Loss of the base on the held-out text, in nats per token.
    base_held_out_loss: f64,
    /// SHA-256 of everything that decides the ranked completions.
    completion_inputs: String,
    /// Loss of the base on the completions of every sixth ranking, in nats per token.
    completion_loss: f64,
    /// Share of pairs on which two simulated labelers agree, over the committed completions.
    labeler_agreement: f64,
    /// Mean points that the simulation's judge gives the committed completions, out of 100: content,
    /// manner, fluency, and all together.
    completion_points: [f64; 4],
}

/// Sampled completions of one prompt, none of them empty: what a labeler ranks, and so much of a
/// record of `rankings.jsonl` as the rest is made from.
#[derive(Deserialize)]
struct Sampled {
    prompt: String,
    completions: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let world = World::generate(SEED);
    let exact = exact_files(&world)?;
    let tokenizer = train_tokenizer(&world)?;
    if args.check {
        check_exact(&args.folder, &exact)?;
        check_tokenizer(&args.folder.join("base"), &tokenizer)?;
        return check_models(&args.folder, &world);
    }
    fs::create_dir_all(args.folder.join("base"))?;
    for (name, content) in &exact {
        write(&args.folder.join(name), content)?;
    }
    if args.from <= From::Base {
        make_base(&args.folder, &tokenizer)?;
    }
    let sampled = match args.from {
        From::Base | From::Completions => sample_completions(&args.folder, &world)?,
        From::Rankings => read_sampled(&args.folder)?,
    };
    write(&args.folder.join("rankings.jsonl"), &rankings(&world, &sampled))?;
    let manifest = manifest(&args.folder, &world, &sampled)?;
    write(&args.folder.join("manifest.json"), &(serde_json::to_string_pretty(&manifest)? + "\n"))?;
    print(&serde_json::to_string_pretty(&manifest)?);
    Ok(())
}

/// Everything that is made without a model and without floats.
fn exact_files(world: &World) -> Result<Vec<(&'static str, String)>> {
    let documents = |texts: &[String]| lines(texts.iter().map(|text| serde_json::json!({ "text": text })));
    Ok(vec![
        ("prompts.jsonl", lines(&world.prompts)?),
        ("demonstrations.jsonl", lines(&world.demonstrations)?),
        ("pretraining.jsonl", documents(&world.pretraining)?),
        ("pretraining-held-out.jsonl", documents(&world.heldout)?),
    ])
}

fn lines<T: Serialize>(rows: impl IntoIterator<Item = T>) -> Result<String> {
    rows.into_iter().map(|row| Ok(serde_json::to_string(&row)? + "\n")).collect()
}

fn train_tokenizer(world: &World) -> Result<Tokenizer> {
    let answers = world.demonstrations.iter().flat_map(|d| [d.prompt.as_str(), d.completion.as_str()]);
    let texts = world.pretraining.iter().map(String::as_str).chain(answers);
    Ok(train_bpe(texts, recipe().vocab, &[END])?)
}

/// How the embedded base is made.
fn recipe() -> Recipe {
    Recipe { vocab: 2_048, layers: 4, width: 128, heads: 4, context: 128, epochs: 1, batch: 16, lr: 2e-3, seed: SEED }
}

fn make_base(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let begun = Instant::now();
    let windows =
        text_windows(tokenizer, &documents(&instruct_world::base_text(SEED, BASE_BYTES)), recipe().context)?.0;
    let mut state = fresh(&recipe(), tokenizer)?;
    lay_copying(&state.model, recipe().seed)?;
    pretrain(&mut state, &windows, &recipe(), &mut |event| tell("base", event))?;
    save_model(&state.model, tokenizer, &folder.join("base"))?;
    say(&format!("base trained in {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Fine-tunes a copy of the base on the demonstrations and samples what labelers will rank.
fn sample_completions(folder: &Path, world: &World) -> Result<Vec<Sampled>> {
    let (base, decoder) = open(folder)?;
    let demonstrations = read::<Demonstration>(&[folder.join("demonstrations.jsonl")], &Limits::default())?.records;
    let encoder = encoder(&base);
    let examples: Vec<Example> = encoder
        .demonstrations(&demonstrations)?
        .0
        .into_iter()
        .map(|t| Example { prompt: t.prompt, completion: t.completion })
        .collect();
    let mut state = State::new(decoder, &sampler_plan())?;
    let windows = text_windows(base.renderer.tokenizer(), &documents(&world.pretraining), WINDOW)?.0;
    let data = Data { demonstrations: &examples, pretraining: &windows };
    train(&mut state, &data, &sampler_plan(), sampler_compute(), &mut |event| tell("sampler", event))?;

    let mut requests = Vec::new();
    for (prompt, k) in ranked_prompts(world) {
        let asked = base.renderer.ask(Content::Text(prompt.prompt.clone()).conversation())?;
        requests.extend((0..k).map(|_| asked.ids().to_vec()));
    }
    let requests: Vec<Request> = (0..).zip(requests).map(|(episode, prompt)| Request { episode, prompt }).collect();
    let sampling = Sampling::plain(base.renderer.stops().clone(), MAX_NEW_TOKENS);
    let mut completions =
        generate(&state.model, &requests, &sampling, Source::new(SEED, "fixtures/completions"))?.into_iter();
    let mut rows = Vec::new();
    for (prompt, k) in ranked_prompts(world) {
        let texts = completions.by_ref().take(k).map(|c| Ok(printable(&base.renderer.tokenizer().decode(&c.ids)?)));
        let mut completions = texts.collect::<Result<Vec<String>>>()?;
        completions.retain(|text| !text.is_empty());
        rows.push(Sampled { prompt: prompt.prompt.clone(), completions });
    }
    Ok(rows)
}

/// A completion as a record may hold it: a byte-level model can draw control characters too.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ").trim().to_owned()
}

/// The fixtures' own fine-tuning, from which ranked completions are sampled.
fn sampler_plan() -> Plan {
    Plan { epochs: 4, batch: 16, lr: 1.5e-3, dropout: 0.1, pretraining_share: 0.3, ..Plan::default() }
}

fn sampler_compute() -> Compute<'static> {
    Compute { seed: SEED, ..Compute::default() }
}

/// What is ranked: prompts, each as often as it is ranked, with the number of completions, 4 to 9.
fn ranked_prompts(world: &World) -> Vec<(&instruct_world::Prompt, usize)> {
    let mut order = Source::new(SEED, "fixtures/ranked").at([]).permutation(world.prompts.len());
    order.truncate(RANKED);
    order.sort_unstable();
    let k = |index: usize, again: usize| {
        4 + Source::new(SEED, "fixtures/k").at([index as u64, again as u64]).below(6) as usize
    };
    let rankings = |index: usize| (0..RANKINGS).map(move |again| (&world.prompts[index], k(index, again)));
    order.into_iter().flat_map(rankings).collect()
}

/// Rankings of the committed completions by simulated labelers; whole numbers alone.
fn rankings(world: &World, sampled: &[Sampled]) -> String {
    let labelers = instruct_world::labelers(SEED);
    let mut out = String::new();
    for (index, row) in sampled.iter().enumerate() {
        let mut draws = Source::new(SEED, "fixtures/labels").at([index as u64]);
        let labeler = &labelers[draws.below(labelers.len() as u64) as usize];
        let label = instruct_world::label(labeler, &row.prompt, &row.completions, &mut draws);
        let prompt = world.prompts.iter().find(|prompt| prompt.prompt == row.prompt);
        let record = serde_json::json!({
            "id": format!("ranking-{:04}", index + 1),
            "prompt": row.prompt,
            "user": prompt.map(|p| &p.user),
            "use_case": prompt.map(|p| &p.use_case),
            "completions": row.completions,
            "ranks": label.ranks,
            "labeler": labeler.name,
            "confidence": label.confidence,
            "quality": label.quality,
            "flags": label.flags,
        });
        out.push_str(&format!("{record}\n"));
    }
    out
}

fn manifest(folder: &Path, world: &World, sampled: &[Sampled]) -> Result<Manifest> {
    let (base, decoder) = open(folder)?;
    let held_out = text_windows(base.renderer.tokenizer(), &documents(&world.heldout), recipe().context)?.0;
    let mut examples = Vec::new();
    for row in sampled.iter().step_by(6) {
        let asked = base.renderer.ask(Content::Text(row.prompt.clone()).conversation())?;
        for text in &row.completions {
            examples.push(Example { prompt: asked.ids().to_vec(), completion: asked.completion(text)? });
        }
    }
    let records: Vec<(String, Vec<String>)> =
        sampled.iter().map(|row| (row.prompt.clone(), row.completions.clone())).collect();
    let (alike, pairs) = instruct_world::agreement(SEED, &records, 3);
    Ok(Manifest {
        seed: SEED,
        base_inputs: base_inputs(folder)?,
        base_held_out_loss: round(perplexity(&decoder, &held_out, Compute::default(), &mut |_| ())?.ln()),
        completion_inputs: completion_inputs(folder)?,
        completion_loss: round(nll(&decoder, &examples, Compute::default(), &mut |_| ())?),
        labeler_agreement: round(alike as f64 / pairs.max(1) as f64),
        completion_points: completion_points(sampled),
    })
}

fn completion_points(sampled: &[Sampled]) -> [f64; 4] {
    let texts = sampled.iter().flat_map(|row| row.completions.iter().map(|text| (row.prompt.as_str(), text)));
    let parts = texts.filter_map(|(prompt, text)| instruct_world::report(prompt, text));
    let parts: Vec<[i32; 4]> = parts.map(|r| [r.content, r.manner, r.fluency, r.points]).collect();
    let mean = |i: usize| parts.iter().map(|part| f64::from(part[i])).sum::<f64>() / parts.len().max(1) as f64;
    [0, 1, 2, 3].map(|i| round(mean(i)))
}

fn base_inputs(folder: &Path) -> Result<String> {
    let recipe = serde_json::to_vec(&recipe())?;
    let text = instruct_world::base_text(SEED, BASE_BYTES).concat();
    hash(&[&recipe, text.as_bytes(), &fs::read(folder.join("base/tokenizer.json"))?])
}

/// How fine-tuning draws the pretraining windows that it mixes in; who changes that changes this word, because the
/// completions are others then.
const MIX: &str = "newly shuffled passes";

/// The hash of what decides the committed completions. The plan is spelled out, so that a key which decides
/// nothing about them can come and go.
fn completion_inputs(folder: &Path) -> Result<String> {
    let (Plan { epochs, batch, lr, dropout, pretraining_share, prompt_weight, adam, .. }, compute) =
        (sampler_plan(), sampler_compute());
    ensure!(sampler_plan().schedule == Schedule::COSINE, "the hash says nothing of another schedule");
    let form = serde_json::to_string(&adam.form)?;
    let adam = format!(
        r#"{{"form":{form},"beta1":{:?},"beta2":{:?},"eps":{:?},"weight_decay":{:?},"clip_norm":{:?}}}"#,
        adam.beta1, adam.beta2, adam.eps, adam.weight_decay, adam.clip_norm
    );
    let plan = format!(r#"[{{"epochs":{epochs},"batch":{batch},"lr":{lr:?},"dropout":{dropout:?},"#)
        + &format!(r#""pretraining-share":{pretraining_share:?},"prompt-weight":{prompt_weight:?},"adam":{adam},"#)
        + &format!(
            r#""micro-tokens":{},"seed":{},"mix":"{MIX}"}},{WINDOW},{RANKED},{RANKINGS},{MAX_NEW_TOKENS}]"#,
            compute.micro_tokens, compute.seed
        );
    let model = fs::read(folder.join("base/model.safetensors"))?;
    let text = |name: &str| fs::read(folder.join(name));
    hash(&[
        plan.as_bytes(),
        &model,
        &text("demonstrations.jsonl")?,
        &text("prompts.jsonl")?,
        &text("pretraining.jsonl")?,
    ])
}

fn hash(parts: &[&[u8]]) -> Result<String> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn check_exact(folder: &Path, exact: &[(&str, String)]) -> Result<()> {
    let stale = |(name, content): &&(&str, String)| {
        fs::read(folder.join(name)).map_or(true, |present| present != content.as_bytes())
    };
    let stale: Vec<&str> = exact.iter().filter(stale).map(|(name, _)| *name).collect();
    if stale.is_empty() {
        return Ok(());
    }
    bail!("{} in {} are stale: run `cargo xtask fixtures` and commit the result", stale.join(", "), folder.display())
}

fn check_tokenizer(base: &Path, tokenizer: &Tokenizer) -> Result<()> {
    for (name, bytes) in tokenizer.clone().with_padding(recipe().vocab, &BTreeSet::new())?.files()? {
        if fs::read(base.join(name)).map_or(true, |present| present != bytes) {
            bail!("{} is stale: run `cargo xtask fixtures` and commit the result", base.join(name).display());
        }
    }
    Ok(())
}

/// The rankings bit for bit, given the committed completions; what models made, by the hash of
/// their inputs and by their loss.
fn check_models(folder: &Path, world: &World) -> Result<()> {
    let sampled = read_sampled(folder)?;
    check_exact(folder, &[("rankings.jsonl", rankings(world, &sampled))])?;
    let path = folder.join("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let committed: Manifest = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let now = manifest(folder, world, &sampled)?;
    let close = |a: f64, b: f64| (a - b).abs() <= LOSS_TOLERANCE;
    let same = committed.seed == now.seed
        && committed.base_inputs == now.base_inputs
        && committed.completion_inputs == now.completion_inputs
        && close(committed.base_held_out_loss, now.base_held_out_loss)
        && close(committed.completion_loss, now.completion_loss)
        && committed.labeler_agreement == now.labeler_agreement;
    if same {
        print("fixtures: up to date");
        return Ok(());
    }
    bail!(
        "the models in {} were made from something else: run `cargo xtask fixtures` and commit the result\n\
         committed: {committed:?}\nnow: {now:?}",
        folder.display()
    )
}

fn open(folder: &Path) -> Result<(Base, Decoder)> {
    let path = folder.join("base");
    let wording = Wording { template: TEMPLATE, option: "a template", date: None };
    let base = open_base(&path, wording, &Device::Cpu)?;
    Ok((base, open_decoder(&path, &Device::Cpu, Precision::F32)?.1))
}

fn encoder(base: &Base) -> Encoder<'_> {
    let caps = Caps { prompt: recipe().context - MAX_NEW_TOKENS, completion: MAX_NEW_TOKENS };
    Encoder { renderer: &base.renderer, caps, overlong: Overlong::Drop, loss: Loss::Last }
}

fn documents(texts: &[String]) -> Vec<PretrainText> {
    let document = |text: &String| PretrainText { text: text.clone(), origin: Origin::new("world", 1) };
    texts.iter().map(document).collect()
}

/// The completions that are committed, out of the records that hold their ranks.
fn read_sampled(folder: &Path) -> Result<Vec<Sampled>> {
    let path = folder.join("rankings.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
}

fn tell(name: &str, event: Event<'_, State>) -> instruct_runs::Result<Flow> {
    if let Event::Step { step, total, metrics } = event
        && (step % 100 == 0 || step == total)
    {
        say(&format!("{name} {step}/{total}  loss {:.3}", metrics[0].1));
    }
    Ok(Flow::Continue)
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}
