//! What each stage wrote while it trained, as small drawings on one scale of steps each.

use crate::{
    figure::{Figure, number},
    html::{Html, el, text},
    parts::{absent, figures, heading, paragraph, slug},
    plot::{Drawn, Plot, Series},
    run::Run,
    source::As,
    table::{Table, details},
    thin::Point,
};

/// The section, from the journals of all stages.
pub(crate) fn section(run: &Run) -> Html {
    let hint = el("p")
        .class("hint")
        .attr("hidden", "")
        .text("Point at a curve to read its values; or move to it with Tab, and along it with the arrow keys.");
    let intro = paragraph(
        "A curve of many steps is drawn as a bold running mean above a thin line, and of very many steps the thin line \
         keeps the lowest and the highest of each stretch, so that no peak is lost.",
    );
    FAMILIES.iter().fold(Html::from(intro).followed_by(hint), |all: Html, family| all.followed_by(family.html(run)))
}

/// Stages that are drawn together, because they write the same metrics.
struct Family {
    heading: &'static str,
    /// What they count.
    steps: &'static str,
    /// The artefacts; the first is drawn in the first colour.
    stages: &'static [&'static str],
    /// Whether a run always has all of them.
    always: bool,
    panels: &'static [Panel],
    /// Those that a reader opens.
    more: &'static [Panel],
}

/// One metric.
struct Panel {
    metric: &'static str,
    title: &'static str,
    unit: &'static str,
    guide: Option<(f64, &'static str)>,
}

const fn panel(metric: &'static str, title: &'static str, unit: &'static str) -> Panel {
    Panel { metric, title, unit, guide: None }
}

const fn guided(metric: &'static str, title: &'static str, unit: &'static str, guide: (f64, &'static str)) -> Panel {
    Panel { metric, title, unit, guide: Some(guide) }
}

const FAMILIES: [Family; 4] = [
    Family {
        heading: "Step 1: supervised fine-tuning",
        steps: "step",
        stages: &["sft-baseline", "sft-init"],
        always: true,
        panels: &[
            panel("train/sft/loss", "Loss on demonstrations", "nats per token"),
            panel(VALIDATION, "Validation loss", "nats per token, at the end of each epoch"),
            panel("train/sft/pretraining_loss", "Loss on pretraining text", "nats per token"),
        ],
        more: &[
            panel("train/sft/grad_norm", "Gradient norm", "before clipping"),
            panel("train/sft/lr", "Learning rate", ""),
        ],
    },
    Family {
        heading: "Step 2: the reward model",
        steps: "step",
        stages: &["reward-model"],
        always: true,
        panels: REWARD,
        more: REWARD_MORE,
    },
    Family {
        heading: "The second reward model, which judges",
        steps: "step",
        stages: &["judge-model"],
        always: false,
        panels: REWARD,
        more: REWARD_MORE,
    },
    Family {
        heading: "Step 3: reinforcement learning (PPO)",
        steps: "iteration",
        stages: &["ppo-ptx", "ppo"],
        always: true,
        panels: &[
            panel("objective/scores", "Reward model's score", "mean of an iteration"),
            panel("objective/rlhf_reward", "Reward", "score minus the price of KL"),
            panel("objective/kl", "KL to sft_init", "nats per answer"),
            panel("ppo/policy/entropy", "Entropy of the policy", "nats per token"),
            panel("ppo/response_tokens", "Length of an answer", "tokens"),
            panel("ppo/loss/ptx", "Loss on pretraining text", "nats per token"),
            panel("ppo/loss/policy", "Policy loss", ""),
            panel("ppo/loss/value", "Value loss", "score squared"),
            panel("ppo/val/explained_variance", "Explained variance of returns", "share"),
        ],
        more: &[
            panel("objective/kl_k3", "KL by k3", "nats per answer"),
            panel("objective/entropy", "Entropy of an answer", "nats"),
            panel("objective/kl_coef", "Price of KL", "score per nat"),
            panel("ppo/policy/approxkl", "Squared step of the policy", "nats squared"),
            panel("ppo/policy/clipfrac", "Clipped tokens, policy", "share"),
            panel("ppo/val/clipfrac", "Clipped tokens, value", "share"),
            panel("ppo/policy/ratio", "Ratio of new to old policy", "mean over tokens"),
            panel("ppo/policy/ratio_first_minibatch", "Ratio on the first minibatch", "distance from 1"),
            panel("ppo/val/num_eos_tokens", "Answers that end", "episodes of an iteration"),
            panel("ppo/returns/mean", "Returns", "score, mean over tokens"),
            panel("ppo/returns/var", "Variance of returns", "score squared"),
            panel("ppo/sampling_gap", "Sampling against training forward", "nats"),
            panel("ppo/grad_norm", "Gradient norm", "before clipping"),
            panel("ppo/lr", "Learning rate", ""),
        ],
    },
];

