//! Every stage through the very calls that a training run makes, on made-up tokens.

use super::{ModelSettings, Shape, Turn, median};
use anyhow::{Result, bail};
use candle_core::Device;
use instruct_collective::{Collective, Spent};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Decoder, HeadKind, Request, Sampling, generate};
use instruct_optim::Compute;
use instruct_ppo as ppo;
use instruct_random::Source;
use instruct_reward_model as reward_model;
use instruct_rollout::Episode;
use instruct_runs::{Event, Flow};
use instruct_sft as sft;
use std::{fmt, time::Instant};
use xtask::{config::Precision, machine::peak_memory_mb};

/// How much one step handles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Prompts, or sequences, or episodes.
    pub(super) prompts: usize,
    /// Completions per prompt.
    pub(super) k: usize,
    /// Tokens of a prompt.
    pub(super) prompt: usize,
    /// Tokens of a completion.
    pub(super) completion: usize,
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.prompts, self.k, self.prompt, self.completion)
    }
}

/// Reads what is displayed.
pub(super) fn parse_sizes(text: &str) -> Result<Sizes, String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    match numbers.as_deref() {
        Ok(&[prompts, k, prompt, completion]) => Ok(Sizes { prompts, k, prompt, completion }),
        _ => Err("not PROMPTS,K,PROMPT,COMPLETION".to_owned()),
    }
}

/// What is measured. Names are those of the command line and of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Stage {
    /// Steps of SFT on sequences of 128 tokens
    Sft,
    /// Steps of the reward model on rankings of 4, prompts and completions of 64 tokens
    RewardModel,
    /// The same on rankings of 9 with prompts of 192 tokens
    RewardModelLong,
    /// 16 completions of 64 tokens after prompts of 64
    Generate,
    /// One completion of 64 tokens after a prompt of 64
    Decode,
    /// PPO iterations of 16 episodes with 4 minibatches and a value model
    Ppo,
    /// The same with the pretraining mix, one window of 128 tokens an episode
    PpoPtx,
}

impl Stage {
    pub(super) const ALL: [Stage; 7] = [
        Stage::Sft,
        Stage::RewardModel,
        Stage::RewardModelLong,
        Stage::Generate,
        Stage::Decode,
        Stage::Ppo,
        Stage::PpoPtx,
    ];

    /// Whether the peer has it.
    pub(super) fn has_peer(self) -> bool {
        self != Stage::PpoPtx
    }

    /// What one step of the comparison handles.
    pub(super) fn sizes(self, shape: &Shape) -> Sizes {
        let [prompts, k, prompt, completion] = match self {
            Stage::Sft => [shape.sequences, 1, 1, 127],
            Stage::RewardModel => [shape.rankings, 4, 64, 64],
            Stage::RewardModelLong => [shape.long_rankings, 9, 192, 64],
            Stage::Decode => [1, 1, 64, 64],
            Stage::Generate | Stage::Ppo | Stage::PpoPtx => [16, 1, 64, 64],
        };
        Sizes { prompts, k, prompt, completion }
    }

    /// Tokens that a step is said to handle: all of them in training, where a peer computes a prompt
    /// once for each completion; the new ones where text is generated.
    fn tokens(self, sizes: Sizes) -> usize {
        let Sizes { prompts, k, prompt, completion } = sizes;
        match self {
            Stage::Sft | Stage::RewardModel | Stage::RewardModelLong => prompts * k * (prompt + completion),
            Stage::Generate | Stage::Decode | Stage::Ppo | Stage::PpoPtx => prompts * completion,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Sft => "sft",
            Stage::RewardModel => "reward-model",
            Stage::RewardModelLong => "reward-model-long",
            Stage::Generate => "generate",
            Stage::Decode => "decode",
            Stage::Ppo => "ppo",
            Stage::PpoPtx => "ppo-ptx",
        })
    }
}

