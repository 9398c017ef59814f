//! Files of a few people through the whole preparation, with the words of the repository's own base.

use super::*;
use std::fs;

/// A folder of files, and a configuration over them.
pub(crate) struct Files {
    pub(crate) folder: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new(files: &[(&str, String)]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        Files { folder }
    }

    /// A configuration with these settings, in which `@` is the folder of the files.
    pub(crate) fn config(&self, settings: &[&str]) -> Config {
        let at = self.folder.path().display().to_string();
        let base = concat!("model.base=", env!("CARGO_MANIFEST_DIR"), "/../fixtures/base");
        let fixed = [base, "model.template=\"User: {prompt}\\nAssistant:\"", "model.max-prompt=48"];
        let fixed = fixed.into_iter().chain(["model.max-completion=24", "ppo.max-new-tokens=24", "data.window=8"]);
        let settings: Vec<String> = fixed.chain(settings.iter().copied()).map(|text| text.replace('@', &at)).collect();
        Config::load("", "test", &settings).unwrap()
    }

    pub(crate) fn prepare(&self, settings: &[&str], until: Until) -> Result<Material> {
        let config = self.config(settings);
        let wording = Wording { template: &config.model.template, option: "", date: None };
        let base = open_base(Path::new(&config.model.base), wording, &Device::Cpu).unwrap();
        Material::prepare(&config, &base, Path::new(""), until, None)
    }
}

/// A record of each of so many users, as lines.
fn lines(users: usize, record: impl Fn(usize) -> String) -> String {
    (0..users).map(|i| format!("{{\"user\": \"u{i}\", {}}}\n", record(i))).collect()
}

/// What three sets of so many users say, each in words of its own, and a text.
pub(crate) fn people(users: usize) -> Files {
    let said = |what: &'static str| move |i: usize| format!("\"prompt\": \"{what} {i}\", \"completion\": \"{i}\"");
    let ranked = |i| {
        format!(
            "\"prompt\": \"rank {i}\", \"completions\": [\"{i}\", \"no {i}\"], \"ranks\": [1, 2], \"labeler\": \"l\""
        )
    };
    let prompt = |i| format!("\"prompt\": \"ask {i}\", \"use_case\": \"c{}\"", i % 3);
    let text: String =
        (0..users).map(|i| format!("{{\"text\": \"In the year {i} it rained for {i} days.\"}}\n")).collect();
    Files::new(&[
        ("d.jsonl", lines(users, said("say"))),
        ("r.jsonl", lines(users, ranked)),
        ("p.jsonl", lines(users, prompt)),
        ("t.jsonl", text),
    ])
}

pub(crate) const ALL: [&str; 4] = [
    "data.demonstrations=[\"@/d.jsonl\"]",
    "data.rankings=[\"@/r.jsonl\"]",
    "data.prompts=[\"@/p.jsonl\"]",
    "data.pretraining=[\"@/t.jsonl\"]",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ALL.into_iter().chain(more.iter().copied()).collect()
}

