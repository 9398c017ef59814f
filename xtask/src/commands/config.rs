//! `config`: every key of a configuration with its default, and what its source says of it.

use crate::{
    config::{defaults, leaves},
    terminal::print,
};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use toml::{Table, Value};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct config default > my.toml
  instruct config explain ppo.kl
  instruct config explain sft-init";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the default configuration, every key explained
    #[command(after_help = "Examples:\n  instruct config default > my.toml")]
    Default,
    /// Say what a key, or every key of a table, means: its default, unit, range and source
    #[command(after_help = "Examples:\n  instruct config explain ppo.kl\n  instruct config explain sft-init")]
    Explain {
        /// The key as in --set, for example ppo.kl
        key: String,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (defaults, docs) = (defaults()?, docs());
    match &args.command {
        Command::Default => print(commented(&defaults, &docs, "").trim()),
        Command::Explain { key } => explain(&defaults, &docs, key)?,
    }
    Ok(())
}

/// Sources whose doc comments explain the keys of a table: the table, the structure, the text that
/// declares it. A table of keys stands before those inside it.
const SOURCES: [(&str, &str, &str); 18] = [
    ("", "Config", CONFIG),
    ("model", "ModelConfig", CONFIG),
    ("data", "DataConfig", CONFIG),
    ("sft-baseline", "Plan", SFT),
    ("sft-init", "Plan", SFT),
    ("reward-model", "Plan", REWARD_MODEL),
    ("ppo", "Plan", PPO),
    ("ppo.guards", "Guards", GUARDS),
    ("evaluate", "EvaluateConfig", CONFIG),
    ("checkpoints", "CheckpointConfig", CONFIG),
    ("memory", "MemoryConfig", CONFIG),
    ("sft-baseline.adam", "AdamConfig", ADAM),
    ("sft-init.adam", "AdamConfig", ADAM),
    ("reward-model.adam", "AdamConfig", ADAM),
    ("ppo.adam", "AdamConfig", ADAM),
    ("sft-baseline.schedule", "Schedule", SCHEDULE),
    ("sft-init.schedule", "Schedule", SCHEDULE),
    ("reward-model.schedule", "Schedule", SCHEDULE),
];
const PPO_SCHEDULE: (&str, &str, &str) = ("ppo.schedule", "Schedule", SCHEDULE);
const CONFIG: &str = include_str!("../config.rs");
const SFT: &str = include_str!("../../../crates/sft/src/train.rs");
const REWARD_MODEL: &str = include_str!("../../../crates/reward-model/src/train.rs");
const PPO: &str = include_str!("../../../crates/ppo/src/plan.rs");
const GUARDS: &str = include_str!("../../../crates/ppo/src/guards.rs");
const ADAM: &str = include_str!("../../../crates/optim/src/adamw.rs");
const SCHEDULE: &str = include_str!("../../../crates/optim/src/schedule.rs");
const KL: &str = include_str!("../../../crates/ppo/src/kl.rs");

/// What the doc comments say of every key, by its dotted path.
fn docs() -> BTreeMap<String, String> {
    let mut docs = BTreeMap::new();
    for (table, structure, source) in SOURCES.into_iter().chain([PPO_SCHEDULE]) {
        let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
        let fields = items(source, &format!("pub struct {structure} {{"));
        docs.extend(fields.into_iter().map(|(field, doc)| (format!("{prefix}{}", field.replace('_', "-")), doc)));
    }
    // Shapes to choose from.
    for (key, choice, source) in [
        ("ppo.kl", "KlControl", KL),
        ("ppo.critic", "Critic", PPO),
        ("ppo.missing-eos", "MissingEos", PPO),
        ("ppo.whiten-advantages", "WhitenScope", PPO),
        ("ppo.schedule.decay", "Decay", SCHEDULE),
        ("sft-baseline.schedule.decay", "Decay", SCHEDULE),
        ("sft-init.schedule.decay", "Decay", SCHEDULE),
        ("reward-model.schedule.decay", "Decay", SCHEDULE),
    ] {
        let variants = items(source, &format!("pub enum {choice} {{"));
        let lines = variants.iter().map(|(name, doc)| format!("\n{}: {doc}", kebab(name)));
        docs.entry(key.to_owned()).or_default().extend(lines);
    }
    docs
}