/// Measures `steps` steps and one before them, which is not counted.
pub(super) fn measure(stage: Stage, maker: &Maker<'_>, sizes: Sizes, steps: usize) -> Result<Turn> {
    let (mut clock, mut prompt, mut after) = (Clock::of(steps), 0.0, 0.0);
    let (shape, before) = (maker.shape, maker.ranks.spent());
    match stage {
        Stage::Sft => fine_tune(maker, sizes, &mut clock)?,
        Stage::RewardModel | Stage::RewardModelLong => rank(maker, sizes, &mut clock)?,
        Stage::Generate => complete(&maker.model(HeadKind::LanguageModel)?, shape, sizes, &mut clock)?,
        Stage::Decode => {
            let (model, mut alone) = (maker.model(HeadKind::LanguageModel)?, Clock::of(PROMPTS_READ));
            complete(&model, shape, sizes, &mut clock)?;
            complete(&model, shape, Sizes { completion: 1, ..sizes }, &mut alone)?;
            (prompt, after) = (median(&alone.seconds[1..]), alone.seconds.iter().sum());
        }
        Stage::Ppo | Stage::PpoPtx => reinforce(stage, maker, sizes, &mut clock)?,
    }
    let ranks = spent(maker.ranks, before, clock.seconds.iter().sum(), steps + 1)?;
    if clock.seconds.len() != steps + 1 {
        bail!("{} of {} steps were measured", clock.seconds.len(), steps + 1);
    }
    let seconds = clock.seconds.split_off(1);
    let (first, tokens) = (clock.seconds[0], stage.tokens(sizes));
    Ok(Turn { seconds, tokens, peak_mb: peak_memory_mb(), first, start: 0.0, prompt, after, ranks })
}

/// Of each rank, its share of `seconds` in calls of the others since `before`, and the megabytes that it sent a step.
fn spent(ranks: &dyn Collective, before: Spent, seconds: f64, steps: usize) -> Result<Vec<[f64; 2]>> {
    if ranks.world() == 1 {
        return Ok(Vec::new());
    }
    let (now, mut all) = (ranks.spent(), vec![[0.0; 2]; ranks.world()]);
    let waited = now.waited.saturating_sub(before.waited).as_secs_f64();
    all[ranks.rank()] = [waited / seconds, (now.sent - before.sent) as f64 / 1e6 / steps as f64];
    ranks.slots(all.as_flattened_mut())?;
    Ok(all)
}

/// Readings of the prompt of which decoding takes the median.
const PROMPTS_READ: usize = 5;

/// Seconds from one step to the next.
struct Clock {
    steps: u64,
    last: Instant,
    seconds: Vec<f64>,
}

impl Clock {
    /// For so many steps and one before them.
    fn of(steps: usize) -> Clock {
        Clock { steps: steps as u64 + 1, last: Instant::now(), seconds: Vec::new() }
    }

    fn tick(&mut self) {
        self.seconds.push(self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }

    /// A listener that ticks at every step.
    fn listener<S>(&mut self) -> impl FnMut(Event<'_, S>) -> instruct_runs::Result<Flow> {
        self.last = Instant::now();
        |event| {
            if let Event::Step { .. } = event {
                self.tick();
            }
            Ok(Flow::Continue)
        }
    }
}

/// Makes models and tokens of one shape.
pub(super) struct Maker<'a> {
    pub(super) shape: &'a Shape,
    pub(super) settings: ModelSettings,
    pub(super) leaves: usize,
    pub(super) ranks: &'a dyn Collective,
}

impl<'a> Maker<'a> {
    fn compute(&self) -> Compute<'a> {
        let Maker { leaves, ranks, .. } = *self;
        Compute { micro_tokens: self.settings.micro_tokens, leaves, ranks, ..Compute::default() }
    }

    /// A model that is trained.
    fn model(&self, head: HeadKind) -> Result<Decoder> {
        let compute = self.settings.precision.dtype();
        let decoder = Decoder::zeros(self.shape.config.clone(), head, &Device::Cpu, KernelPath::Fused, compute)?;
        decoder.initialise(1)?;
        Ok(decoder)
    }

    /// The same model as one that is not trained.
    fn frozen(&self, model: &Decoder) -> Result<Decoder> {
        Ok(match self.settings.frozen() {
            Precision::F32 => model.deep_copy()?,
            Precision::Bf16 => model.held_in_bf16()?,
        })
    }
}

/// `n` tokens that no other call with another number has.
fn tokens(shape: &Shape, number: usize, n: usize) -> Vec<u32> {
    let mut draws = Source::new(1, "bench").at([number as u64]);
    (0..n).map(|_| draws.below(shape.config.vocab as u64) as u32).collect()
}

/// The examples and the plan of a fine-tuning.
pub(super) fn demonstrations(shape: &Shape, sizes: Sizes, steps: u64) -> (Vec<sft::Example>, sft::Plan) {
    let Sizes { prompts: sequences, prompt, completion, .. } = sizes;
    let example =
        |i| sft::Example { prompt: tokens(shape, 2 * i, prompt), completion: tokens(shape, 2 * i + 1, completion) };
    let plan = sft::Plan { epochs: steps, batch: sequences, dropout: 0.0, ..sft::Plan::default() };
    ((0..sequences).map(example).collect(), plan)
}

