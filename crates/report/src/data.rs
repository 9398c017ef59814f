//! What the run was made from: counts of records, settings that differ from the preset, files with their hashes.

use crate::{
    html::{Html, el, text},
    parts::{absent, heading, paragraph},
    run::Run,
    source::{As, Source},
    table::{Table, details},
};

/// The section.
pub(crate) fn section(run: &Run) -> Html {
    [heading("Data"), data(run), heading("Differences to the preset"), differences(run), inputs(run), settings(run)]
        .into_iter()
        .collect()
}

fn data(run: &Run) -> Html {
    let counted = run
        .data
        .as_ref()
        .map_or_else(|| absent("How many records were read, dropped and kept was not written down (data.json)."), sets);
    let simulated = run.has_simulated_data().then(|| {
        paragraph("Records of the files named embedded: are a simulation: no person wrote or ranked them.")
            .class("remark")
    });
    let rests = run.results.as_ref().map(|results| rests_on(run, results));
    Html::from(simulated).followed_by(counted).followed_by(rests.map(|table| table.html()))
}

/// Sizes of the sets after cleaning and splitting, and a line for everything that was left out.
fn sets(data: &Source) -> Html {
    let mut table = Table::new("Records after cleaning and splitting", &["set", "records"]);
    for set in data.keys(&["sets"]) {
        table.row(text(&set), [data.show(&["sets", &set], As::Fixed(0))]);
    }
    let lines = data.keys(&["lines"]).into_iter().filter_map(|place| data.words(&["lines", &place]));
    let lines: Vec<_> = lines.map(|line| el("li").text(line)).collect();
    let list = (!lines.is_empty()).then(|| details("What was read, dropped and kept", el("ul").add_all(lines)));
    table.html().followed_by(list)
}

/// How much each kind of result rests on.
fn rests_on(run: &Run, results: &Source) -> Table {
    let mut table = Table::new("What the results rest on", &["what", "how many"]);
    let card = |key| ["reward_model", "report_card", key];
    let rows: [(&str, &[&str]); 7] = [
        ("held-out prompts that every model answered", &["win_rate", crate::results::MAIN, "n"]),
        ("of these, prompts with an unseen task", &["win_rate_unseen", crate::results::MAIN, "n"]),
        ("answers that judge and reward model both saw", &["judge_correlation", "n"]),
        ("held-out rankings with a pair", &card("records")),
        ("held-out rankings without one", &card("records_without_pair")),
        ("ordered pairs of held-out rankings", &["reward_model", "pairs"]),
        ("of these, pairs with an unseen task", &["reward_model", "pairs_unseen"]),
    ];
    for (name, path) in rows.iter().filter(|(_, path)| results.number(path).is_some()) {
        table.row(text(name), [results.show(path, As::Fixed(0))]);
    }
    for (name, key) in [("episodes of each PPO run", "ppo.episodes"), ("episodes of an iteration", "ppo.batch")] {
        if let Some(value) = run.config.get(key) {
            table.row(text(name), [text(value)]);
        }
    }
    table
}

fn differences(run: &Run) -> Html {
    if run.differences().is_empty() {
        return paragraph("No key of the configuration is known to differ from the preset.").into();
    }
    let mut table = Table::new("Keys that differ from the preset", &["key", "preset", "this run"]);
    for (key, preset, own) in run.differences() {
        table.row(el("code").text(key), [preset, own].map(|value| el("code").text(value).into()));
    }
    table.of_words()
}

fn inputs(run: &Run) -> Html {
    let Some(inputs) = &run.inputs else { return Html::default() };
    let mut table = Table::new("Files that were read", &["file", "SHA-256"]);
    for file in inputs.keys(&[]) {
        table.row(text(&file), [el("code").text(inputs.words(&[&file]).unwrap_or_default()).into()]);
    }
    details("Files that were read, with their hashes", table.of_words())
}

fn settings(run: &Run) -> Html {
    if run.config.is_empty() {
        return Html::default();
    }
    let mut table = Table::new("The whole configuration", &["key", "value"]);
    for (key, value) in &run.config {
        table.row(el("code").text(key), [el("code").text(value).into()]);
    }
    details("The whole configuration", table.of_words())
}
