//! Who won against whom, and what the answers were like: the table that `instruct pipeline` prints at its end.

use crate::{
    figure::Figure,
    forest::{Forest, largest, small},
    html::{Html, el, text},
    parts::{absent, heading, paragraph},
    run::Run,
    source::{As, Source, percent, under},
    table::{Table, details},
};

/// The section, from `eval/results.json` alone.
pub(crate) fn section(run: &Run) -> Html {
    let Some(results) = &run.results else {
        return absent(
            "The evaluation has not written its results yet (eval/results.json); it is the last step of a run.",
        );
    };
    let judge = run.judge_word();
    [
        paragraph(format!(
            "A win rate is the share of held-out prompts on which {judge} gives the first model's answer more points \
             than the second's; equal points count half. In brackets the 95 % interval over prompts, drawn below from \
             0 to 100 % with a tick at 50 %. Fewer than 20 prompts have none."
        ))
        .into(),
        el("div").class("beside").add(win_rates(results).html()).add(by_use_case(results, judge)).into(),
        every_use_case(results),
        heading("The models and their answers"),
        paragraph(MODELS_ARE).into(),
        models(results, judge).html(),
        correlation(results, judge),
    ]
    .into_iter()
    .collect()
}

/// The comparison that a run is about.
pub(crate) const MAIN: &str = "ppo_ptx_vs_sft";

/// The models of a run, in the order in which they are made.
pub(crate) const MODELS: [&str; 5] = ["base", "sft", "sft_init", "ppo", "ppo_ptx"];

const MODELS_ARE: &str = "base is the model before the run; sft is fine-tuned on demonstrations and chosen by the \
    reward model; sft_init is the fine-tuned start of reinforcement learning and its reference; ppo and ppo_ptx are \
    the policies without and with the pretraining mix.";

/// The comparisons in order of importance; those that this crate does not know come last.
pub(crate) fn comparisons(results: &Source) -> Vec<String> {
    const KNOWN: [&str; 7] = [
        MAIN,
        "ppo_vs_sft",
        "ppo_ptx_vs_ppo",
        "ppo_ptx_vs_sft_init",
        "ppo_vs_sft_init",
        "ppo_ptx_vs_base",
        "sft_vs_base",
    ];
    let mut keys = results.keys(&["win_rate"]);
    keys.sort_by_key(|key| KNOWN.iter().position(|known| known == key).unwrap_or(KNOWN.len()));
    keys
}

/// `ppo_ptx_vs_sft` in words.
pub(crate) fn versus(key: &str) -> String {
    key.replace("_vs_", " vs ")
}

/// A win rate or an accuracy with its interval, its drawing and the number of prompts.
pub(crate) fn rate(source: &Source, path: &[&str]) -> Html {
    let Some(of) = source.interval(path) else { return crate::source::dash() };
    let n = under(path, &["n"]);
    let count = el("span").class("count").text("n = ").add(source.show(&n, As::Fixed(0)));
    el("div").class("rate").add(source.show_interval(path)).add(count).add(small(&of)).into()
}

fn win_rates(results: &Source) -> Table {
    let unseen = results.keys(&["win_rate_unseen"]);
    let best = results.keys(&["best_of_n"]);
    let any_unseen = !unseen.is_empty();
    let head = ["first vs second", "win rate", "win rate on unseen tasks"];
    let mut table = Table::new("Win rates with 95 % intervals", &head[..if any_unseen { 3 } else { 2 }]);
    for key in comparisons(results) {
        let mut cells = vec![rate(results, &["win_rate", &key])];
        cells.extend(any_unseen.then(|| rate(results, &["win_rate_unseen", &key])));
        table.row(text(versus(&key)), cells);
    }
    for place in best {
        let at = |key| ["best_of_n", place.as_str(), key];
        let mut cells = vec![rate(results, &at("win_rate_vs_sft"))];
        cells.extend(any_unseen.then(|| rate(results, &at("win_rate_vs_sft_unseen"))));
        let name = el("span")
            .text("best of ")
            .add(results.show(&at("n"), As::Fixed(0)))
            .text(" vs sft")
            .add(el("span").class("count").text("KL ").add(results.show(&at("kl"), As::Fixed(2))).text(" nats"));
        let tokens = el("span").class("count").add(results.show(&at("mean_tokens"), As::Fixed(1))).text(" tokens");
        table.row(name.add(tokens), cells);
    }
    table
}

