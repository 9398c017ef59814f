//! Of a run that was trained on what people said of another one's answers: the gate of its reward model, and its policy
//! against the old one.

use crate::{
    html::{Element, Html, text},
    parts::{absent, paragraph},
    results::rate,
    run::Run,
    source::{As, Source},
    table::Table,
};
use instruct_eval::Verdict;

/// The section of a retrained run, from `eval/gate.json`, `eval/preferred.json` and `eval/retrained.json`.
pub(crate) fn section(run: &Run) -> Html {
    let Some(gate) = &run.gate else {
        return Html::from(paragraph(GATE_IS)).followed_by(absent(NO_GATE));
    };
    let pairs = paragraph("Held-out pairs of what people said: ").add(gate.show(&["new_pairs"], As::Fixed(0)));
    let too_few = ", too few to ask whether the new reward model is better on them.";
    let pairs = pairs.text(if is(gate, "is_asked") { "." } else { too_few });
    let said = paragraph(said_by(gate)).into();
    let thumbs = run.thumbs.as_ref().map(of_thumbs).into();
    let policy = if is(gate, "passed") { of_policy(run) } else { Html::default() };
    [paragraph(GATE_IS).into(), of_gate(gate).html(), pairs.into(), said, thumbs, policy].into_iter().collect()
}

/// The result in a sentence, or how far the run is.
pub(crate) fn lead(run: &Run) -> Html {
    let Some(gate) = &run.gate else { return paragraph(NO_GATE).class("lead").into() };
    let Some(retrained) = &run.retrained else { return paragraph(said_by(gate)).class("lead").into() };
    paragraph(format!("By {}, the new policy wins against the old one on ", judge(retrained)))
        .class("lead")
        .add(retrained.show_interval(&["win_rate"]))
        .text(" of ")
        .add(retrained.show(&["win_rate", "n"], As::Fixed(0)))
        .text(format!(" held-out prompts: {}.", said(retrained)))
        .into()
}

const NO_GATE: &str = "The new reward model has not come to its gate yet (eval/gate.json).";

const GATE_IS: &str = "This run was trained on what people said of another run's answers, beside that run's own records. \
    Before its reward model may train a policy, it is compared with the old one on held-out pairs: on the old records it \
    must be no worse, within the paired interval or by at most a point. On the new ones it must be better, if there are \
    at least 50 pairs from 20 prompts.";

fn of_gate(gate: &Source) -> Table {
    let head = ["held-out pairs", "accuracy, new less old reward model", "prompts"];
    let mut table = Table::new("The gate of the new reward model", &head);
    for (name, key) in [("of the old records", "on_old"), ("of what people said", "on_new")] {
        table.row(text(name), [gate.show_interval(&[key]), gate.show(&[key, "n"], As::Fixed(0))]);
    }
    table
}

fn is(gate: &Source, key: &str) -> bool {
    gate.at(&[key]).and_then(serde_json::Value::as_bool) == Some(true)
}

fn said_by(gate: &Source) -> &'static str {
    if is(gate, "passed") {
        "The new reward model passed its gate."
    } else {
        "The new reward model did not pass its gate, so no policy was trained on it."
    }
}

fn of_policy(run: &Run) -> Html {
    let by_reward_model = run.preferred.as_ref().map(of_reward_model);
    let by_judge = match &run.retrained {
        Some(retrained) => of_judge(retrained),
        None if run.asks_people => absent("People are asked which policy is better, and have said nothing yet."),
        None => absent("The new policy has not been compared with the old one yet (eval/retrained.json)."),
    };
    by_reward_model.unwrap_or_default().followed_by(by_judge)
}

/// Neither reward model was trained on an answer of which nothing but its thumb is known.
fn of_thumbs(thumbs: &Source) -> Element {
    let count = |key| thumbs.show(&[key], As::Fixed(0));
    paragraph("Of ")
        .add(count("up"))
        .text(" answers with a thumb up and ")
        .add(count("down"))
        .text(" with one down, the new reward model scores up above down in ")
        .add(thumbs.show(&["new"], As::Percent))
        .text(" of pairs, the old one in ")
        .add(thumbs.show(&["old"], As::Percent))
        .text(". Chance is 50 %.")
}

/// What the new policy was trained to please says first whether it does.
fn of_reward_model(preferred: &Source) -> Html {
    let said = match verdict(preferred) {
        Verdict::Worse => "PPO did not get as far as it had with the old policy.",
        _ => "It was trained to please that model, which is no judge.",
    };
    paragraph("By the new reward model itself, the new policy wins against the old one on ")
        .add(preferred.show_interval(&["win_rate"]))
        .text(" of ")
        .add(preferred.show(&["win_rate", "n"], As::Fixed(0)))
        .text(format!(" prompts. {said}"))
        .into()
}

fn verdict(source: &Source) -> Verdict {
    let (low, high) = source.interval(&["win_rate"]).map_or((None, None), |of| (of.low, of.high));
    Verdict::of(low, high)
}

