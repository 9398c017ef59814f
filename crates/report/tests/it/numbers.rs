//! The recorded runs of docs/results: every number that the terminal printed is in the page, and every number of the
//! page is in the files.

use crate::{html, run};
use instruct_report::{Run, compare};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// One recorded run: its results, its frontier where there is one, and what the terminal printed.
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) results: String,
    pub(crate) frontier: Option<String>,
    table: String,
}

impl Recorded {
    pub(crate) fn run(&self) -> Run {
        let mut files = vec![("eval/results.json", self.results.as_str())];
        files.extend(self.frontier.as_deref().map(|frontier| ("eval/frontier.json", frontier)));
        run(&self.name, &files)
    }

    /// Both files, by name.
    pub(crate) fn files(&self) -> BTreeMap<&'static str, Value> {
        let read = |text: &String| serde_json::from_str(text).unwrap();
        let frontier = self.frontier.as_ref().map(|frontier| ("eval/frontier.json", read(frontier)));
        [("eval/results.json", read(&self.results))].into_iter().chain(frontier).collect()
    }
}

/// The value under a key of the page: `eval/results.json#/sft/validation_loss`.
pub(crate) fn value<'a>(files: &'a BTreeMap<&str, Value>, key: &str) -> &'a Value {
    let (file, pointer) = key.split_once('#').unwrap();
    files[file].pointer(pointer).unwrap_or_else(|| panic!("{key} is not there"))
}

/// Every single run under docs/results; files that gather several runs are not of one run folder.
pub(crate) fn recorded() -> Vec<Recorded> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    let folders = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut files: Vec<PathBuf> =
        folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("results").and_then(|rest| rest.strip_suffix(".json")) else { continue };
        let results = fs::read_to_string(&path).unwrap();
        let beside = |name: String| fs::read_to_string(path.with_file_name(name)).ok();
        if serde_json::from_str::<Value>(&results).unwrap().get("judge").is_some() {
            found.push(Recorded {
                name: format!("run{rest}"),
                results,
                frontier: beside(format!("frontier{rest}.json")),
                table: beside(format!("table{rest}.txt")).unwrap(),
            });
        }
    }
    assert!(found.len() >= 2 && found.iter().any(|run| run.frontier.is_some()), "{} runs", found.len());
    found
}

/// The numbers among words, whatever stands around them. Names of models and candidates hold none.
fn numbers(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || "[](),;=+%".contains(c));
    words.map(|word| word.trim_end_matches('.')).filter(|word| word.parse::<f64>().is_ok()).map(str::to_owned).collect()
}

#[test]
fn every_number_that_the_terminal_prints_is_in_the_page_as_it_prints_it() {
    for recorded in recorded() {
        let page = recorded.run().page();
        let there: BTreeSet<String> = numbers(&html::words(&page)).into_iter().collect();
        for line in recorded.table.lines() {
            let printed = numbers(line);
            assert!(!printed.is_empty() || line.starts_with("judge:"), "{line}");
            for number in printed {
                assert!(there.contains(&number), "{}: {number} of `{line}` is not in the page", recorded.name);
            }
        }
    }
}

#[test]
fn each_comparison_has_the_row_that_the_terminal_prints() {
    for recorded in recorded() {
        let rows = html::rows(&recorded.run().page());
        let lines = recorded.table.lines().filter(|line| line.contains("_vs_"));
        let mut checked = 0;
        for line in lines {
            // "ppo_vs_sft 73.4 % [68.1, 78.1] n = 299; unseen tasks 73.1 % [65.9, 79.2] n = 167"
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            let want = line.replace("_vs_", " vs ").replace("; unseen tasks", "");
            assert!(rows.contains(&want), "{}: `{want}` is no row", recorded.name);
            checked += 1;
        }
        assert_eq!(checked, 7);
    }
}

