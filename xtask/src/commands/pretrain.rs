//! `pretrain`: a byte-level BPE and a small GPT-2-shaped base, from plain text alone.

use crate::{initial::lay_copying, listen::Watch, saved::Saved, say, stages::save_model};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use instruct_data::{Limits, PretrainText, Tokenizer, read, text_windows, train_bpe};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Config, Decoder, HeadKind};
use instruct_sft::{Data, Example, Plan, State, perplexity, steps, train};
use instruct_train::{AdamConfig, Event, Flow, RunDir, SpikeWatch, Start, TrainError};
use std::path::PathBuf;

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
pub(crate) struct Recipe {
    /// Entries of the vocabulary, special tokens included
    #[arg(long, default_value_t = 2048)]
    pub(crate) vocab: usize,
    /// Blocks
    #[arg(long, default_value_t = 4)]
    pub(crate) layers: usize,
    /// Width
    #[arg(long, default_value_t = 128)]
    pub(crate) width: usize,
    /// Attention heads
    #[arg(long, default_value_t = 4)]
    pub(crate) heads: usize,
    /// Longest sequence, in tokens
    #[arg(long, default_value_t = 128)]
    pub(crate) context: usize,
    /// Passes over the text
    #[arg(long, default_value_t = 10)]
    pub(crate) epochs: u64,
    /// Windows per optimizer step
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// Peak learning rate, cosine to a tenth
    #[arg(long, default_value_t = 2e-3)]
    pub(crate) lr: f64,
    /// Keys initial weights and order
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// The token that ends a text. There is no other special token.
pub(crate) const END: &str = "<|endoftext|>";

pub(crate) fn run(args: &Args) -> Result<()> {
    crate::listen::on_interrupt()?;
    let texts = read::<PretrainText>(&args.text, &Limits::default())?.records;
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    let dir = RunDir::open(&args.run, start, &toml::to_string(&args.recipe)?, &"pretraining")?;
    let tokenizer = train_bpe(texts.iter().map(|t| t.text.as_str()), args.recipe.vocab, &[END])?;
    let mut artefact = dir.artefact("base")?;
    if let Some(model) = artefact.model() {
        say(&format!("{} is already there", model.display()));
        return Ok(());
    }
    artefact.keep_last(1);
    let (mut windows, _) = text_windows(&tokenizer, &texts, args.recipe.context)?;
    let held_out = windows.split_off(windows.len() - (windows.len() / 20).min(200));
    let mut state = fresh(&args.recipe, &tokenizer)?;
    if let Some(checkpoint) = artefact.checkpoint() {
        state.restore(checkpoint)?;
    }
    let mut watch = Watch::new(artefact, 500);
    let trained =
        pretrain(&mut state, &windows, &args.recipe, &mut |event| watch.hear(event, &mut |_, _, _, _| Ok(())));
    let total = trained.map_err(|error| watch.stopped(&args.run, error))?;
    let mut artefact = watch.done();
    if state.step < total {
        bail!("interrupted; continue with --resume");
    }
    say(&format!("held-out perplexity {:.3}", perplexity(&state.model, &held_out, 4_096)?));
    let folder = artefact.finish(state.step, |folder| Ok(save_model(&state.model, &tokenizer, folder)?))?;
    say(&format!("base: {}", folder.display()));
    Ok(())
}

/// The untrained state of a base.
pub(crate) fn fresh(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<State> {
    let end = tokenizer.id(END).context("the tokenizer was trained with its end token")?;
    let config = Config {
        bos: Some(end),
        eos: [end].into(),
        ..Config::tiny_gpt2(recipe.vocab, recipe.width, recipe.layers, recipe.heads, recipe.context)
    };
    let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, KernelPath::Fused, DType::F32)?;
    decoder.initialise(recipe.seed)?;
    lay_copying(&decoder, recipe.seed)?;
    Ok(State::new(decoder, &plan(recipe))?)
}

/// Trains on windows of plain text, from the step that `state` has reached; returns the number of
/// steps of the whole run. A window is a demonstration without a prompt.
pub(crate) fn pretrain(
    state: &mut State,
    windows: &[Vec<u32>],
    recipe: &Recipe,
    on: &mut dyn FnMut(Event<'_, State>) -> Result<Flow, TrainError>,
) -> Result<u64> {
    let example = |window: &Vec<u32>| Example { prompt: Vec::new(), completion: window.clone() };
    let examples: Vec<Example> = windows.iter().map(example).collect();
    train(state, &Data { demonstrations: &examples, pretraining: &[] }, &plan(recipe), on)?;
    Ok(steps(&plan(recipe), examples.len()).1)
}

fn plan(recipe: &Recipe) -> Plan {
    Plan {
        epochs: recipe.epochs,
        batch: recipe.batch,
        lr: recipe.lr,
        dropout: 0.0,
        pretraining_share: 0.0,
        prompt_weight: 0.0,
        // 0.1 is GPT-3's decay (Brown et al. 2020, appendix B); betas are its as well.
        adam: AdamConfig { weight_decay: 0.1, ..AdamConfig::default() },
        micro_tokens: 4_096,
        spike_z: SpikeWatch::Z,
        seed: recipe.seed,
    }
}
