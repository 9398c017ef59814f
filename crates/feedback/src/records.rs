//! What people said becomes what models are trained on.

use crate::{
    answer::Answer,
    event::{Choice, Demonstrated, Edited, Event, Flag, Paired, Ranked, Said, To},
    fields::{answerable, usable},
    state::State,
    task::{Task, content},
};
use instruct_data::{Content, Demonstration, Message, Origin, Prompt, Ranking};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What becomes what, where there is a choice. Edits make answers longer, so a reward model may learn that longer is
/// better; these leave them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// An edited answer is a demonstration.
    pub edits_as_demonstrations: bool,
    /// An edited answer is better than what it was made of.
    pub edits_as_pairs: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { edits_as_demonstrations: true, edits_as_pairs: true }
    }
}

/// Records to train on, by time and key. The key of the event is the record's id, so that a run can name what it
/// was trained on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Rankings of tasks, answers side by side, and edited over original.
    pub rankings: Vec<Ranking>,
    /// Demonstrations and edited answers.
    pub demonstrations: Vec<Demonstration>,
    /// Prompts whose answer got a thumb and nothing more, and of which there is no task: they wait for completions
    /// to be ranked, those with a thumb down first.
    pub prompts: Vec<Prompt>,
    /// Answers with a thumb, to measure how well a reward model tells good from bad. Nothing is trained on them.
    pub thumbs: Vec<Rated>,
    /// How many events that count gave no record, or one fewer than they could, and why.
    pub left_out: BTreeMap<Why, usize>,
}

/// An answer and its thumb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rated {
    /// The key of the event.
    pub id: String,
    /// The prompt.
    #[serde(flatten)]
    pub content: Content,
    /// The answer.
    pub completion: String,
    /// Whether it is good.
    pub up: bool,
    /// Who asked, and who says so.
    pub labeler: String,
    /// Whether nothing else is said of the answer, so that it is in no pair that could be trained on.
    #[serde(skip)]
    pub alone: bool,
}

/// Why an event gives no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its task tests labelers.
    Gold,
    /// Its task is about a prompt that is held out.
    HeldOut,
    /// The answer was given to somebody who does not let it be trained on.
    NoConsent,
    /// Both sides are the same text, so nothing is better.
    Unchanged,
    /// A text that no record may hold: an empty prompt, a NUL.
    Unusable,
}

/// What a reader of records finds in `flags` beside the words of [`Flag`]: every completion was bad.
pub const ALL_BAD: &str = "all-bad";
/// The same of a completion that a person made of the other: it is longer than others for that reason.
pub const EDITED: &str = "edited";

/// What models can be trained on, of everything that counts.
///
/// A ranking is a ranking record with its ranks made dense; three labelers of one task are three records. If all
/// were bad, all are tied and flagged [`ALL_BAD`]. Two answers side by side are a ranking of two. An edit is a
/// demonstration, and a ranking of two in which the edited one is better and flagged [`EDITED`]. A demonstration is
/// one. `user` is who wrote the prompt, so that a split by users keeps people on one side.
pub fn records(state: &State, options: &Options) -> Records {
    let events = state.counting();
    let compared = events.iter().flat_map(|event| compared(event)).collect();
    let mut making = Making { state, options, compared, made: Records::default(), waiting: BTreeMap::new() };
    events.into_iter().for_each(|event| making.take(event));
    making.finish()
}

struct Making<'a> {
    state: &'a State,
    options: &'a Options,
    made: Records,
    /// Answers that are edited or stand beside another.
    compared: BTreeSet<&'a str>,
    /// Prompts of the other answers with thumbs, by their words.
    waiting: BTreeMap<String, Waiting>,
}

/// A prompt that waits for completions to be ranked.
struct Waiting {
    /// Whether a thumb is down.
    down: bool,
    /// Its place in time.
    place: usize,
    prompt: Prompt,
}

