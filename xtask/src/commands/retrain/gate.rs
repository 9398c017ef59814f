//! The gate before PPO: whether the new reward model may train a policy.

use super::{Retrained, model_of};
use crate::{
    evaluate::{percent, ranked},
    prepare::RankedGroup,
    stages::Run,
};
use anyhow::{Context, Result};
use instruct_eval::{FEWEST, Interval, Ranked, accuracy_gain, report_card};
use serde::{Deserialize, Serialize};

/// Whether the new reward model may train a policy.
#[derive(Serialize, Deserialize)]
pub(super) struct Gate {
    /// New minus old accuracy on held-out pairs that the old run had already.
    on_old: Interval,
    /// The same on held-out pairs of the feedback; none where no new ranking is held out.
    on_new: Option<Interval>,
    new_pairs: usize,
    /// Whether there are enough of these to ask that the new model is better on them.
    is_asked: bool,
    pub(super) passed: bool,
}

/// Fewer new held-out pairs say too little of whether the new reward model is better on them.
const FEW_PAIRS: usize = 50;

/// How much worse on the old held-out pairs still counts as no worse: two reward models of one recipe differ by about
/// that much when some of their records do, because these come in another order.
const MARGIN: f64 = 0.01;

/// Compares old and new reward model on the pairs that both never saw; `by_new` has the new one's scores of all held-out
/// rankings, in their order.
pub(super) fn gate(run: &Run<'_>, retrained: &Retrained, by_new: &[Ranked]) -> Result<Gate> {
    let keys = retrained.new_keys();
    let held_out = run.material.held_out_rankings.iter().zip(by_new);
    let (new, old): (Vec<_>, Vec<_>) = held_out.partition(|(of, _)| keys.contains(of.id.as_str()));
    let old_model = run.open(&model_of(retrained.from(), "reward-model"))?;
    let gain = |pairs: &[(&RankedGroup, &Ranked)]| -> Result<Option<(Interval, usize)>> {
        let (groups, by_new): (Vec<&RankedGroup>, Vec<Ranked>) = pairs.iter().map(|&(of, by)| (of, by.clone())).unzip();
        let by_old = ranked(run, &old_model, &groups)?;
        match accuracy_gain(&by_new, &by_old) {
            Ok(gain) => Ok(Some((gain, report_card(&by_new)?.pairs))),
            Err(instruct_eval::Error::Empty { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    };
    let (on_old, _) =
        gain(&old)?.context("no old ranking is held out, so nothing says whether the new model is worse")?;
    let on_new = gain(&new)?;
    Ok(Gate::of(on_old, on_new))
}

impl Gate {
    /// Decides, given the gain on old held-out pairs, and that on new ones with their number.
    fn of(on_old: Interval, on_new: Option<(Interval, usize)>) -> Gate {
        let (on_new, new_pairs) = on_new.map_or((None, 0), |(gain, pairs)| (Some(gain), pairs));
        let is_no_worse = on_old.high.unwrap_or(on_old.mean) >= 0.0 || on_old.mean >= -MARGIN;
        // Few prompts have no interval, however many pairs they hold.
        let least = on_new.and_then(|gain| gain.low).filter(|_| new_pairs >= FEW_PAIRS);
        let passed = is_no_worse && least.is_none_or(|low| low > 0.0);
        Gate { on_old, on_new, new_pairs, is_asked: least.is_some(), passed }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let margin = 100.0 * MARGIN;
        let on_new = match &self.on_new {
            Some(gain) => format!("on {} new ones: {}", self.new_pairs, shown(gain)),
            None => "no new ranking is held out".to_owned(),
        };
        let better = if self.is_asked { "the interval must lie above 0" } else { "nothing is asked of so few" };
        let passed = if self.passed { "passed" } else { "not passed" };
        vec![
            format!("gate of the new reward model: {passed} (its accuracy less the old one's, on held-out pairs)"),
            format!(
                "  on the old ones: {}; the interval must reach 0, or at most {margin:.0} point is lost",
                shown(&self.on_old)
            ),
            format!("  {on_new}; {better} ({FEW_PAIRS} pairs of {FEWEST} prompts are enough)"),
        ]
    }
}

fn shown(gain: &Interval) -> String {
    percent(gain.mean, gain.low, gain.high).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(mean: f64, around: Option<f64>) -> Interval {
        Interval { mean, low: around.map(|around| mean - around), high: around.map(|around| mean + around), n: 40 }
    }

    /// Whether new pairs decide, and whether the gate lets through.
    #[track_caller]
    fn check(on_old: Interval, on_new: Option<(Interval, usize)>, wanted: (bool, bool)) {
        let gate = Gate::of(on_old, on_new);
        assert_eq!((gate.is_asked, gate.passed), wanted, "{:?}", gate.lines());
    }

    #[test]
    fn the_gate_says_what_it_asked_for() {
        let check = |on_new: Option<(Interval, usize)>, words: [&str; 2]| {
            let lines = Gate::of(gain(0.0, Some(0.01)), on_new).lines().join("\n");
            assert!(words.iter().all(|words| lines.contains(words)), "{lines}");
        };
        check(None, ["reward model: passed", "no new ranking is held out; nothing is asked of so few"]);
        check(Some((gain(0.1, Some(0.05)), 60)), ["reward model: passed", "on 60 new ones: 10.0 %"]);
        check(Some((gain(0.1, Some(0.2)), 60)), ["reward model: not passed", "the interval must lie above 0"]);
    }

    #[test]
    fn the_gate_asks_for_no_harm_and_where_it_can_for_good() {
        let (same, better, worse) = (gain(0.0, Some(0.01)), gain(0.1, Some(0.05)), gain(-0.1, Some(0.05)));
        check(same, None, (false, true));
        check(worse, None, (false, false));
        check(worse, Some((better, 500)), (true, false));
        check(same, Some((better, 50)), (true, true));
        check(same, Some((better, 49)), (false, true));
        check(same, Some((gain(0.02, Some(0.05)), 500)), (true, false));
        check(same, Some((worse, 500)), (true, false));
        // No interval says nothing, in either direction.
        check(same, Some((gain(0.5, None), 500)), (false, true));
        check(same, Some((gain(-0.5, None), 500)), (false, true));
        // By the margin: an interval below zero, and less than a point.
        check(gain(-0.009, Some(0.001)), None, (false, true));
        check(gain(-0.011, Some(0.001)), None, (false, false));
        check(gain(-0.011, None), None, (false, false));
    }
}
