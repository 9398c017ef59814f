//! What two sides of a split may not share.

use crate::origin::Origin;
use std::fmt;

/// Which side of a split a record is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Trained on.
    Train,
    /// Chooses checkpoints.
    Validation,
    /// Reported.
    Test,
}

impl Side {
    /// `train`, `validation` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Train => "train",
            Side::Validation => "validation",
            Side::Test => "test",
        }
    }
}

/// Two records on two sides that share a person or a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The two records: side, data set, file and line.
    pub records: [(Side, String, Origin); 2],
    /// What they share.
    pub shared: Shared,
}

/// What two sides of a split share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shared {
    /// A user.
    User(String),
    /// A prompt, or its first bytes up to the check's threshold.
    Prompt,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(side, set, origin), (other_side, other_set, other)] = &self.records;
        let (side, other_side) = (side.as_str(), other_side.as_str());
        let shared = match &self.shared {
            Shared::User(user) => format!("user `{user}`"),
            Shared::Prompt => "the same prompt".to_owned(),
        };
        write!(f, "{origin} ({set}, {side}) and {other} ({other_set}, {other_side}) share {shared}")
    }
}
