//! The ear of every training loop: journals, phase times, progress, checkpoints, interruption.

use crate::saved::Saved;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use instruct_train::{Artefact, Checkpoint, Edge, Event, Flow, TrainError};
use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Set by SIGINT and SIGTERM: the step under way is finished, its state saved, and the run stops.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler that sets [`INTERRUPTED`]. Who asks a second time does not want to wait for the
/// end of the step, and loses no more than the step.
pub(crate) fn on_interrupt() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(TWICE_INTERRUPTED);
        }
    })?;
    Ok(())
}

/// What shells say of a program that SIGINT ended.
const TWICE_INTERRUPTED: i32 = 130;

/// One stage being watched.
pub(crate) struct Watch {
    pub(crate) artefact: Artefact,
    every: u64,
    display: Display,
    phases: BTreeMap<&'static str, Instant>,
    samples: bool,
    best: Option<Best>,
}

/// The most that a metric has been at a checkpoint of the schedule, and what it is now.
struct Best {
    metric: &'static str,
    so_far: f64,
    now: f64,
}

/// The name of the checkpoint at which a stage's criterion was highest.
const BEST: &str = "best";

/// What a candidate needs to be written: its name, the steps done, the state.
pub(crate) type OnCandidate<'a, S> = dyn FnMut(&mut Artefact, &str, u64, &S) -> anyhow::Result<()> + 'a;

impl Watch {
    pub(crate) fn new(artefact: Artefact, every: u64) -> Watch {
        let display = Display::new(&artefact);
        Watch { artefact, every, display, phases: BTreeMap::new(), samples: true, best: None }
    }

    /// Keeps, as the candidate `best`, the model at the checkpoint of the schedule where `metric` was
    /// highest. What it was before this process is read from the journal, which is cut to where the stage
    /// continues: nothing more needs saving.
    pub(crate) fn keep_best(&mut self, metric: &'static str) -> anyhow::Result<()> {
        let path = self.artefact.folder().join("metrics.jsonl");
        let journal = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let rows = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let scheduled = rows.filter(|row| row["step"].as_u64().is_some_and(|step| step.is_multiple_of(self.every)));
        let so_far = scheduled.filter_map(|row| row[metric].as_f64()).fold(f64::NEG_INFINITY, f64::max);
        self.best = Some(Best { metric, so_far, now: f64::NEG_INFINITY });
        Ok(())
    }

    /// Handles one event of a stage. `on_candidate` writes the models to choose from.
    pub(crate) fn hear<S: Saved>(
        &mut self,
        event: Event<'_, S>,
        on_candidate: &mut OnCandidate<'_, S>,
    ) -> Result<Flow, TrainError> {
        match event {
            Event::Phase { name, edge: Edge::Begin } => {
                self.phases.insert(name, Instant::now());
            }
            Event::Phase { name, edge: Edge::End } => {
                if let Some(begun) = self.phases.remove(name) {
                    self.artefact.timing(self.display.step + 1, name, begun.elapsed().as_secs_f64())?;
                }
            }
            Event::Step { step, total, metrics } => {
                self.artefact.metrics(step, metrics)?;
                if let Some(best) = &mut self.best {
                    let value = metrics.iter().find(|(name, _)| *name == best.metric);
                    best.now = value.map_or(f64::NEG_INFINITY, |(_, value)| *value);
                }
                self.display.step(step, total, metrics);
            }
            Event::Evaluation { step, metrics } => self.artefact.metrics(step, metrics)?,
            Event::Sample { step, row } => {
                if self.samples {
                    self.artefact.sample(step, row)?;
                }
            }
            Event::Candidate { name, step, state } => {
                on_candidate(&mut self.artefact, name, step, state).map_err(|e| TrainError::Listener(e.into()))?;
            }
            Event::Warning { step, message } => self.display.line(&format!("warning at step {step}: {message}")),
            Event::Boundary { step, state } => return self.boundary(step, state, on_candidate),
        }
        Ok(Flow::Continue)
    }

