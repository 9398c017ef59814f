//! Of a run that was trained on what people said of another one's answers: the gate of its reward model, and its policy
//! against the old one.

use crate::{
    html::{Html, text},
    parts::{absent, paragraph},
    results::rate,
    run::Run,
    source::{As, Source},
    table::Table,
};

/// The section, from `eval/gate.json` and `eval/retrained.json`; none of a run that is no retrained one, or not that far.
pub(crate) fn section(run: &Run) -> Option<Html> {
    let gate = run.gate.as_ref()?;
    let policy = match &run.retrained {
        Some(retrained) => of_policy(retrained),
        None if passed(gate) => {
            absent("The new policy has not been compared with the old one yet (eval/retrained.json).")
        }
        None => Html::default(),
    };
    Some(
        [paragraph(GATE_IS).into(), of_gate(gate).html(), paragraph(said_by(gate)).into(), policy]
            .into_iter()
            .collect(),
    )
}

/// The result in a sentence; none where [`section`] has nothing.
pub(crate) fn lead(run: &Run) -> Option<Html> {
    let gate = run.gate.as_ref()?;
    let Some(retrained) = &run.retrained else { return Some(paragraph(said_by(gate)).class("lead").into()) };
    let sentence = paragraph(format!("By {}, the new policy wins against the old one on ", judge(retrained)))
        .class("lead")
        .add(retrained.show_interval(&["win_rate"]))
        .text(" of ")
        .add(retrained.show(&["win_rate", "n"], As::Fixed(0)))
        .text(format!(" held-out prompts: {}.", verdict(retrained)));
    Some(sentence.into())
}

const GATE_IS: &str = "This run was trained on what people said of another run's answers, beside that run's own records. \
    Before its reward model may train a policy, it is compared with the old one on held-out pairs: on the old records it \
    must be no worse, within the paired interval or by less than a point; on the new ones it must be better, where there \
    are 50 pairs of 20 prompts of these.";

fn of_gate(gate: &Source) -> Table {
    let head = ["held-out pairs", "accuracy, new less old reward model", "prompts"];
    let mut table = Table::new("The gate of the new reward model", &head);
    for (name, key) in [("of the old records", "on_old"), ("of what people said", "on_new")] {
        table.row(text(name), [gate.show_interval(&[key]), gate.show(&[key, "n"], As::Fixed(0))]);
    }
    table
}

fn passed(gate: &Source) -> bool {
    gate.at(&["passed"]).and_then(serde_json::Value::as_bool) == Some(true)
}

fn said_by(gate: &Source) -> &'static str {
    if passed(gate) {
        "The new reward model passed its gate."
    } else {
        "The new reward model did not pass its gate, so no policy was trained on it."
    }
}

fn of_policy(retrained: &Source) -> Html {
    let mut table = Table::new("The new policy against the old one", &["prompts", "win rate of the new policy"]);
    table.row(text("all held-out prompts"), [rate(retrained, &["win_rate"])]);
    for group in retrained.keys(&["win_rate", "by_group"]) {
        table.row(text(&group), [rate(retrained, &["win_rate", "by_group", &group])]);
    }
    let waiting = paragraph("Prompts of which people have said nothing yet: ")
        .add(retrained.show(&["waiting"], As::Fixed(0)))
        .text("; prompts that both answered the same: ")
        .add(retrained.show(&["same"], As::Fixed(0)))
        .text(".");
    let parts = [paragraph(format!("Judge: {}.", judge(retrained))).into(), table.html(), waiting.into()];
    parts.into_iter().collect()
}

fn judge(retrained: &Source) -> &str {
    retrained.words(&["judge"]).unwrap_or("the judge")
}

/// What the interval says of the new policy.
fn verdict(retrained: &Source) -> &'static str {
    match retrained.interval(&["win_rate"]) {
        Some(of) if of.low.is_some_and(|low| low > 0.5) => "it is better",
        Some(of) if of.high.is_some_and(|high| high < 0.5) => "it is worse, and the old run is the one to serve",
        _ => "neither is shown to be better",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn page(gate: &Value, retrained: Option<&Value>) -> String {
        Run::from_files("second", |path| match path {
            "eval/gate.json" => Some(gate.to_string().into_bytes()),
            "eval/retrained.json" => retrained.map(|of| of.to_string().into_bytes()),
            _ => None,
        })
        .page()
    }

    fn interval(mean: f64, around: f64) -> Value {
        json!({ "mean": mean, "low": mean - around, "high": mean + around, "n": 90 })
    }

    #[test]
    fn a_retrained_run_is_set_against_the_one_before_it() {
        let check = |passed: bool, share: Option<f64>, words: &[&str]| {
            let gate = json!({ "on_old": interval(0.01, 0.02), "on_new": null, "passed": passed });
            let mut rate = interval(share.unwrap_or(0.0), 0.08);
            rate["by_group"] = json!({});
            let outcome = json!({ "judge": "people", "win_rate": rate, "waiting": 3, "same": 1 });
            let page = page(&gate, share.is_some().then_some(&outcome));
            for words in words {
                assert!(page.contains(words), "`{words}` is missing");
            }
            assert!(!page.contains("has not written its results"), "a retrained run has no such results");
        };
        check(
            true,
            Some(0.36),
            &["By people, the new policy wins", "it is worse, and the old run is the one to serve"],
        );
        check(true, Some(0.64), &["held-out prompts: it is better."]);
        check(true, Some(0.52), &["neither is shown to be better", "passed its gate"]);
        check(true, None, &["has not been compared with the old one yet"]);
        check(false, None, &["did not pass its gate, so no policy was trained on it"]);
    }
}