const VALIDATION: &str = "eval/sft/loss";
const REWARD: &[Panel] = &[
    guided("train/rm/loss", "Loss on rankings", "nats", (std::f64::consts::LN_2, "chance: ln 2")),
    guided("train/rm/accuracy", "Accuracy on the step's pairs", "share", (0.5, "chance")),
    panel("train/rm/margin", "Margin of better over worse", "score"),
];
const REWARD_MORE: &[Panel] =
    &[panel("train/rm/grad_norm", "Gradient norm", "before clipping"), panel("train/rm/lr", "Learning rate", "")];

impl Family {
    fn html(&self, run: &Run) -> Html {
        if !self.always && self.stages.iter().all(|stage| !run.stages.contains_key(stage)) {
            return Html::default();
        }
        let drawn = |panels: &[Panel]| figures(panels.iter().filter_map(|panel| panel.html(self, run)));
        let more = drawn(self.more);
        let constant = self.constant(run);
        [
            heading(self.heading),
            self.progress(run),
            drawn(self.panels),
            if more == Html::default() { more } else { details("More curves of this step", more) },
            constant,
            if self.stages.contains(&"sft-baseline") { candidates(run) } else { Html::default() },
        ]
        .into_iter()
        .collect()
    }

    /// How far each stage is.
    fn progress(&self, run: &Run) -> Html {
        let said = |stage: &&'static str| {
            let Some(of) = run.stages.get(stage) else { return format!("{stage} has not begun.") };
            match (of.finished, of.metrics.last_step(), self.total(run)) {
                (true, Some(last), _) => format!("{stage} is finished ({} {last:.0}).", self.steps),
                (true, None, _) => format!("{stage} is finished, without a {} of its own.", self.steps),
                (false, Some(last), Some(total)) => format!("{stage} is at {} {last:.0} of {total:.0}.", self.steps),
                (false, Some(last), None) => format!("{stage} is at {} {last:.0}.", self.steps),
                (false, None, _) => format!("{stage} has begun, without a {} so far.", self.steps),
            }
        };
        let begun = self.stages.iter().any(|stage| run.stages.contains_key(stage));
        // Retraining makes one policy, with the mix.
        let stages = self.stages.iter().filter(|stage| !(run.is_retrained && **stage == "ppo"));
        let words = stages.map(said).collect::<Vec<_>>().join(" ");
        if begun { paragraph(words).into() } else { absent(&words) }
    }

    /// How many iterations PPO will have; of other stages the journals do not tell.
    fn total(&self, run: &Run) -> Option<f64> {
        let iterations = || Some((run.setting("ppo.episodes")? / run.setting("ppo.batch")?).ceil());
        if self.steps == "iteration" { iterations() } else { None }
    }

    /// The metrics that never changed, in a sentence instead of a drawing.
    fn constant(&self, run: &Run) -> Html {
        let said = |panel: &Panel| {
            let curves = panel.curves(self, run);
            let values: Vec<f64> = curves.iter().flat_map(|(_, points)| points.iter().map(|point| point.1)).collect();
            let first = *values.first()?;
            (panel.is_flat(&curves)).then(|| format!("{} {}", panel.metric, number(first)))
        };
        let flat: Vec<String> = self.panels.iter().chain(self.more).filter_map(said).collect();
        if flat.is_empty() {
            return Html::default();
        }
        paragraph(format!("Not drawn, because it never changed: {}.", flat.join("; "))).class("note").into()
    }
}

