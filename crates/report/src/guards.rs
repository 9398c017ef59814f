//! What the guards saw (docs/guards.md): how near each run of PPO came to a limit, and what jumped.

use crate::{
    figure::number,
    html::{Html, text},
    parts::{absent, heading, paragraph},
    run::Run,
    table::Table,
    thin::Point,
};

/// The section, from the journals and the limits of the configuration.
pub(crate) fn section(run: &Run) -> Html {
    let runs: Vec<&str> = ["ppo-ptx", "ppo"].into_iter().filter(|stage| run.stages.contains_key(stage)).collect();
    let intro = paragraph(
        "A guard stops a run before it wastes hours. The worst that each saw, from the journals; a stage that is \
         finished was stopped by none. Other guards look at what no journal keeps: every weight and gradient, and \
         each answer's score.",
    );
    let limits = if runs.is_empty() { absent("PPO has not begun.") } else { limits(run, &runs).html() };
    [intro.into(), limits, heading("Jumps"), jumps(run)].into_iter().collect()
}

/// A guard of PPO: what it is called, its limit, and the worst that it saw.
struct Guard {
    name: &'static str,
    limit: &'static str,
    worst: fn(&Run, &str) -> Option<Seen>,
    /// Which values stop the run.
    stops: Stops,
}

/// On which side of its limit a value stops a run.
#[derive(Clone, Copy)]
enum Stops {
    Above,
    Below,
    /// A count that is reached.
    At,
}

/// A value, and the iteration where it was.
type Seen = Point;

const GUARDS: [Guard; 5] = [
    Guard {
        name: "ratio on the first minibatch, distance from 1",
        limit: "ppo.guards.ratio-tolerance",
        worst: |run, stage| highest(&curve(run, stage, "ppo/policy/ratio_first_minibatch")),
        stops: Stops::Above,
    },
    Guard {
        name: "divergence: KL to the reference, nats per answer",
        limit: "ppo.guards.max-kl",
        worst: |run, stage| highest(&curve(run, stage, "objective/kl")),
        stops: Stops::Above,
    },
    Guard {
        name: "negative divergence: minus the k1 of all answers of an iteration, nats",
        limit: "ppo.guards.negative-kl",
        worst: |run, stage| {
            let episodes = run.setting("ppo.batch")?;
            let sums = curve(run, stage, "objective/kl").into_iter().map(|(step, kl)| (step, -kl * episodes));
            highest(&sums.collect::<Vec<_>>())
        },
        stops: Stops::Above,
    },
    Guard {
        name: "entropy of the policy, nats per token",
        limit: "ppo.guards.min-entropy",
        worst: |run, stage| highest(&negated(&curve(run, stage, "ppo/policy/entropy"))).map(|(step, x)| (step, -x)),
        stops: Stops::Below,
    },
    Guard {
        name: "cap: iterations in a row in which no answer ended",
        limit: "ppo.guards.capped-iterations",
        worst: |run, stage| longest_row(&curve(run, stage, "ppo/val/num_eos_tokens"), |ended| ended == 0.0),
        stops: Stops::At,
    },
];

fn curve(run: &Run, stage: &str, metric: &str) -> Vec<Point> {
    run.stages.get(stage).map(|stage| stage.metrics.curve(metric)).unwrap_or_default()
}

fn negated(points: &[Point]) -> Vec<Point> {
    points.iter().map(|&(step, value)| (step, -value)).collect()
}

fn highest(points: &[Point]) -> Option<Seen> {
    points.iter().copied().reduce(|best, point| if point.1 > best.1 { point } else { best })
}

/// The length of the longest row of steps of which `holds`, and the step at its end.
fn longest_row(points: &[Point], holds: fn(f64) -> bool) -> Option<Seen> {
    let mut length = 0.0;
    let rows = points.iter().map(|&(step, value)| {
        length = if holds(value) { length + 1.0 } else { 0.0 };
        (step, length)
    });
    highest(&rows.collect::<Vec<_>>())
}

fn limits(run: &Run, stages: &[&str]) -> Table {
    let head: Vec<&str> = ["guard", "limit"].into_iter().chain(stages.iter().copied()).collect();
    let mut table = Table::new("Guards of PPO: the worst value of each run, and its iteration", &head);
    for guard in GUARDS {
        let limit = run.setting(guard.limit);
        let said = |stage: &&str| match (guard.worst)(run, stage) {
            Some(seen) => text(guard.verdict(seen, limit)),
            None => crate::source::dash(),
        };
        let stated = match limit {
            Some(0.0) => "off".to_owned(),
            Some(limit) => number(limit),
            None => "unknown".to_owned(),
        };
        table.row(text(guard.name), [text(stated)].into_iter().chain(stages.iter().map(said)));
    }
    table
}

