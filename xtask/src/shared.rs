//! What it cost each stage of a run to be shared by several ranks: who waited how long, and what travelled.

use crate::machine::peak_memory_mb;
use anyhow::Result;
use instruct_collective::{Collective, Spent};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Where it is kept in a run folder, beside the seconds of each stage.
pub(crate) const SHARED: &str = "ranks.json";

/// By stage, and then by the number of ranks, since a run can be continued on another. Of a stage that is interrupted,
/// what the process cost that brings it to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Shared(BTreeMap<String, BTreeMap<usize, Cost>>);

/// Of one stage on so many ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cost {
    /// Wall-clock seconds, of the first rank.
    seconds: f64,
    /// Steps that were taken: the loop's, and none of an evaluation.
    steps: u64,
    /// Seconds that each rank spent in calls of the others: waiting, and moving numbers.
    waited: Vec<f64>,
    /// Bytes that each rank sent.
    sent: Vec<f64>,
    /// The most that each rank has held so far, in megabytes of 2^20 bytes.
    peak_memory_mb: Vec<f64>,
}

impl Shared {
    /// What earlier processes of the run in this folder kept.
    pub(crate) fn read(run: &Path) -> Shared {
        let text = std::fs::read_to_string(run.join(SHARED)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Whether no stage was shared.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a stage that took `seconds` and `steps` here, since the ranks had spent `before`. Every rank calls this.
    ///
    /// Errors: those of the ranks.
    pub(crate) fn add(
        &mut self,
        stage: &str,
        ranks: &dyn Collective,
        seconds: f64,
        before: Spent,
        steps: u64,
    ) -> Result<()> {
        let (world, now) = (ranks.world(), ranks.spent());
        let own = [now.waited.saturating_sub(before.waited).as_secs_f64(), (now.sent - before.sent) as f64];
        let mut all = vec![0.0; 3 * world];
        all[3 * ranks.rank()..][..3].copy_from_slice(&[own[0], own[1], peak_memory_mb()]);
        ranks.slots(&mut all)?;
        let cost = self.0.entry(stage.to_owned()).or_default().entry(world).or_default();
        let each = |number: usize| all.iter().skip(number).step_by(3).copied();
        let add = |sums: &mut Vec<f64>, number| {
            sums.resize(world, 0.0);
            sums.iter_mut().zip(each(number)).for_each(|(sum, x)| *sum += x);
        };
        cost.seconds += seconds;
        cost.steps += steps;
        add(&mut cost.waited, 0);
        add(&mut cost.sent, 1);
        cost.peak_memory_mb = each(2).collect();
        Ok(())
    }

    /// The lines that a person reads: each rank's share of idle time, what it sends a step, and its memory.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(stage, world, cost): (&str, usize, &Cost)| {
            let join = |numbers: &[f64], digits: usize| {
                numbers.iter().map(|x| format!("{x:.digits$}")).collect::<Vec<_>>().join(", ")
            };
            let idle: Vec<f64> = cost.waited.iter().map(|waited| 100.0 * waited / cost.seconds.max(1e-9)).collect();
            let per = cost.steps.max(1) as f64;
            let sent: Vec<f64> = cost.sent.iter().map(|sent| sent / per / 1e3).collect();
            let unit = if cost.steps > 0 { "kB a step" } else { "kB" };
            format!(
                "{:>22}  {stage}: idle {} %; sent {} {unit}; peak {} MB",
                format!("{world} ranks"),
                join(&idle, 1),
                join(&sent, 0),
                join(&cost.peak_memory_mb, 0)
            )
        };
        let stages =
            self.0.iter().flat_map(|(stage, of)| of.iter().map(move |(&world, cost)| (stage.as_str(), world, cost)));
        stages.map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_collective::testing::threads;

    #[test]
    fn every_rank_knows_what_all_have_spent() {
        let outcomes = threads(2, |ranks| {
            let mut shared = Shared::default();
            for steps in [4, 0] {
                let before = ranks.spent();
                if steps > 0 {
                    // Rank 1 sends 1,000 bytes to the other.
                    let mut bytes = vec![7; if ranks.rank() == 1 { 1_000 } else { 0 }];
                    ranks.broadcast_bytes(1, &mut bytes)?;
                }
                shared.add("sft-init", ranks, 2.0, before, steps).map_err(|error| error.to_string()).unwrap();
            }
            Ok::<_, instruct_collective::Error>(shared)
        });
        let [one, two] = outcomes.try_into().unwrap();
        let (one, two) = (one.unwrap(), two.unwrap());
        let cost = &one.0["sft-init"][&2];
        assert_eq!((cost.seconds, cost.steps, cost.waited.len()), (4.0, 4, 2));
        assert_eq!(cost.sent[1] - cost.sent[0], 1_000.0);
        assert_eq!(cost.sent, two.0["sft-init"][&2].sent);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Shared>(&text).unwrap(), one);
        assert!(one.lines()[0].contains("2 ranks  sft-init: idle 0.0, 0.0 %; sent 0, 0 kB a step; peak "), "{one:?}");
        assert!(Shared::default().is_empty() && !one.is_empty());
    }
}