fn fine_tune(maker: &Maker, sizes: Sizes, clock: &mut Clock) -> Result<()> {
    let (examples, plan) = demonstrations(maker.shape, sizes, clock.steps);
    let mut state = sft::State::new(maker.model(HeadKind::LanguageModel)?, &plan)?;
    let data = sft::Data { demonstrations: &examples, pretraining: &[] };
    Ok(sft::train(&mut state, &data, &plan, maker.compute(), &mut clock.listener())?)
}

/// The rankings and the plan of a reward model.
pub(super) fn rankings(shape: &Shape, sizes: Sizes, steps: u64) -> (Vec<reward_model::Group>, reward_model::Plan) {
    let Sizes { prompts, k, prompt, completion } = sizes;
    let group = |i: usize| reward_model::Group {
        prompt: tokens(shape, i, prompt),
        completions: (0..k).map(|j| tokens(shape, 1_000 + i * k + j, completion)).collect(),
        ranks: (1..=k as u32).collect(),
    };
    let plan = reward_model::Plan { epochs: steps, batch: prompts, spike_z: 0.0, ..reward_model::Plan::default() };
    ((0..prompts).map(group).collect(), plan)
}

fn rank(maker: &Maker, sizes: Sizes, clock: &mut Clock) -> Result<()> {
    let (groups, plan) = rankings(maker.shape, sizes, clock.steps);
    let mut state = reward_model::State::new(maker.model(HeadKind::Score)?, &plan)?;
    Ok(reward_model::train(&mut state, &groups, &plan, maker.compute(), &mut clock.listener())?)
}

fn complete(decoder: &Decoder, shape: &Shape, sizes: Sizes, clock: &mut Clock) -> Result<()> {
    let Sizes { prompts, prompt, completion, .. } = sizes;
    let request = |i: usize| Request { episode: i as u64, prompt: tokens(shape, i, prompt) };
    let requests: Vec<Request> = (0..prompts).map(request).collect();
    clock.last = Instant::now();
    for step in 0..clock.steps {
        let drawn = generate(decoder, &requests, &Sampling::plain([].into(), completion), Source::new(step, "bench"))?;
        if drawn.iter().any(|drawn| drawn.ids.len() != completion) {
            bail!("a completion ended early");
        }
        clock.tick();
    }
    Ok(())
}

/// Tokens of a window of the pretraining mix.
pub(super) const WINDOW: usize = 128;

/// The plan of PPO, with the mix or without.
pub(super) fn ppo_plan(stage: Stage, sizes: Sizes, steps: u64) -> ppo::Plan {
    let Sizes { prompts: episodes, completion, .. } = sizes;
    let ptx = if stage == Stage::PpoPtx { 1 } else { 0 };
    ppo::Plan {
        episodes: steps * episodes as u64,
        batch: episodes,
        minibatch: episodes / 4,
        max_new_tokens: completion,
        gamma_ptx: f64::from(ptx as u32),
        ptx_examples: ptx,
        ..ppo::Plan::preset(ppo::Preset::InstructGpt)
    }
}

fn reinforce(stage: Stage, maker: &Maker, sizes: Sizes, clock: &mut Clock) -> Result<()> {
    let plan = ppo_plan(stage, sizes, clock.steps);
    let policy = maker.model(HeadKind::LanguageModel)?;
    let (reference, reward) = (maker.frozen(&policy)?, maker.frozen(&maker.model(HeadKind::Score)?)?);
    let prompts: Vec<Vec<u32>> = (0..64).map(|i| tokens(maker.shape, i, sizes.prompt)).collect();
    let windows: Vec<Vec<u32>> = (0..64).map(|i| tokens(maker.shape, 1_000 + i, WINDOW)).collect();
    let compute = maker.compute();
    let score = |episodes: &[Episode]| {
        let of_ranks = compute.share(episodes.len(), |own| -> Result<_> {
            let items: Vec<reward_model::Item> = episodes[own]
                .iter()
                .map(|episode| reward_model::Item { prompt: &episode.prompt, completion: &episode.completion })
                .collect();
            Ok(reward_model::scores(&reward, &items, compute.micro_tokens)?)
        });
        Ok(of_ranks?.concat())
    };
    let task = ppo::Task {
        reference: &reference,
        prompts: &prompts,
        pretraining: &windows,
        score: &score,
        decode: &|_| Ok(String::new()),
        stop: [].into(),
        compute,
    };
    let value = maker.model(HeadKind::Value)?;
    let mut state = ppo::State::new(policy, Some(value), &plan)?;
    Ok(ppo::train(&mut state, &task, &plan, &mut clock.listener())?)
}
