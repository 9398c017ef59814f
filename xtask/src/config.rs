//! The configuration of a run: TOML over documented defaults, every problem reported at once.

use crate::embedded;
use anyhow::{Result, bail};
use candle_core::DType;
use instruct_data::{Date, DateError, Loss, Overlong};
use instruct_optim::Compute;
use instruct_ppo as ppo;
use instruct_reward_model as reward_model;
use instruct_sft as sft;
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};
use toml::{Table, Value};

/// Everything a run can be told. A configuration file states what differs from the defaults here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Keys every random draw of the run.
    pub seed: u64,
    /// `cpu`, `cuda` (an error without one) or `auto`.
    pub device: DeviceName,
    /// The pretrained decoder and how prompts are put to it.
    pub model: ModelConfig,
    /// Where people's words come from, and how they are split.
    pub data: DataConfig,
    /// The fine-tuned model that the others are compared with.
    pub sft_baseline: sft::Plan,
    /// The fine-tuned start of reinforcement learning.
    pub sft_init: sft::Plan,
    /// The reward model's training.
    pub reward_model: reward_model::Plan,
    /// `preset = "instructgpt"` (or another source's name) and any key of the recipe that differs.
    pub ppo: ppo::Plan,
    /// What the final evaluation measures, and on how much.
    pub evaluate: EvaluateConfig,
    /// When state is written, so that a killed run loses little.
    pub checkpoints: CheckpointConfig,
    /// What a run may take.
    pub memory: MemoryConfig,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// A GPU; an error where there is none.
    Cuda,
    /// A GPU where there is one, else the processor.
    Auto,
}

/// A format of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// The upper 16 of them.
    Bf16,
}

impl Precision {
    /// The type of a tensor's numbers.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> f64 {
        self.dtype().size_in_bytes() as f64
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype().as_str())
    }
}

/// The pretrained decoder and how prompts are put to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face folder, a .gguf file, or `embedded` for the base inside this binary.
    pub base: String,
    /// Text around a prompt, with `{prompt}` where it goes; empty uses the model's chat template.
    pub template: String,
    /// Longest prompt, in tokens.
    pub max_prompt: usize,
    /// Longest demonstration or ranked completion, in tokens.
    pub max_completion: usize,
    /// What happens to a record that is longer: `drop` leaves it out and counts it, `cut-prompt` cuts a prompt that is
    /// plain text at newlines until it fits, as Stiennon et al. 2020 do, and drops the rest, `refuse` ends the run.
    pub overlong: Overlong,
    /// The day that chat templates are told which write today's date, as `2024-07-26`; empty takes the day that the
    /// base's folder names, else that one. No clock is read, so that prompts are the same tomorrow, and exported
    /// models name their day.
    pub date: String,
    /// What demonstrations of several turns teach: `last` is the last reply, `all` every reply, `generation` what
    /// the chat template marks. It holds for training and validation.
    pub loss: Loss,
    /// Tokens computed at a time in training; changes memory and, in the last bits, sums.
    pub micro_tokens: usize,
    /// Leaves of the tree that adds up the gradient of a training step, 1 to 1,024: the examples of a step are dealt to
    /// them in order, and each is cut into micro-batches on its own. Changes memory and, in the last bits, sums. Ranks
    /// under MPI share the leaves: it must be their number times a power of two.
    pub leaves: usize,
    /// Completions decoded at a time, at least 1. Changes speed and memory, and no bit.
    pub slots: usize,
    /// What the factors of matrix products are rounded to on the CPU, where its processor multiplies
    /// `bf16`; weights, sums and everything else are `f32`. CUDA computes in `bf16` either way.
    pub precision: Precision,
    /// What PPO and the evaluation hold the reference and the reward model in on the CPU, under the same
    /// condition: `bf16` halves their memory.
    pub frozen: Precision,
}

impl ModelConfig {
    /// How a stage of a run with this seed is computed, by one rank.
    pub fn compute(&self, seed: u64) -> Compute<'static> {
        Compute { seed, micro_tokens: self.micro_tokens, leaves: self.leaves, slots: self.slots, ..Compute::default() }
    }

    /// [`ModelConfig::date`] as a day; `None` where it is empty.
    ///
    /// Errors: it names none.
    pub fn day(&self) -> Result<Option<Date>, DateError> {
        if self.date.is_empty() { Ok(None) } else { self.date.parse().map(Some) }
    }
}

