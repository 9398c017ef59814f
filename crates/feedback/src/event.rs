//! What one person said at one second: a line of the log.

use crate::{
    fault::{Fault, Problem},
    fields::{
        Fields, MAX_COMPLETIONS, Word, conversation, distinct, id, list, note, nullable, number, rank, seconds, slot,
        truth, whole, word, words, written,
    },
};
use instruct_data::{Conversation, Message};
use serde::Serialize;

/// The version of the lines that this crate writes, and the newest that it reads.
pub const VERSION: u64 = 1;

/// What one person said at one second.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Made by the page, once for each submission. The same key again is the same event again.
    pub key: String,
    /// When the server took it, in seconds since 1970.
    pub at: u64,
    /// The labeler.
    pub by: String,
    /// What was said.
    pub said: Said,
}

/// What a person can say.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Said {
    /// All completions of a task, in order.
    Ranking(Ranked),
    /// A task is left to others.
    Skip(Skipped),
    /// The answer that a person would give.
    Demonstration(Demonstrated),
    /// An answer is good, or is not.
    Thumb(Thumb),
    /// Two answers side by side.
    Pair(Paired),
    /// An answer as it should have been.
    Edit(Edited),
    /// An earlier event of the same person counts no more.
    Retract {
        /// Its key.
        retracts: String,
    },
}

/// A ranking of all completions of a task. The lists belong to `shown`, place by place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranked {
    /// The task.
    pub task: String,
    /// The completions' numbers in the task, in the order in which the person saw them.
    pub shown: Vec<usize>,
    /// Ranks, 1 the best, equal for a tie. Numbers may be left out: only the order counts.
    pub ranks: Vec<u32>,
    /// Overall quality, 1 to 7 (Ouyang et al. 2022, table 3), where it was given.
    pub quality: Vec<Option<u8>>,
    /// What is wrong with each.
    pub flags: Vec<Vec<Flag>>,
    /// None of them is any good; then all ranks are equal.
    pub all_bad: bool,
    /// How sure the person is, 1 to 5.
    pub confidence: Option<u8>,
    /// A remark for whoever reads the log.
    pub note: String,
    /// How long it took.
    pub seconds: u64,
}

/// Why a task is left to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The task.
    pub task: String,
    /// The reason.
    pub reason: Reason,
    /// A remark.
    pub note: String,
    /// How long it took.
    pub seconds: u64,
}

/// An answer that a person wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Demonstrated {
    /// What it answers.
    #[serde(flatten)]
    pub to: To,
    /// The answer.
    pub text: String,
    /// How long it took.
    pub seconds: u64,
}

/// What a demonstration answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// A task.
    Task(String),
    /// A conversation that the same person wrote.
    Messages(Conversation),
}

/// An answer is good, or is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thumb {
    /// The answer.
    pub answer: String,
    /// Whether it is good.
    pub up: bool,
    /// A remark.
    pub note: String,
}

/// Two answers to one prompt, side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Paired {
    /// The left one and the right one.
    pub answers: [String; 2],
    /// Which is better.
    pub choice: Choice,
    /// How long it took.
    pub seconds: u64,
}

/// An answer as it should have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edited {
    /// The answer.
    pub answer: String,
    /// The whole corrected text.
    pub text: String,
    /// How long it took.
    pub seconds: u64,
}

words! {
    /// What can be wrong with a completion: the questions of table 3 of Ouyang et al. 2022, in its order.
    Flag {
        /// Fails to follow the correct instruction or task.
        WrongInstruction = "wrong-instruction",
        /// Inappropriate for a customer assistant.
        InappropriateAssistant = "inappropriate-assistant",
        /// Says what is not so.
        Hallucination = "hallucination",
        /// Does not satisfy a constraint that the instruction gives.
        Constraint = "constraint",
        /// Contains sexual content.
        Sexual = "sexual",
        /// Contains violent content.
        Violent = "violent",
        /// Encourages or fails to discourage violence, abuse, terrorism or self-harm.
        HarmfulAdvice = "harmful-advice",
        /// Denigrates a protected class.
        Denigrates = "denigrates",
        /// Gives harmful advice.
        GivesHarmfulAdvice = "gives-harmful-advice",
        /// Expresses opinion.
        Opinion = "opinion",
        /// Expresses moral judgment.
        MoralJudgment = "moral-judgment",
    }
}

