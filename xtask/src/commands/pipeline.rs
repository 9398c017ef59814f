//! `pipeline` and its single stages: the whole flow in one run folder, resumable anywhere.

use crate::{
    config::{Config, DeviceName},
    embedded, evaluate,
    inputs::Inputs,
    kept::Kept,
    listener::on_interrupt,
    machine::cpu_model,
    memory::{Machine, Stage, Texts, refuse, stages as stages_of},
    models::Model,
    prepare::{Base, Material, Wording, available, base_path, device, open_base},
    ranks::{Party, of_first},
    stages::Run,
    terminal::{print, say},
    until::Until,
};
use anyhow::{Context, Result, bail};
use instruct_collective::Collective;
use instruct_model::Checkpoint;
use instruct_optim::Compute;
use instruct_runs::{RunDir, Start};
use std::path::{Path, PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct pipeline --run runs/first
  instruct pipeline --config my.toml --set model.base=MODEL.gguf --dry-run
  instruct pipeline --run runs/first --resume        # after Ctrl-C, a crash or a power cut";
pub(crate) const SFT_EXAMPLES: &str = "Examples:
  instruct sft --run runs/first
  instruct sft --config my.toml --set sft-init.lr=1e-5 --run runs/mine";
pub(crate) const REWARD_MODEL_EXAMPLES: &str = "Examples:
  instruct reward-model --run runs/first
  instruct reward-model --config my.toml --set reward-model.epochs=2 --run runs/mine";
pub(crate) const PPO_EXAMPLES: &str = "Examples:
  instruct ppo --run runs/first
  instruct ppo --config my.toml --set ppo.episodes=256 --run runs/mine";
pub(crate) const EVALUATE_EXAMPLES: &str = "Examples:
  instruct evaluate --run runs/first --resume
  instruct evaluate --config my.toml --run runs/mine --resume";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Configuration file; without one, the run's own with --resume, else the embedded default
    /// (configs/fixtures.toml)
    #[arg(long)]
    config: Option<PathBuf>,
    /// Overrides one key, for example --set ppo.episodes=256 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Run folder; without one, a new folder under runs/
    #[arg(long)]
    run: Option<PathBuf>,
    /// Continue the run in --run from its last checkpoint
    #[arg(long, requires = "run")]
    resume: bool,
    /// With --resume: go on although the configuration or the data is other than at the start, and make it the run's
    #[arg(long, requires = "resume")]
    adopt: bool,
    /// Repeat the flow with so many seeds, each in a folder of its own, and report mean and spread
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Print the resolved plan with its size, and stop
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args, until: Until, ranks: &dyn Collective) -> Result<()> {
    let config = load(args)?;
    // Before anything is made or read.
    Compute { ranks, ..config.model.compute(config.seed) }.check()?;
    if args.dry_run {
        return dry_run(&config, until, ranks);
    }
    on_interrupt()?;
    let folder = match &args.run {
        Some(folder) => folder.clone(),
        // The first rank may have made it before another looks for one that is free.
        None => PathBuf::from(of_first(ranks, &new_folder().to_string_lossy())?),
    };
    let start = match (args.resume, args.adopt) {
        (_, true) => Start::Adopt,
        (true, false) => Start::Resume,
        (false, false) => Start::Fresh,
    };
    if args.seeds <= 1 {
        one(&config, &folder, start, until, ranks)?;
        return Ok(());
    }
    let mut results = Vec::new();
    for seed in config.seed..config.seed + args.seeds {
        say(&format!("seed {seed}"));
        let config = Config { seed, ..config.clone() };
        results.extend(one(&config, &folder.join(format!("seed-{seed}")), start, until, ranks)?);
    }
    if ranks.rank() > 0 { Ok(()) } else { evaluate::over_seeds(&folder, &results) }
}

fn load(args: &Args) -> Result<Config> {
    match (&args.config, &args.run) {
        (Some(path), _) => Config::read(path, &args.settings),
        (None, Some(run)) if args.resume => Config::read(&own_config(run, args.seeds)?, &args.settings),
        (None, _) => Config::load(embedded::DEFAULT_CONFIG, "embedded configs/fixtures.toml", &args.settings),
    }
}

/// The file that holds the configuration of the run in `folder`; of a run over several seeds that of its
/// first seed, from which the others count on.
fn own_config(folder: &Path, seeds: u64) -> Result<PathBuf> {
    let path = if seeds <= 1 { folder.to_owned() } else { first_seed(folder).unwrap_or_else(|| folder.to_owned()) };
    let path = path.join("config.toml");
    if path.is_file() {
        return Ok(path);
    }
    bail!(
        "--resume: {} does not exist, so there is no run whose configuration could be taken; name the configuration \
         with --config, or begin a run without --resume",
        path.display()
    )
}