/// The main comparison for each use case, best first.
fn by_use_case(results: &Source, judge: &str) -> Option<Html> {
    let path = ["win_rate", MAIN, "by_group"];
    let groups = results.keys(&path);
    let of = |group: &String| Some((group.clone(), results.interval(&["win_rate", MAIN, "by_group", group])?));
    let (mut rows, left_out) = largest(groups.iter().filter_map(of).collect());
    if rows.len() < 2 {
        return None;
    }
    rows.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    let mut table = Table::new("Win rate of ppo_ptx against sft by use case", &["use case", "win rate", "prompts"]);
    for (group, _) in &rows {
        let at = ["win_rate", MAIN, "by_group", group];
        table.row(text(group), [results.show_interval(&at), results.show(&under(&at, &["n"]), As::Fixed(0))]);
    }
    let (best, worst) = (&rows[0], &rows[rows.len() - 1]);
    let caption = format!(
        "By {judge}, ppo_ptx wins against sft most often in {} ({}, {} prompts) and least often in {} ({}, {} \
         prompts).",
        best.0,
        percent(&best.1),
        best.1.n,
        worst.0,
        percent(&worst.1),
        worst.1.n
    );
    let drawing = Forest { rows, guides: vec![(0.5, "even")] }.svg("win-rate-by-use-case");
    let figure = Figure {
        id: "win-rate-by-use-case".to_owned(),
        title: "ppo_ptx vs sft by use case".to_owned(),
        unit: "win rate".to_owned(),
        legend: None,
        drawing,
        caption,
        note: format!("A line is the 95 % interval; a mark without one had fewer than 20 prompts.{left_out}"),
        table,
    };
    Some(figure.html())
}

/// Every comparison for each use case, behind a line to open.
fn every_use_case(results: &Source) -> Html {
    let sets = [("win_rate", "All held-out prompts"), ("win_rate_unseen", "Prompts with an unseen task")];
    let tables: Html = sets.into_iter().filter_map(|(set, name)| use_cases(results, set, name)).collect();
    if tables == Html::default() { tables } else { details("Every comparison by use case", tables) }
}

fn use_cases(results: &Source, set: &str, name: &str) -> Option<Html> {
    let keys = comparisons(results);
    let groups = results.keys(&[set, keys.first()?, "by_group"]);
    if groups.is_empty() {
        return None;
    }
    let heads: Vec<String> = keys.iter().map(|key| versus(key)).collect();
    let head: Vec<&str> = ["use case", "prompts"].into_iter().chain(heads.iter().map(String::as_str)).collect();
    let mut table = Table::new(format!("Win rates by use case: {name}"), &head);
    for group in groups {
        let n = results.show(&[set, &keys[0], "by_group", &group, "n"], As::Fixed(0));
        let rates = keys.iter().map(|key| results.show_interval(&[set, key, "by_group", &group]));
        table.row(text(&group), [n].into_iter().chain(rates));
    }
    Some(table.html())
}

fn models(results: &Source, judge: &str) -> Table {
    let points = format!("points of {judge}");
    let head = [
        "model",
        &points,
        "answers that end",
        "tokens of an answer",
        "perplexity",
        "KL to sft_init, nats",
        "reward model's score",
        "largest distance of a first ratio from 1",
        "validation loss, nats per token",
    ];
    let mut table = Table::new("The models, means over held-out prompts and text", &head);
    for model in MODELS {
        let policy = match model {
            "ppo" => "ppo_without_ptx",
            "ppo_ptx" => "ppo",
            _ => "",
        };
        let loss = match model {
            "sft" => "validation_loss",
            "sft_init" => "init_validation_loss",
            _ => "",
        };
        // Results that were written before the answers of all models were measured have the policies' alone.
        let of_answers = ["answers", model, "mean_tokens"];
        let of_policy = [policy, "mean_tokens"];
        let tokens: &[&str] = if results.number(&of_answers).is_some() { &of_answers } else { &of_policy };
        let cells = [
            results.show(&["judge_mean", model], As::Fixed(2)),
            results.show(&["answers", model, "ended"], As::Percent),
            results.show(tokens, As::Fixed(1)),
            results.show(&["alignment_tax", model], As::Fixed(3)),
            results.show(&[policy, "kl"], As::Fixed(2)),
            results.show(&[policy, "score"], As::Fixed(2)),
            results.show(&[policy, "ratio_first_minibatch"], As::Power),
            results.show(&["sft", loss], As::Fixed(3)),
        ];
        table.row(text(model), cells);
    }
    table
}

/// How far judge and reward model agree on the answers.
fn correlation(results: &Source, judge: &str) -> Html {
    let at = |key| ["judge_correlation", key];
    if results.number(&at("n")).is_none() {
        return Html::default();
    }
    paragraph(format!("The points of {judge} and the scores of the reward model correlate over "))
        .add(results.show(&at("n"), As::Fixed(0)))
        .text(" answers of all models: Pearson ")
        .add(results.show(&at("pearson"), As::Fixed(2)))
        .text(", Spearman ")
        .add(results.show(&at("spearman"), As::Fixed(2)))
        .text(".")
        .into()
}
