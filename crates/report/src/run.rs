//! What is read of a run folder: every part may be missing, because the run may still be going on.

use crate::{config, journal::Journal, source::Source};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// What was read of a run folder, and what only the program that made it can tell.
///
/// ```
/// use instruct_report::Run;
///
/// // A folder in which the evaluation has not written anything yet.
/// let files = |path: &str| match path {
///     "ppo/metrics.jsonl" => Some(b"{\"step\":1,\"objective/scores\":0.5}\n{\"step\":2,\"obj".to_vec()),
///     _ => None,
/// };
/// let run = Run::from_files("first", files);
/// assert!(run.problems().is_empty()); // the torn last line is a step that is being written
/// assert!(run.page().contains("The evaluation has not written its results yet"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Run {
    name: String,
    differences: Vec<Difference>,
    pub(crate) results: Option<Source>,
    pub(crate) frontier: Option<Source>,
    /// Whether it was trained on what people said of another run's answers; the fields of this group are there in no
    /// other run.
    pub(crate) is_retrained: bool,
    pub(crate) gate: Option<Source>,
    /// The new reward model's card.
    graded: Option<Source>,
    /// How well old and new reward model tell thumbs up from thumbs down.
    pub(crate) thumbs: Option<Source>,
    /// New against old policy, by the new reward model.
    pub(crate) preferred: Option<Source>,
    /// The same by the judge.
    pub(crate) retrained: Option<Source>,
    /// Whether people are the judge.
    pub(crate) asks_people: bool,

    pub(crate) environment: Option<Source>,
    pub(crate) seconds: Option<Source>,
    pub(crate) inputs: Option<Source>,
    pub(crate) ranks: Option<Source>,
    pub(crate) data: Option<Source>,
    /// By file.
    pub(crate) selections: BTreeMap<&'static str, Source>,
    /// Dotted keys and values; empty while there is no configuration.
    pub(crate) config: BTreeMap<String, String>,
    /// None while there are none.
    pub(crate) samples: Option<Vec<Sample>>,
    /// By artefact; those that have begun.
    pub(crate) stages: BTreeMap<&'static str, Stage>,
    problems: Vec<Problem>,
}

/// A key that differs from the preset: the key, the preset's value, and the run's.
pub type Difference = (String, String, String);

/// A file of the run folder that could not be read. The rest of the page is made without it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// The file is no JSON, or not of the shape that it should have.
    #[error("{file} could not be read: {reason}")]
    File {
        /// The file, from the run folder.
        file: String,
        /// What the parser says.
        reason: String,
    },
    /// Lines of a journal are no JSON objects. A torn last line is none of them.
    #[error("{file}: {lines} lines could not be read, the first of them line {first}")]
    Lines {
        /// The journal, from the run folder.
        file: String,
        /// How many lines.
        lines: usize,
        /// The first of them, counted from 1.
        first: usize,
    },
}

/// What one stage has left so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    pub(crate) metrics: Journal,
    /// Seconds by phase, over all steps.
    pub(crate) phases: BTreeMap<String, f64>,
    /// Whether its model is there, and it will not be trained further.
    pub(crate) finished: bool,
}

/// One held-out prompt with every model's answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Sample {
    pub(crate) prompt: String,
    #[serde(default)]
    pub(crate) use_case: String,
    pub(crate) answers: BTreeMap<String, Answer>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// The judge's.
    pub(crate) points: Option<f64>,
}

/// The artefacts that are trained, in the order in which they are made.
pub(crate) const STAGES: [&str; 6] = ["sft-baseline", "sft-init", "reward-model", "judge-model", "ppo", "ppo-ptx"];

const SELECTIONS: [&str; 3] = ["eval/sft-selection.json", "eval/ppo-selection.json", "eval/ppo-ptx-selection.json"];

impl Run {
    /// What lies in a run folder, read through `read`: it is given a path from the folder, and returns the bytes of
    /// that file, or `None` where there is no such file. So this crate opens no file, and a test needs no folder.
    ///
    /// A file that cannot be understood counts as absent, and is one of the [`Run::problems`].
    pub fn from_files(name: &str, read: impl Fn(&str) -> Option<Vec<u8>>) -> Run {
        let mut reader = Reader { read, problems: Vec::new() };
        let how: Option<How> = reader.json("retrained.json");
        let selections = SELECTIONS.iter().filter_map(|&file| Some((file, reader.source(file)?))).collect();
        let stages = STAGES.iter().filter_map(|&stage| Some((stage, reader.stage(stage)?))).collect();
        let config = (reader.read)("config.toml").unwrap_or_default();
        let is_retrained = (reader.read)("retrained.json").is_some();
        Run {
            name: name.to_owned(),
            differences: Vec::new(),
            results: reader.source("eval/results.json"),
            frontier: reader.source("eval/frontier.json"),
            is_retrained,
            gate: reader.source("eval/gate.json"),
            graded: reader.source("eval/reward-model.json"),
            thumbs: reader.source("eval/thumbs.json"),
            preferred: reader.source("eval/preferred.json"),
            asks_people: how.is_some_and(|how| how.asks_people),
            retrained: reader.source("eval/retrained.json"),
            environment: reader.source("environment.json"),
            seconds: reader.source("seconds.json"),
            inputs: reader.source("inputs.json"),
            ranks: reader.source("ranks.json"),
            data: reader.source("data.json"),
            selections,
            config: config::keys(&String::from_utf8_lossy(&config)),
            samples: reader.json("eval/samples.json"),
            stages,
            problems: reader.problems,
        }
    }

    /// The same run, with the keys of its configuration that differ from the preset. Only the program knows the
    /// preset.
    pub fn with_differences(mut self, differences: Vec<Difference>) -> Run {
        self.differences = differences;
        self
    }

