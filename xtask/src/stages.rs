//! The stages of the flow, each an artefact of the run folder that is finished once and skipped when it is
//! already there.
//!
//! A model is opened where it is used and closed after: what one stage leaves for another lies in the run
//! folder, and no stage holds more models than its own.

use crate::{
    compare::mean,
    config::{Config, Precision},
    frontier::choose,
    listener::{INTERRUPTED, OnCandidate, StageListener},
    models::Model,
    prepare::{Base, Material, PromptIds, available, open_decoder},
    progress::Progress,
    shared::{SHARED, Shared},
    terminal::say,
};
use anyhow::{Context, Result, bail};
use instruct_collective::{Collective, Spent};
use instruct_data::Tokenizer;
use instruct_kernels as kernels;
use instruct_model::{Config as Description, Decoder, HeadKind, Precision as StoredAs, Sampling};
use instruct_optim::Compute;
use instruct_ppo::{self as ppo, Critic};
use instruct_random::Source;
use instruct_reward_model::{self as reward_model, Item};
use instruct_rollout::{Episode, Prompted, Sampled};
use instruct_runs::{Artefact, Checkpoint, RunDir, Saved};
use instruct_sft as sft;
use serde_json::{Map, Value};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Instant,
};

/// A run in progress: its folder, its configuration, and what it works on.
pub(crate) struct Run<'a> {
    pub(crate) dir: &'a RunDir<'a>,
    pub(crate) config: &'a Config,
    pub(crate) base: &'a Base,
    pub(crate) material: &'a Material,
    /// The policy that PPO goes on with; without one it starts at `sft-init`.
    pub(crate) goes_on_with: Option<PathBuf>,
    /// The ranks that train together.
    ranks: &'a dyn Collective,
    /// What each stage spent on being shared; empty where one process does all.
    pub(crate) shared: Shared,
    /// Steps that this process has taken of the stage under way.
    stepped: Cell<u64>,
    pub(crate) seconds: BTreeMap<String, f64>,
    /// Finished models whose files this process has compared with their hashes.
    verified: RefCell<BTreeMap<String, PathBuf>>,
}

/// The artefact of step 2.
pub(crate) const REWARD_MODEL: &str = "reward-model";

/// The choice among the baseline's candidates.
pub(crate) const SELECTION: &str = "sft-baseline-selection";

/// What comes after all training.
pub(crate) const EVALUATION: &str = "evaluation";

impl<'a> Run<'a> {
    /// A run in this folder, with the seconds that earlier processes spent on it.
    pub(crate) fn new(
        dir: &'a RunDir<'a>,
        config: &'a Config,
        base: &'a Base,
        material: &'a Material,
        ranks: &'a dyn Collective,
    ) -> Run<'a> {
        let (seconds, shared) = (earlier_seconds(dir.path()), Shared::read(dir.path()));
        let (stepped, verified) = (Cell::default(), RefCell::default());
        Run { dir, config, base, material, goes_on_with: None, ranks, shared, stepped, seconds, verified }
    }
}

impl<'a> Run<'a> {
    /// The baseline's candidates, and the reward model on the one with the lowest validation loss (Ouyang et al.
    /// 2022, appendix C.1). Returns the candidates, for [`Run::selection`].
    pub(crate) fn baseline_and_reward_model(&mut self) -> Result<Vec<Candidate>> {
        let candidates = self.timed("sft-baseline", Run::sft_candidates)?;
        self.timed(REWARD_MODEL, |run| run.reward_model(&candidates))?;
        Ok(candidates)
    }

    /// Makes the candidate that the reward model scores highest the baseline (Ouyang et al. 2022, section 3.5).
    pub(crate) fn selection(&mut self, candidates: &[Candidate]) -> Result<()> {
        self.timed(SELECTION, |run| run.select(candidates))
    }

    /// The fine-tuned start of reinforcement learning, with its share of pretraining text. Under the baseline's own
    /// recipe training would give the weights of the baseline's last epoch again, so these are taken.
    pub(crate) fn sft_init(&mut self) -> Result<()> {
        self.timed("sft-init", |run| {
            let mut artefact = run.artefact("sft-init")?;
            if artefact.model().is_some() {
                return Ok(());
            }
            if run.config.sft_init == run.config.sft_baseline {
                let last = Candidate::open(&run.artefact("sft-baseline")?, &epoch(run.config.sft_baseline.epochs))?;
                say("  its recipe is the baseline's, so the weights of the baseline's last epoch are taken");
                let (model, steps) = (run.open(&last.folder)?, sft::steps(&run.config.sft_init, run.examples()).1);
                artefact.finish(steps, |folder| Ok(run.save(&model, folder)?))?;
                return Ok(());
            }
            let (mut artefact, state) = run.sft(artefact, &run.config.sft_init, &mut |_, _, _, _| Ok(()))?;
            artefact.finish(state.step, |folder| Ok(run.save(&state.model, folder)?))?;
            Ok(())
        })
    }