impl<'a> Making<'a> {
    fn take(&mut self, event: &'a Event) {
        let taken = match &event.said {
            Said::Ranking(ranked) => self.ranking(event, ranked),
            Said::Demonstration(demonstrated) => self.demonstration(event, demonstrated),
            Said::Pair(paired) => self.pair(event, paired),
            Said::Edit(edited) => self.edit(event, edited),
            Said::Thumb(thumb) => self.thumb(event, &thumb.answer, thumb.up),
            Said::Skip(_) | Said::Retract { .. } => Ok(()),
        };
        if let Err(why) = taken {
            *self.made.left_out.entry(why).or_default() += 1;
        }
    }

    fn ranking(&mut self, event: &Event, ranked: &Ranked) -> Result<(), Why> {
        let Some(task) = self.state.task(&ranked.task) else { return Ok(()) };
        if task.gold.is_some() {
            return Err(Why::Gold);
        }
        if task.held_out {
            return Err(Why::HeldOut);
        }
        let quality: Option<Vec<u8>> = ranked.by_slot(&ranked.quality).into_iter().collect();
        let flags = ranked.by_slot(&ranked.flags).iter().map(|flags| words_of(flags, ranked.all_bad)).collect();
        let completions = task.completions.iter().map(|completion| completion.text.clone()).collect();
        let ranking = Ranking {
            confidence: ranked.confidence.map(f32::from),
            quality,
            flags: Some(flags),
            ..bare(event, of_task(event, task), completions, dense(&ranked.by_slot(&ranked.ranks)))
        };
        self.keep(ranking)
    }

    fn pair(&mut self, event: &Event, paired: &Paired) -> Result<(), Why> {
        let [Some(left), Some(right)] = [0, 1].map(|side| self.state.answer(&paired.answers[side])) else {
            return Ok(());
        };
        if !(left.consent && right.consent) {
            return Err(Why::NoConsent);
        }
        let ranks = match paired.choice {
            Choice::Left => [1, 2],
            Choice::Right => [2, 1],
            Choice::Tie | Choice::Bad => [1, 1],
        };
        let bad = paired.choice == Choice::Bad;
        let completions = vec![left.text.clone(), right.text.clone()];
        let ranking = Ranking {
            flags: bad.then(|| vec![words_of(&[], true); 2]),
            ..bare(event, of_answer(event, left), completions, ranks.to_vec())
        };
        self.keep(ranking)
    }

    fn edit(&mut self, event: &Event, edited: &Edited) -> Result<(), Why> {
        let answer = self.consented(&edited.answer)?;
        let prompt = of_answer(event, answer);
        if self.options.edits_as_demonstrations {
            self.demonstrated(prompt.clone(), &edited.text)?;
        }
        if !self.options.edits_as_pairs {
            return Ok(());
        }
        let completions = vec![edited.text.clone(), answer.text.clone()];
        let ranking = Ranking {
            flags: Some(vec![vec![EDITED.to_owned()], Vec::new()]),
            ..bare(event, prompt, completions, vec![1, 2])
        };
        self.keep(ranking)
    }

    fn demonstration(&mut self, event: &Event, demonstrated: &Demonstrated) -> Result<(), Why> {
        let prompt = match &demonstrated.to {
            To::Task(task) => match self.state.task(task) {
                Some(task) => of_task(event, task),
                None => return Ok(()),
            },
            To::Messages(conversation) => prompt(event, &conversation.messages, Some(&event.by)),
        };
        self.demonstrated(prompt, &demonstrated.text)
    }

    fn thumb(&mut self, event: &Event, answer: &str, up: bool) -> Result<(), Why> {
        let answer = self.consented(answer)?;
        readable(&answer.messages)?;
        usable(&answer.text, true).map_err(|_| Why::Unusable)?;
        let prompt = of_answer(event, answer);
        let alone = !self.compared.contains(answer.id.as_str());
        self.made.thumbs.push(Rated {
            alone,
            id: event.key.clone(),
            content: prompt.content.clone(),
            completion: answer.text.clone(),
            up,
            labeler: event.by.clone(),
        });
        if alone {
            let place = self.waiting.len();
            let new = Waiting { down: false, place, prompt };
            self.waiting.entry(words(&answer.messages)).or_insert(new).down |= !up;
        }
        Ok(())
    }