    /// What the run is called on the page.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What could not be read; the page says it too.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(crate) fn differences(&self) -> &[Difference] {
        &self.differences
    }

    /// Who judges, in the words of the results or of a retrained run; before there are any, whoever is asked.
    pub(crate) fn judge(&self) -> Option<&str> {
        let named = [&self.retrained, &self.results].into_iter().flatten().find_map(|of| of.words(&["judge"]));
        let named = named.or(self.asks_people.then_some("people"));
        named.or_else(|| self.config.get("data.judge").map(String::as_str))
    }

    /// Whether the judge is the simulated world, so that no person stands behind any points.
    pub(crate) fn judge_is_simulated(&self) -> bool {
        self.judge().is_some_and(|judge| judge.contains("simulation") || judge == "instruction-world")
    }

    /// What says how well the reward model orders what people ranked.
    pub(crate) fn card(&self) -> Option<&Source> {
        let graded = self.results.as_ref().or(self.graded.as_ref());
        graded.filter(|of| of.at(&["reward_model"]).is_some())
    }

    /// The judge in a sentence. It never stands there without being called a simulation where it is one.
    pub(crate) fn judge_word(&self) -> &'static str {
        if self.judge_is_simulated() { "the simulated judge" } else { "the judge" }
    }

    /// Whether some of the run's records come from the simulated world.
    pub(crate) fn has_simulated_data(&self) -> bool {
        self.config.iter().any(|(key, value)| key.starts_with("data.") && value.contains("embedded:"))
    }

    /// A number of the configuration.
    pub(crate) fn setting(&self, key: &str) -> Option<f64> {
        self.config.get(key)?.parse().ok()
    }
}

/// What of `retrained.json` the page says.
#[derive(Deserialize)]
struct How {
    #[serde(default)]
    asks_people: bool,
}

struct Reader<R> {
    read: R,
    problems: Vec<Problem>,
}

impl<R: Fn(&str) -> Option<Vec<u8>>> Reader<R> {
    fn json<T: DeserializeOwned>(&mut self, file: &str) -> Option<T> {
        match serde_json::from_slice(&(self.read)(file)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(Problem::File { file: file.to_owned(), reason: error.to_string() });
                None
            }
        }
    }

    fn source(&mut self, file: &'static str) -> Option<Source> {
        Some(Source::new(file, self.json(file)?))
    }

    /// What a stage has left; none where it has not begun.
    fn stage(&mut self, name: &str) -> Option<Stage> {
        let metrics = self.journal(&format!("{name}/metrics.jsonl"))?;
        let timings = self.journal(&format!("{name}/timings.jsonl")).unwrap_or_default();
        let finished = (self.read)(&format!("{name}/model/manifest.json")).is_some();
        Some(Stage { metrics, phases: timings.phases(), finished })
    }

    fn journal(&mut self, file: &str) -> Option<Journal> {
        let journal = Journal::read(&(self.read)(file)?);
        if let Some(&first) = journal.unreadable().first() {
            let lines = journal.unreadable().len();
            self.problems.push(Problem::Lines { file: file.to_owned(), lines, first });
        }
        Some(journal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(files: &[(&str, &str)]) -> Run {
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        Run::from_files("r", |path| files.get(path).map(|text| text.as_bytes().to_vec()))
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_is_read() {
        #[track_caller]
        fn check(file: &str, text: &str, problem: &str) {
            let got = run(&[(file, text), ("seconds.json", "{\"ppo\": 2.0}")]);
            let said: Vec<String> = got.problems().iter().map(Problem::to_string).collect();
            assert!(said.len() == 1 && said[0].contains(problem), "{said:?}");
            assert_eq!(got.seconds.unwrap().number(&["ppo"]), Some(2.0));
        }
        check("eval/results.json", "{\"seed\": ", "eval/results.json could not be read: EOF");
        check("eval/samples.json", "[{\"prompt\": 1, \"answers\": {}}]", "eval/samples.json could not be read");
        let journal = "{\"step\":1}\nnonsense\n[]\n{\"step\":2}\n";
        check("ppo/metrics.jsonl", journal, "ppo/metrics.jsonl: 2 lines could not be read, the first of them line 2");
    }

    #[test]
    fn a_judge_of_rules_is_called_a_simulation_whoever_names_it() {
        #[track_caller]
        fn check(files: &[(&str, &str)], judge: Option<&str>, simulated: bool) {
            let run = run(files);
            assert_eq!((run.judge(), run.judge_is_simulated()), (judge, simulated));
        }
        check(&[], None, false);
        check(&[("config.toml", "[data]\njudge = \"instruction-world\"")], Some("instruction-world"), true);
        let results = ("eval/results.json", "{\"judge\": \"simulation: the rules of the instruction world\"}");
        check(&[results], Some("simulation: the rules of the instruction world"), true);
        let second = ("eval/results.json", "{\"judge\": \"a second reward model\"}");
        check(&[second, ("config.toml", "[data]\njudge = \"none\"")], Some("a second reward model"), false);
    }

    #[test]
    fn a_stage_is_finished_when_its_model_is_there() {
        let run = run(&[
            ("ppo/metrics.jsonl", "{\"step\":1}\n"),
            ("ppo/timings.jsonl", "{\"step\":1,\"phase\":\"time/sample\",\"seconds\":0.5}\n"),
            ("ppo/model/manifest.json", "{}"),
            ("sft-init/metrics.jsonl", ""),
        ]);
        let names: Vec<(&str, bool)> = run.stages.iter().map(|(name, stage)| (*name, stage.finished)).collect();
        assert_eq!(names, [("ppo", true), ("sft-init", false)]);
        assert_eq!(run.stages["ppo"].phases, [("time/sample".to_owned(), 0.5)].into());
    }
}
