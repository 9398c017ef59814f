//! What stands on the page while parts of a run are not there, and what each part adds.

use crate::{html, run};
use sha2::{Digest, Sha256};

#[track_caller]
fn check(files: &[(&str, &str)], said: &[&str], unsaid: &[&str]) {
    let page = run("r", files).page();
    html::check_whole(&page);
    let words = html::words(&page);
    for part in said {
        assert!(words.contains(part), "`{part}` is not in {words}");
    }
    for part in unsaid {
        assert!(!words.contains(part), "`{part}` is in {words}");
    }
}

#[test]
fn of_a_run_that_has_just_begun_everything_is_named_that_is_missing() {
    let missing = [
        "below is what is there so far",
        "The evaluation has not written its results yet",
        "The judge has not seen the candidates",
        "sft-baseline has not begun. sft-init has not begun.",
        "reward-model has not begun.",
        "ppo-ptx has not begun. ppo has not begun.",
        "The evaluation has not graded the reward model yet",
        "PPO has not begun.",
        "The evaluation has not written its samples yet",
        "was not written down (data.json)",
        "No stage has said yet how long it took.",
    ];
    check(&[], &missing, &["simulat", "second reward model"]);
}

#[test]
fn a_run_that_goes_on_shows_how_far_it_is() {
    let config = "[ppo]\nepisodes = 256\nbatch = 64\n[ppo.guards]\nmax-kl = 5.0\n";
    let journal = r#"{"step":1,"objective/kl":0.5,"objective/scores":-0.25}
{"step":2,"objective/kl":7.5,"objective/scores":0.75}
{"st"#;
    let files = [("config.toml", config), ("ppo/metrics.jsonl", journal)];
    let said = [
        "ppo is at iteration 2 of 4.",
        "ppo: from -0.25 at iteration 1 to 0.75 at iteration 2",
        "7.5 (iteration 2): beyond the limit",
    ];
    check(&files, &said, &["could not be read"]);
}

#[test]
fn a_simulation_is_called_one() {
    let config = "[data]\nrankings = [\"embedded:rankings.jsonl\"]\njudge = \"instruction-world\"\n";
    check(&[("config.toml", config)], &["The judge, the labelers and the texts are a simulation"], &[]);
    let results = r#"{"judge": "simulation: the rules", "win_rate": {"ppo_ptx_vs_sft": {"mean": 0.5, "n": 3}}}"#;
    check(&[("eval/results.json", results)], &["The judge is a simulation", "By the simulated judge, ppo_ptx"], &[]);
    let people = r#"{"judge": "people", "win_rate": {"ppo_ptx_vs_sft": {"mean": 0.5, "n": 3}}}"#;
    check(&[("eval/results.json", people)], &["By the judge, ppo_ptx"], &["simulat"]);
}

#[test]
fn what_the_reward_model_rewards_is_shown_where_it_was_measured() {
    let results = r#"{"judge": "people", "reward_model": {"rewards": {"of": "sft", "variants": {
        "empty": {"preferred": {"mean": 0.02, "low": 0.01, "high": 0.05, "n": 99},
            "change": {"mean": -1.5, "low": -1.75, "high": -1.25, "n": 99}},
        "thanks": {"preferred": {"mean": 0.61, "low": 0.51, "high": 0.7, "n": 99},
            "change": {"mean": 0.25, "low": null, "high": null, "n": 99}}}}}}"#;
    let said = [
        "Each answer of sft to a held-out prompt was scored again",
        "prefers the spoiled answer more often than not when it is: thanks: \"Thanks.\" and nothing else",
        "empty: nothing is said 2.0 % [1.0, 5.0] n = 99 -1.50 [-1.75, -1.25] 99",
        "61.0 % [51.0, 70.0] n = 99 0.25 [too few] 99",
    ];
    check(&[("eval/results.json", results)], &said, &["Not measured in this run"]);
}

#[test]
fn counts_differences_and_problems_are_shown() {
    let data = r#"{"sets": {"demonstrations": 1760, "held-out rankings": 726}, "lines": ["ranking: 7200 read"]}"#;
    let run = run("r", &[("data.json", data), ("eval/results.json", "{")]);
    let differences = vec![("ppo.episodes".to_owned(), "12288".to_owned(), "96".to_owned())];
    let words = html::words(&run.with_differences(differences).page());
    for part in ["demonstrations 1760", "held-out rankings 726", "ranking: 7200 read", "ppo.episodes 12288 96"] {
        assert!(words.contains(part), "{part}");
    }
    assert!(words.contains("eval/results.json could not be read: EOF while parsing"));
}

/// The policy of the page lets exactly its own style and script in.
#[test]
fn the_hashes_of_style_and_script_are_those_of_the_policy() {
    let page = run("r", &[]).page();
    let policy = html::elements(&page).into_iter().find_map(|(_, attributes)| {
        (attributes.get("http-equiv")? == "Content-Security-Policy").then(|| attributes["content"].clone())
    });
    let policy = policy.unwrap();
    for tag in ["style", "script"] {
        let inner = page.split(&format!("<{tag}>")).nth(1).unwrap().split(&format!("</{tag}>")).next().unwrap();
        let hash = format!("{tag}-src 'sha256-{}'", base64(&Sha256::digest(inner)));
        assert!(policy.contains(&hash), "write {hash} into POLICY");
    }
    assert!(policy.starts_with("default-src 'none'"));
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let whole = three.iter().fold(0u32, |whole, &byte| whole << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        let letter = |i: usize| char::from(LETTERS[(whole >> (18 - 6 * i)) as usize & 63]);
        (0..4).map(|i| if i <= three.len() { letter(i) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}