    fn sft(
        &self,
        artefact: Artefact<'a>,
        plan: &sft::Plan,
        on_candidate: &mut OnCandidate<'_, sft::State>,
    ) -> Result<(Artefact<'a>, sft::State)> {
        let data =
            sft::Data { demonstrations: &self.material.demonstrations.train, pretraining: &self.material.windows };
        let mut state = sft::State::new(self.open_model(Model::Base)?, plan)?;
        state.optimizer.share(self.ranks);
        let mut listener = self.listen(artefact, &mut state)?;
        let trained =
            sft::train(&mut state, &data, plan, self.compute(), &mut |event| listener.handle(event, on_candidate));
        trained.map_err(|error| listener.stopped(self.dir.path(), error))?;
        let total = sft::steps(plan, self.examples()).1;
        Ok((self.finished(listener, state.step, total)?, state))
    }

    /// Demonstrations that are trained on.
    fn examples(&self) -> usize {
        self.material.demonstrations.train.len()
    }

    /// Step 1 alone: the baseline's candidates and the start of reinforcement learning.
    pub(crate) fn both_sfts(&mut self) -> Result<()> {
        self.timed("sft-baseline", Run::sft_candidates)?;
        self.sft_init()
    }

    /// Trains the baseline and returns its candidates, in order.
    fn sft_candidates(&mut self) -> Result<Vec<Candidate>> {
        let artefact = self.artefact("sft-baseline")?;
        let names: Vec<String> = (1..=self.config.sft_baseline.epochs).map(epoch).collect();
        let artefact = if artefact.model().is_some() {
            artefact
        } else {
            let mut save = |artefact: &mut Artefact<'_>, name: &str, step: u64, state: &sft::State| -> Result<()> {
                let held_out = &self.material.demonstrations.validation;
                let mut progress = Progress::of("validation", self.own_part(held_out.len()), "examples");
                let loss = sft::nll(&state.model, held_out, self.compute(), &mut |done| progress.advance(done))?;
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

    fn reward_model(&mut self, candidates: &[Candidate]) -> Result<()> {
        let groups: Vec<_> = self.material.rankings.iter().map(|ranked| ranked.group.clone()).collect();
        self.reward_model_from(candidates, REWARD_MODEL, &groups)
    }

    /// The reward model of these groups, made like the run's own, as an artefact of this name.
    ///
    /// Errors: those of training, of the baseline too where it is not there yet.
    pub(crate) fn reward_model_of(&mut self, name: &str, groups: &[reward_model::Group]) -> Result<Decoder> {
        let candidates = self.sft_candidates()?;
        self.reward_model_from(&candidates, name, groups)?;
        self.open_artefact(name)
    }

    fn reward_model_from(&self, candidates: &[Candidate], name: &str, groups: &[reward_model::Group]) -> Result<()> {
        let artefact = self.artefact(name)?;
        if artefact.model().is_some() {
            return Ok(());
        }
        let lowest = candidates.iter().min_by(|a, b| a.validation_loss.total_cmp(&b.validation_loss));
        let trunk = self.open(&lowest.context("the baseline has no candidate")?.folder)?;
        let (mut artefact, state) = self.train_reward_model(artefact, trunk, groups, self.config.seed)?;
        artefact.finish(state.step, |folder| Ok(self.save(&state.model, folder)?))?;
        Ok(())
    }

    /// Trains a reward model on `groups`, from the trunk of `trunk`, and centres it on demonstrations. `seed` keys
    /// its head and the order of the groups.
    pub(crate) fn train_reward_model(
        &self,
        artefact: Artefact<'a>,
        trunk: Decoder,
        groups: &[reward_model::Group],
        seed: u64,
    ) -> Result<(Artefact<'a>, reward_model::State)> {
        let plan = &self.config.reward_model;
        let start = trunk.with_head(HeadKind::Score, seed)?;
        drop(trunk);
        let mut state = reward_model::State::new(start, plan)?;
        state.optimizer.share(self.ranks);
        let mut listener = self.listen(artefact, &mut state)?;
        let compute = Compute { seed, ..self.compute() };
        let trained = reward_model::train(&mut state, groups, plan, compute, &mut |event| {
            listener.handle(event, &mut |_, _, _, _| Ok(()))
        });
        trained.map_err(|error| listener.stopped(self.dir.path(), error))?;
        let artefact = self.finished(listener, state.step, reward_model::steps(plan, groups))?;
        // A score is read where a reply ends, and what else is trained may end before.
        let replies = self.material.last_replies().iter();
        let demonstrations: Vec<Item> =
            replies.map(|reply| Item { prompt: &reply.prompt, completion: &reply.completion }).collect();
        reward_model::center(&state.model, &self.scores_of("centring", &state.model, &demonstrations)?)?;
        Ok((artefact, state))
    }

    /// The candidate whose completions of validation prompts score highest becomes the baseline.
    fn select(&mut self, candidates: &[Candidate]) -> Result<()> {
        let mut artefact = self.artefact("sft-baseline")?;
        if artefact.model().is_some() {
            return Ok(());
        }
        let prompts = self.selection_prompts();
        let reward_model = self.open_reward_model()?;
        let selection = instruct_eval::select(candidates, |candidate| -> Result<Vec<f64>> {
            let what = format!("selection, {}", candidate.name);
            let episodes = self.episodes(&what, &self.open(&candidate.folder)?, prompts, "selection")?;
            Ok(self.scores(&reward_model, &episodes)?.into_iter().map(f64::from).collect())
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
        Ok(())
    }

    /// One PPO run, the artefact of `model`; `gamma_ptx` 0 turns the pretraining mix off.
    pub(crate) fn ppo(&mut self, model: Model, gamma_ptx: f64, frozen: &Frozen) -> Result<()> {
        let name = model.artefact().context("the base is the result of no stage")?;
        self.timed(name, |run| {
            let artefact = run.artefact(name)?;
            if artefact.model().is_some() {
                return Ok(());
            }
            run.train_ppo(artefact, gamma_ptx, frozen)
        })
    }

    /// Both models that PPO reads and never changes.
    pub(crate) fn frozen(&self) -> Result<Frozen> {
        let reference = self.freeze(self.open_model(Model::SftInit)?)?;
        Ok(Frozen { reference, reward_model: self.open_frozen_reward_model()? })
    }

    /// The reward model as PPO and the evaluation keep it.
    fn open_frozen_reward_model(&self) -> Result<Decoder> {
        self.freeze(self.open_reward_model()?)
    }

    /// A model that is never trained, in the precision in which such models are kept.
    fn freeze(&self, model: Decoder) -> Result<Decoder> {
        model.params().release_grad();
        let halves =
            available(self.config.model.frozen) == Precision::Bf16 && model.params().path() == kernels::Path::Fused;
        Ok(if halves { model.held_in_bf16()? } else { model })
    }

    fn train_ppo(&self, artefact: Artefact<'a>, gamma_ptx: f64, frozen: &Frozen) -> Result<()> {
        let plan = ppo::Plan { gamma_ptx, ..self.config.ppo.clone() };
        let (policy, value) = kernels::give_freed_memory_back(|| self.policy_and_value(&plan))?;
        let mut state = ppo::State::new(policy, value, &plan)?;
        state.share(self.ranks);
        // A run that is continued has its own.
        if artefact.checkpoint().is_none() {
            kernels::give_freed_memory_back(|| self.take_critic(&mut state))?;
        }
        let mut listener = self.listen(artefact, &mut state)?;
        let prompts: Vec<Vec<u32>> = self.material.prompts.train.iter().map(|p| p.ids.clone()).collect();
        let score = |episodes: &[Episode]| self.scores(&frozen.reward_model, episodes).map_err(Into::into);
        let decode = |ids: &[u32]| self.decode(ids);
        let task = ppo::Task {
            reference: &frozen.reference,
            prompts: &prompts,
            pretraining: &self.material.windows,
            score: &score,
            decode: &decode,
            stop: self.base.renderer.stops().clone(),
            compute: self.compute(),
        };
        let mut keep = |artefact: &mut Artefact<'_>, name: &str, step: u64, state: &ppo::State| -> Result<()> {
            artefact.commit_named(name, step, |folder| Ok(self.save_policy(&state.policy, folder)?))?;
            Ok(())
        };
        let trained = ppo::train(&mut state, &task, &plan, &mut |event| listener.handle(event, &mut keep));
        trained.map_err(|error| listener.stopped(self.dir.path(), error))?;
        let artefact = self.finished(listener, state.iteration, plan.iterations())?;
        kernels::give_freed_memory_back(|| self.export(artefact, state, frozen))
    }

    /// The policy that PPO starts from, and a value model where the plan wants one of its own.
    fn policy_and_value(&self, plan: &ppo::Plan) -> Result<(Decoder, Option<Decoder>)> {
        let start = match &self.goes_on_with {
            Some(policy) => self.open(policy)?,
            None => self.open_model(Model::SftInit)?,
        };
        match plan.critic {
            Critic::Separate { .. } => {
                let value = self.open_reward_model()?.with_head(HeadKind::Value, self.config.seed)?;
                Ok((start, Some(value)))
            }
            Critic::Head { .. } => Ok((with_zero_head(&start)?, None)),
        }
    }

    /// Where PPO goes on with a policy of another run, so does the value model, as the last checkpoint there has it:
    /// candidates keep none, so it is the last policy's also where an earlier one was chosen.
    fn take_critic(&self, state: &mut ppo::State) -> Result<()> {
        let Some(artefact) = self.goes_on_with.as_deref().and_then(Path::parent) else { return Ok(()) };
        if state.value.is_none() {
            return Ok(());
        }
        let taken = match Checkpoint::newest(artefact)? {
            Some(checkpoint) => state.take_critic(&checkpoint.arrays()).map(|()| checkpoint.step),
            None => Err("no whole checkpoint is left".into()),
        };
        say(&match taken {
            Ok(step) => format!("the value model goes on where step {step} of the old run left it"),
            Err(why) => format!(
                "warning: the value model of {} cannot go on ({why}), so one begins as a copy of the reward model",
                artefact.display()
            ),
        });
        Ok(())
    }

    /// Writes the chosen candidate, or the last policy where none is kept, and the averaged one where there is an
    /// average. Moments and value model go first: nothing here needs them.
    fn export(&self, mut artefact: Artefact<'a>, state: ppo::State, frozen: &Frozen) -> Result<()> {
        let ppo::State { policy, ema, iteration, value, policy_optimizer, value_optimizer, .. } = state;
        drop((value, policy_optimizer, value_optimizer));
        let last = policy.with_head(HeadKind::LanguageModel, self.config.seed)?;
        if let Some(ema) = ema {
            ema.copy_into(policy.params(), self.ranks)?;
            artefact.commit_named(EMA, iteration, |folder| Ok(self.save_policy(&policy, folder)?))?;
        }
        drop(policy);
        let model = if self.config.ppo.candidates > 0 {
            drop(last);
            self.chosen_candidate(&artefact, frozen)?
        } else {
            last
        };
        artefact.finish(iteration, |folder| Ok(self.save(&model, folder)?))?;
        Ok(())
    }

    /// The candidate whose answers to validation prompts the reward model scores highest, within the budget of KL.
    fn chosen_candidate(&self, artefact: &Artefact<'_>, frozen: &Frozen) -> Result<Decoder> {
        let run = artefact.folder().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let names = self.config.ppo.candidate_names();
        let mut points = Vec::with_capacity(names.len());
        for name in &names {
            let candidate = self.open_candidate(artefact, name)?;
            let ValidationAnswers { kl, score, .. } = self.validated(&format!("{run}, {name}"), &candidate, frozen)?;
            points.push((kl, score));
        }
        let chosen = choose(&points, self.config.kl_budget());
        let rows = names.iter().zip(&points).enumerate().map(|(i, (name, (kl, score)))| {
            serde_json::json!({ "candidate": name, "kl": kl, "mean_score": score, "chosen": i == chosen })
        });
        self.dir.write_json(&format!("eval/{run}-selection.json"), &rows.collect::<Vec<_>>())?;
        self.open_candidate(artefact, &names[chosen])
    }

    /// Opens a policy that was kept on the way.
    pub(crate) fn open_candidate(&self, artefact: &Artefact<'_>, name: &str) -> Result<Decoder> {
        let folder = artefact.named(name)?.with_context(|| {
            format!("{}: {name} is missing; was it trained with other `ppo.candidates`?", artefact.folder().display())
        })?;
        self.open(&folder)
    }

    /// Answers to the validation prompts on which candidates are compared, with what frozen models say of them.
    pub(crate) fn validated(&self, what: &str, model: &Decoder, frozen: &Frozen) -> Result<ValidationAnswers> {
        let episodes = self.episodes(what, model, self.selection_prompts(), "selection")?;
        let scores = self.scores(&frozen.reward_model, &episodes)?;
        let kl = self.kl(model, &episodes, &scores, frozen)?;
        let score = mean(&scores.into_iter().map(f64::from).collect::<Vec<f64>>());
        Ok(ValidationAnswers { episodes, kl, score })
    }

    /// Mean KL of a model's own answers to the reference, in nats.
    pub(crate) fn kl(&self, model: &Decoder, episodes: &[Episode], scores: &[f32], frozen: &Frozen) -> Result<f64> {
        let scored = Sampled::of(episodes.to_vec()).score(&|_| Ok(scores.to_vec()))?;
        let nats = self.compute().share(episodes.len(), |own| -> Result<_> {
            Ok(scored.part(own).compare(model, &frozen.reference, 1.0, self.config.model.micro_tokens)?.kl())
        })?;
        Ok(mean(&nats.concat()))
    }

    /// The validation prompts on which candidates are compared.
    pub(crate) fn selection_prompts(&self) -> &[PromptIds] {
        let prompts = &self.material.prompts.validation;
        &prompts[..prompts.len().min(self.config.evaluate.selection_prompts)]
    }

    /// One completion per prompt at temperature 1; prompt `i` takes the same draws whatever model
    /// answers. `what` names the work for a person who waits.
    pub(crate) fn episodes(
        &self,
        what: &str,
        model: &Decoder,
        prompts: &[PromptIds],
        purpose: &str,
    ) -> Result<Vec<Episode>> {
        let prompted = |(i, prompt): (usize, &PromptIds)| Prompted::new(i as u64, i, &prompt.ids);
        let requests: Vec<Prompted> = prompts.iter().enumerate().map(prompted).collect();
        let source = Source::new(self.config.seed, purpose);
        let decode = |ids: &[u32]| self.decode(ids);
        let episodes = self.compute().share(requests.len(), |own| -> Result<_> {
            let mut progress = Progress::of(what, own.len(), "answers");
            let mut finished = |answers: usize| progress.advance(answers);
            Ok(Sampled::draw(
                model,
                &requests[own],
                &self.sampling(),
                self.config.model.slots,
                source,
                &decode,
                &mut finished,
            )?
            .episodes)
        })?;
        Ok(episodes.concat())
    }

    /// How evaluations sample: as training does, under a cap of their own, because SFT has learned longer answers
    /// than PPO may be given room for.
    pub(crate) fn sampling(&self) -> Sampling {
        let stop = self.base.renderer.stops().clone();
        Sampling { temperature: 1.0, ..Sampling::plain(stop, self.config.answer_tokens()) }
    }

    /// Scores of episodes by a reward model that shares the run's tokenizer.
    pub(crate) fn scores(&self, reward_model: &Decoder, episodes: &[Episode]) -> Result<Vec<f32>> {
        let scores = self
            .compute()
            .share(episodes.len(), |own| -> Result<_> { Ok(self.scores_here(reward_model, &episodes[own])?) })?;
        Ok(scores.concat())
    }

    /// As [`Run::scores`], by this rank alone: of episodes that the others do not have.
    pub(crate) fn scores_here(&self, reward_model: &Decoder, episodes: &[Episode]) -> reward_model::Result<Vec<f32>> {
        let items: Vec<Item> = episodes.iter().map(|e| Item { prompt: &e.prompt, completion: &e.completion }).collect();
        reward_model::scores(reward_model, &items, self.config.model.micro_tokens)
    }

    /// Scores of many completions, with progress. A score does not depend on what is computed beside it,
    /// so that the pieces in which it is done change nothing.
    pub(crate) fn scores_of(&self, what: &str, reward_model: &Decoder, items: &[Item]) -> Result<Vec<f32>> {
        const PIECE: usize = 256;
        let scores = self.compute().share(items.len(), |own| -> Result<_> {
            let mut progress = Progress::of(what, own.len(), "completions");
            let mut scores = Vec::with_capacity(own.len());
            for piece in items[own].chunks(PIECE) {
                self.stop_if_interrupted()?;
                scores.extend(reward_model::scores(reward_model, piece, self.config.model.micro_tokens)?);
                progress.advance(piece.len());
            }
            Ok(scores)
        })?;
        Ok(scores.concat())
    }

    /// Completion ids as text, without special tokens.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.base.renderer.tokenizer().decode(ids)?)
    }

    /// What keys the draws of this run, bounds what is computed at a time, and shares it among ranks.
    pub(crate) fn compute(&self) -> Compute<'a> {
        Compute { ranks: self.ranks, ..self.config.model.compute(self.config.seed) }
    }

    /// About so many of these items are this rank's own, for a person who waits.
    pub(crate) fn own_part(&self, items: usize) -> usize {
        items.div_ceil(self.ranks.world())
    }

    /// The ranks that train together.
    pub(crate) fn ranks(&self) -> &'a dyn Collective {
        self.ranks
    }