/// Fields or variants that stand one level inside what `opening` opens, each with its doc comment.
fn items(source: &str, opening: &str) -> Vec<(String, String)> {
    let mut items = Vec::new();
    let mut doc: Vec<&str> = Vec::new();
    let inside = source.split_once(opening).map_or("", |(_, rest)| rest);
    for line in inside.lines().take_while(|line| !line.starts_with('}')) {
        let Some(line) = line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '#', '}'])) else { continue };
        match line.strip_prefix("/// ") {
            Some(text) => doc.push(text),
            None if !doc.is_empty() => {
                let name: String =
                    line.trim_start_matches("pub ").chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                items.push((name, std::mem::take(&mut doc).join(" ")));
            }
            None => {}
        }
    }
    items
}

/// `LinearToZero` as it is written in a file.
fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// A table as TOML, with each key's explanation above it.
fn commented(table: &Table, docs: &BTreeMap<String, String>, path: &str) -> String {
    let mut text = String::new();
    let is_table = |value: &Value| value.as_table().is_some_and(|inner| !inner.contains_key("kind"));
    let dotted = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let comment = |path: &str| -> String {
        docs.get(path).into_iter().flat_map(|doc| doc.lines()).map(|line| format!("# {line}\n")).collect()
    };
    for (key, value) in table.iter().filter(|(_, value)| !is_table(value)) {
        text += &format!("{}{key} = {value}\n", comment(&dotted(key)));
    }
    for (key, value) in table {
        if let Some(inner) = value.as_table().filter(|_| is_table(value)) {
            text += &format!("\n{}[{}]\n{}", comment(&dotted(key)), dotted(key), commented(inner, docs, &dotted(key)));
        }
    }
    text
}

/// Prints one key, or every key of a table.
///
/// Errors: there is no such key; the message names the nearest.
fn explain(defaults: &Table, docs: &BTreeMap<String, String>, key: &str) -> Result<()> {
    let all = leaves(defaults);
    let wanted: Vec<&String> = all.iter().filter(|path| *path == key || path.starts_with(&format!("{key}."))).collect();
    if wanted.is_empty() {
        let nearest = all.iter().min_by_key(|path| {
            let last = path.rsplit('.').next().unwrap_or_default();
            strsim::damerau_levenshtein(path, key).min(strsim::damerau_levenshtein(last, key))
        });
        bail!("there is no key `{key}`; did you mean `{}`?", nearest.map_or("", String::as_str));
    }
    for path in wanted {
        let value = path.split('.').try_fold(defaults, |table, part| table.get(part)?.as_table());
        let value = value.map(|table| table.to_string()).or_else(|| Some(lookup(defaults, path)?.to_string()));
        print(&format!("{path} = {}", value.unwrap_or_default().trim()));
        docs.get(path).into_iter().flat_map(|doc| doc.lines()).for_each(|line| print(&format!("    {line}")));
    }
    Ok(())
}

fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let (parents, last) = path.rsplit_once('.').map_or((None, path), |(parents, last)| (Some(parents), last));
    let inside = |table: &'a Table, part| table.get(part)?.as_table();
    parents.map_or(Some(table), |parents| parents.split('.').try_fold(table, inside))?.get(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_explained() {
        let (defaults, docs) = (defaults().unwrap(), docs());
        let silent: Vec<String> =
            leaves(&defaults).into_iter().filter(|path| docs.get(path).is_none_or(|doc| doc.len() < 10)).collect();
        assert!(silent.is_empty(), "no doc comment explains {silent:?}");
        assert!(docs["ppo.kl"].contains("fixed: "), "{}", docs["ppo.kl"]);
        assert!(docs["ppo.adam.beta2"].contains("0.95"), "{}", docs["ppo.adam.beta2"]);
    }

    #[test]
    fn what_is_printed_reads_back_as_the_default() {
        let defaults = defaults().unwrap();
        let text = commented(&defaults, &docs(), "");
        assert_eq!(text.parse::<Table>().unwrap(), defaults, "{text}");
        let error = explain(&defaults, &docs(), "ppo.epizodes").unwrap_err().to_string();
        assert!(error.contains("did you mean `ppo.episodes`"), "{error}");
        explain(&defaults, &docs(), "ppo.kl").unwrap();
    }
}
