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
    let end = next_turn(text).map_or(text.len(), |(role, start)| start - mark(&role).len());
    Some(text[..end].trim()).filter(|before| !before.is_empty())
}

/// The turns of a transcript, and how many more say nothing. Four transcripts let the assistant speak twice in a row: one turn of
/// two paragraphs, because chat templates want the roles to alternate.
fn turns(text: &str) -> (Vec<Message>, usize) {
    let mut empty = 0;
    let mut messages: Vec<Message> = Vec::new();
    let mut rest = text;
    while let Some((role, start)) = next_turn(rest) {
        rest = &rest[start..];
        let end = next_turn(rest).map_or(rest.len(), |(role, start)| start - mark(&role).len());
        let said = rest[..end].trim();
        match messages.last_mut() {
            _ if said.is_empty() => empty += 1,
            Some(last) if last.role == role => last.content = format!("{}\n\n{said}", last.content),
            _ => messages.push(Message::new(role, said)),
        }
        rest = &rest[end..];
    }
    (messages, empty)
}

fn mark(role: &Role) -> &'static str {
    if *role == Role::User { HUMAN } else { ASSISTANT }
}

/// Who speaks next and where their words start.
fn next_turn(text: &str) -> Option<(Role, usize)> {
    let find = |role: Role| Some((text.find(mark(&role))?, role));
    let (at, role) = [find(Role::User), find(Role::Assistant)].into_iter().flatten().min()?;
    let start = at + mark(&role).len();
    Some((role, start))
}