/// The folder of the lowest seed.
fn first_seed(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let lowest = names.filter_map(|name| name.strip_prefix("seed-")?.parse::<u64>().ok()).min()?;
    Some(folder.join(format!("seed-{lowest}")))
}

/// `runs/` with the next free number: no clock, no collision.
fn new_folder() -> PathBuf {
    let free = |n: &u32| !Path::new(&format!("runs/{n:04}")).exists();
    PathBuf::from(format!("runs/{:04}", (1..).find(free).unwrap_or(1)))
}

/// One seed's run, as far as `until`; the results when it got to the evaluation.
fn one(
    config: &Config,
    folder: &Path,
    start: Start,
    until: Until,
    ranks: &dyn Collective,
) -> Result<Option<evaluate::Results>> {
    if super::retrain::Retrained::read(folder)?.is_some() {
        bail!(
            "{} was retrained on what people said, behind a gate; continue it with `instruct retrain --resume`",
            folder.display()
        );
    }
    in_run(config, folder, start, until, ranks, |run| {
        let outcome = stages(run, until);
        if run.ranks().rank() > 0 { outcome } else { super::report::at_the_end(run.dir.path(), outcome) }
    })
}

/// Opens a run folder with what is taken `until` there, says what is to be said of it, and works in it.
///
/// Errors: those of `work`; whatever is refused before it begins.
pub(crate) fn in_run<T>(
    config: &Config,
    folder: &Path,
    start: Start,
    until: Until,
    ranks: &dyn Collective,
    work: impl FnOnce(&mut Run<'_>) -> Result<T>,
) -> Result<T> {
    let environment = environment(config)?;
    if folder.exists() && !folder.is_dir() {
        bail!("--run {}: this is a file; name a folder", folder.display());
    }
    let resolved = toml::to_string(config)?;
    let inputs = Inputs::of(config);
    let party = Party(ranks);
    let open = || -> Result<(RunDir<'_>, Vec<String>)> {
        let dir = RunDir::open_among(&party, folder, start, &resolved, &environment)?;
        let other_data = dir.keep_inputs(inputs.hashes()?)?;
        Ok((dir, other_data))
    };
    // A run that is continued must say at once that its configuration or data differs; a fresh one leaves no
    // folder behind when what it is to read is refused.
    let resumed = if start == Start::Resume { Some(open()?) } else { None };
    let (base, material) = prepare(config, until, &inputs, ranks)?;
    let (dir, other_data) = match resumed {
        Some(opened) => opened,
        None => open()?,
    };
    for difference in other_data {
        say(&format!("warning: the data differs from what this run began with: {difference}"));
    }
    for difference in dir.environment_difference() {
        say(&format!("warning: the environment differs from the one this run began in: {difference}"));
    }
    for difference in dir.config_difference() {
        say(&format!("warning: the configuration differs from the one this run began with: {difference}"));
    }
    say(&format!("run folder {}", folder.display()));
    let asked = [config.model.precision, config.model.frozen];
    if config.device == DeviceName::Cpu && asked.iter().any(|&precision| precision != available(precision)) {
        say("warning: this processor has no instructions for bf16: computing in f32");
    }
    material.report.iter().for_each(|line| say(&format!("  {line}")));
    dir.write_json("data.json", &material.counted(config, until))?;
    work(&mut Run::new(&dir, config, &base, &material, ranks))
}

fn stages(run: &mut Run<'_>, until: Until) -> Result<Option<evaluate::Results>> {
    if until == Until::Sft {
        run.both_sfts()?;
        return Ok(None);
    }
    let candidates = run.baseline_and_reward_model()?;
    if until == Until::RewardModel {
        print(&evaluate::reward_results(run, &run.open_reward_model()?)?.line());
        return Ok(None);
    }
    run.selection(&candidates)?;
    run.sft_init()?;
    {
        let frozen = run.frozen()?;
        run.ppo(Model::Ppo, 0.0, &frozen)?;
        run.ppo(Model::PpoPtx, run.config.ppo.gamma_ptx, &frozen)?;
    }
    if until == Until::Ppo {
        return Ok(None);
    }
    let results = evaluate::evaluate(run)?;
    print(&results.table());
    print(&format!("results: {}", run.dir.path().join("eval/results.json").display()));
    Ok(Some(results))
}

fn prepare(config: &Config, until: Until, inputs: &Inputs<'_>, ranks: &dyn Collective) -> Result<(Base, Material)> {
    for (_, name) in config.data.files() {
        if name.strip_prefix(embedded::PREFIX).is_some_and(|name| !embedded::records().any(|known| known == name)) {
            let known: Vec<&str> = embedded::records().collect();
            bail!("`data`: {name} is not in this program; name a file, or one of {}", known.join(", "));
        }
    }
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let unpacked = embedded::unpack(folder.path())?;
    let base = base_path(&config.model.base, &unpacked);
    if !base.exists() {
        bail!("`model.base`: {} does not exist; name a model folder, a .gguf file, or `embedded`", base.display());
    }
    until.check_files(config)?;
    let device = device(config.device)?;
    if ranks.world() > 1 && !device.is_cpu() {
        bail!("several ranks compute on the CPU alone so far, and `device` is another; set it to `cpu`");
    }
    // None of them has begun to take what is free.
    ranks.barrier()?;
    let machine = Machine::shared(config.memory.limit_mb, ranks).filter(|_| device.is_cpu());
    ranks.barrier()?;
    // Before weights are read: what models take alone does not depend on the data.
    if let Some(machine) = machine {
        let stages = stages_of(config, Checkpoint::open(&base)?.config(), &Texts::default(), ranks);
        refuse(&made(until, stages), machine)?;
    }
    // Hashed before anything is read of them: what is kept must not be of older files than its key.
    let kept = Kept::for_data(&config.data, inputs, ranks.rank() == 0);
    if kept.is_some() {
        inputs.hashes()?;
    }
    let wording = Wording { template: &config.model.template, option: "`model.template`", date: config.model.day()? };
    let mut base = open_base(&base, wording, &device)?;
    // A file of weights that cannot be read is refused before a run folder exists.
    let held = || Machine::shared(config.memory.limit_mb, ranks).map_or(0, |machine| machine.held);
    let before = held();
    drop(base.decoder(config)?);
    base.retained = held().saturating_sub(before);
    let material = Material::prepare(config, &base, &unpacked, until, kept)?;
    // Each holds what it has read, and nothing more yet.
    ranks.barrier()?;
    let estimate = estimate(config, &base, &material, until, ranks);
    ranks.barrier()?;
    if let Some((stages, machine)) = estimate {
        refuse(&stages, machine)?;
    }
    Ok((base, material))
}

/// The stages that are run on the way.
fn made(until: Until, stages: Vec<Stage>) -> Vec<Stage> {
    stages.into_iter().filter(|stage| until.makes(stage.name)).collect()
}

/// What every stage on the way will hold, and what this process may; `None` where the system does not tell
/// or the device is another.
pub(crate) fn estimate(
    config: &Config,
    base: &Base,
    material: &Material,
    until: Until,
    ranks: &dyn Collective,
) -> Option<(Vec<Stage>, Machine)> {
    let machine = Machine::shared(config.memory.limit_mb, ranks).filter(|_| base.device.is_cpu())?;
    let rankings: Vec<_> = material.rankings.iter().map(|ranked| ranked.group.clone()).collect();
    let texts = Texts {
        demonstrations: &material.demonstrations.train,
        rankings: &rankings,
        windows: &material.windows,
        longest_prompt: material.prompts.all().map(|prompt| prompt.ids.len()).max().unwrap_or(0),
        answered: [material.prompts.validation.len(), material.prompts.test.len()],
    };
    let held = machine.held.saturating_sub(base.retained);
    Some((made(until, stages_of(config, &base.description, &texts, ranks)), Machine { held, ..machine }))
}

/// What a result depends on besides the configuration.
fn environment(config: &Config) -> Result<serde_json::Value> {
    Ok(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("INSTRUCT_COMMIT"),
        "features": if cfg!(feature = "cuda") { vec!["cuda"] } else { vec![] },
        "device": format!("{:?}", device(config.device)?),
        "cpu": cpu_model(),
        "bf16": instruct_kernels::bf16_unit(),
        "threads": rayon::current_num_threads(),
        "seed": config.seed,
    }))
}

/// The resolved configuration, what it would train on, and what that takes.
fn dry_run(config: &Config, until: Until, ranks: &dyn Collective) -> Result<()> {
    let (base, material) = prepare(config, until, &Inputs::of(config), ranks)?;
    print(&toml::to_string(config)?);
    material.report.iter().for_each(|line| print(line));
    super::dry_run::lines(config, &base, &material, until, ranks).iter().for_each(|line| print(line));
    Ok(())
}
