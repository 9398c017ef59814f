//! What the candidates of both PPO runs are worth to the reward model and to the judge, against their distance from
//! the reference (Gao et al. 2022, "Scaling laws for reward model overoptimization").

use crate::{
    figure::Figure,
    html::{Html, text},
    parts::{absent, pairs, paragraph},
    plot::{Drawn, Plot, Series},
    run::Run,
    source::{As, Source, dash, under},
    table::Table,
    thin::Point,
};

/// The section, from `eval/frontier.json`; before there is one, from what chose the candidates.
pub(crate) fn section(run: &Run) -> Html {
    match &run.frontier {
        Some(frontier) => judged(run, frontier),
        None => [
            absent(
                "The judge has not seen the candidates (eval/frontier.json): the evaluation does that, where \
                 ppo.candidates are kept.",
            ),
            chosen_so_far(run),
        ]
        .into_iter()
        .collect(),
    }
}

/// The policies, as results name them, and the file that says which of its candidates was chosen.
const RUNS: [(&str, &str); 2] = [("ppo_ptx", "eval/ppo-ptx-selection.json"), ("ppo", "eval/ppo-selection.json")];

/// Enough points of a fitted law for a smooth line.
const LAW_POINTS: usize = 40;

fn judged(run: &Run, frontier: &Source) -> Html {
    let judge = run.judge_word();
    let prompts = frontier.show(&["prompts"], As::Fixed(0));
    let budget = match frontier.number(&["kl_budget"]) {
        Some(_) => text("Candidates may be up to ")
            .followed_by(frontier.show(&["kl_budget"], As::Fixed(2)))
            .followed_by(text(" nats away. ")),
        None => text("No limit on the distance was set. "),
    };
    let intro = paragraph("Each mark is a model on ")
        .add(prompts)
        .text(format!(
            " validation prompts. The reward model sees a proxy of what {judge} sees; the further a policy goes from \
             its reference, the more the two can come apart. "
        ))
        .add(budget);
    let drawn = RUNS.iter().filter(|(name, _)| frontier.at(&["runs", name]).is_some());
    let drawn =
        drawn.flat_map(|(name, _)| [Sight::Proxy, Sight::Gold].map(|sight| figure(frontier, name, sight, judge)));
    [intro.into(), pairs(drawn)].into_iter().collect()
}

/// Who looks at a candidate.
#[derive(Clone, Copy, PartialEq)]
enum Sight {
    Proxy,
    Gold,
}

impl Sight {
    fn key(self) -> &'static str {
        if self == Sight::Proxy { "proxy" } else { "gold" }
    }
}

fn figure(frontier: &Source, run: &str, sight: Sight, judge: &str) -> Html {
    let id = format!("frontier-{}-{}", crate::parts::slug(run), sight.key());
    let plot = plot(frontier, run, sight);
    let (title, unit) = match sight {
        Sight::Proxy => (format!("{run}: the reward model"), "mean score".to_owned()),
        Sight::Gold => (format!("{run}: {judge}"), "mean points".to_owned()),
    };
    let law = frontier.at(&["runs", run, "fit"]).is_some_and(|fit| fit.is_object()) && sight == Sight::Gold;
    let figure = Figure {
        title,
        unit,
        legend: plot.legend(),
        drawing: plot.svg(&id),
        caption: caption(frontier, run, sight, judge),
        note: if law { "Thin lines are the fitted laws of Gao et al. (2022).".to_owned() } else { String::new() },
        table: table(frontier, run),
        id,
    };
    figure.html()
}

fn plot(frontier: &Source, run: &str, sight: Sight) -> Plot {
    let reference = frontier.number(&["reference", sight.key()]);
    let start = reference.map(|value| (0.0, value));
    let candidates = points(frontier, &["runs", run, "candidates"], sight.key());
    let best_of_n = points(frontier, &["best_of_n"], sight.key());
    let candidate_names = names(frontier, &["runs", run, "candidates"]);
    let with_start = |points: Vec<Point>, titles: Vec<String>| {
        let titles = start.iter().map(|_| "the reference".to_owned()).chain(titles).collect();
        (start.into_iter().chain(points).collect::<Vec<_>>(), titles)
    };
    let (points_of_run, titles) = with_start(candidates, candidate_names.clone());
    let first = usize::from(start.is_some());
    let named = |key: &str, name: &'static str| {
        let which = frontier.words(&["runs", run, key])?;
        Some((first + candidate_names.iter().position(|candidate| candidate == which)?, name))
    };
    let named = [named("chosen", "chosen"), named("judge_choice", "judge's")].into_iter().flatten().collect();
    let of_run = Series { name: run.to_owned(), points: points_of_run, drawn: Drawn::Marked, named, titles };
    let (points_of_n, titles) = with_start(best_of_n, names(frontier, &["best_of_n"]));
    let of_n =
        Series { name: "best of n".to_owned(), points: points_of_n, drawn: Drawn::Marked, named: Vec::new(), titles };
    let mut series = vec![of_run, of_n];
    if sight == Sight::Gold {
        series.extend(laws(frontier, run, reference.unwrap_or_default(), &series));
    }
    let all =
        RUNS.iter().map(|(name, _)| points(frontier, &["runs", name, "candidates"], sight.key())).collect::<Vec<_>>();
    Plot {
        x: "square root of KL to sft_init",
        x_reaches: all.iter().flatten().map(|point| point.0).chain([0.0]).collect(),
        y_reaches: all.iter().flatten().map(|point| point.1).collect(),
        series,
        ..Plot::default()
    }
}

/// (distance, value) of the rows there.
fn points(frontier: &Source, path: &[&str], key: &str) -> Vec<Point> {
    let of = |place: String| {
        let at = |key| frontier.number(&under(path, &[&place, key]));
        Some((at("sqrt_kl")?, at(key)?))
    };
    frontier.keys(path).into_iter().filter_map(of).collect()
}