/// Where people's words come from, and how they are split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DataConfig {
    /// Files of demonstrations. `embedded:NAME` names a file inside this program, words of a simulation, which
    /// go with the base `embedded` alone.
    pub demonstrations: Vec<String>,
    /// Files of rankings.
    pub rankings: Vec<String>,
    /// Files of prompts for reinforcement learning; the prompts of the other two are not added.
    pub prompts: Vec<String>,
    /// Files of prompts for the final evaluation. With them the test side of `prompts` joins validation; without them
    /// it is the evaluation's.
    pub test_prompts: Vec<String>,
    /// Files of pretraining text for the mix.
    pub pretraining: Vec<String>,
    /// Files of held-out text for perplexity; empty splits a tenth off `pretraining`.
    pub pretraining_held_out: Vec<String>,
    /// Length of a pretraining window, in tokens; 0 is the response cap plus the median prompt.
    pub window: usize,
    /// Share of users (of prompts, where no user is named) held out for validation.
    pub validation: f64,
    /// Share of users held out for the final evaluation.
    pub test: f64,
    /// Prompts that share this many leading characters are one prompt; 0 compares them whole.
    pub dedup_prefix: usize,
    /// Whether records with an e-mail address or a telephone number leave training [InstructGPT, appendix A]: a first
    /// sieve, which knows no names.
    pub remove_personal: bool,
    /// Prompts kept per user [InstructGPT, appendix A: 200].
    pub per_user: usize,
    /// Keeps only so many records of each kind, chosen by the seed; 0 is all.
    pub limit: usize,
    /// The evaluation's ground truth: `instruction-world` (the simulation's rules) or `none`, which
    /// judges with a reward model trained on the held-out rankings.
    pub judge: JudgeName,
}

impl DataConfig {
    /// Every file that is named, beside the list that names it.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let lists = [
            ("demonstrations", &self.demonstrations),
            ("rankings", &self.rankings),
            ("prompts", &self.prompts),
            ("test-prompts", &self.test_prompts),
            ("pretraining", &self.pretraining),
            ("pretraining-held-out", &self.pretraining_held_out),
        ];
        lists.into_iter().flat_map(|(list, names)| names.iter().map(move |name| (list, name)))
    }
}

/// Who judges the final answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgeName {
    /// The rules of the simulated world.
    InstructionWorld,
    /// A reward model that was trained on held-out rankings.
    None,
}

/// What the final evaluation measures, and on how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Held-out prompts used, at most.
    pub prompts: usize,
    /// Held-out windows of pretraining text used for perplexity, at most.
    pub windows: usize,
    /// Best-of-n baselines, by the reward model, over the SFT baseline.
    pub best_of_n: Vec<usize>,
    /// Validation prompts on which SFT candidates are scored.
    pub selection_prompts: usize,
    /// Cap on every answer that is sampled outside PPO's own training, in tokens: those of the compared models, of
    /// best-of-n, and of the SFT candidates among which the reward model chooses. 0 is `model.max-completion`, so that
    /// none is cut shorter than what it learned to say.
    pub max_new_tokens: usize,
    /// Mean KL to the reference, in nats per answer, that the chosen one of `ppo.candidates` may have; 0 sets no limit.
    pub kl_budget: f64,
    /// Whether PPO runs are evaluated at their averaged weights rather than their last ones; without `ppo.candidates`.
    pub use_ema: bool,
}

/// When state is written, so that a killed run loses little.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimizer steps (iterations in PPO) between checkpoints.
    pub every: u64,
    /// Checkpoints kept per artefact.
    pub keep: usize,
}

/// What a run may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemoryConfig {
    /// Megabytes that the run may hold, by estimate; of several ranks each. 0 is what the machine has available, shared
    /// by the ranks on it. A run that cannot fit is refused before it begins.
    pub limit_mb: u64,
}