    /// Opens one of the compared models: of PPO the averaged weights, where these are to be evaluated.
    ///
    /// Errors: its stage is not finished, or kept no average that is to be evaluated.
    pub(crate) fn open_compared(&self, model: Model) -> Result<Decoder> {
        let (true, Some(name @ ("ppo" | "ppo-ptx"))) = (self.config.evaluate.use_ema, model.artefact()) else {
            return self.open_model(model);
        };
        // A run can be continued under another configuration than that of its training. Its last weights in place of
        // averaged ones would be reported under a wrong name.
        let averaged = self.artefact(name)?.named(EMA)?.with_context(|| {
            format!(
                "`evaluate.use-ema`: {name} was trained without `ppo.ema`, so it has no averaged weights; set it to \
                 false"
            )
        })?;
        self.open(&averaged)
    }

    /// Opens the base, or what a finished stage left.
    fn open_model(&self, model: Model) -> Result<Decoder> {
        match model.artefact() {
            None => self.base.decoder(self.config),
            Some(name) => self.open_artefact(name),
        }
    }

    /// Opens the reward model.
    ///
    /// Errors: its stage is not finished.
    pub(crate) fn open_reward_model(&self) -> Result<Decoder> {
        self.open_artefact(REWARD_MODEL)
    }

    fn open_artefact(&self, name: &str) -> Result<Decoder> {
        let known = self.verified.borrow().get(name).cloned();
        let folder = match known {
            Some(folder) => folder,
            None => {
                let artefact = self.artefact(name)?;
                let folder = artefact.model().with_context(|| format!("{name} is not finished"))?.to_owned();
                self.verified.borrow_mut().insert(name.to_owned(), folder.clone());
                folder
            }
        };
        self.open(&folder)
    }