fn names(frontier: &Source, path: &[&str]) -> Vec<String> {
    let of = |place: String| Some(frontier.words(&under(path, &[&place, "name"]))?.to_owned());
    frontier.keys(path).into_iter().filter_map(of).collect()
}

/// The laws that were fitted to the judge's points above the reference: `d (alpha - beta ln d)` for reinforcement
/// learning, `d (alpha - beta d)` for best of n, each as far as its points go.
fn laws(frontier: &Source, run: &str, reference: f64, series: &[Series]) -> Vec<Series> {
    let law = |path: &[&str], far: &Series, bend: fn(f64) -> f64| {
        let of = |key| frontier.number(&under(path, &[key]));
        let (alpha, beta) = (of("alpha")?, of("beta")?);
        let end = far.points.last()?.0;
        let at = |i: usize| {
            let d = end * i as f64 / LAW_POINTS as f64;
            (d, reference + if i == 0 { 0.0 } else { d * (alpha - beta * bend(d)) })
        };
        let points = (0..=LAW_POINTS).map(at).collect();
        Some(Series { name: format!("law of {}", far.name), points, drawn: Drawn::Law, ..Series::default() })
    };
    let of_run = law(&["runs", run, "fit"], &series[0], f64::ln);
    let of_n = law(&["best_of_n_fit"], &series[1], |d| d);
    [of_run, of_n].into_iter().flatten().collect()
}

fn caption(frontier: &Source, run: &str, sight: Sight, judge: &str) -> String {
    let candidate = |key: &str| {
        let name = frontier.words(&["runs", run, key])?;
        let place = names(frontier, &["runs", run, "candidates"]).iter().position(|other| other == name)?.to_string();
        let value = frontier.number(&["runs", run, "candidates", &place, sight.key()])?;
        Some((name.to_owned(), value))
    };
    let (Some(chosen), Some(best)) = (candidate("chosen"), candidate("judge_choice")) else {
        return "Not every candidate is named in eval/frontier.json.".to_owned();
    };
    if sight == Sight::Proxy {
        let from = frontier.number(&["reference", "proxy"]).unwrap_or_default();
        return format!(
            "The mean score is {from:.2} at the reference and {:.2} at {}, the chosen candidate; it is {:.2} at {}, \
             which {judge} likes best.",
            chosen.1, chosen.0, best.1, best.0
        );
    }
    let from = frontier.number(&["reference", "gold"]).unwrap_or_default();
    let turned = match frontier.words(&["runs", run, "turning_point"]) {
        Some(turning) => format!(
            " After {turning} the points only fall while the reward model's score still rises: more optimisation made \
             the answers worse."
        ),
        None => " They do not fall while the reward model's score rises.".to_owned(),
    };
    if chosen.0 == best.0 {
        return format!(
            "The mean points are {from:.2} at the reference and {:.2} at {}, the chosen candidate, which {judge} likes \
             best too.{turned}",
            chosen.1, chosen.0
        );
    }
    format!(
        "The mean points are {from:.2} at the reference, {:.2} at {}, which {judge} likes best, and {:.2} at {}, which \
         the reward model chose.{turned}",
        best.1, best.0, chosen.1, chosen.0
    )
}

fn table(frontier: &Source, run: &str) -> Table {
    let head = ["model", "KL, nats", "square root of KL", "score", "points", "what it is"];
    let mut table = Table::new(format!("Candidates of {run}, and best of n"), &head);
    let mut row = |path: &[&str], what: &[&str]| {
        let show = |key, digits| frontier.show(&under(path, &[key]), As::Fixed(digits));
        let name = frontier.words(&under(path, &["name"])).unwrap_or("none");
        let cells = [show("kl", 2), show("sqrt_kl", 2), show("proxy", 2), show("gold", 2)];
        let what = if what.is_empty() { dash() } else { text(what.join(", ")) };
        table.row(text(name), cells.into_iter().chain([what]));
    };
    row(&["reference"], &["the reference"]);
    for place in frontier.keys(&["runs", run, "candidates"]) {
        let path = ["runs", run, "candidates", &place];
        let name = frontier.words(&under(&path, &["name"]));
        let is = |key: &str| name.is_some() && frontier.words(&["runs", run, key]) == name;
        let on_frontier = frontier.at(&under(&path, &["on_frontier"])).and_then(|value| value.as_bool());
        let marks = [
            (is("chosen"), "chosen"),
            (is("judge_choice"), "the judge's choice"),
            (is("turning_point"), "turning point"),
            (on_frontier == Some(true), "no nearer one has more points"),
        ];
        row(&path, &marks.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect::<Vec<_>>());
    }
    for place in frontier.keys(&["best_of_n"]) {
        row(&["best_of_n", &place], &[]);
    }
    table
}

/// What the reward model said of the candidates, while the judge has not seen them.
fn chosen_so_far(run: &Run) -> Html {
    let tables = RUNS.iter().filter_map(|(name, file)| {
        let selection = run.selections.get(file)?;
        let mut table = Table::new(format!("Candidates of {name}"), &["candidate", "KL, nats", "score", "chosen"]);
        for place in selection.keys(&[]) {
            let chosen = selection.at(&[&place, "chosen"]).and_then(|value| value.as_bool()) == Some(true);
            let cells = [
                selection.show(&[&place, "kl"], As::Fixed(2)),
                selection.show(&[&place, "mean_score"], As::Fixed(2)),
                text(if chosen { "chosen" } else { "" }),
            ];
            table.row(text(selection.words(&[&place, "candidate"]).unwrap_or("none")), cells);
        }
        Some(table.html())
    });
    tables.collect()
}
