//! What a run will hold beside what the machine has: estimates of every stage, the machine's limit,
//! and the refusal of what cannot fit.

use crate::{
    config::{Config, JudgeName},
    prepare::available,
    stages::{EVALUATION, SELECTION},
};
use anyhow::{Result, bail};
use instruct_collective::{BUCKET_BYTES, Collective, Solo};
use instruct_model::{
    Config as Description, HeadKind,
    memory::{Buffers, Estimate, Phase, Readout, inferred, sampled},
};
use instruct_optim::Compute;
use instruct_ppo as ppo;
use instruct_reward_model as reward_model;
use instruct_sft as sft;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// A stage and what it will hold.
pub struct Stage {
    /// The artefact that it makes.
    pub name: &'static str,
    /// Models and phases.
    pub estimate: Estimate,
}

/// The texts of a run, in ids; none before they are read.
#[derive(Clone, Copy, Default)]
pub struct Texts<'a> {
    /// Those that are trained on.
    pub demonstrations: &'a [sft::Example],
    /// Those that are trained on.
    pub rankings: &'a [reward_model::Group],
    /// Windows of pretraining text.
    pub windows: &'a [Vec<u32>],
    /// The longest prompt that is answered, in tokens.
    pub longest_prompt: usize,
    /// Prompts that candidates answer, and that the compared models answer.
    pub answered: [usize; 2],
}

/// Every stage of the pipeline over a decoder of this description, in order, as one of `ranks` holds it. A model is
/// opened where it is used and closed after, so that each stage holds its own models alone.
pub fn stages(config: &Config, model: &Description, texts: &Texts<'_>, ranks: &dyn Collective) -> Vec<Stage> {
    let (products, frozen) = (available(config.model.precision).dtype(), available(config.model.frozen).bytes() as u64);
    let compute = Compute { ranks, ..config.model.compute(config.seed) };
    let data = sft::Data { demonstrations: texts.demonstrations, pretraining: texts.windows };
    let tuned = |plan| sft::memory(model, &data, plan, compute, products);
    let reinforced = |name, gamma_ptx| {
        let plan = ppo::Plan { gamma_ptx, ..config.ppo.clone() };
        let (prompt, window) = (texts.longest_prompt, texts.windows.iter().map(Vec::len).max().unwrap_or(0));
        let lengths = ppo::Lengths { prompt, window, compute };
        let mut estimate = ppo::memory(model, &lengths, &plan, products, frozen);
        estimate.models.push(Buffers::frozen("reward model", model, HeadKind::Score, frozen));
        estimate.phases.push(scored(model, &plan, &lengths));
        Stage { name, estimate }
    };
    vec![
        Stage { name: "sft-baseline", estimate: tuned(&config.sft_baseline) },
        Stage {
            name: "reward-model",
            estimate: reward_model::memory(model, texts.rankings, &config.reward_model, compute),
        },
        Stage { name: "sft-init", estimate: tuned(&config.sft_init) },
        Stage { name: SELECTION, estimate: selection(config, model, texts, ranks.world()) },
        reinforced("ppo", 0.0),
        reinforced("ppo-ptx", config.ppo.gamma_ptx),
        Stage { name: EVALUATION, estimate: evaluation(config, model, texts, ranks.world()) },
    ]
}

/// A candidate answers, and the reward model reads the answers, of which each of the ranks has its part.
fn selection(config: &Config, model: &Description, texts: &Texts<'_>, ranks: usize) -> Estimate {
    let compute = available(config.model.precision).dtype();
    let many = config.evaluate.selection_prompts.min(texts.answered[0]).div_ceil(ranks);
    let answers = answers(config, model, many, texts.longest_prompt);
    let models = vec![
        Buffers::frozen("candidate", model, HeadKind::LanguageModel, 4).decoding(compute),
        Buffers::frozen("reward model", model, HeadKind::Score, 4),
    ];
    Estimate { models, phases: answers }
}