impl Guard {
    fn verdict(&self, seen: Seen, limit: Option<f64>) -> String {
        let (step, value) = seen;
        let where_seen = format!("{} (iteration {})", number(value), number(step));
        let Some(limit) = limit.filter(|limit| *limit != 0.0) else { return where_seen };
        let beyond = match self.stops {
            Stops::Above => value > limit,
            Stops::Below => value < limit,
            Stops::At => value >= limit,
        };
        format!("{where_seen}: {}", if beyond { "beyond the limit" } else { "within" })
    }
}

/// The curves that are watched for jumps, and the key that says how far a jump must go.
const WATCHED: [(&str, &str, &[&str]); 6] = [
    ("sft-baseline", "sft-baseline.spike-z", &["train/sft/loss", "train/sft/grad_norm"]),
    ("sft-init", "sft-init.spike-z", &["train/sft/loss", "train/sft/grad_norm"]),
    ("reward-model", "reward-model.spike-z", &["train/rm/loss", "train/rm/grad_norm"]),
    ("judge-model", "reward-model.spike-z", &["train/rm/loss", "train/rm/grad_norm"]),
    ("ppo-ptx", "ppo.guards.spike-z", PPO_WATCHED),
    ("ppo", "ppo.guards.spike-z", PPO_WATCHED),
];
const PPO_WATCHED: &[&str] = &["ppo/loss/policy", "ppo/loss/value", "ppo/loss/ptx", "ppo/grad_norm"];

fn jumps(run: &Run) -> Html {
    let mut table = Table::new("Jumps, of which the run warned", &["metric", "stage", "step", "value", "deviations"]);
    for (stage, key, metrics) in WATCHED {
        let Some(z) = run.setting(key).filter(|z| *z > 0.0) else { continue };
        for metric in metrics {
            for (step, value, deviations) in spikes(&curve(run, stage, metric), z) {
                let cells = [stage.to_owned(), number(step), number(value), format!("{deviations:.1}")];
                table.row(text(metric), cells.map(text));
            }
        }
    }
    if table.rows.is_empty() {
        return paragraph("No loss and no gradient norm jumped.").into();
    }
    let many = table.rows.len();
    let said = format!(
        "The run warned of {many} {} far above the 50 before: look at the data of that step, and lower the learning \
         rate if many follow.",
        if many == 1 { "value that stood" } else { "values that stood" }
    );
    Html::from(paragraph(said)).followed_by(table.html())
}

/// Where a curve stands more than `z` standard deviations above its last 50 values: step, value and deviations. The
/// rule is that of the guards (`Spikes` in `instruct-optim`), which keep no list.
fn spikes(points: &[Point], z: f64) -> Vec<(f64, f64, f64)> {
    const WINDOW: usize = 50;
    const WARM_UP: usize = 10;
    const FLOOR: f64 = 0.01;
    let jump = |i: usize| {
        let recent = &points[i.saturating_sub(WINDOW)..i];
        let n = recent.len() as f64;
        let mean = recent.iter().map(|point| point.1).sum::<f64>() / n;
        let variance = recent.iter().map(|point| (point.1 - mean).powi(2)).sum::<f64>() / n;
        let spread = variance.sqrt().max(FLOOR * mean.abs()).max(f64::MIN_POSITIVE);
        let (step, value) = points[i];
        let deviations = (value - mean) / spread;
        (deviations > z).then_some((step, value, deviations))
    };
    (WARM_UP..points.len()).filter_map(jump).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_far_above_what_came_before() {
        #[track_caller]
        fn check(values: &[f64], want: &[(f64, f64)]) {
            let points: Vec<Point> = (1..).map(f64::from).zip(values.iter().copied()).collect();
            let found: Vec<(f64, f64)> =
                spikes(&points, 6.0).into_iter().map(|(step, value, _)| (step, value)).collect();
            assert_eq!(found, want);
        }
        let flat = [1.0; 12];
        check(&flat, &[]);
        // 0.01 of the mean is the least spread: 1.06 is exactly 6 of them above 1, and 1.07 is 7.
        check(&[&flat[..], &[1.07]].concat(), &[(13.0, 1.07)]);
        check(&[&flat[..], &[0.1]].concat(), &[]);
        check(&[1.0, 1.0, 9.0], &[]);
        // 61 steps later the first jump is forgotten, so the second is one as well.
        let two = [&flat[..], &[2.0], &[1.0; 60], &[2.0]].concat();
        check(&two, &[(13.0, 2.0), (74.0, 2.0)]);
    }

    #[test]
    fn the_longest_row_ends_where_it_is_longest() {
        let points: Vec<Point> = (1..).map(f64::from).zip([1.0, 0.0, 0.0, 3.0, 0.0]).collect();
        assert_eq!(longest_row(&points, |ended| ended == 0.0), Some((3.0, 2.0)));
        assert_eq!(longest_row(&[], |_| true), None);
    }
}
