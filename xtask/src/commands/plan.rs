//! `plan`: what a run would take on machines that are not at hand. Memory is the estimate that runs are refused by; the
//! rest is arithmetic, and shows it.

use super::dry_run::{Tokens, Work, work};
use crate::{
    config::Config,
    memory::{Machine, Stage, Texts, mega, stages, table},
    terminal::print,
};
use anyhow::{Context, Result, bail};
use instruct_collective::{Collective, Planned};
use instruct_model::{Checkpoint, Config as Description, HeadKind, memory::Buffers};
use instruct_optim::Compute;
use instruct_ppo::Critic;
use instruct_reward_model::Group;
use instruct_sft::Example;
use std::path::{Path, PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct plan --model MODEL --devices 8xH200
  instruct plan --model 24,2048,16,50257 --devices 8xA100 --nodes 2 --config my.toml
  instruct plan --model MODEL.gguf --devices 4x64GB@0.2        # memory in GB, 10^12 operations a second";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model folder, a .gguf file, or LAYERS,WIDTH,HEADS,VOCABULARY in the shape of GPT-2
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Devices of a machine, one rank each: 8xH200, with H200, H100, A100, L40S or 4090, or 4x64GB@0.2
    #[arg(long, value_name = "DEVICES")]
    devices: String,
    /// Machines
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Configuration file; without one, the defaults, which are the papers'
    #[arg(long)]
    config: Option<PathBuf>,
    /// Overrides one key, for example --set ppo.batch=64 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Demonstrations that are trained on; 13,000 is Ouyang et al. 2022, table 6
    #[arg(long, default_value_t = 13_000)]
    demonstrations: usize,
    /// Rankings; 33,000 likewise
    #[arg(long, default_value_t = 33_000)]
    rankings: usize,
    /// Completions of a ranking; 4 to 9 likewise
    #[arg(long, default_value_t = 4)]
    k: usize,
    /// The share of a device's operations that is reached, an assumption
    #[arg(long, default_value_t = 0.3)]
    utilisation: f64,
    /// What a machine sends and receives, in Gbit/s, an assumption
    #[arg(long, default_value_t = 400.0)]
    gbits: f64,
}

/// A device: bytes of memory, and operations a second in bf16 without sparsity, by its vendor's data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Device {
    memory: f64,
    operations: f64,
}

/// Devices by name: gigabytes and 10^12 operations a second.
const DEVICES: [(&str, f64, f64); 5] = [
    ("H200", 141.0, 989.0),
    ("H100", 80.0, 989.0),
    ("A100", 80.0, 312.0),
    ("L40S", 48.0, 362.0),
    ("4090", 24.0, 165.0),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let (many, device) = devices(&args.devices)?;
    if args.nodes == 0 || many == 0 {
        bail!("--devices and --nodes are at least 1");
    }
    if !(args.utilisation > 0.0 && args.utilisation <= 1.0 && args.gbits > 0.0) {
        bail!("--utilisation lies above 0 and at most at 1, and --gbits above 0");
    }
    let model = description(&args.model)?;
    let config = match &args.config {
        Some(path) => Config::read(path, &args.settings)?,
        None => Config::load("", "the defaults", &args.settings)?,
    };
    Plan::new(args, many, device, model, config).lines().iter().for_each(|line| print(line));
    Ok(())
}

/// `8xH200` or `8x64GB@0.2`: how many, and what one is.
fn devices(text: &str) -> Result<(usize, Device)> {
    let known = || {
        let names: Vec<&str> = DEVICES.iter().map(|(name, ..)| *name).collect();
        format!("--devices {text}: neither 8x{} nor 4x64GB@0.2", names.join(", 8x"))
    };
    let (many, device) = text.split_once('x').with_context(known)?;
    let many = many.parse().ok().with_context(known)?;
    let of = |memory: f64, tera: f64| Device { memory: memory * 1e9, operations: tera * 1e12 };
    if let Some((_, memory, tera)) = DEVICES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(device)) {
        return Ok((many, of(*memory, *tera)));
    }
    let number = |text: &str| text.parse::<f64>().ok().filter(|&x| x > 0.0 && x.is_finite());
    let (memory, tera) = device.split_once("GB@").with_context(known)?;
    Ok((many, of(number(memory).with_context(known)?, number(tera).with_context(known)?)))
}

