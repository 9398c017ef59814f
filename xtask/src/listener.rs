//! The listener of every training loop: journals, phase times, progress, checkpoints, interruption.

use crate::{progress::Progress, terminal::say};
use instruct_runs::{Artefact, Checkpoint, Edge, Error, Event, Flow, Recorder, Saved};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Set by SIGINT and SIGTERM: the step under way is finished, its state saved, and the run stops.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler that sets [`INTERRUPTED`]. A second signal ends the process at once: whoever sends
/// it does not want to wait for the end of the step, and loses only that step.
pub(crate) fn on_interrupt() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(TWICE_INTERRUPTED);
        }
    })?;
    Ok(())
}

/// What shells say of a program that SIGINT ended.
pub(crate) const TWICE_INTERRUPTED: i32 = 130;

/// What a stage's loop talks to: a recorder that makes it survive, a clock, and a display.
pub(crate) struct StageListener<'r> {
    recorder: Recorder<'r>,
    progress: Progress,
    /// Steps that earlier processes did.
    first: u64,
    /// Steps done, when phases of the next are timed.
    step: u64,
    phases: BTreeMap<&'static str, Instant>,
}

/// Writes a candidate: given the artefact, the candidate's name, the steps done and the state.
pub(crate) type OnCandidate<'a, S> = dyn FnMut(&mut Artefact<'_>, &str, u64, &S) -> anyhow::Result<()> + 'a;

impl<'r> StageListener<'r> {
    /// Brings `state` to the artefact's newest checkpoint, and listens from there; `every` so many steps
    /// it saves the state.
    pub(crate) fn new<S: Saved>(artefact: Artefact<'r>, every: u64, state: &mut S) -> anyhow::Result<Self> {
        let label = artefact.folder().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        artefact.passed_over().iter().for_each(|damaged| say(&format!("warning: {damaged}")));
        let step = artefact.checkpoint().map_or(0, |checkpoint| checkpoint.step);
        let recorder = Recorder::new(artefact, every, state)?;
        Ok(StageListener {
            recorder,
            progress: Progress::new(&label, "steps"),
            first: step,
            step,
            phases: BTreeMap::new(),
        })
    }

    /// Handles one event of a stage. `on_candidate` writes the models to choose from.
    pub(crate) fn handle<S: Saved>(
        &mut self,
        event: Event<'_, S>,
        on_candidate: &mut OnCandidate<'_, S>,
    ) -> Result<Flow, Error> {
        match event {
            Event::Phase { name, edge } => self.time(name, edge)?,
            Event::Step { step, total, metrics } => self.show(step, total, metrics),
            Event::Candidate { name, step, state } => {
                write(on_candidate, self.recorder.artefact(), name, step, state)?;
            }
            Event::Warning { step, message } => self.progress.line(&format!("warning at step {step}: {message}")),
            Event::Evaluation { .. } | Event::Sample { .. } | Event::Boundary { .. } => {}
        }
        self.recorder.record(&event, INTERRUPTED.load(Ordering::SeqCst))
    }

    fn time(&mut self, name: &'static str, edge: Edge) -> Result<(), Error> {
        match edge {
            Edge::Begin => drop(self.phases.insert(name, Instant::now())),
            Edge::End => {
                if let Some(begun) = self.phases.remove(name) {
                    self.recorder.artefact().timing(self.step + 1, name, begun.elapsed().as_secs_f64())?;
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, step: u64, total: u64, metrics: &[(&'static str, f64)]) {
        let value = |name: &str| metrics.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let shown = SHOWN.iter().filter_map(|(name, label)| Some(format!("{label} {:.3}", value(name)?)));
        self.progress.step(step, total, &shown.collect::<Vec<_>>().join("  "));
        self.step = step;
    }

    /// The error that stopped a stage of the run in this folder, with the checkpoint that is left and the
    /// next thing to do.
    pub(crate) fn stopped(&mut self, run: &Path, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let left = match self.recorder.artefact().checkpoint() {
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

    /// Steps that were done before this process began.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Takes the display down and gives the artefact back.
    pub(crate) fn done(self) -> Artefact<'r> {
        self.progress.keep();
        self.recorder.into_artefact()
    }
}

fn write<S>(
    on_candidate: &mut OnCandidate<'_, S>,
    artefact: &mut Artefact,
    name: &str,
    step: u64,
    state: &S,
) -> Result<(), Error> {
    on_candidate(artefact, name, step, state).map_err(|error| Error::Listener(error.into()))
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
