//! What the candidates of a PPO run are worth, to the reward model and to the judge, against their distance from the
//! reference. No model is opened here.

use anyhow::Result;
use instruct_eval::{
    Fit, Point, fit_best_of_n, fit_reinforcement, frontier, over_optimisation, select_within_kl, turning_point,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// What answers to validation prompts say of the model that gave them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) name: String,
    /// Mean KL to the reference, nats per answer.
    pub(crate) kl: f64,
    /// Mean score of the reward model.
    pub(crate) proxy: f64,
    /// Mean points of the judge.
    pub(crate) gold: f64,
}

/// Both PPO runs' candidates, and best-of-n over their reference, all on the same validation prompts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Frontier {
    /// Nats that a chosen candidate may be away; none sets no limit.
    kl_budget: Option<f64>,
    prompts: usize,
    /// The reference, at distance 0.
    reference: Row,
    runs: BTreeMap<&'static str, Candidates>,
    best_of_n: Vec<Row>,
    /// The law of best-of-n (Gao et al. 2022), fitted to the judge's points above those of the reference.
    best_of_n_fit: Option<Fit>,
}

/// One run's candidates.
#[derive(Clone, Debug, Serialize)]
struct Candidates {
    /// In order of distance.
    candidates: Vec<Row>,
    /// The candidate that the reward model likes best within the budget: the run's result.
    chosen: String,
    /// The candidate that the judge likes best within the budget.
    judge_choice: String,
    /// Where the judge's points are highest although the reward model's score still rises after, if anywhere.
    turning_point: Option<String>,
    /// The law of reinforcement learning (Gao et al. 2022), fitted to the judge's points above those of the reference.
    fit: Option<Fit>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    kl: f64,
    sqrt_kl: f64,
    proxy: f64,
    gold: f64,
    /// Of a candidate, whether none that is nearer has more of the judge's points.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_frontier: Option<bool>,
}

/// The index of the point (KL, worth) that is worth most within `budget` nats; where none is within it, of the
/// nearest.
pub(crate) fn choose(points: &[(f64, f64)], budget: Option<f64>) -> usize {
    let nearest = || (0..points.len()).reduce(|best, i| if points[i].0 < points[best].0 { i } else { best });
    select_within_kl(points, budget.unwrap_or(f64::INFINITY)).or_else(nearest).unwrap_or(0)
}

impl Frontier {
    /// Errors: those of [`over_optimisation`], which lists of one length do not cause.
    pub(crate) fn of(
        prompts: usize,
        kl_budget: Option<f64>,
        reference: &Measured,
        runs: Vec<(&'static str, Vec<Measured>)>,
        best_of_n: Vec<Measured>,
    ) -> Result<Frontier> {
        let row = |of: &Measured, on_frontier| Row {
            name: of.name.clone(),
            kl: of.kl,
            sqrt_kl: of.kl.max(0.0).sqrt(),
            proxy: of.proxy,
            gold: of.gold,
            on_frontier,
        };
        let runs =
            runs.into_iter().map(|(run, candidates)| Ok((run, candidates_of(kl_budget, reference, candidates, row)?)));
        Ok(Frontier {
            kl_budget,
            prompts,
            reference: row(reference, None),
            runs: runs.collect::<Result<_>>()?,
            best_of_n_fit: fit_best_of_n(&above(reference, &points(&best_of_n)?)),
            best_of_n: best_of_n.iter().map(|of| row(of, None)).collect(),
        })
    }

    /// The lines that a person reads.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(run, of): (&&'static str, &Candidates)| {
            let said = |name: &str| {
                let found = of.candidates.iter().find(|row| row.name == name);
                found.map_or(String::new(), |row| {
                    format!("{name} (KL {:.2}, score {:.2}, points {:.2})", row.kl, row.proxy, row.gold)
                })
            };
            let label = format!("{run} candidates");
            format!("{label:>22}  chosen {}; the judge's {}", said(&of.chosen), said(&of.judge_choice))
        };
        self.runs.iter().map(line).collect()
    }
}

