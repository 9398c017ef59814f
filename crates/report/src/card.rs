//! The reward model's card: how well it orders what people ranked, for whom, and what else it rewards.

use crate::{
    figure::Figure,
    forest::{Forest, largest},
    html::{Html, el, text},
    parts::{absent, figures, heading, paragraph, slug},
    plot::{Drawn, Plot, Series},
    results::rate,
    run::Run,
    source::{As, Source, percent, under},
    table::Table,
};

/// The section, from `reward_model` of `eval/results.json`, or of `eval/reward-model.json` of a retrained run.
pub(crate) fn section(run: &Run) -> Html {
    let Some(results) = run.card() else {
        return absent(match run.is_retrained {
            true => "The new reward model has not been graded yet (eval/reward-model.json).",
            false => "The evaluation has not graded the reward model yet (eval/results.json).",
        });
    };
    let groups = GROUPS.iter().filter_map(|group| group.figure(results));
    let drawn: Vec<Html> = reliability(results).into_iter().chain(groups).collect();
    [intro(run, results), summary(results).html(), figures(drawn), rewarded(results)].into_iter().collect()
}

const CARD: [&str; 2] = ["reward_model", "report_card"];

fn intro(run: &Run, results: &Source) -> Html {
    let at = |key| ["reward_model", key];
    let counted = |key| results.show(&under(&CARD, &[key]), As::Fixed(0));
    let ceiling = match (results.number(&at("accuracy_ceiling")), run.judge_is_simulated()) {
        (Some(_), true) => " The ceiling is the simulated judge's own accuracy: the noise of the simulated labelers.",
        (Some(_), false) => " The ceiling is the judge's own accuracy: the noise of the labelers.",
        (None, _) => "",
    };
    el("p")
        .text(
            "Accuracy is the share of ordered pairs of held-out rankings that the scores order as the labeler \
             did; equal scores count half. It is measured on ",
        )
        .add(results.show(&at("pairs"), As::Fixed(0)))
        .text(" pairs of ")
        .add(counted("records"))
        .text(" rankings (")
        .add(counted("records_without_pair"))
        .text(" more have no pair). Pairs of one prompt are resampled together, so n counts prompts.")
        .text(ceiling)
        .into()
}

fn summary(results: &Source) -> Table {
    let at = |key| ["reward_model", key];
    let mut table = Table::new("The reward model on held-out rankings", &["what", "value"]);
    table.row(text("accuracy"), [rate(results, &under(&CARD, &["accuracy"]))]);
    if results.interval(&at("accuracy_unseen")).is_some() {
        let pairs = el("span").class("count").add(results.show(&at("pairs_unseen"), As::Fixed(0))).text(" pairs");
        table.row(text("accuracy on unseen tasks"), [rate(results, &at("accuracy_unseen")).followed_by(pairs)]);
    }
    let one = [
        ("if the longer answer were always better", "accuracy_length_baseline", As::Percent),
        ("ceiling", "accuracy_ceiling", As::Percent),
        ("expected calibration error", "ece", As::Fixed(3)),
    ];
    for (name, key, form) in one {
        table.row(text(name), [results.show(&at(key), form)]);
    }
    let gain = under(&CARD, &["gain_over_length"]);
    if results.interval(&gain).is_some() {
        table.row(text("accuracy less that of length, paired"), [rate(results, &gain)]);
    }
    let margin = |key| results.show(&under(&CARD, &["margin", key]), As::Fixed(2));
    let margins =
        [margin("mean"), text(" ± "), margin("sd"), text(", from "), margin("min"), text(" to "), margin("max")];
    table.row(text("margin of better over worse, mean ± standard deviation"), [margins.into_iter().collect()]);
    table
}

/// Accuracy by something.
struct Group {
    key: &'static str,
    title: &'static str,
    /// What a row is called.
    row: &'static str,
}

const GROUPS: [Group; 4] = [
    Group { key: "by_labeler", title: "Accuracy by labeler", row: "labeler" },
    Group { key: "by_use_case", title: "Accuracy by use case", row: "use case" },
    Group { key: "by_confidence", title: "Accuracy by the labeler's confidence", row: "confidence" },
    Group { key: "by_length_gap", title: "Accuracy by length of the better answer", row: "better answer, tokens" },
];

impl Group {
    fn figure(&self, results: &Source) -> Option<Html> {
        let path = under(&CARD, &[self.key]);
        let interval = |name: &String| Some((name.clone(), results.interval(&under(&path, &[name]))?));
        let (rows, left_out) = largest(results.keys(&path).iter().filter_map(interval).collect());
        let all = results.interval(&under(&CARD, &["accuracy"]))?;
        let lowest = rows.iter().reduce(|best, row| if row.1.mean < best.1.mean { row } else { best })?;
        let highest = rows.iter().reduce(|best, row| if row.1.mean > best.1.mean { row } else { best })?;
        let caption = format!(
            "Lowest for {}: {}, n = {}; highest for {}: {}, n = {}.",
            self.name(&lowest.0),
            percent(&lowest.1),
            lowest.1.n,
            self.name(&highest.0),
            percent(&highest.1),
            highest.1.n
        );
        let mut table = Table::new(self.title, &[self.row, "accuracy", "prompts"]);
        for (name, _) in &rows {
            let at = under(&path, &[name]);
            let n = results.show(&under(&at, &["n"]), As::Fixed(0));
            table.row(text(self.name(name)), [results.show_interval(&at), n]);
        }
        let id = format!("accuracy-{}", slug(self.key));
        let drawn = rows.into_iter().map(|(name, of)| (self.name(&name).to_owned(), of)).collect();
        let guides = vec![(0.5, "chance"), (all.mean, "all")];
        let figure = Figure {
            title: self.title.to_owned(),
            unit: String::new(),
            legend: None,
            drawing: Forest { rows: drawn, guides }.svg(&id),
            caption,
            note: format!("A line is the 95 % interval; a mark without one had fewer than 20 prompts.{left_out}"),
            table,
            id,
        };
        Some(figure.html())
    }

