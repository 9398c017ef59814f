//! Several runs on one page, a column each.

use crate::{
    figure::Figure,
    forest::Forest,
    html::{Element, Html, el, text},
    page::{frame, simulation},
    parts::{absent, figures, paragraph, slug},
    plot::{Plot, Series},
    results::{MAIN, comparisons, rate, versus},
    run::Run,
    source::{As, dash, percent},
    table::Table,
    thin::Point,
};
use instruct_eval::{Interval, Spread};
use std::collections::BTreeSet;

/// One page that compares runs: their results with intervals, the settings that differ, and their curves on equal axes.
///
/// Its rules are those of [`Run::page`]. Runs are named by their place where two have the same name.
pub fn compare(runs: &[Run]) -> String {
    let columns = columns(runs);
    let sections = vec![
        ("results", "Results", results(&columns)),
        ("settings", "Settings that differ", settings(&columns)),
        ("curves", "Curves", curves(&columns)),
    ];
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let header = el("header")
        .add(el("p").class("kicker").text("Comparison of runs"))
        .add(el("h1").text(names.join(", ")))
        .add(paragraph(lead(&columns)).class("lead"))
        .add_all(remarks(&columns));
    frame("Comparison of runs", header, sections)
}

/// A run and what its column is called.
struct Column<'a> {
    name: String,
    run: &'a Run,
}

impl Column<'_> {
    /// A number of this run, which says whose it is.
    fn cell(&self, form: Form, path: &[&str]) -> Html {
        let Some(results) = &self.run.results else { return dash() };
        let shown = match form {
            Form::Rate => rate(results, path),
            Form::Number(form) => results.show(path, form),
        };
        el("div").attr("data-run", &self.name).add(shown).into()
    }
}

fn columns(runs: &[Run]) -> Vec<Column<'_>> {
    let twice = |run: &Run| runs.iter().filter(|other| other.name() == run.name()).count() > 1;
    let name = |(place, run): (usize, &Run)| match twice(run) {
        true => format!("{} ({place})", run.name()),
        false => run.name().to_owned(),
    };
    (1..).zip(runs).map(|pair| Column { name: name(pair), run: pair.1 }).collect()
}

fn lead(columns: &[Column]) -> String {
    let of = |column: &Column| column.run.results.as_ref()?.interval(&["win_rate", MAIN]);
    let rates: Vec<Interval> = columns.iter().filter_map(of).collect();
    let (Some(least), Some(most)) = (
        rates.iter().copied().reduce(|a, b| if b.mean < a.mean { b } else { a }),
        rates.iter().copied().reduce(|a, b| if b.mean > a.mean { b } else { a }),
    ) else {
        return "None of these runs has been evaluated yet.".to_owned();
    };
    format!(
        "{} of {} runs are evaluated. In them ppo_ptx wins against sft on {} to {} of the held-out prompts.",
        rates.len(),
        columns.len(),
        As::Percent.write(least.mean),
        As::Percent.write(most.mean)
    )
}

/// What a reader must know before comparing: simulations, judges that differ, files that could not be read.
fn remarks(columns: &[Column]) -> Vec<Element> {
    let judges: BTreeSet<&str> = columns.iter().filter_map(|column| column.run.judge()).collect();
    let differ = (judges.len() > 1).then(|| {
        paragraph("The runs do not have the same judge, so their win rates cannot be compared with each other.")
            .class("remark")
    });
    let simulated = columns.iter().find_map(|column| simulation(column.run));
    let problems = columns.iter().flat_map(|column| {
        column.run.problems().iter().map(|problem| paragraph(format!("{}: {problem}", column.name)).class("remark"))
    });
    simulated.into_iter().chain(differ).chain(problems).collect()
}

/// A row of numbers: what it is called, where it stands in `eval/results.json`, how it is written.
struct Row {
    name: String,
    path: Vec<String>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Rate,
    Number(As),
}

fn results(columns: &[Column]) -> Html {
    let seeds = only_seeds_differ(columns);
    let mut head: Vec<&str> = ["what"].into_iter().chain(columns.iter().map(|column| column.name.as_str())).collect();
    head.extend(seeds.then_some("mean ± standard deviation"));
    let mut table = Table::new("Results with 95 % intervals", &head);
    let rows = rows(columns);
    for row in &rows {
        let path: Vec<&str> = row.path.iter().map(String::as_str).collect();
        let cells = columns.iter().map(|column| column.cell(row.form, &path));
        let spread = seeds.then(|| spread(columns, row, &path));
        table.row(text(&row.name), cells.chain(spread));
    }
    let note = match seeds {
        true => "The runs differ in their seed only. The last column is over seeds; it is no interval.",
        false => "The intervals are over prompts. They do not say how much another seed would change a run.",
    };
    // The rates on unseen tasks are in the table only: they are much like those on all.
    let drawn = rows.iter().filter(|row| row.form == Form::Rate && !row.path.concat().contains("unseen"));
    let forests = drawn.filter_map(|row| forest(columns, row));
    [paragraph(note).into(), table.html(), figures(forests)].into_iter().collect()
}

