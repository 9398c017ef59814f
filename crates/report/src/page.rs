//! The page of one run, and what both pages share: head, style and script.

use crate::{
    card, cost, curves, data, frontier, guards,
    html::{Element, Html, el},
    parts::paragraph,
    results::{self, MAIN},
    retraining,
    run::Run,
    samples,
    source::As,
};

impl Run {
    /// The report of this run: one HTML text that loads nothing from elsewhere.
    ///
    /// Every number of `eval/results.json` and its neighbours stands in a `data` element with the file, a JSON pointer
    /// into it (`data-key`) and how it is written (`data-as`), so that a test can compare the page with the files.
    /// What is not there yet is named. Equal runs have equal pages: no clock is read.
    pub fn page(&self) -> String {
        let parts: &[Part] = if self.is_retrained { &[RETRAINING, CURVES, CARD, GUARDS] } else { &EVALUATED };
        let made = |parts: &[Part]| parts.iter().map(|(id, name, of)| (*id, *name, of(self))).collect::<Vec<_>>();
        let (mut sections, last) = (made(parts), made(&[DATA, COST]));
        let used: usize = sections.iter().chain(&last).map(|(.., html)| html.len()).sum();
        let samples = samples::section(self, LONGEST.saturating_sub(used + FRAME));
        // Before data and cost: whoever reads on wants to see answers first.
        sections.push(("samples", "Answers side by side", samples));
        sections.extend(last);
        frame(&format!("{}: report of a run", self.name()), header(self), sections)
    }
}

/// A section: its id, its heading, and what makes it.
type Part = (&'static str, &'static str, fn(&Run) -> Html);

const CURVES: Part = ("curves", "Curves of every stage", curves::section);
const CARD: Part = ("card", "The reward model's card", card::section);
const GUARDS: Part = ("guards", "Guards", guards::section);
const DATA: Part = ("data", "Data and settings", data::section);
const COST: Part = ("cost", "Cost and machine", cost::section);

/// A retrained run is compared with the one before it, and has no evaluation of its own.
const RETRAINING: Part = ("retraining", "New against old", retraining::section);

/// What other runs begin with.
const EVALUATED: [Part; 5] = [
    ("results", "Results", results::section),
    ("frontier", "Reward model and judge", frontier::section),
    CURVES,
    CARD,
    GUARDS,
];

/// A page is at most this long, in bytes, as far as cutting the samples' texts can make it so: it is committed beside
/// results and sent by mail.
const LONGEST: usize = 1_000_000;

/// Room for head, style, script and header.
const FRAME: usize = 60_000;

/// A whole page: head, header, list of sections, sections.
pub(crate) fn frame(title: &str, header: Element, sections: Vec<(&str, &str, Html)>) -> String {
    let link = |(id, name, _): &(&str, &str, Html)| el("li").add(el("a").attr("href", format!("#{id}")).text(name));
    let links = el("ol").add_all(sections.iter().map(link));
    let body = el("body")
        .add(el("a").class("skip").attr("href", "#main").text("Skip to the results"))
        .add(header)
        .add(el("nav").attr("aria-label", "Sections").add(links))
        .add(el("main").attr("id", "main").add_all(sections.into_iter().map(section)))
        .add(el("script").raw(SCRIPT));
    Html::from(el("html").attr("lang", "en").add(head(title)).add(body)).into_page()
}

fn section((id, name, inner): (&str, &str, Html)) -> Element {
    let title = format!("{id}-heading");
    el("section").attr("id", id).attr("aria-labelledby", &title).add(el("h2").attr("id", &title).text(name)).add(inner)
}

pub(crate) const STYLE: &str = include_str!("page.css");
pub(crate) const SCRIPT: &str = include_str!("page.js");

