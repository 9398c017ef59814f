//! Several ranks beside one process with as many threads in all, taking turns.

use super::{Args, Job, Shape, Sizes, Stage, Turn, median, parse_turn};
use crate::launcher::launcher;
use anyhow::{Context, Result, bail};
use instruct_collective::Collective;
use std::{env, path::Path, process::Command, time::Instant};
use xtask::{
    terminal::{print, say},
    write_whole,
};

/// Compares `ranks` ranks with one process, stage by stage.
///
/// Errors: a stage that is not shared; no launcher, or a program that does not speak MPI.
pub(super) fn run(ranks: usize, args: &Args) -> Result<()> {
    let (threads, out) = (rayon::current_num_threads(), args.out.as_deref());
    if !ranks.is_power_of_two() || ranks < 2 || !threads.is_multiple_of(ranks) {
        bail!("--ranks {ranks}: {threads} threads are not shared evenly by a power of two of ranks, 2 or more");
    }
    let stages = if args.stage.is_empty() { &[Stage::Sft, Stage::RewardModel, Stage::Ppo] } else { &args.stage[..] };
    let stages = stages.iter().map(|&stage| Ok((stage, sizes(stage)?))).collect::<Result<Vec<_>>>()?;
    let mut page = format!("{ranks} ranks of {} threads beside one process of {threads}\n", threads / ranks);
    for shape in &args.shape {
        for &(stage, sizes) in &stages {
            let job = Job { stage, shape, sizes, settings: args.settings, steps: args.steps };
            let mut turns = Vec::new();
            for round in 1..=args.rounds {
                say(&format!("{shape} {stage}: round {round} of {}", args.rounds));
                // Both have as many leaves, so they do the same arithmetic. Each goes first as often as the other.
                let shared_first = round % 2 == 0;
                let early = shared_first.then(|| turn(launched(ranks)?, threads / ranks, ranks, job)).transpose()?;
                let one = turn(this()?, threads, ranks, job)?;
                let shared = early.map_or_else(|| turn(launched(ranks)?, threads / ranks, ranks, job), Ok)?;
                turns.push((one, shared));
                save(out, &(page.clone() + &told(shape, stage, &turns)))?;
            }
            page += &told(shape, stage, &turns);
        }
    }
    print(page.trim_end());
    save(out, &page)
}

fn save(out: Option<&Path>, page: &str) -> Result<()> {
    let Some(folder) = out else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    write_whole(&folder.join("ranks.txt"), page.as_bytes())
}

/// How much a step handles: enough that every rank has something to do.
fn sizes(stage: Stage) -> Result<Sizes> {
    let [prompts, k, prompt, completion] = match stage {
        Stage::Sft => [32, 1, 1, 127],
        Stage::RewardModel => [16, 4, 64, 64],
        Stage::Ppo | Stage::PpoPtx => [64, 1, 64, 64],
        other => bail!("--ranks: {other} is not compared; name sft, reward-model, ppo or ppo-ptx"),
    };
    Ok(Sizes { prompts, k, prompt, completion })
}

fn this() -> Result<Command> {
    Ok(Command::new(env::current_exe().context("this program has no path")?))
}

fn launched(ranks: usize) -> Result<Command> {
    let mut process = launcher(ranks);
    process.arg(env::current_exe().context("this program has no path")?);
    Ok(process)
}

fn turn(mut process: Command, threads: usize, leaves: usize, job: Job<'_>) -> Result<Turn> {
    process.env("RAYON_NUM_THREADS", threads.to_string());
    parse_turn(job.alone(&mut process).args(["--leaves", &leaves.to_string()]))
}

/// Measures what a step sends: a gradient is added in pieces, and the pieces are gathered.
///
/// Errors: those of the ranks.
pub(super) fn line(ranks: &dyn Collective, megabytes: usize, rounds: usize) -> Result<()> {
    let mut flat = vec![1.0f32; megabytes * 1_000_000 / size_of::<f32>()];
    let (mut seconds, mut sent) = (Vec::new(), 0);
    for _ in 0..rounds {
        ranks.barrier()?;
        let (begun, before) = (Instant::now(), ranks.spent().sent);
        ranks.reduce_scatter(&mut flat)?;
        ranks.all_gather(&mut flat)?;
        seconds.push(begun.elapsed().as_secs_f64());
        sent = ranks.spent().sent - before;
    }
    if ranks.rank() == 0 {
        let (median, sent) = (median(&seconds), sent as f64 / 1e6);
        print(&format!(
            "{} ranks over {}: {megabytes} MB added and gathered in {median:.2} s; each rank sends {sent:.0} MB, {:.0} MB/s",
            ranks.world(),
            ranks.engine(),
            sent / median
        ));
    }
    Ok(())
}

/// What a person reads of the turns of one process and of ranks.
fn told(shape: &Shape, stage: Stage, turns: &[(Turn, Turn)]) -> String {
    let ratios: Vec<f64> = turns.iter().map(|(one, shared)| shared.rate() / one.rate()).collect();
    let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.3}")).collect();
    let rate = |of: fn(&(Turn, Turn)) -> &Turn| median(&turns.iter().map(|pair| of(pair).rate()).collect::<Vec<_>>());
    let peak = |of: fn(&(Turn, Turn)) -> &Turn| turns.iter().map(|pair| of(pair).peak_mb).fold(0.0, f64::max);
    let ranks = turns.first().map_or(0, |(_, shared)| shared.ranks.len());
    let each = |number: usize, scale: f64| {
        let of = |rank: usize| median(&turns.iter().map(|(_, shared)| shared.ranks[rank][number]).collect::<Vec<_>>());
        (0..ranks).map(|rank| format!("{:.1}", scale * of(rank))).collect::<Vec<_>>().join(", ")
    };
    format!(
        "{shape} {stage}: {:.1} tokens/s alone, {:.1} shared, ratio {:.3} ({}); idle {} %; sent {} MB a step; peak {:.0} \
         MB alone, {:.0} MB on the first rank\n",
        rate(|pair| &pair.0),
        rate(|pair| &pair.1),
        median(&ratios),
        shown.join(", "),
        each(0, 100.0),
        each(1, 1.0),
        peak(|pair| &pair.0),
        peak(|pair| &pair.1)
    )
}