    fn boundary<S: Saved>(
        &mut self,
        step: u64,
        state: &S,
        on_candidate: &mut OnCandidate<'_, S>,
    ) -> Result<Flow, TrainError> {
        let interrupted = INTERRUPTED.load(Ordering::SeqCst);
        let scheduled = step.is_multiple_of(self.every);
        if let Some(best) = self.best.as_mut().filter(|best| scheduled && best.now > best.so_far) {
            // Before the checkpoint: a process that dies between the two comes here once more.
            best.so_far = best.now;
            on_candidate(&mut self.artefact, BEST, step, state).map_err(|e| TrainError::Listener(e.into()))?;
        }
        if scheduled || step == self.display.total {
            self.artefact.commit(step, &state.rest(), |folder| state.save(folder))?;
        } else if interrupted {
            self.artefact.commit_interim(step, &state.rest(), |folder| state.save(folder))?;
        }
        Ok(if interrupted { Flow::Stop } else { Flow::Continue })
    }

    /// What stopped a stage of the run in this folder, with the checkpoint that is left and the next
    /// thing to do.
    pub(crate) fn stopped(&self, run: &Path, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let left = match self.artefact.checkpoint() {
            Some(Checkpoint { step, folder }) => format!(
                "the newest whole checkpoint is that of step {step}, {}; remove it to go back to the one before",
                folder.display()
            ),
            None => "no checkpoint of this stage was due before, so that it begins again".to_owned(),
        };
        anyhow::anyhow!(
            "{:#}\n  {left}\n  continue with the same command and --run {} --resume, and with --adopt if you change \
             the configuration",
            error.into(),
            run.display()
        )
    }

    /// Takes the display down and gives the artefact back.
    pub(crate) fn done(self) -> Artefact {
        self.display.finish();
        self.artefact
    }
}

/// Progress: a bar on a terminal, a line now and then otherwise.
struct Display {
    bar: Option<ProgressBar>,
    label: String,
    begun: Instant,
    first: Option<u64>,
    last_line: Instant,
    step: u64,
    total: u64,
}

/// Metrics worth a place on the progress line, in this order.
const SHOWN: [(&str, &str); 8] = [
    ("train/sft/loss", "loss"),
    ("train/rm/loss", "loss"),
    ("train/rm/accuracy", "accuracy"),
    ("objective/scores", "score"),
    ("objective/kl", "KL"),
    ("ppo/loss/ptx", "ptx"),
    ("ppo/response_tokens", "tokens"),
    ("ppo/policy/clipfrac", "clipped"),
];

impl Display {
    fn new(artefact: &Artefact) -> Display {
        let label = artefact.folder().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{prefix:>13} {bar:24} {pos}/{len}  {per_sec}  ETA {eta}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.with_prefix(label.clone())
        });
        let now = Instant::now();
        // Times of the step under way belong to the one after this.
        let step = artefact.checkpoint().map_or(0, |checkpoint| checkpoint.step);
        Display { bar, label, begun: now, first: None, last_line: now, step, total: 0 }
    }

    fn step(&mut self, step: u64, total: u64, metrics: &[(&'static str, f64)]) {
        (self.step, self.total) = (step, total);
        let first = *self.first.get_or_insert(step - 1);
        let shown = SHOWN.iter().filter_map(|(name, label)| {
            metrics.iter().find(|(key, _)| key == name).map(|(_, value)| format!("{label} {value:.3}"))
        });
        let message = shown.collect::<Vec<_>>().join("  ");
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(step);
            bar.set_message(message);
        } else if step == total || self.last_line.elapsed() > Duration::from_secs(5) {
            let rate = (step - first) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
            let eta = (total - step) as f64 / rate.max(1e-9);
            self.line(&format!("{:>13} {step}/{total}  {rate:.2}/s  ETA {eta:.0} s  {message}", self.label));
            self.last_line = Instant::now();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => crate::say(text),
        }
    }

    fn finish(&self) {
        match &self.bar {
            Some(bar) if self.step == self.total => bar.finish(),
            // A bar that jumps to its end would say that an interrupted stage is done.
            Some(bar) => bar.abandon(),
            None => {}
        }
    }
}
