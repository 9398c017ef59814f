//! How far a command goes, and what it takes on the way: a command asks for nothing that only a later stage needs.

use crate::{
    config::Config,
    models::Model,
    stages::{EVALUATION, REWARD_MODEL},
};
use anyhow::{Result, bail};

/// The last stage to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub(crate) enum Until {
    Sft,
    RewardModel,
    Ppo,
    Evaluation,
}

impl Until {
    /// Whether the stage of this name is run on the way.
    pub(crate) fn makes(self, stage: &str) -> bool {
        let of = |model: Model| model.artefact() == Some(stage);
        match self {
            Until::Sft => of(Model::Sft) || of(Model::SftInit),
            Until::RewardModel => of(Model::Sft) || stage == REWARD_MODEL,
            Until::Ppo => stage != EVALUATION,
            Until::Evaluation => true,
        }
    }

    /// Whether pretraining text is mixed into anything that is trained on the way.
    pub(crate) fn mixes(self, config: &Config) -> bool {
        let share = |model: Model, share: f64| model.artefact().is_some_and(|name| self.makes(name)) && share > 0.0;
        share(Model::Sft, config.sft_baseline.pretraining_share)
            || share(Model::SftInit, config.sft_init.pretraining_share)
            || share(Model::PpoPtx, config.ppo.gamma_ptx)
    }

    /// Tokens of the longest completion that is read or sampled on the way.
    pub(crate) fn longest_completion(self, config: &Config) -> usize {
        let read = config.model.max_completion;
        let sampled = if self >= Until::Ppo { config.ppo.max_new_tokens.max(config.answer_tokens()) } else { 0 };
        read.max(sampled)
    }

    /// Refuses a configuration that names no file of records that are taken on the way. Files that are named and
    /// not taken are read all the same: what they hold out is trained on by no stage.
    ///
    /// Errors: every list that names none.
    pub(crate) fn check_files(self, config: &Config) -> Result<()> {
        let data = &config.data;
        let taken = [
            ("demonstrations", &data.demonstrations, true),
            ("rankings", &data.rankings, self.makes(REWARD_MODEL)),
            ("prompts", &data.prompts, self >= Until::Ppo),
            ("pretraining", &data.pretraining, self.mixes(config)),
        ];
        let absent = taken.iter().filter(|(_, files, taken)| *taken && files.is_empty());
        let absent: Vec<String> = absent.map(|(name, ..)| format!("`data.{name}`")).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let mix = if absent.iter().any(|name| name.ends_with("pretraining`")) {
            ", or mix no pretraining text in (`sft-baseline.pretraining-share`, `sft-init.pretraining-share` and \
             `ppo.gamma-ptx` of 0)"
        } else {
            ""
        };
        bail!("no file is named in {}; name at least one{mix}", absent.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[&str]) -> Config {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Config::load("", "test", &settings).unwrap()
    }

    #[test]
    fn a_command_asks_for_the_files_that_it_takes() {
        #[track_caller]
        fn check(until: Until, named: &[&str], absent: &[&str]) {
            let settings: Vec<String> = named.iter().map(|name| format!("data.{name}=[\"x.jsonl\"]")).collect();
            let outcome = until.check_files(&config(&settings.iter().map(String::as_str).collect::<Vec<_>>()));
            let message = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            for name in ["demonstrations", "rankings", "prompts", "pretraining"] {
                assert_eq!(message.contains(&format!("`data.{name}`")), absent.contains(&name), "{name}: {message}");
            }
        }
        check(Until::Evaluation, &[], &["demonstrations", "rankings", "prompts", "pretraining"]);
        check(Until::Ppo, &["demonstrations", "rankings", "pretraining"], &["prompts"]);
        check(Until::RewardModel, &[], &["demonstrations", "rankings"]);
        // The start of reinforcement learning mixes text in; the baseline, and so the reward model's trunk, does not.
        check(Until::Sft, &["demonstrations"], &["pretraining"]);
        check(Until::RewardModel, &["demonstrations", "rankings"], &[]);
        check(Until::Evaluation, &["demonstrations", "rankings", "prompts", "pretraining"], &[]);
    }

    #[test]
    fn text_is_asked_for_where_a_stage_mixes_it_in() {
        #[track_caller]
        fn check(until: Until, settings: &[&str], want: bool) {
            assert_eq!(until.mixes(&config(settings)), want, "{settings:?}");
        }
        let (init, baseline, ptx) =
            ("sft-init.pretraining-share=0.0", "sft-baseline.pretraining-share=0.2", "ppo.gamma-ptx=0.0");
        check(Until::Sft, &[], true);
        check(Until::Sft, &[init], false);
        check(Until::Sft, &[init, baseline], true);
        check(Until::RewardModel, &[], false);
        check(Until::RewardModel, &[baseline], true);
        check(Until::Ppo, &[init], true);
        check(Until::Evaluation, &[init, ptx], false);
    }

    #[test]
    fn caps_of_later_stages_bind_no_earlier_one() {
        let config = config(&["model.max-completion=96", "ppo.max-new-tokens=128", "evaluate.max-new-tokens=200"]);
        let want = [96, 96, 200, 200];
        let all = [Until::Sft, Until::RewardModel, Until::Ppo, Until::Evaluation];
        assert_eq!(all.map(|until| until.longest_completion(&config)), want);
    }
}