fn rows(columns: &[Column]) -> Vec<Row> {
    let row = |name: &str, path: &[&str], form| Row {
        name: name.to_owned(),
        path: path.iter().map(|key| (*key).to_owned()).collect(),
        form,
    };
    let mut rows = Vec::new();
    let known = columns.iter().filter_map(|column| column.run.results.as_ref()).map(comparisons);
    let keys = known.reduce(|mut all, more| {
        let new: Vec<String> = more.into_iter().filter(|key| !all.contains(key)).collect();
        all.extend(new);
        all
    });
    for key in keys.unwrap_or_default() {
        rows.push(row(&versus(&key), &["win_rate", &key], Form::Rate));
        rows.push(row(&format!("{}, unseen tasks", versus(&key)), &["win_rate_unseen", &key], Form::Rate));
    }
    let accuracy = ["reward_model", "report_card", "accuracy"];
    rows.push(row("reward model's accuracy", &accuracy, Form::Rate));
    rows.push(row("the same, unseen tasks", &["reward_model", "accuracy_unseen"], Form::Rate));
    let fixed = |digits| Form::Number(As::Fixed(digits));
    let numbers: [(&str, &[&str], Form); 14] = [
        ("accuracy's ceiling", &["reward_model", "accuracy_ceiling"], Form::Number(As::Percent)),
        ("expected calibration error", &["reward_model", "ece"], fixed(3)),
        ("KL of ppo_ptx, nats", &["ppo", "kl"], fixed(2)),
        ("KL of ppo, nats", &["ppo_without_ptx", "kl"], fixed(2)),
        ("score of ppo_ptx", &["ppo", "score"], fixed(2)),
        ("score of ppo", &["ppo_without_ptx", "score"], fixed(2)),
        ("points of ppo_ptx", &["judge_mean", "ppo_ptx"], fixed(2)),
        ("points of sft", &["judge_mean", "sft"], fixed(2)),
        ("tokens of an answer, ppo_ptx", &["answers", "ppo_ptx", "mean_tokens"], fixed(1)),
        ("answers that end, ppo_ptx", &["answers", "ppo_ptx", "ended"], Form::Number(As::Percent)),
        ("perplexity of ppo_ptx", &["alignment_tax", "ppo_ptx"], fixed(3)),
        ("perplexity of sft_init", &["alignment_tax", "sft_init"], fixed(3)),
        ("judge and reward model, Spearman", &["judge_correlation", "spearman"], fixed(2)),
        ("peak memory, MB", &["peak_memory_mb"], fixed(0)),
    ];
    rows.extend(numbers.into_iter().map(|(name, path, form)| row(name, path, form)));
    rows.retain(|row| columns.iter().any(|column| row.mean(column).is_some()));
    rows
}

impl Row {
    /// The number itself, of a rate its mean.
    fn mean(&self, column: &Column) -> Option<f64> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let results = column.run.results.as_ref()?;
        match self.form {
            Form::Rate => results.interval(&path).map(|of| of.mean),
            Form::Number(_) => results.number(&path),
        }
    }
}

/// Whether these are runs of one configuration with several seeds.
fn only_seeds_differ(columns: &[Column]) -> bool {
    let keys = differing(columns);
    columns.len() > 1 && columns.iter().all(|column| !column.run.config.is_empty()) && keys.iter().eq(["seed"])
}

fn spread(columns: &[Column], row: &Row, path: &[&str]) -> Html {
    let values: Vec<f64> = columns.iter().filter_map(|column| row.mean(column)).collect();
    let Ok(Spread { mean, sd, n, .. }) = Spread::of(&values) else { return dash() };
    let form = if let Form::Number(form) = row.form { form } else { As::Percent };
    let written = format!("{} ± {}", form.write(mean), form.write(sd));
    let count = el("span").class("count").text(format!("{n} runs"));
    el("span").attr("data-spread", path.join("/")).text(written).add(count).into()
}