/// A compared model answers; the reward model, the reference and, where one is trained, the judge read the answers, of
/// which each of the ranks has its part.
fn evaluation(config: &Config, model: &Description, texts: &Texts<'_>, ranks: usize) -> Estimate {
    let (compute, frozen) = (available(config.model.precision).dtype(), available(config.model.frozen).bytes() as u64);
    let mut models = vec![
        Buffers::frozen("compared", model, HeadKind::LanguageModel, 4).decoding(compute),
        Buffers::frozen("reference", model, HeadKind::LanguageModel, frozen),
        Buffers::frozen("reward model", model, HeadKind::Score, frozen),
    ];
    if config.data.judge == JudgeName::None {
        models.push(Buffers::frozen("judge", model, HeadKind::Score, 4));
    }
    let many = config.evaluate.prompts.min(texts.answered[1]).div_ceil(ranks);
    Estimate { models, phases: answers(config, model, many, texts.longest_prompt) }
}

/// Sampling so many answers, and passes over them.
fn answers(config: &Config, model: &Description, many: usize, prompt: usize) -> Vec<Phase> {
    let cap = config.answer_tokens();
    let slots = config.model.slots.min(many);
    let episode = prompt.saturating_add(cap).min(model.context);
    let tokens = many.saturating_mul(episode).min(config.model.micro_tokens.max(episode));
    let compute = available(config.model.precision).dtype();
    let compared = inferred(model, tokens, Readout::Logprob(tokens.min(many.saturating_mul(cap)), compute));
    let scored = inferred(model, tokens, Readout::Scalar(many.min(tokens)));
    vec![sampled(model, slots, prompt, cap), Phase { name: "compare", ..compared }, Phase { name: "score", ..scored }]
}

/// The reward model's pass over the episodes of an iteration.
pub fn scored(model: &Description, plan: &ppo::Plan, lengths: &ppo::Lengths) -> Phase {
    let episode = (lengths.prompt + plan.max_new_tokens).min(model.context);
    let many = plan.batch.div_ceil(lengths.compute.ranks.world());
    let tokens = (many * episode).min(lengths.compute.micro_tokens.max(episode));
    Phase { name: "score", ..inferred(model, tokens, Readout::Scalar(many)) }
}

/// What this process holds, and may hold at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Held now: the program, its threads and the data, and what the allocator will keep in reserve.
    pub held: u64,
    /// What it may grow to.
    pub limit: u64,
}

impl Machine {
    /// This machine, where the system tells; `most` megabytes at most, unless that is 0.
    pub fn read(most: u64) -> Option<Machine> {
        Machine::shared(most, &Solo)
    }

    /// As [`Machine::read`], for one of the ranks on this machine, which share what is free there. Each may hold `most`
    /// megabytes.
    pub fn shared(most: u64, ranks: &dyn Collective) -> Option<Machine> {
        let Machine { held, limit } = Machine::of(Path::new("/"))?.among(ranks.local_world());
        // What travels passes through two buckets.
        let buckets = if ranks.world() > 1 { 2 * BUCKET_BYTES as u64 } else { 0 };
        let held = held + allocator_reserve(rayon::current_num_threads()) + buckets;
        Some(Machine { held, limit: if most > 0 { limit.min(most * 1_000_000) } else { limit } })
    }

    /// The share of one of so many processes that hold as much as this one.
    fn among(self, processes: usize) -> Machine {
        let Machine { held, limit } = self;
        Machine { held, limit: held + limit.saturating_sub(held) / processes.max(1) as u64 }
    }

    /// The machine whose system files lie under `root`.
    fn of(root: &Path) -> Option<Machine> {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let held = kilobytes(&text("proc/self/status")?, "VmRSS")?;
        let free = kilobytes(&text("proc/meminfo")?, "MemAvailable")?;
        let groups = text("proc/self/cgroup").unwrap_or_default();
        let left = groups.lines().filter_map(|line| group_leaves(root, line)).min();
        Some(Machine { held, limit: held + left.map_or(free, |left| left.min(free)) })
    }
}

/// What this program's allocator keeps in reserve for so many threads of the pool: blocks of 84 to 512 KiB come
/// out of pages of 4 MiB, one page for each size and thread. That each has two such sizes in use was
/// found by measuring with two threads; with eight it fits training, and generation on a tiny model held
/// 44 MB less.
fn allocator_reserve(threads: usize) -> u64 {
    const PAGE: u64 = 4 << 20;
    2 * PAGE * threads as u64
}

/// `key:  123 kB` of a file of the system, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1_024)
}