fn candidates_of(
    budget: Option<f64>,
    reference: &Measured,
    mut candidates: Vec<Measured>,
    row: impl Fn(&Measured, Option<bool>) -> Row,
) -> Result<Candidates> {
    let chosen_by = |worth: fn(&Measured) -> f64, candidates: &[Measured]| {
        let points: Vec<(f64, f64)> = candidates.iter().map(|of| (of.kl, worth(of))).collect();
        candidates.get(choose(&points, budget)).map(|of| of.name.clone()).unwrap_or_default()
    };
    let chosen = chosen_by(|of| of.proxy, &candidates);
    let judge_choice = chosen_by(|of| of.gold, &candidates);
    candidates.sort_by(|a, b| a.kl.max(0.0).total_cmp(&b.kl.max(0.0)));
    let points = points(&candidates)?;
    let best: Vec<usize> = frontier(&points);
    Ok(Candidates {
        chosen,
        judge_choice,
        turning_point: turning_point(&points).map(|i| candidates[i].name.clone()),
        fit: fit_reinforcement(&above(reference, &points)),
        candidates: candidates.iter().enumerate().map(|(i, of)| row(of, Some(best.contains(&i)))).collect(),
    })
}

/// In the order of `measured` where that is the order of distance.
fn points(measured: &[Measured]) -> Result<Vec<Point>> {
    let each = |f: fn(&Measured) -> f64| measured.iter().map(f).collect::<Vec<f64>>();
    Ok(over_optimisation(&each(|of| of.kl), &each(|of| of.proxy), &each(|of| of.gold))?)
}

fn above(reference: &Measured, points: &[Point]) -> Vec<Point> {
    points.iter().map(|&point| Point { gold: point.gold - reference.gold, ..point }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_eval::best_of_n_kl;

    fn measured(name: &str, kl: f64, proxy: f64, gold: f64) -> Measured {
        Measured { name: name.into(), kl, proxy, gold }
    }

    #[test]
    fn the_proxy_chooses_within_the_budget_and_the_judge_beside_it() {
        #[track_caller]
        fn check(budget: Option<f64>, chosen: &str, judge_choice: &str) {
            let candidates = vec![
                measured("far", 9.0, 3.0, 40.0),
                measured("near", 1.0, 1.0, 50.0),
                measured("middle", 4.0, 2.0, 60.0),
            ];
            let found =
                Frontier::of(8, budget, &measured("sft", 0.0, 0.0, 45.0), vec![("ppo", candidates)], vec![]).unwrap();
            let run = &found.runs["ppo"];
            assert_eq!((run.chosen.as_str(), run.judge_choice.as_str()), (chosen, judge_choice));
            let rows: Vec<_> = run.candidates.iter().map(|row| (row.name.as_str(), row.on_frontier)).collect();
            assert_eq!(rows, [("near", Some(true)), ("middle", Some(true)), ("far", Some(false))]);
            assert_eq!(run.turning_point.as_deref(), Some("middle"));
        }
        check(None, "far", "middle");
        check(Some(4.0), "middle", "middle");
        check(Some(2.0), "near", "near");
        // Where nothing is near enough, what is nearest.
        check(Some(0.5), "near", "near");
    }

    /// gold - 10 = d (3 - 0.5 ln d) at d = 1 and d = 2, and d (3 - 0.5 d) for best-of-n.
    #[test]
    fn the_laws_are_fitted_above_the_reference() {
        let at = |d: f64| measured(&d.to_string(), d * d, d, 10.0 + d * (3.0 - 0.5 * d.ln()));
        let of_n = |n: usize| {
            let d = best_of_n_kl(n).sqrt();
            measured(&n.to_string(), d * d, d, 10.0 + d * (3.0 - 0.5 * d))
        };
        let reference = measured("sft", 0.0, 0.0, 10.0);
        let found =
            Frontier::of(8, None, &reference, vec![("ppo", vec![at(1.0), at(2.0)])], vec![of_n(4), of_n(16)]).unwrap();
        for fit in [found.runs["ppo"].fit, found.best_of_n_fit] {
            let Fit { alpha, beta } = fit.unwrap();
            assert!((alpha - 3.0).abs() < 1e-9 && (beta - 0.5).abs() < 1e-9, "{alpha} {beta}");
        }
        assert!(found.lines()[0].contains("chosen 2 (KL 4.00, score 2.00"), "{:?}", found.lines());
    }
}
