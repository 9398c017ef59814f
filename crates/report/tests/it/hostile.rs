//! Runs that want to break the page: texts that look like markup, and more of everything than fits.

use crate::{html, numbers::recorded, run};
use instruct_report::compare;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Words that a browser, or a terminal, would obey.
const HOSTILE: [&str; 6] = [
    "</p></main><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</style><link rel=stylesheet href=//evil.example/x.css>",
    "\u{202e}gnirts desrever\u{202c} \u{0}\u{1b}[31m\u{7f}\u{85}",
    "]]>--><!--&lt;script&gt;&#x3c;",
];

#[test]
fn hostile_texts_stay_texts_wherever_they_come_from() {
    for word in HOSTILE {
        let interval = json!({ "mean": 0.5, "low": 0.4, "high": 0.6, "n": 30 });
        let groups = json!({ word: interval, "other": interval });
        let rate = json!({ "mean": 0.5, "low": null, "high": null, "n": 3, "by_group": groups });
        let card = json!({ "accuracy": interval, "by_labeler": { word: interval }, "by_use_case": { word: interval },
            "reliability": [{ "low": 0.0, "predicted": 0.1, "observed": 0.2, "n": 4 }] });
        let rewards = json!({ "of": word, "variants": { word: { "preferred": interval } } });
        let results = json!({
            "judge": word, "evaluated_weights": word, "win_rate": { "ppo_ptx_vs_sft": rate, word: rate },
            "win_rate_unseen": { "ppo_ptx_vs_sft": rate },
            "reward_model": { "report_card": card, "rewards": rewards },
            "seconds": { word: 1.0 },
        });
        let candidate =
            json!({ "name": word, "kl": 1.0, "sqrt_kl": 1.0, "proxy": 0.1, "gold": 2.0, "on_frontier": true });
        let ppo = json!({ "candidates": [candidate], "chosen": word, "judge_choice": word, "turning_point": word });
        let frontier = json!({ "prompts": 3, "reference": candidate, "best_of_n": [candidate],
            "runs": { "ppo": ppo } });
        let answer = |points| json!({ "text": word, "points": points });
        let answers = json!({ "ppo_ptx": answer(2.0), "sft": answer(1.0), word: answer(0.5) });
        let samples = json!([{ "prompt": word, "use_case": word, "answers": answers }]);
        let config = format!("[model]\nbase = {word}\n[{word}]\n{word} = {word}\n");
        let files = [
            ("eval/results.json", results.to_string()),
            ("eval/frontier.json", frontier.to_string()),
            ("eval/samples.json", samples.to_string()),
            ("environment.json", json!({ "commit": word, word: word }).to_string()),
            ("inputs.json", json!({ word: word }).to_string()),
            ("data.json", json!({ "sets": { word: 3 }, "lines": [word] }).to_string()),
            ("seconds.json", word.to_owned()),
            ("ppo/metrics.jsonl", "{\"step\":1,\"objective/kl\":1}\n".to_owned()),
            ("ppo/timings.jsonl", json!({ "phase": word, "seconds": 1.0 }).to_string() + "\n"),
            ("config.toml", config),
        ];
        let gate = json!({ "on_old": interval, "on_new": interval, "new_pairs": 3, "passed": true }).to_string();
        let retrained = json!({ "judge": word, "win_rate": rate, "waiting": 0, "same": 0 }).to_string();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let differences = vec![(word.to_owned(), word.to_owned(), word.to_owned())];
        let run = run(word, &files).with_differences(differences);
        assert_eq!(run.problems().len(), 1, "{:?}", run.problems());
        let own = [
            ("retrained.json", "{}"),
            ("eval/gate.json", &gate),
            ("eval/preferred.json", &retrained),
            ("eval/retrained.json", &retrained),
        ];
        let of_people = [&files[..], &own].concat();
        let next = crate::run(word, &of_people);
        assert!(next.page().contains("New against old"));
        for page in [run.page(), compare(&[run.clone(), run.clone()]), next.page()] {
            html::check_whole(&page);
            let bad = |c: char| c.is_control() && !"\n\t".contains(c) || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!page.contains(bad), "{word:?}");
            assert_eq!(page.matches("<script").count(), 1);
        }
    }
}