impl Default for Config {
    /// The paper's constants [InstructGPT, appendix C, the 1.3B column], and no data.
    fn default() -> Config {
        Config {
            seed: 1,
            device: DeviceName::Cpu,
            model: ModelConfig {
                base: "embedded".into(),
                template: String::new(),
                max_prompt: 1_024,
                max_completion: 1_024,
                overlong: Overlong::Drop,
                date: String::new(),
                loss: Loss::Last,
                micro_tokens: Compute::default().micro_tokens,
                leaves: Compute::default().leaves,
                slots: Compute::default().slots,
                precision: Precision::F32,
                frozen: Precision::F32,
            },
            data: DataConfig {
                demonstrations: Vec::new(),
                rankings: Vec::new(),
                prompts: Vec::new(),
                test_prompts: Vec::new(),
                pretraining: Vec::new(),
                pretraining_held_out: Vec::new(),
                window: 0,
                validation: 0.1,
                test: 0.1,
                dedup_prefix: 0,
                remove_personal: false,
                per_user: 200,
                limit: 0,
                judge: JudgeName::None,
            },
            sft_baseline: sft::Plan::default(),
            sft_init: sft::Plan { epochs: 2, lr: 5e-6, pretraining_share: 0.1, ..sft::Plan::default() },
            reward_model: reward_model::Plan::default(),
            ppo: ppo::Plan::preset(ppo::Preset::InstructGpt),
            evaluate: EvaluateConfig {
                prompts: 400,
                windows: 1_000,
                best_of_n: vec![4, 16],
                selection_prompts: 100,
                max_new_tokens: 0,
                kl_budget: 0.0,
                use_ema: false,
            },
            checkpoints: CheckpointConfig { every: 50, keep: 2 },
            memory: MemoryConfig { limit_mb: 0 },
        }
    }
}

impl Config {
    /// Reads a configuration's text over the defaults, then the `key=value` settings over both. `origin`
    /// names the text in messages.
    ///
    /// Errors: every problem there is, in one message.
    pub fn load(text: &str, origin: &str, settings: &[String]) -> Result<Config> {
        let mut wanted: Table = match text.parse() {
            Ok(table) => table,
            Err(problem) => bail!("{}", not_toml(text, origin, &problem)),
        };
        let mut problems = Vec::new();
        for setting in settings {
            if let Err(problem) = set(&mut wanted, setting) {
                problems.push(problem);
            }
        }
        let mut resolved = defaults()?;
        if let Some(problem) = apply_preset(&mut wanted, &mut resolved) {
            problems.push(problem);
        }
        overlay(&mut resolved, wanted, "", &mut problems);
        refuse(origin, &problems)?;
        let config: Config = match resolved.try_into() {
            Ok(config) => config,
            // Its second line names the key.
            Err(problem) => bail!("{origin}: {}; correct it", problem.to_string().trim_end().replace('\n', " ")),
        };
        refuse(origin, &config.problems())?;
        Ok(config)
    }

    /// Reads a configuration file; see [`Config::load`].
    ///
    /// Errors: as [`Config::load`]; a file that cannot be read.
    pub fn read(path: &Path, settings: &[String]) -> Result<Config> {
        let text = instruct_data::read_text(path, FILE_BYTES)?;
        Config::load(&text, &path.display().to_string(), settings)
    }

    /// Tokens that an evaluated answer has at most.
    pub(crate) fn answer_tokens(&self) -> usize {
        match self.evaluate.max_new_tokens {
            0 => self.model.max_completion,
            cap => cap,
        }
    }

    /// [`EvaluateConfig::kl_budget`]; `None` where there is no limit.
    pub(crate) fn kl_budget(&self) -> Option<f64> {
        (self.evaluate.kl_budget > 0.0).then_some(self.evaluate.kl_budget)
    }

