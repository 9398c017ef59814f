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
    let messages = turns(&prompt);
    if messages.last().is_none_or(|last| last.role != Role::User) {
        return fields.problem("chosen", Problem::LastRole { expected: "user" });
    }
    let content = Content::Messages(Conversation { messages });
    Some(house::comparison(house::attributes(fields, Some(content))?, [chosen, rejected]))
}

/// A transcript cut before its last reply.
fn side(fields: &mut Fields<'_>, name: &str) -> Option<(String, String)> {
    let text = fields.text(name)?;
    match text.rsplit_once(ASSISTANT) {
        Some((prompt, reply)) => Some((prompt.to_owned(), reply.trim().to_owned())),
        None => fields.problem(name, Problem::LastRole { expected: "assistant" }),
    }
}

/// The turns of a transcript. Four transcripts let the assistant speak twice in a row: one turn of
/// two paragraphs, because chat templates want the roles to alternate.
fn turns(text: &str) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    let speaker =
        |at: usize| [Role::User, Role::Assistant].into_iter().find(|&role| text[at..].starts_with(mark(role)));
    // Every mark begins with a line end, and none begins inside another.
    let mut marks = text.match_indices('\n').filter_map(|(at, _)| Some((at, speaker(at)?))).peekable();
    while let Some((at, role)) = marks.next() {
        let end = marks.peek().map_or(text.len(), |&(next, _)| next);
        let said = text[at + mark(role).len()..end].trim();
        match messages.last_mut() {
            _ if said.is_empty() => {}
            Some(last) if last.role == role => last.content.extend(["\n\n", said]),
            _ => messages.push(Message::new(role, said)),
        }
    }
    messages
}

fn mark(role: Role) -> &'static str {
    if role == Role::User { HUMAN } else { ASSISTANT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Looks for the next mark of each speaker from the end of the last one, again and again.
    fn slow(text: &str) -> Vec<Message> {
        let next = |text: &str| {
            let find = |role| text.find(mark(role)).map(|at| (at, role));
            [find(Role::User), find(Role::Assistant)].into_iter().flatten().min()
        };
        let (mut messages, mut rest) = (Vec::<Message>::new(), text);
        while let Some((at, role)) = next(rest) {
            rest = &rest[at + mark(role).len()..];
            let end = next(rest).map_or(rest.len(), |(at, _)| at);
            let said = rest[..end].trim();
            match messages.last_mut() {
                _ if said.is_empty() => {}
                Some(last) if last.role == role => last.content = format!("{}\n\n{said}", last.content),
                _ => messages.push(Message::new(role, said)),
            }
        }
        messages
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
        let messages = turns(&format!("\n\nHuman: Go on.{said}"));
        assert_eq!(messages[0].content, "Go on.");
        assert_eq!((messages.len(), messages[1].content.len()), (2, 100_000 * "and then this\n\n".len() - 2));
    }
}