/// As a second program would write the value: the terminal's own rules are in xtask, which this crate does not know.
pub(crate) fn written(form: &str, value: &Value) -> (f64, String) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    match form {
        "percent" => (value.as_f64().unwrap(), percent(value.as_f64().unwrap())),
        "power" => (value.as_f64().unwrap(), format!("{:.1e}", value.as_f64().unwrap())),
        "interval" => {
            let bounds = match (value["low"].as_f64(), value["high"].as_f64()) {
                (Some(low), Some(high)) => format!("[{:.1}, {:.1}]", 100.0 * low, 100.0 * high),
                _ => "[too few]".to_owned(),
            };
            let mean = value["mean"].as_f64().unwrap();
            (mean, format!("{} {bounds}", percent(mean)))
        }
        "plain-interval" => {
            let bounds = match (value["low"].as_f64(), value["high"].as_f64()) {
                (Some(low), Some(high)) => format!("[{low:.2}, {high:.2}]"),
                _ => "[too few]".to_owned(),
            };
            let mean = value["mean"].as_f64().unwrap();
            (mean, format!("{mean:.2} {bounds}"))
        }
        fixed => {
            let digits: usize = fixed.strip_prefix("fixed-").unwrap().parse().unwrap();
            (value.as_f64().unwrap(), format!("{:.digits$}", value.as_f64().unwrap()))
        }
    }
}

#[test]
fn every_number_of_the_page_is_the_one_of_the_file_that_it_names() {
    for recorded in recorded() {
        let files = recorded.files();
        let shown = html::data(&recorded.run().page());
        assert!(shown.len() > 100, "{} numbers", shown.len());
        for (attributes, text) in shown {
            let (number, want) = written(&attributes["data-as"], value(&files, &attributes["data-key"]));
            assert_eq!((attributes["value"].parse(), text), (Ok(number), want), "{attributes:?}");
        }
    }
}

/// The numbers of a value, each with its pointer.
fn leaves(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at),
        Value::Object(map) => map.iter().for_each(|(key, inner)| leaves(inner, format!("{at}/{key}"), found)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| leaves(inner, format!("{at}/{i}"), found)),
        _ => {}
    }
}

#[test]
fn no_number_of_the_results_is_left_out() {
    // These are in the file twice, or are groups of best-of-n.
    let twice = |at: &str| {
        let of_card = ["/accuracy_length_baseline", "/accuracy_ceiling", "/ece", "/pairs", "/margin/n"];
        of_card.iter().any(|end| at == format!("/reward_model/report_card{end}"))
            || ["/reward_model/accuracy", "/reward_model/accuracy_low", "/reward_model/accuracy_high"].contains(&at)
            || at.starts_with("/best_of_n/") && (at.contains("/by_group/") || at.ends_with("/ended"))
            || ["/ppo/mean_tokens", "/ppo_without_ptx/mean_tokens", "/seed"].contains(&at)
    };
    for recorded in recorded() {
        let shown = html::data(&recorded.run().page());
        let keys: BTreeSet<&str> = shown.iter().map(|(attributes, _)| attributes["data-key"].as_str()).collect();
        let mut all = Vec::new();
        leaves(&serde_json::from_str(&recorded.results).unwrap(), String::new(), &mut all);
        for at in all.iter().filter(|at| !twice(at)) {
            // Mean and ends of an interval are shown together, under the key of the interval.
            let parent = at.rsplit_once('/').unwrap().0;
            // The number of prompts of a use case is the same in every comparison, and is shown once.
            let once = at.contains("/by_group/") && at.ends_with("/n");
            let found =
                [at.as_str(), parent].iter().any(|key| keys.contains(format!("eval/results.json#{key}").as_str()));
            assert!(found || once, "{}: {at} is not in the page", recorded.name);
        }
    }
}

#[test]
fn a_comparison_has_the_numbers_of_each_run_in_its_column() {
    let recorded = recorded();
    let runs: Vec<Run> = recorded.iter().map(Recorded::run).collect();
    let page = compare(&runs);
    html::check_whole(&page);
    for recorded in &recorded {
        let whole: Value = serde_json::from_str(&recorded.results).unwrap();
        let (_, want) = written("interval", &whole["win_rate"]["ppo_ptx_vs_sft"]);
        let cell = page.split(&format!("data-run=\"{}\"", recorded.name)).nth(1).unwrap();
        let first = html::words(&format!("<!doctype html><i{}", cell.split("</td>").next().unwrap()));
        assert!(first.starts_with(&want), "{}: {first} instead of {want}", recorded.name);
    }
}

#[test]
fn the_pages_are_whole_and_of_reasonable_size() {
    for recorded in recorded() {
        let page = recorded.run().page();
        html::check_whole(&page);
        assert!(page.len() < 400_000, "{} bytes", page.len());
        assert_eq!(page, recorded.run().page());
    }
}