    /// An answer that may be trained on.
    fn consented(&self, id: &str) -> Result<&'a Answer, Why> {
        self.state.answer(id).filter(|answer| answer.consent).ok_or(Why::NoConsent)
    }

    fn keep(&mut self, ranking: Ranking) -> Result<(), Why> {
        readable(&ranking.prompt.content.conversation().messages)?;
        if ranking.completions.iter().any(|text| usable(text, true).is_err()) {
            return Err(Why::Unusable);
        }
        if ranking.completions.windows(2).all(|pair| pair[0] == pair[1]) {
            return Err(Why::Unchanged);
        }
        self.made.rankings.push(ranking);
        Ok(())
    }

    fn demonstrated(&mut self, prompt: Prompt, text: &str) -> Result<(), Why> {
        readable(&prompt.content.conversation().messages)?;
        usable(text, false).map_err(|_| Why::Unusable)?;
        self.made.demonstrations.push(Demonstration { prompt, completion: text.to_owned() });
        Ok(())
    }

    fn finish(self) -> Records {
        let asked: BTreeSet<String> = self.state.tasks.iter().map(|task| words(&task.messages)).collect();
        let waiting = self.waiting.into_iter().filter(|(words, _)| !asked.contains(words));
        let mut waiting: Vec<Waiting> = waiting.map(|(_, waiting)| waiting).collect();
        waiting.sort_by_key(|waiting| (!waiting.down, waiting.place));
        let mut made = self.made;
        made.prompts = waiting.into_iter().map(|waiting| waiting.prompt).collect();
        place(&mut made.rankings, "rankings.jsonl", |ranking| &mut ranking.prompt);
        place(&mut made.demonstrations, "demonstrations.jsonl", |demonstration| &mut demonstration.prompt);
        place(&mut made.prompts, "prompts.jsonl", |prompt| prompt);
        made
    }
}

/// The answers that an event compares with another one.
fn compared(event: &Event) -> Vec<&str> {
    match &event.said {
        Said::Pair(paired) => paired.answers.iter().map(String::as_str).collect(),
        Said::Edit(edited) => vec![&edited.answer],
        _ => Vec::new(),
    }
}

/// A ranking and who made it, and nothing else that the labeler said.
fn bare(event: &Event, prompt: Prompt, completions: Vec<String>, ranks: Vec<u32>) -> Ranking {
    let labeler = Some(event.by.clone());
    Ranking { prompt, completions, ranks, labeler, confidence: None, quality: None, flags: None }
}

/// Says of each record on which line of its file it will stand.
fn place<T>(records: &mut [T], file: &str, prompt: impl Fn(&mut T) -> &mut Prompt) {
    for (index, record) in records.iter_mut().enumerate() {
        prompt(record).origin = Origin::new(file, index + 1);
    }
}

fn of_task(event: &Event, task: &Task) -> Prompt {
    Prompt { use_case: task.use_case.clone(), ..prompt(event, &task.messages, task.user.as_deref()) }
}

fn of_answer(event: &Event, answer: &Answer) -> Prompt {
    prompt(event, &answer.messages, Some(&answer.labeler))
}

fn prompt(event: &Event, messages: &[Message], user: Option<&str>) -> Prompt {
    Prompt {
        id: event.key.clone(),
        content: content(messages),
        user: user.map(str::to_owned),
        use_case: None,
        // Known once all records are.
        origin: Origin::new("", 0),
    }
}

fn readable(messages: &[Message]) -> Result<(), Why> {
    answerable(messages, "messages").map_err(|_| Why::Unusable)
}

/// A conversation as a text that no other one has.
fn words(messages: &[Message]) -> String {
    serde_json::json!(messages).to_string()
}

/// Ranks without gaps: the reader of records takes 1, 2, 2, 3 and 1, 2, 2, 4, and nothing else.
fn dense(ranks: &[u32]) -> Vec<u32> {
    let distinct: BTreeSet<u32> = ranks.iter().copied().collect();
    ranks.iter().map(|rank| 1 + distinct.range(..rank).count() as u32).collect()
}

/// Words of flags, and [`ALL_BAD`] where all are.
fn words_of(flags: &[Flag], all_bad: bool) -> Vec<String> {
    let all = all_bad.then_some(ALL_BAD);
    flags.iter().map(|flag| flag.as_str()).chain(all).map(str::to_owned).collect()
}