fn description(model: &str) -> Result<Description> {
    let numbers: Result<Vec<usize>, _> = model.split(',').map(str::parse).collect();
    if let Ok(&[layers, width, heads, vocab]) = numbers.as_deref() {
        let description = Description::tiny_gpt2(vocab, width, layers, heads, 2_048);
        description.validate()?;
        return Ok(description);
    }
    let path = Path::new(model);
    if !path.exists() {
        bail!("--model {model}: neither a model folder, nor a .gguf file, nor LAYERS,WIDTH,HEADS,VOCABULARY");
    }
    Ok(Checkpoint::open(path)?.config().clone())
}

/// What is planned.
struct Plan<'a> {
    args: &'a Args,
    device: Device,
    ranks: Planned,
    model: Description,
    config: Config,
}

impl<'a> Plan<'a> {
    /// With as many leaves as ranks, unless the configuration has a number of them that ranks can share.
    fn new(args: &'a Args, many: usize, device: Device, model: Description, mut config: Config) -> Plan<'a> {
        let ranks = Planned { ranks: many * args.nodes, on_a_machine: many };
        if (Compute { ranks: &ranks, ..config.model.compute(config.seed) }).check().is_err() {
            config.model.leaves = ranks.ranks;
        }
        Plan { args, device, ranks, model, config }
    }

    fn lines(&self) -> Vec<String> {
        let Plan { args, ranks, config, .. } = self;
        let [p, c] = [config.model.max_prompt, config.model.max_completion];
        let mut lines = vec![
            format!(
                "{} ranks, {} on each of {} machine{}, `model.leaves` {}; {} parameters; every prompt of {p} and every \
                 completion of {c} tokens, the most that the configuration allows",
                ranks.ranks,
                ranks.on_a_machine,
                args.nodes,
                if args.nodes > 1 { "s" } else { "" },
                config.model.leaves,
                thousands(self.parameters() as f64)
            ),
            "Several ranks compute on the CPU alone so far, and no run on a GPU was measured.".to_owned(),
            String::new(),
            "Memory of a rank: the estimate of `--dry-run`, which docs/memory.md compares with what was held on CPUs"
                .to_owned(),
        ];
        let stages = self.stages(config);
        let limit = self.machine();
        lines.extend(table(&stages, limit).lines().map(str::to_owned));
        lines.push(self.fits(&stages));
        lines.push(String::new());
        lines.extend(self.traffic());
        lines.push(String::new());
        lines.extend(self.time());
        lines
    }

    fn parameters(&self) -> usize {
        self.model.parameters(HeadKind::LanguageModel)
    }

    fn machine(&self) -> Machine {
        Machine { held: 0, limit: self.device.memory as u64 }
    }

    /// Every stage over texts that are as long as the configuration allows.
    fn stages(&self, config: &Config) -> Vec<Stage> {
        let [p, c] = [config.model.max_prompt, config.model.max_completion];
        let batch = config.sft_baseline.batch.max(config.sft_init.batch);
        let demonstrations = vec![Example { prompt: vec![0; p], completion: vec![0; c] }; batch];
        let group = Group {
            prompt: vec![0; p],
            completions: vec![vec![0; c]; self.args.k],
            ranks: (1..=self.args.k as u32).collect(),
        };
        let rankings = vec![group; config.reward_model.batch];
        let texts = Texts {
            demonstrations: &demonstrations,
            rankings: &rankings,
            windows: &[vec![0; p + c]],
            longest_prompt: p,
            answered: [usize::MAX; 2],
        };
        stages(config, &self.model, &texts, &self.ranks)
    }

    /// Whether all of it fits, or the first change that makes it fit.
    fn fits(&self, planned: &[Stage]) -> String {
        let limit = self.machine().limit;
        let most = |stages: &[Stage]| stages.iter().map(|stage| stage.estimate.peak()).max().unwrap_or(0);
        if most(planned) <= limit {
            return format!("It fits: {} of {}.", mega(most(planned)), mega(limit));
        }
        let mut config = self.config.clone();
        while config.model.micro_tokens > LEAST_MICRO_TOKENS {
            config.model.micro_tokens /= 2;
            let stages = self.stages(&config);
            if most(&stages) <= limit {
                let (tokens, most) = (config.model.micro_tokens, mega(most(&stages)));
                return format!(
                    "It does not fit; with `model.micro-tokens` {tokens} it does: {most} of {}.",
                    mega(limit)
                );
            }
        }
        let stages = self.stages(&config);
        let largest = stages.iter().max_by_key(|stage| stage.estimate.peak());
        let largest = largest.map_or(String::new(), |Stage { name, estimate }| {
            let models = estimate.models.iter().map(Buffers::total).sum();
            format!(
                "{name} takes {} in `{}`, {} of it its models",
                mega(estimate.peak()),
                estimate.worst().name,
                mega(models)
            )
        });
        format!(
            "It does not fit {}, and smaller `model.micro-tokens` do not help: {largest}. More ranks make moments and \
             averages smaller, weights and gradients never. `ppo.max-new-tokens`, `model.max-prompt` and `ppo.batch` bound \
             what sampling keeps; `ppo.critic` can be a head in the place of a model.",
            mega(limit)
        )
    }

    /// What travels for a step, and what a checkpoint takes.
    fn traffic(&self) -> Vec<String> {
        let world = self.ranks.world() as f64;
        let weights = 4.0 * self.parameters() as f64;
        let critic = match self.config.ppo.critic {
            Critic::Separate { .. } => 4.0 * self.model.parameters(HeadKind::Value) as f64,
            Critic::Head { .. } => 0.0,
        };
        let sent = |bytes: f64| 2.0 * bytes * (world - 1.0) / world;
        let line = |what: &str, bytes: f64| {
            let between = if self.args.nodes > 1 {
                // All ranks of a machine share its line; each sends the others of other machines their part.
                let far = (world - self.ranks.on_a_machine as f64) / (world - 1.0);
                let seconds = sent(bytes) * far * self.ranks.on_a_machine as f64 * 8.0 / (self.args.gbits * 1e9);
                format!("; between machines {seconds:.2} s at {:.0} Gbit/s", self.args.gbits)
            } else {
                String::new()
            };
            format!("  {what:>24}: {} MB{between}", thousands(sent(bytes) / 1e6))
        };
        let checkpoint = 3.0 * (weights + critic) + if self.config.ppo.ema > 0.0 { weights } else { 0.0 };
        vec![
            "Sent by a rank, 2 x 4 bytes a parameter less its own part, for an optimizer step:".to_owned(),
            line("SFT and the reward model", weights),
            line("PPO, policy and critic", weights + critic),
            format!(
                "A checkpoint of PPO: {} MB, weights and two moments of policy and critic, and the average where there is one",
                thousands(checkpoint / 1e6)
            ),
        ]
    }

    /// Operations and time of the stages that train.
    fn time(&self) -> Vec<String> {
        let Plan { args, config, .. } = self;
        let [p, c] = [config.model.max_prompt as f64, config.model.max_completion as f64];
        let tokens = Tokens {
            demonstrations: args.demonstrations as f64 * (p + c),
            rankings: args.rankings as f64 * (p + args.k as f64 * c),
            prompt: p,
            window: p + c,
        };
        let reached = self.device.operations * args.utilisation * self.ranks.world() as f64;
        let mut lines = vec![format!(
            "Time at {:.0} % of {:.0} x 10^12 operations a second and device; parameters x operations a token x tokens:",
            100.0 * args.utilisation,
            self.device.operations / 1e12
        )];
        lines.extend(work(config, &tokens).into_iter().map(|Work { stage, tokens, operations }| {
            let all = self.parameters() as f64 * operations * tokens;
            format!(
                "  {stage:>13}: {} tokens x {operations:.0} x {} = {all:.2e} operations, {:.2} h",
                thousands(tokens),
                thousands(self.parameters() as f64),
                all / reached / 3_600.0
            )
        }));
        lines.push("Sampling is bound by memory, not by operations, so PPO takes longer than that.".to_owned());
        lines
    }
}

/// Fewer tokens at a time leave a device idle.
const LEAST_MICRO_TOKENS: usize = 256;

/// A whole number with commas between its thousands.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(model: &str, devices: &str, nodes: usize) -> Args {
        Args {
            model: model.to_owned(),
            devices: devices.to_owned(),
            nodes,
            config: None,
            settings: Vec::new(),
            demonstrations: 1_000,
            rankings: 1_000,
            k: 4,
            utilisation: 0.5,
            gbits: 100.0,
        }
    }

    #[test]
    fn devices_have_names_or_numbers() {
        let of = |memory, operations| Device { memory, operations };
        assert_eq!(devices("8xH200").unwrap(), (8, of(141e9, 989e12)));
        assert_eq!(devices("2xa100").unwrap(), (2, of(80e9, 312e12)));
        assert_eq!(devices("4x64GB@0.5").unwrap(), (4, of(64e9, 0.5e12)));
        for text in ["H200", "8xH300", "x", "8x", "axH200", "4x64GB", "4x0GB@1", "4x64GB@-1"] {
            assert!(devices(text).unwrap_err().to_string().contains("4x64GB@0.2"), "{text}");
        }
        assert_eq!([0.0, 999.0, 1_000.0, 1_234_567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    fn planned(args: &Args, change: impl Fn(&mut Config)) -> String {
        let (many, device) = devices(&args.devices).unwrap();
        let mut config = Config::default();
        change(&mut config);
        Plan::new(args, many, device, description(&args.model).unwrap(), config).lines().join("\n")
    }

    #[test]
    fn what_does_not_fit_is_told_what_to_change() {
        let fits = planned(&args("12,768,12,50257", "8xH200", 1), |_| ());
        assert!(fits.contains("It fits: ") && fits.contains("125,226,240 parameters"), "{fits}");
        assert!(!fits.contains("between machines"), "{fits}");
        let large = |config: &mut Config| config.model.micro_tokens = 65_536;
        let fewer = planned(&args("12,768,12,50257", "2x28GB@1", 1), large);
        assert!(fewer.contains("It does not fit; with `model.micro-tokens` "), "{fewer}");
        let never = planned(&args("48,8192,64,50257", "8xH100", 2), |_| ());
        assert!(never.contains("smaller `model.micro-tokens` do not help"), "{never}");
    }

    #[test]
    fn the_arithmetic_is_that_of_the_text() {
        let text = planned(&args("12,768,12,50257", "1x64GB@1", 2), |config| {
            (config.model.max_prompt, config.model.max_completion) = (100, 28);
            config.reward_model.epochs = 1;
        });
        // Two ranks send half of 2 x 4 bytes a parameter each; one machine's line carries one rank's.
        assert!(text.contains("SFT and the reward model: 501 MB; between machines 0.04 s at 100 Gbit/s"), "{text}");
        // 1,000 rankings of 100 + 4 x 28 tokens, 6 operations, two devices at half of 1e12.
        assert!(text.contains("reward-model: 212,000 tokens x 6 x 125,226,240 = 1.59e14 operations, 0.04 h"), "{text}");
    }
}
