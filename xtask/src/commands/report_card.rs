//! `report-card`: how a run's reward model orders held-out rankings, and how models that were trained without some
//! labelers order the rankings of those.

use crate::{
    config::Config,
    evaluate::{percent, ranked, reward_results},
    listener::on_interrupt,
    prepare::RankedGroup,
    stages::Run,
    terminal::{print, say},
    until::Until,
};
use anyhow::{Context, Result};
use instruct_collective::Solo;
use instruct_eval::{Fold, Interval, labeler_folds, report_card};
use instruct_runs::Start;
use serde::Serialize;
use std::{collections::BTreeSet, path::PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct report-card --run runs/first
  instruct report-card --run runs/first --folds 5";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folder with a finished reward model
    #[arg(long)]
    run: PathBuf,
    /// Train so many further reward models, each without a group of the labelers, and say how each orders the
    /// rankings of people whom it never met (Ouyang et al. 2022, section 5.2: 5)
    #[arg(long, default_value_t = 0)]
    folds: usize,
    /// Continue after an interruption; what is done is never done again, so this changes nothing
    #[arg(long)]
    resume: bool,
}

/// One fold.
#[derive(Serialize)]
struct Outcome {
    fold: usize,
    /// Training rankings of the labelers that were left out; none where they hold no pair.
    unmet: Option<Interval>,
    /// Held-out rankings of the labelers that were trained on; none where there are none.
    met: Option<Interval>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    on_interrupt()?;
    let config = Config::read(&args.run.join("config.toml"), &[])?;
    super::pipeline::in_run(&config, &args.run, Start::Resume, Until::RewardModel, &Solo, |run| {
        let reward_model = run.open_reward_model()?;
        let results = reward_results(run, &reward_model)?;
        print(&results.line());
        results.groups().iter().for_each(|line| print(line));
        let path = run.dir.write_json("eval/report-card.json", &results)?;
        print(&format!("results: {}", path.display()));
        drop(reward_model);
        if args.folds > 0 {
            folds(run, args.folds)?;
        }
        Ok(())
    })
}

fn folds(run: &mut Run<'_>, k: usize) -> Result<()> {
    let material = run.material;
    let known: Vec<&RankedGroup> = material.rankings.iter().filter(|of| of.labeler.is_some()).collect();
    let unnamed = material.rankings.len() - known.len();
    if unnamed > 0 {
        say(&format!("{unnamed} rankings name no labeler and are left out"));
    }
    let labelers: Vec<&str> = known.iter().filter_map(|of| of.labeler.as_deref()).collect();
    let folds = labeler_folds(&labelers, k, run.config.seed).context("--folds")?;
    let mut results = Vec::new();
    for (number, fold) in (1..).zip(&folds) {
        let result = one(run, (number, k), fold, &known, &labelers)?;
        print(&result.line());
        results.push(result);
    }
    let path = run.dir.write_json("eval/labeler-folds.json", &results)?;
    print(&format!("results: {}", path.display()));
    Ok(())
}

/// Trains without the labelers of a fold, and orders their rankings, and held-out ones of the others.
fn one(
    run: &mut Run<'_>,
    (fold, k): (usize, usize),
    of: &Fold,
    known: &[&RankedGroup],
    labelers: &[&str],
) -> Result<Outcome> {
    let groups: Vec<_> = of.train.iter().map(|&i| known[i].group.clone()).collect();
    let model = run.reward_model_of(&format!("labelers-{fold}-of-{k}"), &groups)?;
    let accuracy = |rankings: &[&RankedGroup]| -> Result<Option<Interval>> {
        match report_card(&ranked(run, &model, rankings)?) {
            Ok(card) => Ok(Some(card.accuracy)),
            // Few rankings may hold no pair.
            Err(instruct_eval::Error::Empty { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let met: BTreeSet<&str> = of.train.iter().map(|&i| labelers[i]).collect();
    let held_out = run.material.held_out_rankings.iter();
    let held_out: Vec<&RankedGroup> =
        held_out.filter(|of| of.labeler.as_deref().is_some_and(|name| met.contains(name))).collect();
    let unmet: Vec<&RankedGroup> = of.test.iter().map(|&i| known[i]).collect();
    Ok(Outcome { fold, unmet: accuracy(&unmet)?, met: accuracy(&held_out)? })
}

impl Outcome {
    fn line(&self) -> String {
        let of = |interval: &Option<Interval>| {
            interval.as_ref().map_or("none".to_owned(), |of| percent(of.mean, of.low, of.high))
        };
        let (unmet, met) = (of(&self.unmet), of(&self.met));
        format!("fold {}: people it never met {unmet}; people it was trained on {met}", self.fold)
    }
}