impl Panel {
    /// The curve of each stage that has one.
    fn curves(&self, family: &Family, run: &Run) -> Vec<(&'static str, Vec<Point>)> {
        let curve = |stage: &&'static str| Some((*stage, run.stages.get(stage)?.metrics.curve(self.metric)));
        family.stages.iter().filter_map(curve).filter(|(_, points)| !points.is_empty()).collect()
    }

    /// Whether there are several values and all are the same.
    fn is_flat(&self, curves: &[(&str, Vec<Point>)]) -> bool {
        let mut values = curves.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
        let Some(first) = values.next() else { return false };
        let (mut many, mut flat) = (false, true);
        values.for_each(|value| (many, flat) = (true, flat && value == first));
        many && flat
    }

    fn html(&self, family: &Family, run: &Run) -> Option<Html> {
        let mut curves = self.curves(family, run);
        if curves.is_empty() || self.is_flat(&curves) {
            return None;
        }
        // A curve that is 0 throughout beside one that is not: the loss on pretraining text without the mix.
        let zero = |points: &[Point]| points.iter().all(|point| point.1 == 0.0);
        let (idle, rest): (Vec<_>, Vec<_>) = curves.into_iter().partition(|(_, points)| zero(points));
        curves = rest;
        let id = format!("curve-{}-{}", slug(family.stages[0]), slug(self.metric));
        let plot = self.plot(family, &curves);
        let idle = idle.iter().map(|(stage, _)| format!(" {stage} has 0 throughout.")).collect::<String>();
        let figure = Figure {
            title: self.title.to_owned(),
            unit: self.unit.to_owned(),
            legend: plot.legend(),
            drawing: plot.svg(&id),
            caption: caption(family.steps, &curves),
            note: format!("{} Metric {}.{idle}", plot.note(), self.metric).trim_start().to_owned(),
            table: plot.table(self.title),
            id,
        };
        Some(figure.html())
    }

    fn plot(&self, family: &Family, curves: &[(&'static str, Vec<Point>)]) -> Plot {
        let drawn = if self.metric == VALIDATION { Drawn::Marked } else { Drawn::Line };
        let series = |(stage, points): &(&'static str, Vec<Point>)| Series {
            name: (*stage).to_owned(),
            points: points.clone(),
            drawn,
            ..Series::default()
        };
        Plot {
            x: family.steps,
            series: curves.iter().map(series).collect(),
            guides: self.guide.into_iter().collect(),
            ..Plot::default()
        }
    }
}

/// Where each curve begins and ends, and how far it went in between.
fn caption(steps: &str, curves: &[(&str, Vec<Point>)]) -> String {
    let said = |(stage, points): &(&str, Vec<Point>)| {
        let (first, last) = (points.first()?, points.last()?);
        if points.len() == 1 {
            return Some(format!("{stage}: {} at {steps} {}.", number(first.1), number(first.0)));
        }
        let lowest = points.iter().copied().reduce(|best, p| if p.1 < best.1 { p } else { best })?;
        let highest = points.iter().copied().reduce(|best, p| if p.1 > best.1 { p } else { best })?;
        Some(format!(
            "{stage}: from {} at {steps} {} to {} at {steps} {}; lowest {} ({}), highest {} ({}).",
            number(first.1),
            number(first.0),
            number(last.1),
            number(last.0),
            number(lowest.1),
            number(lowest.0),
            number(highest.1),
            number(highest.0)
        ))
    };
    curves.iter().filter_map(said).collect::<Vec<_>>().join(" ")
}

/// What the reward model and the validation loss say of the epochs of the baseline.
fn candidates(run: &Run) -> Html {
    let Some(selection) = run.selections.get("eval/sft-selection.json") else { return Html::default() };
    let head = ["epoch", "reward model's score", "validation loss, nats per token", "chosen"];
    let mut table = Table::new("Candidates of sft-baseline; the reward model chooses", &head);
    for place in selection.keys(&[]) {
        let chosen = selection.at(&[&place, "chosen"]).and_then(|value| value.as_bool()) == Some(true);
        let cells = [
            selection.show(&[&place, "mean_score"], As::Fixed(2)),
            selection.show(&[&place, "validation_loss"], As::Fixed(3)),
            text(if chosen { "chosen" } else { "" }),
        ];
        table.row(text(selection.words(&[&place, "candidate"]).unwrap_or("none")), cells);
    }
    table.html()
}