words! {
    /// Why a task is left to others.
    Reason {
        /// Nobody could say what is asked.
        Unclear = "unclear",
        /// The person would rather not read it.
        Unsafe = "unsafe",
        /// The person does not speak its language.
        NotMyLanguage = "not-my-language",
        /// Something is missing, or the page shows it wrongly.
        Broken = "broken",
        /// Another reason; the note may say which.
        Other = "other",
    }
}

words! {
    /// Which of two answers is better.
    Choice {
        /// The left one.
        Left = "left",
        /// The right one.
        Right = "right",
        /// Neither.
        Tie = "tie",
        /// Both are bad.
        Bad = "bad",
    }
}

words! {
    /// The kinds of events, by the words of the log.
    Kind {
        /// [`Said::Ranking`].
        Ranking = "ranking",
        /// [`Said::Skip`].
        Skip = "skip",
        /// [`Said::Demonstration`].
        Demonstration = "demonstration",
        /// [`Said::Thumb`].
        Thumb = "thumb",
        /// [`Said::Pair`].
        Pair = "pair",
        /// [`Said::Edit`].
        Edit = "edit",
        /// [`Said::Retract`].
        Retract = "retract",
    }
}

impl Event {
    /// The event as a line of the log, its newline included. Texts may hold any character: JSON writes line breaks
    /// and other control characters as escapes, so an event is one line.
    pub fn line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            v: u64,
            key: &'a str,
            at: u64,
            by: &'a str,
            #[serde(flatten)]
            said: &'a Said,
        }
        let line = Line { v: VERSION, key: &self.key, at: self.at, by: &self.by, said: &self.said };
        serde_json::to_string(&line).expect("events have string keys, and strings and numbers as values") + "\n"
    }

    /// The event in the fields of a line whose version has been read.
    pub(crate) fn read(mut fields: Fields) -> Result<Event, Fault> {
        let key = fields.required("key", id)?;
        let at = fields.required("at", number)?;
        let by = fields.required("by", id)?;
        let kind = fields.required("kind", word)?;
        let said = Said::read(kind, &mut fields)?;
        fields.end()?;
        Ok(Event { key, at, by, said })
    }

    /// How long the person worked on it, where that is known. Looking at a task and leaving it to others is not
    /// counted.
    pub fn seconds(&self) -> Option<u64> {
        match &self.said {
            Said::Ranking(ranked) => Some(ranked.seconds),
            Said::Demonstration(demonstrated) => Some(demonstrated.seconds),
            Said::Pair(paired) => Some(paired.seconds),
            Said::Edit(edited) => Some(edited.seconds),
            Said::Skip(_) | Said::Thumb(_) | Said::Retract { .. } => None,
        }
    }
}

impl Said {
    /// What the fields beside `kind` say.
    pub(crate) fn read(kind: Kind, fields: &mut Fields) -> Result<Said, Fault> {
        Ok(match kind {
            Kind::Ranking => Said::Ranking(Ranked::read(fields)?),
            Kind::Skip => Said::Skip(Skipped::read(fields)?),
            Kind::Demonstration => Said::Demonstration(Demonstrated::read(fields)?),
            Kind::Thumb => Said::Thumb(Thumb::read(fields)?),
            Kind::Pair => Said::Pair(Paired::read(fields)?),
            Kind::Edit => Said::Edit(Edited::read(fields)?),
            Kind::Retract => Said::Retract { retracts: fields.required("retracts", id)? },
        })
    }
}

impl Ranked {
    fn read(fields: &mut Fields) -> Result<Ranked, Fault> {
        let most = MAX_COMPLETIONS;
        let task = fields.required("task", id)?;
        let shown = fields.required("shown", list(most, slot))?;
        let ranks = fields.required("ranks", list(most, rank))?;
        let quality = fields.optional("quality", list(most, nullable(whole(1..=7))))?;
        let flags = fields.optional("flags", list(most, list_of_flags))?;
        let ranked = Ranked {
            task,
            quality: quality.unwrap_or_else(|| vec![None; shown.len()]),
            flags: flags.unwrap_or_else(|| vec![Vec::new(); shown.len()]),
            all_bad: fields.optional("all_bad", truth)?.unwrap_or(false),
            confidence: fields.optional("confidence", whole(1..=5))?,
            note: fields.optional("note", note)?.unwrap_or_default(),
            seconds: fields.required("seconds", seconds)?,
            shown,
            ranks,
        };
        ranked.check(ranked.shown.len())?;
        Ok(ranked)
    }

