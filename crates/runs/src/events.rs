//! Events: everything observable leaves a loop through one callback.

use crate::Result;
use serde_json::Value;

/// What a loop tells its listener. `S` is the stage's state, lent whole at every step boundary.
///
/// A loop opens no file, prints nothing and reads no clock. The listener writes metrics and
/// samples through [`crate::Artefact`], times phases, draws progress, and decides when a checkpoint
/// is due:
///
/// ```
/// use instruct_runs::{Event, Flow, Listener, Result};
///
/// struct State {
///     step: u64,
/// }
///
/// /// Returns false when the listener stopped it.
/// fn train(state: &mut State, total: u64, on: &mut Listener<'_, State>) -> Result<bool> {
///     while state.step < total {
///         state.step += 1;
///         on(Event::Step { step: state.step, total, metrics: &[("train/sft/loss", 0.5)] })?;
///         if on(Event::Boundary { step: state.step, state })? == Flow::Stop {
///             return Ok(false);
///         }
///     }
///     Ok(true)
/// }
///
/// let interrupted_at = 3;
/// let mut on = |event: Event<'_, State>| match event {
///     Event::Boundary { step, .. } if step == interrupted_at => Ok(Flow::Stop), // after saving
///     _ => Ok(Flow::Continue),
/// };
/// let mut state = State { step: 0 };
/// assert!(!train(&mut state, 10, &mut on).unwrap());
/// assert_eq!(state.step, interrupted_at);
/// ```
#[derive(Debug)]
pub enum Event<'a, S: ?Sized> {
    /// A phase begins or ends, for example `time/sample`. Phases may nest.
    Phase {
        /// The phase's name, as in `timings.jsonl`.
        name: &'static str,
        /// Whether it begins or ends.
        edge: Edge,
    },
    /// A step is done.
    Step {
        /// Steps done, this one included.
        step: u64,
        /// Steps of the whole run.
        total: u64,
        /// Names and values for `metrics.jsonl`, in their order; see [`Metrics`].
        metrics: &'a [(&'static str, f64)],
    },
    /// Something was measured beside the steps, on held-out data for example.
    Evaluation {
        /// Steps done.
        step: u64,
        /// Names and values for `metrics.jsonl`.
        metrics: &'a [(&'static str, f64)],
    },
    /// A row for `samples.jsonl`.
    Sample {
        /// Steps done.
        step: u64,
        /// The row.
        row: &'a Value,
    },
    /// The state is whole: everything that continues the run is in `state`, and nothing is in
    /// flight. The listener saves it when a checkpoint is due or when the run was interrupted.
    /// Comes after the step's other events, and is the only one after which [`Flow::Stop`] counts.
    Boundary {
        /// Steps done.
        step: u64,
        /// The stage's state.
        state: &'a S,
    },
    /// The weights are one of several models to choose from, for example those of an epoch.
    Candidate {
        /// Its name, fit for a folder.
        name: &'a str,
        /// Steps done.
        step: u64,
        /// The stage's state.
        state: &'a S,
    },
    /// Something looks wrong, but not wrong enough to stop.
    Warning {
        /// Steps done.
        step: u64,
        /// A sentence.
        message: &'a str,
    },
}

/// Whether a phase begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It begins.
    Begin,
    /// It ends.
    End,
}

/// What a listener wants next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    #[default]
    Continue,
    /// Return at the next [`Event::Boundary`]; it has been saved.
    Stop,
}

/// The callback of a loop. Its own failures travel as [`crate::Error::Listener`], into which
/// any boxed error converts.
pub type Listener<'a, S> = dyn FnMut(Event<'_, S>) -> Result<Flow> + 'a;

/// Metrics as a struct whose names stand beside its values. An implementation destructures `self`,
/// so that a field without a name does not compile.
pub trait Metrics {
    /// Names and values, in the column order of `metrics.jsonl`.
    fn entries(&self) -> Vec<(&'static str, f64)>;
}

/// Runs `work` between the begin and the end of phase `name`. `work` is handed the listener for
/// events of its own. A phase that fails has no end.
pub fn phase<S: ?Sized, T, E: From<crate::Error>>(
    on: &mut Listener<'_, S>,
    name: &'static str,
    work: impl FnOnce(&mut Listener<'_, S>) -> Result<T, E>,
) -> Result<T, E> {
    // Only a boundary can stop a loop, so what a phase event answers does not matter.
    let _ = on(Event::Phase { name, edge: Edge::Begin })?;
    let result = work(on)?;
    let _ = on(Event::Phase { name, edge: Edge::End })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn phases_nest_and_failures_pass_through() {
        let mut seen = Vec::new();
        let mut on = |event: Event<'_, ()>| {
            if let Event::Phase { name, edge } = event {
                seen.push(format!("{name} {edge:?}"));
            }
            Ok(Flow::Continue)
        };
        let on: &mut Listener<'_, ()> = &mut on;
        let value = phase(on, "outer", |on| phase(on, "inner", |_| Ok::<_, Error>(7)));
        assert_eq!(value.unwrap(), 7);
        let failed: Result<()> = phase(on, "outer", |_| Err(Error::Listener("full".into())));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(seen, ["outer Begin", "inner Begin", "inner End", "outer End", "outer Begin"]);
    }
}