/// One rate of every run, below each other.
fn forest(columns: &[Column], row: &Row) -> Option<Html> {
    let path: Vec<&str> = row.path.iter().map(String::as_str).collect();
    let of = |column: &Column| Some((column.name.clone(), column.run.results.as_ref()?.interval(&path)?));
    let rows: Vec<(String, Interval)> = columns.iter().filter_map(of).collect();
    if rows.len() < 2 {
        return None;
    }
    let mut table = Table::new(row.name.as_str(), &["run", "rate"]);
    rows.iter().for_each(|(name, of)| table.row(text(name), [text(percent(of))]));
    let lowest = rows.iter().reduce(|a, b| if b.1.mean < a.1.mean { b } else { a })?;
    let highest = rows.iter().reduce(|a, b| if b.1.mean > a.1.mean { b } else { a })?;
    let id = format!("compare-{}", slug(&row.path.join("-")));
    let caption = format!("From {} in {} to {} in {}.", percent(&lowest.1), lowest.0, percent(&highest.1), highest.0);
    let figure = Figure {
        title: row.name.clone(),
        unit: String::new(),
        legend: None,
        drawing: Forest { rows: rows.clone(), guides: vec![(0.5, "even")] }.svg(&id),
        caption,
        note: String::new(),
        table,
        id,
    };
    Some(figure.html())
}

/// The keys whose values are not the same in all runs that have a configuration.
fn differing(columns: &[Column]) -> Vec<String> {
    let with: Vec<&Column> = columns.iter().filter(|column| !column.run.config.is_empty()).collect();
    let keys: BTreeSet<&String> = with.iter().flat_map(|column| column.run.config.keys()).collect();
    let values = |key: &String| with.iter().map(|column| column.run.config.get(key)).collect::<BTreeSet<_>>();
    keys.into_iter().filter(|key| values(key).len() > 1).cloned().collect()
}

fn settings(columns: &[Column]) -> Html {
    let keys = differing(columns);
    if keys.is_empty() {
        return absent("No key of the configurations differs, as far as the run folders say.");
    }
    let head: Vec<&str> = ["key"].into_iter().chain(columns.iter().map(|column| column.name.as_str())).collect();
    let mut table = Table::new("Keys that are not the same in all runs", &head);
    for key in keys {
        let value =
            |column: &Column| column.run.config.get(&key).map_or_else(dash, |value| el("code").text(value).into());
        table.row(el("code").text(&key), columns.iter().map(value));
    }
    table.of_words()
}

/// Curves that tell how a run went.
const CURVES: [(&str, &str, &str, &str); 4] = [
    ("ppo-ptx", "objective/scores", "Reward model's score, ppo-ptx", "iteration"),
    ("ppo-ptx", "objective/kl", "KL to sft_init, ppo-ptx, nats", "iteration"),
    ("reward-model", "train/rm/loss", "Loss of the reward model", "step"),
    ("sft-baseline", "train/sft/loss", "Loss of sft-baseline", "step"),
];

fn curves(columns: &[Column]) -> Html {
    let drawn = CURVES.iter().map(|&(stage, metric, title, steps)| curves_of(columns, stage, metric, title, steps));
    drawn.collect()
}

/// One metric, a drawing for each run, all on the same axes.
fn curves_of(columns: &[Column], stage: &str, metric: &str, title: &str, steps: &'static str) -> Html {
    let curve = |column: &Column| column.run.stages.get(stage).map(|of| of.metrics.curve(metric)).unwrap_or_default();
    let curves: Vec<Vec<Point>> = columns.iter().map(curve).collect();
    let reaches = |f: fn(&Point) -> f64| curves.iter().flatten().map(f).collect::<Vec<f64>>();
    let (x_reaches, y_reaches) = (reaches(|point| point.0), reaches(|point| point.1));
    let figure = |(place, (column, points)): (usize, (&Column, &Vec<Point>))| {
        let last = points.last()?;
        let id = format!("curve-{}-{}-{place}", slug(stage), slug(metric));
        let plot = Plot {
            x: steps,
            series: vec![Series { name: column.name.clone(), points: points.clone(), ..Series::default() }],
            x_reaches: x_reaches.clone(),
            y_reaches: y_reaches.clone(),
            ..Plot::default()
        };
        let figure = Figure {
            title: column.name.clone(),
            unit: String::new(),
            legend: None,
            drawing: plot.svg(&id),
            caption: format!("{} at {steps} {}.", crate::figure::number(last.1), crate::figure::number(last.0)),
            note: plot.note(),
            table: plot.table(&format!("{title}: {}", column.name)),
            id,
        };
        Some(figure.html())
    };
    let drawn: Vec<Html> = columns.iter().zip(&curves).enumerate().filter_map(figure).collect();
    if drawn.is_empty() {
        return Html::default();
    }
    let intro = paragraph(format!("Metric {metric}, all runs on the same axes.")).class("note");
    Html::from(el("h3").text(title)).followed_by(intro).followed_by(figures(drawn))
}