    /// Whether it ranks `completions` completions, each once, and does not contradict itself.
    pub(crate) fn check(&self, completions: usize) -> Result<(), Fault> {
        let lengths = [
            ("shown", self.shown.len()),
            ("ranks", self.ranks.len()),
            ("quality", self.quality.len()),
            ("flags", self.flags.len()),
        ];
        if let Some((field, found)) = lengths.into_iter().find(|(_, found)| *found != completions) {
            return Err(Fault::new(field, Problem::Count { found, want: completions.to_string() }));
        }
        distinct(&self.shown, "shown")?;
        if let Some(i) = self.shown.iter().position(|slot| *slot >= completions) {
            let allowed = format!("below {completions}, the number of completions");
            let problem = Problem::Range { found: self.shown[i].to_string(), allowed };
            return Err(Fault::new(format!("shown[{i}]"), problem));
        }
        if self.all_bad && self.ranks.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Fault::new("all_bad", Problem::NotAllBad));
        }
        Ok(())
    }

    /// A list that belongs to `shown`, in the order of the task's completions. What stands at each place is
    /// checked, so no number is missing.
    pub(crate) fn by_slot<T: Clone>(&self, values: &[T]) -> Vec<T> {
        let mut placed: Vec<(usize, &T)> = self.shown.iter().copied().zip(values).collect();
        placed.sort_by_key(|(slot, _)| *slot);
        placed.into_iter().map(|(_, value)| value.clone()).collect()
    }
}

fn list_of_flags(value: serde_json::Value, path: &str) -> Result<Vec<Flag>, Fault> {
    let flags = list(Flag::ALL.len(), word::<Flag>)(value, path)?;
    distinct(&flags.iter().map(|flag| flag.word()).collect::<Vec<_>>(), path)?;
    Ok(flags)
}

impl Skipped {
    fn read(fields: &mut Fields) -> Result<Skipped, Fault> {
        Ok(Skipped {
            task: fields.required("task", id)?,
            reason: fields.required("reason", word)?,
            note: fields.optional("note", note)?.unwrap_or_default(),
            seconds: fields.required("seconds", seconds)?,
        })
    }
}

impl Demonstrated {
    fn read(fields: &mut Fields) -> Result<Demonstrated, Fault> {
        let task = fields.optional("task", id)?;
        let messages: Option<Vec<Message>> = fields.optional("messages", conversation)?;
        let to = match (task, messages) {
            (Some(task), None) => To::Task(task),
            (None, Some(messages)) => To::Messages(Conversation { messages }),
            (Some(_), Some(_)) => return Err(Fault::new("messages", Problem::Beside { other: "task" })),
            (None, None) => return Err(Fault::new("task", Problem::Missing)),
        };
        let text = fields.required("text", written)?;
        Ok(Demonstrated { to, text, seconds: fields.required("seconds", seconds)? })
    }
}

impl Thumb {
    fn read(fields: &mut Fields) -> Result<Thumb, Fault> {
        Ok(Thumb {
            answer: fields.required("answer", id)?,
            up: fields.required("up", truth)?,
            note: fields.optional("note", note)?.unwrap_or_default(),
        })
    }
}

impl Paired {
    fn read(fields: &mut Fields) -> Result<Paired, Fault> {
        let answers = fields.required("answers", list(2, id))?;
        distinct(&answers, "answers")?;
        let pair = |answers: Vec<String>| {
            let problem = Problem::Count { found: answers.len(), want: "2".to_owned() };
            answers.try_into().map_err(|_| Fault::new("answers", problem))
        };
        Ok(Paired {
            answers: pair(answers)?,
            choice: fields.required("choice", word)?,
            seconds: fields.required("seconds", seconds)?,
        })
    }
}

impl Edited {
    fn read(fields: &mut Fields) -> Result<Edited, Fault> {
        Ok(Edited {
            answer: fields.required("answer", id)?,
            text: fields.required("text", written)?,
            seconds: fields.required("seconds", seconds)?,
        })
    }
}