fn of_judge(retrained: &Source) -> Html {
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

/// The judge's verdict in words; while people are still asked, that they are.
fn said(retrained: &Source) -> String {
    if let Some(waiting) = retrained.number(&["waiting"]).filter(|waiting| *waiting > 0.0) {
        return format!("so far, since {waiting} prompts wait for people");
    }
    match verdict(retrained) {
        Verdict::Better => "it is better",
        Verdict::Worse => "it is worse, and the old run is the one to serve",
        Verdict::Undecided => "neither is shown to be better",
        Verdict::TooFew => "too few to say which is better",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The page of a run that was retrained, from what lies in it.
    fn page(files: &[(&str, &Value)]) -> String {
        Run::from_files("second", |path| {
            let file = files.iter().find(|(name, _)| *name == path).map(|(_, value)| value.to_string().into_bytes());
            file.or_else(|| (path == "retrained.json").then(|| b"{}".to_vec()))
        })
        .page()
    }

    fn interval(mean: f64, around: f64) -> Value {
        json!({ "mean": mean, "low": mean - around, "high": mean + around, "n": 90 })
    }

    #[test]
    fn a_retrained_run_is_set_against_the_one_before_it() {
        let check = |passed: bool, outcome: Option<(Value, u32)>, words: &[&str]| {
            let gate = json!({ "on_old": interval(0.01, 0.02), "on_new": null, "new_pairs": 7, "is_asked": false,
                "passed": passed });
            let outcome = outcome.map(|(mut rate, waiting)| {
                rate["by_group"] = json!({});
                json!({ "judge": "people", "win_rate": rate, "waiting": waiting, "same": 1 })
            });
            let mut files = vec![("eval/gate.json", &gate)];
            files.extend(outcome.as_ref().map(|outcome| ("eval/retrained.json", outcome)));
            let page = page(&files);
            for words in words {
                assert!(page.contains(words), "`{words}` is missing");
            }
            assert!(!page.contains("evaluation has not"), "a retrained run has no evaluation of its own");
            assert!(page.contains("too few to ask whether the new reward model is better"));
        };
        let few = json!({ "mean": 0.9, "low": null, "high": null, "n": 5 });
        let worse = ["By people, the new policy wins", "it is worse, and the old run is the one to serve"];
        check(true, Some((interval(0.36, 0.08), 0)), &worse);
        check(true, Some((interval(0.36, 0.08), 0)), &["data-key=\"eval/retrained.json#/win_rate\""]);
        check(true, Some((interval(0.64, 0.08), 0)), &["held-out prompts: it is better."]);
        check(true, Some((interval(0.64, 0.08), 4)), &["held-out prompts: so far, since 4 prompts wait for people."]);
        check(true, Some((interval(0.52, 0.08), 0)), &["neither is shown to be better", "passed its gate"]);
        check(true, Some((few, 0)), &["too few to say which is better"]);
        check(true, None, &["has not been compared with the old one yet"]);
        check(false, None, &["did not pass its gate, so no policy was trained on it"]);
    }

    #[test]
    fn a_retrained_run_that_goes_on_says_how_far_it_is() {
        let check = |files: &[(&str, &Value)], words: &[&str]| {
            let page = page(files);
            for words in words {
                assert!(page.contains(words), "`{words}` is missing");
            }
            // Neither an evaluation nor a policy without the mix is to come.
            assert!(!page.contains("evaluation has not") && !page.contains("ppo has not begun"));
        };
        let gate = json!({ "on_old": interval(0.01, 0.02), "on_new": null, "passed": true });
        let preferred = json!({ "win_rate": interval(0.41, 0.07) });
        let (asked, gate) = (json!({ "asks_people": true }), ("eval/gate.json", &gate));
        check(&[], &["has not come to its gate yet", "ppo-ptx has not begun"]);
        check(&[gate, ("eval/preferred.json", &preferred)], &["data-key=\"eval/preferred.json#/win_rate\""]);
        let thumbs = json!({ "up": 3, "down": 2, "new": 0.75, "old": null });
        check(&[gate, ("eval/thumbs.json", &thumbs)], &["data-key=\"eval/thumbs.json#/new\"", "the old one in"]);
        check(&[gate, ("retrained.json", &asked)], &["People are asked which policy is better"]);
    }

    #[test]
    fn who_judged_a_retrained_run_is_not_called_a_simulation_where_people_did() {
        let gate = json!({ "on_old": interval(0.01, 0.02), "on_new": null, "passed": true });
        let judged = |judge: Option<&str>, asks: bool| {
            let outcome = json!({ "judge": judge, "win_rate": interval(0.6, 0.05), "waiting": 0, "same": 0 });
            let how = json!({ "asks_people": asks });
            let config = "[data]\njudge = \"instruction-world\"\nrankings = [\"embedded:rankings.jsonl\"]\n";
            let read = |path: &str| match path {
                "retrained.json" => Some(how.to_string().into_bytes()),
                "eval/gate.json" => Some(gate.to_string().into_bytes()),
                "eval/retrained.json" => judge.map(|_| outcome.to_string().into_bytes()),
                "config.toml" => Some(config.as_bytes().to_vec()),
                _ => None,
            };
            Run::from_files("second", read).page()
        };
        for by_people in [judged(Some("people"), true), judged(None, true)] {
            assert!(
                by_people.contains("Some records are a simulation") && !by_people.contains("The judge and the old")
            );
        }
        let simulated = "simulation: the rules of the instruction world";
        for by_rules in [judged(Some(simulated), false), judged(None, false)] {
            assert!(by_rules.contains("The judge and the old records"));
        }
    }
}
