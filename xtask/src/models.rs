//! The models of a run that are compared: which there are, what each is called, and where it lies.

/// A model that the evaluation compares with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Model {
    Base,
    /// The fine-tuned model that the reward model chose.
    Sft,
    /// The fine-tuned start of reinforcement learning, which is its reference too.
    SftInit,
    Ppo,
    PpoPtx,
}

impl Model {
    /// All five, in the order in which they are made.
    pub(crate) const ALL: [Model; 5] = [Model::Base, Model::Sft, Model::SftInit, Model::Ppo, Model::PpoPtx];

    /// Its name in results.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Model::Base => "base",
            Model::Sft => "sft",
            Model::SftInit => "sft_init",
            Model::Ppo => "ppo",
            Model::PpoPtx => "ppo_ptx",
        }
    }

    /// The artefact of the run that it is the result of; the base comes from outside.
    pub(crate) fn artefact(self) -> Option<&'static str> {
        match self {
            Model::Base => None,
            Model::Sft => Some("sft-baseline"),
            Model::SftInit => Some("sft-init"),
            Model::Ppo => Some("ppo"),
            Model::PpoPtx => Some("ppo-ptx"),
        }
    }
}

/// Who is compared with whom: the first wins or loses against the second.
pub(crate) const COMPARISONS: [(Model, Model); 7] = [
    (Model::PpoPtx, Model::Sft),
    (Model::Ppo, Model::Sft),
    (Model::PpoPtx, Model::Ppo),
    (Model::PpoPtx, Model::SftInit),
    (Model::Ppo, Model::SftInit),
    (Model::PpoPtx, Model::Base),
    (Model::Sft, Model::Base),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_reported_under_the_name_of_its_artefact() {
        for model in Model::ALL {
            let folder = match model {
                Model::Base => None,
                Model::Sft => Some("sft-baseline".to_owned()),
                other => Some(other.key().replace('_', "-")),
            };
            assert_eq!(model.artefact(), folder.as_deref(), "{model:?}");
        }
    }
}