    /// Opens a model of this run.
    pub(crate) fn open(&self, folder: &Path) -> Result<Decoder> {
        Ok(open_decoder(folder, &self.base.device, self.config.model.precision)?.1)
    }

    /// Writes a policy without the value head that it may have.
    fn save_policy(&self, policy: &Decoder, folder: &Path) -> Result<()> {
        match policy.head() {
            HeadKind::LanguageModel => self.save(policy, folder),
            _ => kernels::give_freed_memory_back(|| {
                self.save(&policy.with_head(HeadKind::LanguageModel, self.config.seed)?, folder)
            }),
        }
    }

    /// Writes a model with the run's tokenizer.
    pub(crate) fn save(&self, model: &Decoder, folder: &Path) -> Result<()> {
        save_model(model, &self.base.renderer.exported(), folder)
    }

    /// Opens an artefact of this run. What lies in it is compared with its hashes, which takes a while for
    /// large models, so there is progress.
    pub(crate) fn artefact(&self, name: &str) -> Result<Artefact<'a>> {
        let mut progress =
            Progress::of(&format!("verifying {name}"), self.dir.bytes_to_verify(name)? as usize, "bytes");
        Ok(self.dir.artefact_reporting(name, &mut |bytes| progress.advance(bytes as usize))?)
    }

    /// A listener over `artefact`, and `state` where its newest checkpoint left it.
    fn listen<S: Saved>(&self, mut artefact: Artefact<'a>, state: &mut S) -> Result<StageListener<'a>> {
        artefact.keep_last(self.config.checkpoints.keep);
        // What is read passes through buffers as large as those of the state.
        kernels::give_freed_memory_back(|| StageListener::new(artefact, self.config.checkpoints.every, state))
    }

    /// The artefact of a stage that ran to its end; an error that says how to resume otherwise.
    fn finished(&self, listener: StageListener<'a>, step: u64, total: u64) -> Result<Artefact<'a>> {
        self.stepped.set(step - listener.first());
        let artefact = listener.done();
        if step < total {
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
        let (begun, before) = (Instant::now(), self.ranks.spent());
        self.stepped.set(0);
        let result = work(self).with_context(|| format!("stage `{name}`"));
        let seconds = begun.elapsed().as_secs_f64();
        *self.seconds.entry(name.to_owned()).or_default() += seconds;
        let kept = self.dir.write_json(SECONDS, &self.seconds);
        // On a full disk both fail, and the first says where.
        let value = result?;
        kept?;
        // A stage that was there before has cost nothing.
        if self.stepped.get() > 0 {
            self.add_cost(name, seconds, before)?;
        }
        Ok(value)
    }

    /// Notes what a stage of `seconds` cost the ranks, which had spent `before`. Every rank calls this.
    pub(crate) fn add_cost(&mut self, stage: &str, seconds: f64, before: Spent) -> Result<()> {
        if self.ranks.world() > 1 {
            self.shared.add(stage, self.ranks, seconds, before, self.stepped.take())?;
            self.dir.write_json(SHARED, &self.shared)?;
        }
        Ok(())
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

/// The models that PPO reads and never changes.
pub(crate) struct Frozen {
    /// The policy before its first update.
    pub(crate) reference: Decoder,
    pub(crate) reward_model: Decoder,
}

/// What a model answered to validation prompts, and what frozen models say of that.
pub(crate) struct ValidationAnswers {
    pub(crate) episodes: Vec<Episode>,
    /// Mean KL to the reference, nats per answer.
    pub(crate) kl: f64,
    /// Mean score of the reward model.
    pub(crate) score: f64,
}

/// Where the wall-clock seconds of each stage are kept.
const SECONDS: &str = "seconds.json";

/// The averaged weights of a PPO run, beside its last ones.
const EMA: &str = "ema";

const VALIDATION_LOSS: &str = "validation-loss.txt";

/// Seconds of the stages that earlier processes of this run spent.
fn earlier_seconds(run: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(run.join(SECONDS)).unwrap_or_default();
    let map: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    map.into_iter().filter_map(|(name, seconds)| Some((name, seconds.as_f64()?))).collect()
}

/// Writes a model folder: configuration, weights, tokenizer. The stop ids and the padding id are the
/// tokenizer's in every file.
///
/// Errors: the disk's; a tokenizer that cannot be written; no id is left to pad with.
pub fn save_model(model: &Decoder, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let config = model.config().clone();
    let taken = config.eos.iter().chain(&config.bos).copied().collect();
    let tokenizer = tokenizer.clone().with_padding(config.vocab, &taken)?;
    let eos = config.eos.union(tokenizer.stops()).copied().collect();
    let config = Description { eos, pad: tokenizer.pad(), ..config };
    let get = |name: &str| Ok(model.params().read(name)?);
    instruct_model::save(folder, &config, model.head(), &get, StoredAs::F32)?;
    Ok(tokenizer.save(folder)?)
}

/// A policy with a value head of zeros on its trunk (Ziegler et al. 2019).
fn with_zero_head(policy: &Decoder) -> Result<Decoder> {
    let policy = policy.with_head(HeadKind::LanguageModelWithValue, 0)?;
    policy.params().set("score.weight", &vec![0.0; policy.config().width])?;
    Ok(policy)
}

/// The name of the baseline's weights after so many epochs.
fn epoch(number: u64) -> String {
    format!("epoch-{number:02}")
}

/// Weights to choose from: those of one epoch of the baseline.
pub(crate) struct Candidate {
    name: String,
    folder: PathBuf,
    validation_loss: f64,
}

impl Candidate {
    fn open(artefact: &Artefact<'_>, name: &str) -> Result<Candidate> {
        let folder = artefact.named(name)?.with_context(|| format!("candidate {name} is missing"))?;
        let text = std::fs::read_to_string(folder.join(VALIDATION_LOSS))?;
        let validation_loss = text.parse().with_context(|| format!("candidate {name}: no validation loss"))?;
        Ok(Candidate { name: name.to_owned(), folder, validation_loss })
    }
}

#[cfg(test)]
mod tests;
