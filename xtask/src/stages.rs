//! The stages of the flow, each an artefact of the run folder that is finished once and skipped
//! when it is already there.

use crate::{
    config::{self, Config, SftConfig},
    listen::{INTERRUPTED, Watch},
    prepare::{Base, Material, PromptIds, available, open_decoder},
    saved::Saved,
};
use anyhow::{Context, Result, bail};
use instruct_data::Tokenizer;
use instruct_kernels as kernels;
use instruct_model::{Decoder, HeadKind, Precision, Request, Sampling, generate};
use instruct_ppo::{self as ppo, Critic, Episode};
use instruct_random::Source;
use instruct_reward_model::{self as reward_model, Item};
use instruct_sft as sft;
use instruct_train::{Artefact, RunDir};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Instant,
};

/// A run in progress: its folder, what it was told, and what it works on.
pub(crate) struct Run<'a> {
    pub(crate) dir: &'a RunDir,
    pub(crate) config: &'a Config,
    pub(crate) base: &'a Base,
    pub(crate) material: &'a Material,
    pub(crate) seconds: BTreeMap<String, f64>,
}

impl Run<'_> {
    /// Both artefacts of step 1 and 2 that need each other: the baseline's candidates, the reward
    /// model on the one with the lowest validation loss, then the candidate that the reward model
    /// scores highest (Ouyang et al. 2022, section 3.5 and appendix C.1).
    pub(crate) fn baseline_and_reward_model(&mut self) -> Result<(Decoder, Decoder)> {
        let candidates = self.timed("sft-baseline", Run::sft_candidates)?;
        let reward_model = self.timed("reward-model", |run| run.reward_model(&candidates))?;
        let baseline = self.timed("sft-baseline-selection", |run| run.select(&candidates, &reward_model))?;
        Ok((baseline, reward_model))
    }

    /// The fine-tuned start of reinforcement learning, with its share of pretraining text.
    pub(crate) fn sft_init(&mut self) -> Result<Decoder> {
        self.timed("sft-init", |run| {
            let artefact = run.dir.artefact("sft-init")?;
            if let Some(model) = artefact.model() {
                return run.open(model);
            }
            let (mut artefact, state) = run.sft(artefact, &run.config.sft_init, &mut |_, _, _, _| Ok(()))?;
            artefact.finish(state.step, |folder| Ok(run.save(&state.model, folder)?))?;
            Ok(state.model)
        })
    }

    fn sft(
        &self,
        artefact: Artefact,
        config: &SftConfig,
        on_candidate: &mut crate::listen::OnCandidate<'_, sft::State>,
    ) -> Result<(Artefact, sft::State)> {
        let plan = self.config.sft_plan(config);
        let data =
            sft::Data { demonstrations: &self.material.demonstrations.train, pretraining: &self.material.windows };
        let mut state = sft::State::new(self.base.decoder.deep_copy()?, &plan)?;
        let mut watch = self.watch(artefact, &mut state)?;
        let trained = sft::train(&mut state, &data, &plan, &mut |event| watch.hear(event, on_candidate));
        trained.map_err(|error| watch.stopped(self.dir.path(), error))?;
        let total = sft::steps(&plan, data.demonstrations.len()).1;
        Ok((self.arrived(watch, state.step, total)?, state))
    }

    /// Trains the baseline and returns its candidates, in order.
    pub(crate) fn sft_candidates(&mut self) -> Result<Vec<Candidate>> {
        let artefact = self.dir.artefact("sft-baseline")?;
        let names: Vec<String> = (1..=self.config.sft_baseline.epochs).map(|e| format!("epoch-{e:02}")).collect();
        let artefact = if artefact.model().is_some() {
            artefact
        } else {
            let mut save = |artefact: &mut Artefact, name: &str, step: u64, state: &sft::State| -> Result<()> {
                let held_out = &self.material.demonstrations.validation;
                let loss = sft::nll(&state.model, held_out, self.config.model.micro_tokens)?;
                artefact.metrics(step, &[("eval/sft/loss", loss)])?;
                artefact.commit_named(name, step, |folder| {
                    std::fs::write(folder.join(VALIDATION_LOSS), loss.to_string())?;
                    Ok(self.save(&state.model, folder)?)
                })?;
                Ok(())
            };
            self.sft(artefact, &self.config.sft_baseline, &mut save)?.0
        };
        names.iter().map(|name| Candidate::open(&artefact, name)).collect()
    }

    fn reward_model(&mut self, candidates: &[Candidate]) -> Result<Decoder> {
        let artefact = self.dir.artefact("reward-model")?;
        if let Some(model) = artefact.model() {
            return self.open(model);
        }
        let lowest = candidates.iter().min_by(|a, b| a.validation_loss.total_cmp(&b.validation_loss));
        let trunk = self.open(&lowest.context("the baseline has no candidate")?.folder)?;
        let groups: Vec<_> = self.material.rankings.iter().map(|ranked| ranked.group.clone()).collect();
        let (mut artefact, state) = self.train_reward_model(artefact, &trunk, &groups)?;
        artefact.finish(state.step, |folder| Ok(self.save(&state.model, folder)?))?;
        Ok(state.model)
    }

    /// Trains a reward model on `groups`, from the trunk of a fine-tuned model, and centres it on
    /// demonstrations.
    pub(crate) fn train_reward_model(
        &self,
        artefact: Artefact,
        trunk: &Decoder,
        groups: &[reward_model::Group],
    ) -> Result<(Artefact, reward_model::State)> {
        let plan = self.config.reward_plan();
        let mut state = reward_model::State::new(trunk.with_head(HeadKind::Score, self.config.seed)?, &plan)?;
        let mut watch = self.watch(artefact, &mut state)?;
        let trained =
            reward_model::train(&mut state, groups, &plan, &mut |event| watch.hear(event, &mut |_, _, _, _| Ok(())));
        trained.map_err(|error| watch.stopped(self.dir.path(), error))?;
        let artefact = self.arrived(watch, state.step, reward_model::steps(&plan, groups))?;
        let train = self.material.demonstrations.train.iter();
        let demonstrations: Vec<Item> =
            train.map(|example| Item { prompt: &example.prompt, completion: &example.completion }).collect();
        reward_model::center(&state.model, &demonstrations, plan.micro_tokens)?;
        Ok((artefact, state))
    }

    /// The candidate whose completions of validation prompts score highest becomes the baseline.
    fn select(&mut self, candidates: &[Candidate], reward_model: &Decoder) -> Result<Decoder> {
        let mut artefact = self.dir.artefact("sft-baseline")?;
        if let Some(model) = artefact.model() {
            return self.open(model);
        }
        let prompts = &self.material.prompts.validation;
        let prompts = &prompts[..prompts.len().min(self.config.evaluate.selection_prompts)];
        let selection = instruct_eval::select(candidates, |candidate| -> Result<Vec<f64>> {
            let episodes = self.episodes(&self.open(&candidate.folder)?, prompts, "selection")?;
            Ok(self.scores(reward_model, &episodes)?.into_iter().map(f64::from).collect())
        })?;
        let rows = candidates.iter().zip(&selection.means).enumerate().map(|(i, (candidate, score))| {
            serde_json::json!({
                "candidate": candidate.name,
                "validation_loss": candidate.validation_loss,
                "mean_score": score,
                "chosen": i == selection.index,
            })
        });
        self.dir.write_json("eval/sft-selection.json", &rows.collect::<Vec<_>>())?;
        let model = self.open(&candidates[selection.index].folder)?;
        artefact.keep_last(self.config.checkpoints.keep);
        let step = artefact.checkpoint().map_or(0, |checkpoint| checkpoint.step);
        artefact.finish(step, |folder| Ok(self.save(&model, folder)?))?;
        Ok(model)
    }

    /// One PPO run, named by its artefact; `gamma_ptx` 0 turns the pretraining mix off.
    pub(crate) fn ppo(
        &mut self,
        name: &str,
        gamma_ptx: f64,
        sft_init: &Decoder,
        reward_model: &Decoder,
    ) -> Result<Decoder> {
        self.timed(name, |run| {
            let artefact = run.dir.artefact(name)?;
            if let Some(model) = artefact.model() {
                let averaged = if run.config.evaluate.use_ema { artefact.named(EMA)? } else { None };
                return run.open(averaged.as_deref().unwrap_or(model));
            }
            run.train_ppo(artefact, gamma_ptx, sft_init, reward_model)
        })
    }

    /// A model as PPO and the evaluation keep it: they never train it.
    pub(crate) fn frozen(&self, model: Decoder) -> Result<Decoder> {
        model.params().release_grad();
        let halves = available(self.config.model.frozen) == config::Precision::Bf16
            && model.params().path() == kernels::Path::Fused;
        Ok(if halves { model.held_in_bf16()? } else { model })
    }

    /// The model that an earlier stage has finished, to be trained further.
    fn finished(&self, name: &str) -> Result<Decoder> {
        let artefact = self.dir.artefact(name)?;
        self.open(artefact.model().with_context(|| format!("{name} is not finished"))?)
    }

    fn train_ppo(
        &self,
        artefact: Artefact,
        gamma_ptx: f64,
        sft_init: &Decoder,
        reward_model: &Decoder,
    ) -> Result<Decoder> {
        let plan = ppo::Plan { gamma_ptx, ..self.config.ppo.clone() };
        let start = self.finished("sft-init")?;
        let (policy, value) = match plan.critic {
            Critic::Separate { .. } => {
                (start, Some(self.finished("reward-model")?.with_head(HeadKind::Value, self.config.seed)?))
            }
            Critic::Head { .. } => (with_zero_head(&start)?, None),
        };
        let mut state = ppo::State::new(policy, value, &plan)?;
        let mut watch = self.watch(artefact, &mut state)?;
        let prompts: Vec<Vec<u32>> = self.material.prompts.train.iter().map(|p| p.ids.clone()).collect();
        let score = |episodes: &[Episode]| Ok(self.scores(reward_model, episodes)?);
        let decode = |ids: &[u32]| self.decode(ids);
        let task = ppo::Task {
            reference: sft_init,
            prompts: &prompts,
            pretraining: &self.material.windows,
            score: &score,
            decode: &decode,
            stop: self.base.tokenizer.stops().clone(),
            seed: self.config.seed,
            micro_tokens: self.config.model.micro_tokens,
        };
        watch.keep_best("objective/rlhf_reward")?;
        let mut best = |artefact: &mut Artefact, name: &str, step: u64, state: &ppo::State| -> Result<()> {
            let policy = state.policy.with_head(HeadKind::LanguageModel, self.config.seed)?;
            artefact.commit_named(name, step, |folder| Ok(self.save(&policy, folder)?))?;
            Ok(())
        };
        let trained = ppo::train(&mut state, &task, &plan, &mut |event| watch.hear(event, &mut best));
        trained.map_err(|error| watch.stopped(self.dir.path(), error))?;
        let mut artefact = self.arrived(watch, state.iteration, plan.iterations())?;
        let raw = state.policy.with_head(HeadKind::LanguageModel, self.config.seed)?;
        let averaged = raw.deep_copy()?;
        if let Some(ema) = &state.ema {
            ema.copy_into(state.policy.params())?;
            averaged.copy_from(&state.policy)?;
            artefact.commit_named(EMA, state.iteration, |folder| Ok(self.save(&averaged, folder)?))?;
        }
        artefact.finish(state.iteration, |folder| Ok(self.save(&raw, folder)?))?;
        Ok(if self.config.evaluate.use_ema && state.ema.is_some() { averaged } else { raw })
    }

    /// One completion per prompt at temperature 1; prompt `i` takes the same draws whatever model
    /// answers.
    pub(crate) fn episodes(&self, model: &Decoder, prompts: &[PromptIds], purpose: &str) -> Result<Vec<Episode>> {
        let request = |(i, prompt): (u64, &PromptIds)| Request { episode: i, prompt: prompt.ids.clone() };
        let requests: Vec<Request> = (0..).zip(prompts).map(request).collect();
        let completions = generate(model, &requests, &self.sampling(), Source::new(self.config.seed, purpose))?;
        let episode = |(completion, request): (instruct_model::Completion, Request)| Episode {
            id: completion.episode,
            group: completion.episode as usize,
            prompt: request.prompt,
            text: self.decode(&completion.ids),
            completion: completion.ids,
            ended_by_eos: completion.ended_by_eos,
        };
        Ok(completions.into_iter().zip(requests).map(episode).collect())
    }

    /// How evaluations sample: as training does.
    pub(crate) fn sampling(&self) -> Sampling {
        let stop = self.base.tokenizer.stops().clone();
        Sampling { temperature: 1.0, ..Sampling::plain(stop, self.config.ppo.max_new_tokens) }
    }

    /// Scores of episodes by a reward model that shares the run's tokenizer.
    pub(crate) fn scores(&self, reward_model: &Decoder, episodes: &[Episode]) -> reward_model::Result<Vec<f32>> {
        let items: Vec<Item> = episodes.iter().map(|e| Item { prompt: &e.prompt, completion: &e.completion }).collect();
        reward_model::scores(reward_model, &items, self.config.model.micro_tokens)
    }

    /// Completion ids as text, without special tokens.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        // A vocabulary that was checked against the model decodes every id the model can draw.
        self.base.tokenizer.decode(ids).unwrap_or_default()
    }

    /// Opens a model of this run.
    pub(crate) fn open(&self, folder: &Path) -> Result<Decoder> {
        Ok(open_decoder(folder, self.base.decoder.params().device(), self.config.model.precision)?.1)
    }

    /// Writes a model with the run's tokenizer.
    pub(crate) fn save(&self, model: &Decoder, folder: &Path) -> Result<()> {
        save_model(model, &self.base.tokenizer, folder)
    }

    /// A watch over `artefact`, and `state` where its newest checkpoint left it.
    fn watch<S: Saved>(&self, mut artefact: Artefact, state: &mut S) -> Result<Watch> {
        artefact.keep_last(self.config.checkpoints.keep);
        for damaged in artefact.passed_over() {
            crate::say(&format!("warning: {damaged}"));
        }
        if let Some(checkpoint) = artefact.checkpoint() {
            state.restore(checkpoint)?;
        }
        artefact.expect_bytes(state.bytes())?;
        Ok(Watch::new(artefact, self.config.checkpoints.every))
    }

    /// The artefact of a stage that ran to its end; an error that says how to resume otherwise.
    fn arrived(&self, watch: Watch, step: u64, total: u64) -> Result<Artefact> {
        let artefact = watch.done();
        if step < total && INTERRUPTED.load(Ordering::SeqCst) {
            bail!(
                "interrupted after step {step} of {total}; the state is saved, continue with the same command and \
                 --run {} --resume",
                self.dir.path().display()
            );
        }
        Ok(artefact)
    }

    /// Runs a stage and keeps its wall-clock seconds, added to those of an earlier process.
    fn timed<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.stop_if_interrupted()?;
        let begun = Instant::now();
        let result = work(self).with_context(|| format!("stage `{name}`"));
        *self.seconds.entry(name.to_owned()).or_default() += begun.elapsed().as_secs_f64();
        let kept = self.dir.write_json(SECONDS, &self.seconds);
        // On a full disk both fail, and the first says where.
        let value = result?;
        kept?;
        Ok(value)
    }

    /// Ends what has no steps, and so no boundary, when a signal asks for it.
    pub(crate) fn stop_if_interrupted(&self) -> Result<()> {
        if INTERRUPTED.load(Ordering::SeqCst) {
            bail!(
                "interrupted; what is done is saved, continue with the same command and --run {} --resume",
                self.dir.path().display()
            );
        }
        Ok(())
    }
}

