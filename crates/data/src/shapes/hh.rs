//! hh-rlhf: two whole transcripts, `\n\nHuman: ...\n\nAssistant: ...`, that should differ in their
//! last turn alone.

use crate::{
    error::Problem,
    json::Fields,
    record::{Content, Conversation, Message, Ranking, Role},
    shapes::house,
};

const ASSISTANT: &str = "\n\nAssistant:";
const HUMAN: &str = "\n\nHuman:";

/// The comparison; skipped when the two sides answer different prompts, as 5 of the 2,312 in the
/// harmless test set do. A reply may be empty: people preferred silence, or the other side, and
/// said so.
pub(crate) fn ranking(fields: &mut Fields<'_>) -> Option<Ranking> {
    let (chosen, rejected) = (side(fields, "chosen"), side(fields, "rejected"));
    let ((prompt, chosen), (other, rejected)) = (chosen?, rejected?);
    if prompt != other {
        return fields.skip("rejected", Problem::Inconsistent);
    }
    let (mut messages, empty) = turns(&prompt);
    fields.leave_out("empty turns of transcripts", empty);
    if let Some(before) = preface(&prompt) {
        messages.insert(0, Message::new(Role::System, before));
    }
    if messages.last().is_none_or(|last| last.role != Role::User) {
        return fields.problem("chosen", Problem::LastRole { expected: "user" });
    }
    let content = Content::Messages(Conversation { messages });
    Some(house::comparison(house::attributes(fields, Some(content))?, [chosen, rejected]))
}

/// A transcript cut before its last reply; skipped when the person has the last word.
fn side(fields: &mut Fields<'_>, name: &str) -> Option<(String, String)> {
    let text = with_first_mark(fields.text(name)?);
    match text.rsplit_once(ASSISTANT) {
        Some((_, reply)) if reply.contains(HUMAN) => fields.skip(name, Problem::LastRole { expected: "assistant" }),
        Some((prompt, reply)) => Some((prompt.to_owned(), reply.trim().to_owned())),
        None => fields.problem(name, Problem::LastRole { expected: "assistant" }),
    }
}

/// The transcript with the empty line before its first turn, which those lose whose ends were trimmed.
fn with_first_mark(text: String) -> String {
    let trimmed = text.trim_start();
    let stripped = [HUMAN, ASSISTANT].iter().any(|mark| trimmed.starts_with(mark.trim_start()));
    if stripped { format!("\n\n{trimmed}") } else { text }
}

/// What stands before the first turn: nobody's words, and so standing instructions.
fn preface(text: &str) -> Option<&str> {
    let end = marks(text).next().map_or(text.len(), |(at, _)| at);
    Some(text[..end].trim()).filter(|before| !before.is_empty())
}

/// The turns of a transcript, and how many more say nothing. Four transcripts let the assistant speak twice in a
/// row: one turn of two paragraphs, because chat templates want the roles to alternate.
fn turns(text: &str) -> (Vec<Message>, usize) {
    let mut empty = 0;
    let mut messages: Vec<Message> = Vec::new();
    let mut marks = marks(text).peekable();
    while let Some((at, role)) = marks.next() {
        let end = marks.peek().map_or(text.len(), |&(next, _)| next);
        let said = text[at + mark(&role).len()..end].trim();
        match messages.last_mut() {
            _ if said.is_empty() => empty += 1,
            Some(last) if last.role == role => last.content.extend(["\n\n", said]),
            _ => messages.push(Message::new(role, said)),
        }
    }
    (messages, empty)
}

fn mark(role: &Role) -> &'static str {
    if *role == Role::User { HUMAN } else { ASSISTANT }
}

/// Where each turn's mark stands, and who speaks there.
fn marks(text: &str) -> impl Iterator<Item = (usize, Role)> {
    let speaker = |at: usize| [Role::User, Role::Assistant].into_iter().find(|role| text[at..].starts_with(mark(role)));
    // Every mark begins with a line end, and none begins inside another.
    text.match_indices('\n').filter_map(move |(at, _)| Some((at, speaker(at)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Looks for the next mark of each speaker from the end of the last one, again and again.
    fn slow(text: &str) -> (Vec<Message>, usize) {
        let next = |text: &str| {
            let find = |role: Role| text.find(mark(&role)).map(|at| (at, role));
            [find(Role::User), find(Role::Assistant)].into_iter().flatten().min()
        };
        let (mut messages, mut empty, mut rest) = (Vec::<Message>::new(), 0, text);
        while let Some((at, role)) = next(rest) {
            rest = &rest[at + mark(&role).len()..];
            let end = next(rest).map_or(rest.len(), |(at, _)| at);
            let said = rest[..end].trim();
            match messages.last_mut() {
                _ if said.is_empty() => empty += 1,
                Some(last) if last.role == role => last.content = format!("{}\n\n{said}", last.content),
                _ => messages.push(Message::new(role, said)),
            }
        }
        (messages, empty)
    }

    proptest! {
        #[test]
        fn turns_are_those_that_a_search_for_marks_finds(
            pieces in proptest::collection::vec("\n\nHuman:|\n\nAssistant:|\n|Human:| a|b ", 0..20),
        ) {
            let text = pieces.concat();
            prop_assert_eq!(turns(&text), slow(&text));
        }
    }

    /// Quadratic work would copy and search 60 gigabytes.
    #[test]
    fn a_long_transcript_of_one_speaker_is_one_turn() {
        let said = "\n\nAssistant: and then this".repeat(100_000);
        let (messages, _) = turns(&format!("\n\nHuman: Go on.{said}"));
        assert_eq!(messages[0].content, "Go on.");
        assert_eq!((messages.len(), messages[1].content.len()), (2, 100_000 * "and then this\n\n".len() - 2));
    }
}
