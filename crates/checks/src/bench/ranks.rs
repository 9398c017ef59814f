//! Several ranks beside one process with as many threads in all, taking turns.

use super::{ModelSettings, Shape, Sizes, Stage, Turn, alone, median, parse_turn};
use anyhow::{Context, Result, bail};
use instruct_collective::Collective;
use std::{env, path::Path, process::Command, time::Instant};
use xtask::{
    terminal::{print, say},
    write_whole,
};

/// Compares `ranks` ranks with one process, stage by stage; `(rounds, steps)` as for the other benchmarks.
///
/// Errors: a stage that is not shared; no launcher, or a program that does not speak MPI.
pub(super) fn run(
    ranks: usize,
    stages: &[Stage],
    shapes: &[Shape],
    settings: ModelSettings,
    (rounds, steps): (usize, usize),
    out: Option<&Path>,
) -> Result<()> {
    let threads = rayon::current_num_threads();
    if !ranks.is_power_of_two() || ranks < 2 || !threads.is_multiple_of(ranks) {
        bail!("--ranks {ranks}: {threads} threads are not shared evenly by a power of two of ranks, 2 or more");
    }
    let stages = if stages.is_empty() { &[Stage::Sft, Stage::RewardModel, Stage::Ppo] } else { stages };
    let stages = stages.iter().map(|&stage| Ok((stage, sizes(stage)?))).collect::<Result<Vec<_>>>()?;
    let mut page = format!("{ranks} ranks of {} threads beside one process of {threads}\n", threads / ranks);
    for shape in shapes {
        for &(stage, sizes) in &stages {
            let mut turns = Vec::new();
            for round in 1..=rounds {
                say(&format!("{shape} {stage}: round {round} of {rounds}"));
                // The same arithmetic on both sides.
                let leaves = ranks;
                let turn = |ranks, threads| turn(ranks, threads, leaves, stage, shape, sizes, settings, steps);
                // Each goes first as often as the other.
                if round % 2 == 0 {
                    let shared = turn(ranks, threads / ranks)?;
                    turns.push((turn(1, threads)?, shared));
                } else {
                    turns.push((turn(1, threads)?, turn(ranks, threads / ranks)?));
                }
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

fn turn(
    ranks: usize,
    threads: usize,
    leaves: usize,
    stage: Stage,
    shape: &Shape,
    sizes: Sizes,
    settings: ModelSettings,
    steps: usize,
) -> Result<Turn> {
    let this = env::current_exe().context("this program has no path")?;
    let mut process = if ranks > 1 {
        let mut launcher = Command::new(env::var_os("INSTRUCT_MPIRUN").unwrap_or_else(|| "mpirun".into()));
        launcher.args(["-np", &ranks.to_string()]).arg(this);
        launcher.env("OMPI_MCA_hwloc_base_binding_policy", "none").env("OMPI_MCA_rmaps_base_oversubscribe", "1");
        launcher.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        launcher
    } else {
        Command::new(this)
    };
    process.env("RAYON_NUM_THREADS", threads.to_string());
    parse_turn(alone(&mut process, stage, shape, sizes, settings, steps).args(["--leaves", &leaves.to_string()]))
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
