//! What the run cost, on which machine.

use crate::{
    html::{Html, el, text},
    parts::{absent, paragraph},
    run::{Run, STAGES},
    source::{As, Source, under},
    table::Table,
};

/// The section. Of all numbers of the page only these differ between two runs of one seed.
pub(crate) fn section(run: &Run) -> Html {
    let results = run.results.as_ref().map(|results| (results, vec!["seconds"]));
    let seconds = results.or_else(|| run.seconds.as_ref().map(|seconds| (seconds, vec![])));
    let seconds = seconds.map_or_else(
        || absent("No stage has said yet how long it took."),
        |(source, path)| stages(source, &path).html(),
    );
    let memory = run.results.as_ref().filter(|results| results.number(&["peak_memory_mb"]).is_some()).map(|results| {
        paragraph("Peak memory: ").add(results.show(&["peak_memory_mb"], As::Fixed(0))).text(" MB of 2^20 bytes.")
    });
    let ranks = run.results.as_ref().filter(|results| results.at(&["shared"]).is_some());
    let ranks = ranks.map(|results| (results, vec!["shared"])).or_else(|| run.ranks.as_ref().map(|r| (r, vec![])));
    let beside = el("div").class("beside").add(seconds).add(phases(run)).add(machine(run));
    let shared = ranks.map(|(source, path)| shared(source, &path));
    Html::from(beside).followed_by(memory).followed_by(shared)
}

fn stages(source: &Source, path: &[&str]) -> Table {
    let mut table = Table::new("Seconds of each stage", &["stage", "seconds"]);
    let stages = source.keys(path);
    for stage in &stages {
        table.row(text(stage), [source.show(&under(path, &[stage]), As::Fixed(0))]);
    }
    let sum: f64 = stages.iter().filter_map(|stage| source.number(&under(path, &[stage]))).sum();
    table.row(text("all"), [text(format!("{sum:.0}"))]);
    table
}

/// Where an iteration of PPO spends its time.
fn phases(run: &Run) -> Html {
    let runs: Vec<&str> =
        STAGES.into_iter().filter(|stage| run.stages.get(stage).is_some_and(|s| !s.phases.is_empty())).collect();
    let Some(first) = runs.first() else { return Html::default() };
    let head: Vec<&str> = ["phase"].into_iter().chain(runs.iter().copied()).collect();
    let mut table = Table::new("Seconds by phase of an iteration, over all iterations", &head);
    for phase in run.stages[first].phases.keys() {
        let of = |stage: &&str| match run.stages[*stage].phases.get(phase) {
            Some(seconds) => text(format!("{seconds:.0}")),
            None => crate::source::dash(),
        };
        table.row(text(phase), runs.iter().map(of));
    }
    table.html()
}

/// What it cost each stage to be shared by several ranks.
fn shared(source: &Source, path: &[&str]) -> Html {
    let head = [
        "stage",
        "ranks",
        "seconds",
        "steps",
        "waited, seconds by rank",
        "sent, MB by rank",
        "peak memory, MB by rank",
    ];
    let mut table = Table::new("What being shared by several ranks cost", &head);
    for stage in source.keys(path) {
        for ranks in source.keys(&under(path, &[&stage])) {
            let at = |key| under(path, &[&stage, &ranks, key]);
            let list = |key: &'static str, unit: f64, digits: usize| {
                let numbers = source.keys(&at(key)).into_iter();
                let numbers = numbers.filter_map(|rank| source.number(&under(&at(key), &[&rank])));
                text(numbers.map(|x| format!("{:.digits$}", x / unit)).collect::<Vec<_>>().join(", "))
            };
            let cells = [
                text(&ranks),
                source.show(&at("seconds"), As::Fixed(0)),
                source.show(&at("steps"), As::Fixed(0)),
                list("waited", 1.0, 1),
                list("sent", 1e6, 1),
                list("peak_memory_mb", 1.0, 0),
            ];
            table.row(text(&stage), cells);
        }
    }
    table.html()
}

fn machine(run: &Run) -> Html {
    let Some(environment) = &run.environment else { return Html::default() };
    let mut table = Table::new("Program and machine", &["what", "value"]);
    for key in environment.keys(&[]) {
        let value = environment.at(&[&key]).map(plain).unwrap_or_default();
        table.row(text(&key), [text(value)]);
    }
    table.of_words()
}

/// A value without quotation marks.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "none".to_owned(),
        serde_json::Value::Array(list) if list.is_empty() => "none".to_owned(),
        serde_json::Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
