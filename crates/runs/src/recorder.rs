//! The listener that makes a run survive: it writes down what a loop says, and saves its state.

use crate::{Artefact, Event, Flow, Result, Saved};

/// Writes a loop's events into an artefact: metrics and samples as they come, its state whenever a
/// checkpoint is due. With one of these a loop that is killed at any instant continues as if it had not
/// been.
pub struct Recorder<'r> {
    artefact: Artefact<'r>,
    every: u64,
    total: u64,
}

impl<'r> Recorder<'r> {
    /// A recorder that saves a checkpoint every so many steps and at the last. It brings `state` to where
    /// the artefact's newest checkpoint left it.
    ///
    /// Errors: as [`Artefact::restore`].
    pub fn new<S: Saved>(mut artefact: Artefact<'r>, every: u64, state: &mut S) -> Result<Self> {
        artefact.restore(state)?;
        Ok(Recorder { artefact, every: every.max(1), total: 0 })
    }

    /// Writes down one event. At a boundary it saves the state when a checkpoint is due; with `stop` it
    /// saves it in any case, and answers [`Flow::Stop`]. Phases, candidates and warnings are the
    /// caller's: this crate reads no clock, prints nothing and knows no model.
    ///
    /// Errors: the disk's.
    pub fn record<S: Saved>(&mut self, event: &Event<'_, S>, stop: bool) -> Result<Flow> {
        match *event {
            Event::Step { step, total, metrics } => {
                self.total = total;
                self.artefact.metrics(step, metrics)?;
            }
            Event::Evaluation { step, metrics } => self.artefact.metrics(step, metrics)?,
            Event::Sample { step, row } => self.artefact.sample(step, row)?,
            Event::Boundary { step, state } => {
                // A signal reaches the processes of a run at different steps.
                let stop = self.artefact.told(stop)?;
                if self.is_due(step) || step == self.total {
                    self.artefact.save(step, state)?;
                } else if stop {
                    self.artefact.save_interim(step, state)?;
                }
                return Ok(if stop { Flow::Stop } else { Flow::Continue });
            }
            Event::Phase { .. } | Event::Candidate { .. } | Event::Warning { .. } => {}
        }
        Ok(Flow::Continue)
    }

    /// Whether the schedule has a checkpoint at `step`; the last step has one besides.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every)
    }

    /// The artefact, for what else is written into it.
    pub fn artefact(&mut self) -> &mut Artefact<'r> {
        &mut self.artefact
    }

    /// Gives the artefact back.
    pub fn into_artefact(self) -> Artefact<'r> {
        self.artefact
    }
}