/// What the control group of one line of /proc/self/cgroup, and those around it, still leave. Version 2
/// has one group, `0::/path`; version 1 one for memory, `n:memory:/path`. Pages of files that the
/// kernel would give up count as left.
fn group_leaves(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/'));
    let (mount, limit, usage) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
        names if names.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        }
        _ => return None,
    };
    let mount = root.join(mount);
    let mut folder = mount.join(path);
    let mut least = None;
    while folder.starts_with(&mount) {
        least = least.into_iter().chain(leaves(&folder, limit, usage)).min();
        folder = folder.parent().map(PathBuf::from)?;
    }
    least
}

/// What one control group leaves; `None` when it has no limit.
fn leaves(folder: &Path, limit: &str, usage: &str) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let file = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let used = number(usage)?.saturating_sub(file.unwrap_or(0));
    Some(number(limit)?.saturating_sub(used))
}

/// Refuses a run of which a stage cannot fit.
///
/// Errors: the table, and what to change.
pub fn refuse(stages: &[Stage], machine: Machine) -> Result<()> {
    let needed = |stage: &Stage| machine.held + stage.estimate.peak();
    if stages.iter().all(|stage| needed(stage) <= machine.limit) {
        return Ok(());
    }
    bail!(
        "this run needs more memory than the {} that it may take here; nothing has begun\n{}\n  lower \
         `model.micro-tokens` (what passes keep), `ppo.batch`, `ppo.max-new-tokens` or `evaluate.max-new-tokens` (the \
         cache), or take a smaller `model.base`",
        mega(machine.limit),
        table(stages, machine)
    )
}