fn number(text: &str) -> usize {
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn everybody_is_on_one_side_in_every_set() {
    const USERS: usize = 120;
    let files = people(USERS);
    let material = files.prepare(&with(&["data.validation=0.1", "data.test=0.4"]), Until::Evaluation).unwrap();
    let of = |prompts: &[PromptIds]| prompts.iter().map(|prompt| number(&prompt.text)).collect::<BTreeSet<_>>();
    let ranked = |groups: &[RankedGroup]| groups.iter().map(|of| number(&of.prompt)).collect::<BTreeSet<_>>();
    let Split { train, validation, test } = &material.prompts;
    let (train, validation, test) = (of(train), of(validation), of(test));
    assert_eq!(train.len() + validation.len() + test.len(), USERS);
    assert_eq!((&(&train | &validation) | &test).len(), USERS, "nobody is on two sides");
    assert!(test.len() > validation.len() && validation.len() > 2, "four times as many are to be tested on");
    assert_eq!(ranked(&material.rankings), train, "the same people are trained on in every set");
    assert_eq!(ranked(&material.held_out_rankings), &validation | &test);
    let sides = [&material.demonstrations.train, &material.demonstrations.validation, &material.demonstrations.test];
    assert_eq!(sides.map(Vec::len), [train.len(), validation.len(), test.len()]);
}

#[test]
fn what_is_held_out_is_not_trained_on() {
    let files = people(60);
    let alone = files.prepare(&ALL, Until::Evaluation).unwrap();
    let held_out = &alone.prompts.test[0].text;
    // The 60 people of two more files all ask what a test user asks, and one who is trained on what was ranked and
    // held out.
    let asked = |answer: &dyn Fn(usize) -> String| {
        lines(60, |i| format!("\"prompt\": \"{held_out}\", {}", answer(i))).replace(": \"u", ": \"v")
    };
    let trained = number(&alone.prompts.train[0].text);
    let ranked = &alone.held_out_rankings[0].prompt;
    for (name, text) in [
        ("sd.jsonl", asked(&|i| format!("\"completion\": \"other {i}\""))),
        ("sr.jsonl", asked(&|i| format!("\"completions\": [\"other {i}\", \"x\"], \"ranks\": [1, 2]"))),
        ("sp.jsonl", format!("{{\"user\": \"u{trained}\", \"prompt\": \"{ranked}\"}}\n")),
    ] {
        fs::write(files.folder.path().join(name), text).unwrap();
    }
    let both = with(&[
        "data.demonstrations=[\"@/d.jsonl\", \"@/sd.jsonl\"]",
        "data.rankings=[\"@/r.jsonl\", \"@/sr.jsonl\"]",
        "data.prompts=[\"@/p.jsonl\", \"@/sp.jsonl\"]",
    ]);
    let beside = files.prepare(&both, Until::Evaluation).unwrap();
    assert_eq!(beside.demonstrations.train, alone.demonstrations.train);
    assert_eq!((&beside.rankings, &beside.prompts.train), (&alone.rankings, &alone.prompts.train));
    assert!(beside.demonstrations.test.len() > alone.demonstrations.test.len());
    assert!(beside.held_out_rankings.len() > alone.held_out_rankings.len());
    let counted = |material: &Material| material.report.iter().find(|line| line.starts_with("leak check")).cloned();
    assert!(counted(&alone).unwrap().contains(" 0 demonstrations, 0 rankings, 0 prompts"));
    assert!(counted(&beside).unwrap().contains(" 1 prompts"), "{:?}", beside.report);
}

#[test]
fn the_last_tenth_of_a_text_is_held_out_unless_files_are() {
    let files = people(60);
    let all = files.prepare(&with(&["data.pretraining-held-out=[\"@/t.jsonl\"]"]), Until::Evaluation).unwrap();
    let cut = files.prepare(&ALL, Until::Evaluation).unwrap();
    let whole = [cut.windows.clone(), cut.held_out_windows.clone()].concat();
    assert_eq!((&all.windows, &all.held_out_windows), (&whole, &whole), "two files have no windows in common");
    assert_eq!(cut.held_out_windows.len(), whole.len() / 10);
    assert!(cut.windows.iter().all(|window| window.len() == 8));
}

#[test]
fn personal_data_leaves_what_is_trained_on_and_what_the_judge_learns_from() {
    let files = people(60);
    // Every third person, so that there are some on each side.
    let personal = |name: &str| {
        let path = files.folder.path().join(name);
        let mut text = fs::read_to_string(&path).unwrap();
        (0..60).step_by(3).for_each(|i| text = text.replace(&format!(" {i}\","), &format!(" {i} a.b@example.org\",")));
        fs::write(&path, text).unwrap();
    };
    ["d.jsonl", "r.jsonl", "p.jsonl"].into_iter().for_each(personal);
    let kept = files.prepare(&ALL, Until::Evaluation).unwrap();
    let left = files.prepare(&with(&["data.remove-personal=true"]), Until::Evaluation).unwrap();
    let marked = |text: &str| text.contains('@');
    let impersonal = |of: &[RankedGroup]| of.iter().filter(|of| !marked(&of.prompt)).count();
    assert_eq!(left.rankings.len(), impersonal(&kept.rankings));
    assert_eq!(left.held_out_rankings.len(), impersonal(&kept.held_out_rankings), "the judge learns from them");
    assert!(left.rankings.len() < kept.rankings.len() && left.held_out_rankings.len() < kept.held_out_rankings.len());
    let asked: Vec<PromptIds> = kept.prompts.train.iter().filter(|prompt| !marked(&prompt.text)).cloned().collect();
    assert_eq!(left.prompts.train, asked);
    assert_eq!(left.demonstrations.train.len(), asked.len(), "the same people");
    assert_eq!(left.prompts.test, kept.prompts.test, "what is asked is not trained on");
}

#[test]
fn own_test_prompts_take_the_place_of_those_split_off() {
    let files = people(60);
    let split = files.prepare(&ALL, Until::Evaluation).unwrap();
    let first = &split.prompts.validation[0].text;
    fs::write(
        files.folder.path().join("own.jsonl"),
        format!("{{\"prompt\": \"{first}\"}}\n{{\"prompt\": \"mine 1\"}}\n"),
    )
    .unwrap();
    let own = files.prepare(&with(&["data.test-prompts=[\"@/own.jsonl\"]"]), Until::Evaluation).unwrap();
    let texts = |prompts: &[PromptIds]| prompts.iter().map(|prompt| prompt.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&own.prompts.test), [first.as_str(), "mine 1"]);
    let joined = [texts(&split.prompts.validation), texts(&split.prompts.test)].concat();
    assert_eq!(texts(&own.prompts.validation), joined[1..], "but for what the test asks");
}

#[track_caller]
fn refused(more: &[&str], until: Until, part: &str) {
    let message = format!("{:#}", people(12).prepare(&with(more), until).unwrap_err());
    assert!(message.contains(part), "{message}");
}

#[test]
fn nothing_left_is_refused_by_name() {
    refused(&["model.max-prompt=1"], Until::Sft, "nothing is left of: demonstrations, held-out demonstrations;");
    refused(
        &["data.validation=1e-9", "data.test=0.5"],
        Until::Ppo,
        "nothing is left of: held-out demonstrations, validation",
    );
    refused(&["model.max-prompt=4000"], Until::Sft, "do not fit the model's context");
    refused(&["model.overlong=refuse", "model.max-prompt=1"], Until::Sft, "d.jsonl:1: field `prompt`");
}