    fn problems(&self) -> Vec<String> {
        let tables = [
            ("sft-baseline", self.sft_baseline.problems()),
            ("sft-init", self.sft_init.problems()),
            ("reward-model", self.reward_model.problems()),
            ("ppo", self.ppo.problems()),
        ];
        let named = |(table, problems): (&str, Vec<String>)| -> Vec<String> {
            problems.into_iter().map(|problem| format!("[{table}] {problem}")).collect()
        };
        let mut problems: Vec<String> = tables.into_iter().flat_map(named).collect();
        let mut check = |fine: bool, problem: &str| {
            if !fine {
                problems.push(problem.to_owned());
            }
        };
        if !self.model.template.is_empty()
            && let Err(problem) = instruct_data::Template::plain(&self.model.template)
        {
            check(false, &format!("`model.template`: {problem}"));
        }
        let simulated = self.data.files().find(|(_, name)| name.starts_with(embedded::PREFIX));
        if let Some((list, name)) = simulated.filter(|_| self.model.base != embedded::BASE) {
            let problem = "which a simulation wrote for the base `embedded`, and `model.base` is another";
            check(false, &format!("`data.{list}` names {name}, {problem}; name files of your own"));
        }
        let share = |x: f64| (0.0..1.0).contains(&x);
        check(share(self.data.validation) && self.data.validation > 0.0, "`data.validation` must lie between 0 and 1");
        check(share(self.data.test) && self.data.test > 0.0, "`data.test` must lie between 0 and 1");
        check(self.data.validation + self.data.test < 1.0, "`data.validation` + `data.test` leave nothing to train on");
        check(self.model.max_prompt > 0, "`model.max-prompt` is 0");
        if let Err(problem) = self.model.day() {
            check(false, &format!("`model.date`: {problem}"));
        }
        check(self.model.max_completion > 0, "`model.max-completion` is 0");
        check(self.model.micro_tokens > 0, "`model.micro-tokens` is 0");
        check((1..=1_024).contains(&self.model.leaves), "`model.leaves` must lie in 1..=1024");
        check(self.model.slots > 0, "`model.slots` is 0");
        check(self.evaluate.prompts > 0, "`evaluate.prompts` is 0");
        check(self.evaluate.windows > 0, "`evaluate.windows` is 0");
        check(
            !self.evaluate.use_ema || self.ppo.ema > 0.0,
            "`evaluate.use-ema` asks for averaged weights, and `ppo.ema` is 0, which keeps none; set one of them",
        );
        check(
            !self.evaluate.use_ema || self.ppo.candidates == 0,
            "`evaluate.use-ema` asks for averaged weights, and `ppo.candidates` for a choice among others; set one of them",
        );
        check(
            self.evaluate.kl_budget >= 0.0 && self.evaluate.kl_budget.is_finite(),
            "`evaluate.kl-budget` must be a number, not below 0",
        );
        check(self.evaluate.best_of_n.iter().all(|&n| n > 0), "`evaluate.best-of-n` holds a 0");
        check(self.checkpoints.every > 0 && self.checkpoints.keep > 0, "`checkpoints` must be above 0");
        problems
    }
}

/// Bytes of a configuration file; that of everything there is has three thousand.
const FILE_BYTES: usize = 1 << 20;

/// Where a text stops being TOML. The parser's own words quote the line, which may be endless.
fn not_toml(text: &str, origin: &str, problem: &toml::de::Error) -> String {
    let before = problem.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    let reason = problem.message().trim_end().replace('\n', ", ");
    format!("{origin}:{line}: not valid TOML at column {column} ({reason}); correct the line")
}

/// Takes `ppo.preset` out of the wanted table and puts that recipe under the wanted keys.
fn apply_preset(wanted: &mut Table, resolved: &mut Table) -> Option<String> {
    let preset = wanted.get_mut("ppo")?.as_table_mut()?.remove("preset")?;
    let known = "instructgpt, summarize-from-feedback, lm-human-preferences";
    match preset.clone().try_into::<ppo::Preset>() {
        Ok(preset) => {
            let plan = Value::try_from(ppo::Plan::preset(preset)).ok()?;
            resolved.insert("ppo".into(), plan);
            None
        }
        Err(_) => Some(format!("`ppo.preset` is {preset}; known recipes: {known}")),
    }
}

/// Puts `wanted` over `base`, key by key, and names every key or type that does not fit.
fn overlay(base: &mut Table, wanted: Table, path: &str, problems: &mut Vec<String>) {
    for (key, value) in wanted {
        let dotted = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (base.get_mut(&key), value) {
            (None, _) => problems.push(unknown(base, &key, &dotted)),
            // A table with a `kind` is one of several shapes, so it is replaced whole.
            (Some(Value::Table(base)), Value::Table(wanted)) if !base.contains_key("kind") => {
                overlay(base, wanted, &dotted, problems);
            }
            (Some(Value::Array(base)), Value::Array(wanted)) => list(base, wanted, &dotted, problems),
            (Some(Value::Integer(_)), Value::Integer(number)) if number < 0 => {
                problems.push(format!("`{dotted}` is {number}; it must be 0 or more"));
            }
            (Some(slot @ Value::Float(_)), Value::Integer(whole)) => *slot = Value::Float(whole as f64),
            (Some(slot), value) if slot.type_str() == value.type_str() => *slot = value,
            (Some(slot), value) => {
                problems.push(format!("`{dotted}` wants a {}, not a {}", slot.type_str(), value.type_str()));
            }
        }
    }
}

/// Replaces a list by one whose elements are of the same kind.
fn list(base: &mut Vec<Value>, wanted: Vec<Value>, dotted: &str, problems: &mut Vec<String>) {
    let kind = base.first().map_or("string", Value::type_str);
    let odd = wanted.iter().find(|value| value.type_str() != kind || value.as_integer().is_some_and(|n| n < 0));
    match odd {
        None => *base = wanted,
        Some(odd) => problems.push(format!("`{dotted}` lists {odd}; it must list {kind}s, none below 0")),
    }
}