/// The estimate of every stage, a line each, and the models of the largest.
pub fn table(stages: &[Stage], machine: Machine) -> String {
    let mut text = format!(
        "  {:>13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {}\n",
        "MB", "process", "models", "sums", "kept", "moment", "slack", "at most", "in"
    );
    for Stage { name, estimate } in stages {
        let worst = estimate.worst();
        let models: u64 = estimate.models.iter().map(Buffers::total).sum();
        let columns = [machine.held, models, worst.sums, worst.kept, worst.temporary, estimate.slack()];
        let _ = write!(text, "  {name:>13}");
        for bytes in columns.into_iter().chain([machine.held + estimate.peak()]) {
            let _ = write!(text, " {:>9}", bytes.div_ceil(1_000_000));
        }
        let _ = writeln!(text, "  {}", worst.name);
    }
    if let Some(Stage { name, estimate }) = stages.iter().max_by_key(|stage| stage.estimate.peak()) {
        let _ = writeln!(text, "  models of {name}:");
        for Buffers { name, parameters, gradient, moments, average } in &estimate.models {
            let parts =
                [("parameters", parameters), ("gradient", gradient), ("moments", moments), ("average", average)];
            let parts = parts.iter().filter(|(_, bytes)| **bytes > 0);
            let parts: Vec<String> = parts.map(|(part, bytes)| format!("{part} {}", mega(**bytes))).collect();
            let _ = writeln!(text, "  {name:>13}  {}", parts.join(", "));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// Bytes in whole megabytes.
pub fn mega(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MEMINFO: &str = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n";
    const STATUS: &str = "Name: xtask\nVmHWM:	 900 kB\nVmRSS:	     500 kB\n";

    /// The limit in kB of a machine with these further files.
    #[track_caller]
    fn check_limit(files: &[(&str, &str)], wanted: u64) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/meminfo", MEMINFO), ("proc/self/status", STATUS)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::of(root.path()).unwrap();
        assert_eq!((machine.held, machine.limit), (500 * 1_024, wanted * 1_024), "{files:?}");
    }

    #[test]
    fn the_lowest_limit_counts() {
        check_limit(&[], 4_500);
        let v2 = ("proc/self/cgroup", "0::/job/step\n");
        check_limit(&[v2], 4_500);
        let outer = ("sys/fs/cgroup/job/memory.max", "2048000\n");
        let used = ("sys/fs/cgroup/job/memory.current", "1024000\n");
        check_limit(&[v2, outer, used], 1_500);
        check_limit(&[v2, outer, used, ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 512000\n")], 2_000);
        let inner = [("sys/fs/cgroup/job/step/memory.max", "max\n"), ("sys/fs/cgroup/job/step/memory.current", "7\n")];
        check_limit(&[v2, outer, used, inner[0], inner[1]], 1_500);
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n");
        let limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1024000");
        let usage = ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "512000");
        check_limit(&[v1, limit, usage], 1_000);
        assert_eq!(Machine { held: 500, limit: 4_500 }.among(4), Machine { held: 500, limit: 1_500 });
        // Version 1 writes "no limit" as a very large number.
        check_limit(&[v1, ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712"), usage], 4_500);
    }

    #[test]
    fn the_evaluation_holds_what_its_own_cap_and_its_own_prompts_take() {
        let model = Description::tiny_gpt2(300, 64, 2, 2, 128);
        let peak = |answers: usize, answered: [usize; 2], judge: JudgeName| {
            let mut config = Config::default();
            (config.evaluate.max_new_tokens, config.data.judge) = (answers, judge);
            let texts = Texts { longest_prompt: 30, answered, ..Texts::default() };
            let stages = stages(&config, &model, &texts, &Solo);
            [SELECTION, EVALUATION].map(|name| stages.iter().find(|s| s.name == name).unwrap().estimate.peak())
        };
        let [selection, evaluation] = peak(64, [8, 8], JudgeName::InstructionWorld);
        let [longer_selection, longer_evaluation] = peak(96, [8, 8], JudgeName::InstructionWorld);
        assert!(longer_selection > selection && longer_evaluation > evaluation);
        assert_eq!(peak(64, [8, 4], JudgeName::InstructionWorld)[0], selection);
        assert!(peak(64, [8, 4], JudgeName::InstructionWorld)[1] < evaluation);
        assert!(peak(64, [8, 8], JudgeName::None)[1] > evaluation, "a judge that is trained is a model more");
        assert_eq!(peak(usize::MAX, [400, 400], JudgeName::None), peak(1_024, [400, 400], JudgeName::None));
    }

    #[test]
    fn what_fits_passes_and_what_does_not_is_refused_with_its_table() {
        let config = Config::default();
        let model = Description::tiny_gpt2(300, 64, 2, 2, 128);
        let examples = vec![sft::Example { prompt: vec![1; 20], completion: vec![1; 20] }; 40];
        let texts = Texts {
            demonstrations: &examples,
            rankings: &[],
            windows: &[vec![1; 50]],
            longest_prompt: 30,
            answered: [8, 8],
        };
        let stages = stages(&config, &model, &texts, &Solo);
        let names: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["sft-baseline", "reward-model", "sft-init", SELECTION, "ppo", "ppo-ptx", EVALUATION]);
        let mut dealt = config.clone();
        dealt.model.leaves = 4;
        let on_ranks = instruct_collective::testing::threads(2, |ranks| {
            Ok::<_, instruct_collective::Error>(self::stages(&dealt, &model, &texts, ranks))
        });
        let dealt = self::stages(&dealt, &model, &texts, &Solo);
        for shared in on_ranks.into_iter().map(Result::unwrap) {
            for (shared, alone) in shared.iter().zip(&dealt) {
                let moments = |stage: &Stage| stage.estimate.models.iter().map(|model| model.moments).sum::<u64>();
                assert_eq!(moments(shared), moments(alone) / 2, "{}", alone.name);
                // Two of the four leaves are one level of sums less.
                let sums = |stage: &Stage| stage.estimate.phases.iter().map(|phase| phase.sums).max();
                assert!(sums(alone) == Some(0) || sums(shared) < sums(alone), "{}", alone.name);
            }
        }
        for (one, four) in stages.iter().zip(&dealt) {
            let mut phases = one.estimate.phases.iter().zip(&four.estimate.phases);
            assert!(phases.all(|(one, four)| four.sums >= one.sums && four.kept <= one.kept), "{}", one.name);
        }
        let worst = |stages: &[Stage]| stages[0].estimate.worst();
        assert!(worst(&dealt).sums > worst(&stages).sums && worst(&dealt).kept < worst(&stages).kept);
        let most = stages.iter().map(|stage| stage.estimate.peak()).max().unwrap();
        let machine = |limit| Machine { held: 1_000, limit };
        refuse(&stages, machine(most + 1_000)).unwrap();
        let message = refuse(&stages, machine(most + 999)).unwrap_err().to_string();
        for part in ["ppo-ptx", "value model", "moments", "`model.micro-tokens`", "nothing has begun"] {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}