/// Whatever a run holds, the page can be sent and committed.
#[test]
fn a_page_is_at_most_a_megabyte() {
    let long = "This answer never ends. ".repeat(400);
    let answer = |points: usize| json!({ "text": long, "points": points });
    let sample = |i: usize| {
        let (sft, ppo) = (answer(3), answer(i % 7));
        let answers = json!({ "base": answer(0), "sft": sft, "sft_init": sft, "ppo": ppo, "ppo_ptx": ppo });
        json!({ "prompt": long, "use_case": "generation", "answers": answers })
    };
    let samples = Value::from_iter((0..200).map(sample)).to_string();
    let names = [
        "objective/scores",
        "objective/kl",
        "ppo/loss/value",
        "ppo/loss/policy",
        "ppo/policy/entropy",
        "ppo/grad_norm",
    ];
    let line = |step: usize| {
        let value = |name: &&str| ((*name).to_owned(), json!((step as f64 * 0.7).sin() + step as f64 / 1e4));
        let mut row: serde_json::Map<String, Value> = names.iter().map(value).collect();
        row.insert("step".to_owned(), json!(step));
        Value::Object(row).to_string() + "\n"
    };
    let journal: String = (1..=4_000).map(line).collect();
    let interval = json!({ "mean": 0.5, "low": 0.4, "high": 0.6, "n": 30 });
    let labelers: serde_json::Map<_, _> = (0..300).map(|i| (format!("labeler {i}"), interval.clone())).collect();
    let card = json!({ "accuracy": interval, "by_labeler": labelers });
    let results = json!({ "judge": "people", "reward_model": { "report_card": card } });
    let run = run(
        "large",
        &[
            ("eval/samples.json", &samples),
            ("eval/results.json", &results.to_string()),
            ("ppo/metrics.jsonl", &journal),
            ("ppo-ptx/metrics.jsonl", &journal),
        ],
    );
    let page = run.page();
    html::check_whole(&page);
    assert!(page.len() <= 1_000_000, "{} bytes", page.len());
    let words = html::words(&page);
    assert!(words.contains("Texts are shown up to") && words.contains("240 of 4000 points"));
    assert!(words.contains("Of 300 rows these are the 40 with the most prompts."));
}

/// Every place of a value: the keys that lead to it.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| places(inner, &format!("{at}/{key}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, inner)| places(inner, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Files of another version, or that something wrote to: whatever stands in a place, there is a page.
    #[test]
    fn results_of_any_shape_make_a_whole_page(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..7usize), 1..12),
    ) {
        let strange: [Value; 7] = [
            json!(null),
            json!("<b>"),
            json!([]),
            json!({}),
            json!(-1.7e308),
            json!(1.7e308),
            json!([{ "mean": 0.0, "n": 0 }]),
        ];
        let recorded = recorded().into_iter().find(|run| run.frontier.is_some()).unwrap();
        let mut files = [&recorded.results, &recorded.frontier.unwrap_or_default()].map(|text| {
            serde_json::from_str::<Value>(text).unwrap_or_default()
        });
        for (place, what) in changes {
            let file = &mut files[what % 2];
            let mut all = Vec::new();
            places(file, "", &mut all);
            *file.pointer_mut(&all[place.index(all.len())]).unwrap() = strange[what].clone();
        }
        let [results, frontier] = files.map(|file| file.to_string());
        let run = run("r", &[("eval/results.json", &results), ("eval/frontier.json", &frontier)]);
        html::check_whole(&run.page());
        html::check_whole(&compare(&[run.clone(), run]));
    }
}