/// An unknown key with the nearest that there is, here or in another table.
fn unknown(base: &Table, key: &str, dotted: &str) -> String {
    let known: Vec<&str> = base.keys().map(String::as_str).collect();
    let everywhere = defaults().map(|table| leaves(&table)).unwrap_or_default();
    let here = known.iter().map(|name| (*name, format!("{}{name}", &dotted[..dotted.len() - key.len()])));
    let elsewhere = everywhere.iter().map(|path| (path.rsplit('.').next().unwrap_or_default(), path.clone()));
    let distance = |name: &str| strsim::damerau_levenshtein(name, key);
    // Of equals the first: what stands in the same table.
    let nearest = here.chain(elsewhere).min_by_key(|(name, _)| distance(name));
    let near = nearest.filter(|(name, _)| distance(name) <= key.chars().count().div_ceil(3).max(1));
    let hint = near.map_or_else(String::new, |(_, path)| format!(" (did you mean `{path}`?)"));
    format!("`{dotted}` is not a key{hint}; known here: {}", known.join(", "))
}

/// The default configuration as a table.
pub(crate) fn defaults() -> Result<Table> {
    Ok(Table::try_from(Config::default())?)
}

/// Every key whose value is not the default one: its path, the default, and what it is.
pub(crate) fn differences(config: &Config) -> Result<Vec<(String, String, String)>> {
    // Through text, which has the digits that a person writes: a table would hold a float of 32 bits as 0.10000000149.
    let written = |config: &Config| -> Result<Table> { Ok(toml::to_string(config)?.parse()?) };
    let (default, own) = (written(&Config::default())?, written(config)?);
    let value = |table: &Table, path: &str| {
        let mut keys = path.split('.');
        let first = table.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(key)).map(Value::to_string)
    };
    let difference = |path: String| {
        let (was, is) = (value(&default, &path).unwrap_or_default(), value(&own, &path)?);
        (was != is).then_some((path, was, is))
    };
    Ok(leaves(&own).into_iter().filter_map(difference).collect())
}

/// Dotted paths of every value of a table that is no table of keys.
pub(crate) fn leaves(table: &Table) -> Vec<String> {
    let of = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) if !inner.contains_key("kind") => {
            leaves(inner).into_iter().map(|path| format!("{key}.{path}")).collect()
        }
        _ => vec![key.clone()],
    };
    table.iter().flat_map(of).collect()
}