/// What a browser may do with the page: nothing but apply this style and run this script. A text that slipped
/// through as markup could neither run nor load anything. A test computes the hashes anew.
pub(crate) const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; \
    style-src 'sha256-LmiVqmUbJKHydNPycskabrV32mxbDrWG38iz1vsuHH8='; \
    script-src 'sha256-fB1NlBJqGCMkBv9X+GNttszRE8rFNQnuxcncl9AtdtE='";

fn head(title: &str) -> Element {
    el("head")
        .add(el("meta").attr("charset", "utf-8"))
        .add(el("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .add(el("meta").attr("name", "color-scheme").attr("content", "light dark"))
        .add(el("meta").attr("name", "referrer").attr("content", "no-referrer"))
        .add(el("meta").attr("http-equiv", "Content-Security-Policy").attr("content", POLICY))
        .add(el("title").text(title))
        .add(el("style").raw(STYLE))
}

fn header(run: &Run) -> Element {
    let problems = run.problems().iter().map(|problem| paragraph(problem).class("remark"));
    el("header")
        .add(el("p").class("kicker").text("Report of a run"))
        .add(el("h1").text(run.name()))
        .add(lead(run))
        .add(simulation(run))
        .add_all(problems)
        .add(facts(run))
}

/// The result in a sentence.
fn lead(run: &Run) -> Html {
    if run.is_retrained {
        return retraining::lead(run);
    }
    let Some(results) = run.results.as_ref().filter(|results| results.interval(&["win_rate", MAIN]).is_some()) else {
        return paragraph("The evaluation has not written its results yet; below is what is there so far.")
            .class("lead")
            .into();
    };
    let unseen = results.interval(&["win_rate_unseen", MAIN]).map(|_| {
        el("span")
            .text("; on the ")
            .add(results.show(&["win_rate_unseen", MAIN, "n"], As::Fixed(0)))
            .text(" whose task training never asks for, ")
            .add(results.show_interval(&["win_rate_unseen", MAIN]))
    });
    paragraph(format!("By {}, ppo_ptx wins against sft on ", run.judge_word()))
        .class("lead")
        .add(results.show_interval(&["win_rate", MAIN]))
        .text(" of ")
        .add(results.show(&["win_rate", MAIN, "n"], As::Fixed(0)))
        .text(" held-out prompts")
        .add(unseen)
        .text(".")
        .into()
}

/// That no person stands behind the numbers, where none does.
pub(crate) fn simulation(run: &Run) -> Option<Element> {
    let said = match (run.judge_is_simulated(), run.has_simulated_data()) {
        (true, true) if run.is_retrained => {
            "The judge and the old records are a simulation: rules wrote and judged them, no person did. The new records \
             are what was said of the old run's answers."
        }
        (true, true) => {
            "The judge, the labelers and the texts are a simulation: rules wrote and judged them, no person \
             did. The numbers say whether the method works, nothing about people."
        }
        (true, false) => "The judge is a simulation: rules judge the answers, no person does.",
        (false, true) => "Some records are a simulation: no person wrote or ranked them.",
        (false, false) => return None,
    };
    Some(paragraph(said).class("remark"))
}

/// The few things that tell runs apart.
fn facts(run: &Run) -> Element {
    let word = |key: &str| run.environment.as_ref()?.words(&[key]).map(str::to_owned);
    let weights = run.results.as_ref().and_then(|results| results.words(&["evaluated_weights"])).map(str::to_owned);
    let rows = [
        ("judge", run.judge().map(str::to_owned)),
        ("base", run.config.get("model.base").cloned()),
        ("seed", run.config.get("seed").cloned()),
        ("weights of the policies", weights),
        ("version", word("version")),
        ("commit", word("commit").map(|commit| commit.chars().take(12).collect())),
    ];
    let row = |(name, value): (&str, Option<String>)| {
        value.map(|value| el("div").add(el("dt").text(name)).add(el("dd").text(value)))
    };
    el("dl").class("facts").add_all(rows.into_iter().filter_map(row))
}