/// Where the wall-clock seconds of each stage are kept.
pub(crate) const SECONDS: &str = "seconds.json";

/// The averaged weights of a PPO run, beside its last ones.
const EMA: &str = "ema";

const VALIDATION_LOSS: &str = "validation-loss.txt";

/// Seconds of the stages that earlier processes of this run spent.
pub(crate) fn earlier_seconds(run: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(run.join(SECONDS)).unwrap_or_default();
    let map: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    map.into_iter().filter_map(|(name, seconds)| Some((name, seconds.as_f64()?))).collect()
}

/// Writes a model folder: configuration, weights, tokenizer.
pub(crate) fn save_model(model: &Decoder, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    model.save(folder, Precision::F32)?;
    Ok(tokenizer.save(folder)?)
}

/// A policy with a value head of zeros on its trunk (Ziegler et al. 2019).
fn with_zero_head(policy: &Decoder) -> Result<Decoder> {
    let policy = policy.with_head(HeadKind::LanguageModelWithValue, 0)?;
    policy.params().set("score.weight", &vec![0.0; policy.config().width])?;
    Ok(policy)
}

/// Weights to choose from: those of one epoch of the baseline.
pub(crate) struct Candidate {
    name: String,
    folder: PathBuf,
    validation_loss: f64,
}

impl Candidate {
    fn open(artefact: &Artefact, name: &str) -> Result<Candidate> {
        let folder = artefact.named(name)?.with_context(|| format!("candidate {name} is missing"))?;
        let text = std::fs::read_to_string(folder.join(VALIDATION_LOSS))?;
        let validation_loss = text.parse().with_context(|| format!("candidate {name}: no validation loss"))?;
        Ok(Candidate { name: name.to_owned(), folder, validation_loss })
    }
}

#[cfg(test)]
mod tests;