/// Puts one `dotted.key=value` into a table. The value is TOML, or a plain word.
fn set(table: &mut Table, setting: &str) -> Result<(), String> {
    let Some((path, text)) = setting.split_once('=') else {
        return Err(format!("--set {setting}: write key=value, for example --set ppo.episodes=64"));
    };
    let value = match format!("v = {text}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").unwrap_or_else(|| Value::String(text.to_owned())),
        Err(_) => Value::String(text.to_owned()),
    };
    let mut parts: Vec<&str> = path.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut table = table;
    for part in parts {
        let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Some(inner) = entry.as_table_mut() else { return Err(format!("--set {setting}: `{part}` holds no keys")) };
        table = inner;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

fn refuse(origin: &str, problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{origin}: {} problem(s), correct them:\n  {}", problems.len(), problems.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_the_keys_that_are_not_the_default() {
        let text = "[ppo]\nbatch = 64\nminibatch = 64\n[sft-init]\ndropout = 0.1";
        let changed = Config::load(text, "example", &["seed=7".into()]).unwrap();
        let found = differences(&changed).unwrap();
        let (batch, seed) = (Config::default().ppo.batch.to_string(), Config::default().seed.to_string());
        // A float of 32 bits too has the digits that were written.
        let dropout = ("sft-init.dropout", "0.2", "0.1");
        for wanted in [("ppo.batch", batch.as_str(), "64"), ("seed", &seed, "7"), dropout] {
            let is = |(path, was, is): &(String, String, String)| (path.as_str(), was.as_str(), is.as_str()) == wanted;
            assert!(found.iter().any(is), "{wanted:?} in {found:?}");
        }
        assert!(
            found
                .iter()
                .all(|(path, ..)| ["seed", "ppo.batch", "ppo.minibatch", "sft-init.dropout"].contains(&path.as_str())),
            "{found:?}"
        );
        assert_eq!(differences(&Config::default()).unwrap(), []);
    }

    #[track_caller]
    fn check_refused(text: &str, settings: &[&str], parts: &[&str]) {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let message = Config::load(text, "test.toml", &settings).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        check_refused(
            "sead = 1\n[ppo]\nbatchh = 4",
            &[],
            &["`sead`", "did you mean `seed`", "`ppo.batchh`", "2 problem(s), correct them", "test.toml"],
        );
        check_refused("[ppo]\nepizodes = 3", &[], &["`ppo.epizodes` is not a key (did you mean `ppo.episodes`?)"]);
        check_refused("episodes = 3", &[], &["`episodes` is not a key (did you mean `ppo.episodes`?)"]);
        check_refused("[ppo]\nzzzz = 3", &[], &["`ppo.zzzz` is not a key; known here: "]);
        check_refused("[ppo.adam]\nbeta-1 = 0.5", &[], &["did you mean `ppo.adam.beta1`"]);
        check_refused("[sft-init.adam]\neps = 0", &[], &["[sft-init] `adam.eps` is 0; it must be positive"]);
        let simulated = "[data]\nrankings = [\"embedded:rankings.jsonl\"]";
        check_refused(
            simulated,
            &["model.base=MODEL"],
            &["`data.rankings` names embedded:rankings.jsonl, which a simul"],
        );
        check_refused("seed = \"x\"", &[], &["`seed` wants a integer, not a string"]);
        check_refused("[ppo]\nbatch = 10\nminibatch = 3", &[], &["`minibatch` does not divide `batch`"]);
        check_refused("[ppo]\npreset = \"gpt5\"", &[], &["known recipes: instructgpt"]);
        check_refused("", &["ppo.batch"], &["write key=value"]);
        check_refused("", &["model.leaves=0"], &["`model.leaves` must lie in 1..=1024"]);
        check_refused("", &["model.leaves=1025"], &["`model.leaves` must lie in 1..=1024"]);
        check_refused("", &["data.test=1.5", "sft-init.lr=0.0"], &["`data.test`", "[sft-init] `lr`"]);
        check_refused("seed = 1\na = = 1", &[], &["test.toml:2: not valid TOML at column 5", "correct the line"]);
        check_refused("[ppo]\nbatch = -4", &[], &["`ppo.batch` is -4; it must be 0 or more"]);
        check_refused("[evaluate]\nbest-of-n = [4, -1]", &[], &["`evaluate.best-of-n` lists -1"]);
        check_refused("[data]\nprompts = [1]", &[], &["`data.prompts` lists 1; it must list strings"]);
        check_refused("device = \"tpu\"", &[], &["unknown variant `tpu`", "in `device`; correct it"]);
        check_refused("[model]\ntemplate = \"x\"", &[], &["`model.template`: ", "exactly once"]);
        check_refused("[ppo]\npolicy-lr = nan", &[], &["`policy-lr`"]);
        let no_average = "[ppo]\nema = 0\n[evaluate]\nuse-ema = true";
        check_refused(no_average, &[], &["`evaluate.use-ema` asks for averaged weights, and `ppo.ema` is 0"]);
    }

    #[test]
    fn answers_are_cut_where_demonstrations_are_unless_a_cap_says_otherwise() {
        #[track_caller]
        fn check(settings: &[&str], want: usize) {
            let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(Config::load("", "test", &settings).unwrap().answer_tokens(), want);
        }
        check(&["model.max-completion=96", "ppo.max-new-tokens=24"], 96);
        check(&["model.max-completion=96", "ppo.max-new-tokens=24", "evaluate.max-new-tokens=48"], 48);
    }

    #[test]
    fn presets_settings_and_whole_floats() {
        let text = "[ppo]\npreset = \"lm-human-preferences\"\npolicy-lr = 1";
        let config = Config::load(text, "test", &["ppo.batch=64".into(), "ppo.minibatch=64".into()]).unwrap();
        assert_eq!((config.ppo.policy_lr, config.ppo.batch, config.ppo.gamma_ptx), (1.0, 64, 0.0));
        assert!(matches!(config.ppo.critic, ppo::Critic::Head { .. }));
    }

    #[test]
    fn the_resolved_text_reads_back_as_itself() {
        let config = Config::load("[ppo]\npreset = \"summarize-from-feedback\"", "test", &[]).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::load(&text, "again", &[]).unwrap(), config);
    }
}