    /// A row's name without the letter that orders the differences in length.
    fn name<'a>(&self, key: &'a str) -> &'a str {
        match key.split_once(": ") {
            Some((letter, name)) if self.key == "by_length_gap" && letter.len() == 1 => name,
            _ => key,
        }
    }
}

/// Predicted against observed shares.
fn reliability(results: &Source) -> Option<Html> {
    let path = under(&CARD, &["reliability"]);
    let bins = results.keys(&path);
    let at = |place: &str, key: &str| results.number(&under(&path, &[place, key]));
    let bin = |place: &String| Some(((at(place, "predicted")?, at(place, "observed")?), at(place, "n")?));
    let read: Vec<((f64, f64), f64)> = bins.iter().filter_map(bin).collect();
    let furthest = read.iter().map(|(point, _)| point).reduce(|far, p| if gap(p) > gap(far) { p } else { far })?;
    let mut table = Table::new("Reliability", &["bin from", "predicted", "observed", "pairs in both orders"]);
    for place in &bins {
        let show = |key, form| results.show(&under(&path, &[place, key]), form);
        let cells = [show("predicted", As::Percent), show("observed", As::Percent), show("n", As::Fixed(0))];
        table.row(show("low", As::Percent), cells);
    }
    let series = Series {
        name: "observed share".to_owned(),
        points: read.iter().map(|(point, _)| *point).collect(),
        drawn: Drawn::Marked,
        titles: read.iter().map(|(_, n)| format!("{n:.0} pairs in both orders")).collect(),
        ..Series::default()
    };
    let plot = Plot {
        x: "predicted probability that the first is better",
        series: vec![series],
        x_reaches: vec![0.0, 1.0],
        y_reaches: vec![0.0, 1.0],
        diagonal: true,
        ..Plot::default()
    };
    let id = "reliability".to_owned();
    let figure = Figure {
        title: "Reliability".to_owned(),
        unit: "share that came true".to_owned(),
        legend: None,
        drawing: plot.svg(&id),
        caption: format!(
            "On the dashed line predictions come true as often as they say. The furthest from it says {} where {} came \
             true; the expected calibration error is {:.3}.",
            As::Percent.write(furthest.0),
            As::Percent.write(furthest.1),
            results.number(&["reward_model", "ece"]).unwrap_or_default()
        ),
        note: String::new(),
        table,
        id,
    };
    Some(figure.html())
}

fn gap(point: &(f64, f64)) -> f64 {
    (point.1 - point.0).abs()
}

/// What became of the score when an answer was spoiled, where that was measured.
fn rewarded(results: &Source) -> Html {
    const PATH: [&str; 3] = ["reward_model", "rewards", "variants"];
    let variants = results.keys(&PATH);
    let title = heading("What the reward model rewards");
    if variants.is_empty() {
        return title.followed_by(absent(
            "Not measured in this run: how the score changes when an answer is empty, repeated, shuffled or only \
             thanks.",
        ));
    }
    let of = results.words(&["reward_model", "rewards", "of"]).unwrap_or("a model");
    let head = ["the answer", "spoiled one scores higher", "change of the score", "prompts"];
    let mut table = Table::new("Scores of spoiled answers against the answers themselves", &head);
    let mut liked = Vec::new();
    for variant in &variants {
        let at = |keys: &[&'static str]| under(&under(&PATH, &[variant]), keys);
        let change = results.show_plain_interval(&at(&["change"]));
        let cells = [rate(results, &at(&["preferred"])), change, results.show(&at(&["change", "n"]), As::Fixed(0))];
        table.row(text(described(variant)), cells);
        if results.number(&at(&["preferred", "mean"])).is_some_and(|share| share > 0.5) {
            liked.push(described(variant).to_owned());
        }
    }
    let verdict = match liked.as_slice() {
        [] => "The reward model prefers none of them.".to_owned(),
        liked => {
            format!("The reward model prefers the spoiled answer more often than not when it is: {}.", liked.join("; "))
        }
    };
    let intro =
        paragraph(format!("Each answer of {of} to a held-out prompt was scored again after it was spoiled. {verdict}"));
    title.followed_by(intro).followed_by(table.html())
}

/// What was done to an answer, in words.
fn described(variant: &str) -> &str {
    match variant {
        "empty" => "empty: nothing is said",
        "repeated" => "repeated: said twice",
        "shuffled" => "shuffled: its words in another order",
        "thanks" => "thanks: \"Thanks.\" and nothing else",
        other => other,
    }
}
