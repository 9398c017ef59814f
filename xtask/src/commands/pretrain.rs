//! `pretrain`: a byte-level BPE and a small GPT-2-shaped base, from plain text alone.

use crate::{listener::StageListener, prepare::account, progress::Progress, stages::save_model, terminal::say};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use instruct_data::{Limits, PretrainText, Tokenizer, read, text_windows, train_bpe};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Config, Decoder, HeadKind};
use instruct_optim::{AdamConfig, Compute, Schedule, SpikeWatch};
use instruct_runs::{Event, Flow, RunDir, Start};
use instruct_sft::{Data, Example, Plan, State, perplexity, steps, train};
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "Examples:
  instruct pretrain --text book.txt --run runs/base
  instruct pretrain --text *.txt --layers 6 --width 384 --heads 6 --context 512 --run runs/base";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files of text: .txt, or JSONL with `text`
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Run folder; the base is written to RUN/base/model
    #[arg(long)]
    run: PathBuf,
    /// Continue the run in --run
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    recipe: Recipe,
}

/// What a base is made with.
#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub struct Recipe {
    /// Entries of the vocabulary, special tokens included
    #[arg(long, default_value_t = 2048)]
    pub vocab: usize,
    /// Blocks
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Width
    #[arg(long, default_value_t = 128)]
    pub width: usize,
    /// Attention heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Longest sequence, in tokens
    #[arg(long, default_value_t = 128)]
    pub context: usize,
    /// Passes over the text
    #[arg(long, default_value_t = 10)]
    pub epochs: u64,
    /// Windows per optimizer step
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Peak learning rate, cosine to a tenth
    #[arg(long, default_value_t = 2e-3)]
    pub lr: f64,
    /// Keys initial weights and order
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The token that ends a text. There is no other special token.
pub const END: &str = "<|endoftext|>";

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::listener::on_interrupt()?;
    let read = read::<PretrainText>(&args.text, &Limits::default())?;
    account("texts", &read).iter().for_each(|line| say(line));
    let texts = read.records;
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    // Everything that can be refused comes before the run folder.
    let names = || args.text.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let tokenizer = train_bpe(texts.iter().map(|t| t.text.as_str()), args.recipe.vocab, &[END]).with_context(names)?;
    let (mut windows, _) = text_windows(&tokenizer, &texts, args.recipe.context)?;
    if windows.len() < 2 {
        let (context, names) = (args.recipe.context, names());
        bail!("{names}: not enough text for two windows of --context {context} tokens; give it more text");
    }
    let mut state = fresh(&args.recipe, &tokenizer)?;
    let dir = RunDir::open(&args.run, start, &toml::to_string(&args.recipe)?, &"pretraining")?;
    let mut artefact = dir.artefact("base")?;
    if let Some(model) = artefact.model() {
        say(&format!("{} is already there", model.display()));
        return Ok(());
    }
    artefact.keep_last(1);
    let held_out = windows.split_off(windows.len() - (windows.len() / 20).min(200));
    let mut listener = StageListener::new(artefact, 500, &mut state)?;
    let trained =
        pretrain(&mut state, &windows, &args.recipe, &mut |event| listener.handle(event, &mut |_, _, _, _| Ok(())));
    let total = trained.map_err(|error| listener.stopped(&args.run, error))?;
    let mut artefact = listener.done();
    if state.step < total {
        bail!("interrupted; continue with --resume");
    }
    let mut progress = Progress::of("held-out text", held_out.len(), "windows");
    let perplexity = perplexity(&state.model, &held_out, compute(&args.recipe), &mut |done| progress.advance(done))?;
    drop(progress);
    say(&format!("held-out perplexity {perplexity:.3}"));
    let folder = artefact.finish(state.step, |folder| Ok(save_model(&state.model, &tokenizer, folder)?))?;
    say(&format!("base: {}", folder.display()));
    Ok(())
}

/// The untrained state of a base.
///
/// Errors: a shape that holds no decoder.
pub fn fresh(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<State> {
    let end = tokenizer.id(END).context("the tokenizer was trained with its end token")?;
    let config = Config {
        bos: Some(end),
        eos: [end].into(),
        ..Config::tiny_gpt2(recipe.vocab, recipe.width, recipe.layers, recipe.heads, recipe.context)
    };
    let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, KernelPath::Fused, DType::F32)?;
    decoder.initialise(recipe.seed)?;
    Ok(State::new(decoder, &plan(recipe))?)
}

/// Trains on windows of plain text, from the step that `state` has reached; returns the number of
/// steps of the whole run. A window is a demonstration without a prompt.
///
/// Errors: those of [`instruct_sft::train`].
pub fn pretrain(
    state: &mut State,
    windows: &[Vec<u32>],
    recipe: &Recipe,
    on: &mut dyn FnMut(Event<'_, State>) -> instruct_runs::Result<Flow>,
) -> Result<u64> {
    let example = |window: &Vec<u32>| Example { prompt: Vec::new(), completion: window.clone() };
    let examples: Vec<Example> = windows.iter().map(example).collect();
    train(state, &Data { demonstrations: &examples, pretraining: &[] }, &plan(recipe), compute(recipe), on)?;
    Ok(steps(&plan(recipe), examples.len()).1)
}

fn compute(recipe: &Recipe) -> Compute<'static> {
    Compute { seed: recipe.seed, micro_tokens: 4_096, ..Compute::default() }
}

fn plan(recipe: &Recipe) -> Plan {
    Plan {
        epochs: recipe.epochs,
        batch: recipe.batch,
        lr: recipe.lr,
        schedule: Schedule::COSINE,
        dropout: 0.0,
        pretraining_share: 0.0,
        prompt_weight: 0.0,
        // 0.1 is GPT-3's decay (Brown et al. 2020, appendix B); betas are its as well.
        adam: AdamConfig { weight_decay: 0.1, ..AdamConfig::default() },
        spike_z: SpikeWatch::Z,
    }
}
