//! A conversation becomes the ids that the model was made for.

use crate::{
    error::Error,
    record::{Conversation, Message, Role},
    template::Template,
    tokenizer::Tokenizer,
};
use std::{collections::BTreeSet, ops::Range};

/// Writes conversations out for a model and encodes them: the one way from words to ids that training,
/// scoring, sampling and chat share.
///
/// Prompt and completion together are the ids that transformers' `apply_chat_template` gives for the whole
/// conversation, wherever the prompt's ids begin them. Where a token would straddle the border, the prompt
/// ends there, as it does when the model answers, and the completion is encoded as a text that goes on.
///
/// A completion ends with the first stop id that the template writes after it; what the template writes after
/// that belongs to the next turn. A template that writes none is followed by the tokenizer's EOS.
///
/// People's words never become special tokens, whatever they spell.
#[derive(Clone, Debug)]
pub struct Renderer {
    tokenizer: Tokenizer,
    template: Template,
    frame: Frame,
    end: u32,
    stops: BTreeSet<u32>,
}

/// What a template marks as the model's.
pub(crate) struct Marked {
    /// The whole conversation as it is written.
    pub(crate) text: String,
    /// Its ids.
    pub(crate) ids: Vec<u32>,
    /// Where the spans stand in it, each with a token at least and one before it.
    pub(crate) spans: Vec<Range<usize>>,
}

/// A conversation that the model is to answer, written out and encoded once for all its completions.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    renderer: &'a Renderer,
    conversation: Conversation,
    text: String,
    ids: Vec<u32>,
}

/// What a template writes around a completion, as it did for one that we know.
#[derive(Clone, Debug, Default)]
struct Frame {
    /// What the generation prompt ends with and a finished turn lacks.
    opened: String,
    /// What stands between the common part and the completion.
    lead: String,
    /// What stands after the completion.
    closing: String,
    /// Whether the closing yields a stop id.
    closes: bool,
}

/// A text that a template has written, and where people's words in it spell a special token, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Rendered {
    text: String,
    spelled: Vec<Range<usize>>,
}

impl Renderer {
    /// A tokenizer and a template that belong together.
    ///
    /// # Errors
    /// Any error of the template or the tokenizer.
    pub fn new(tokenizer: Tokenizer, template: Template) -> Result<Renderer, Error> {
        let mut frame = Frame::of(&template)?;
        let mut stops = tokenizer.stops().clone();
        let closing = tokenizer.encode_continuation(&frame.closing, &[])?;
        let special = |id: &&u32| tokenizer.is_special(**id);
        let end = closing.iter().find(|id| stops.contains(id)).or_else(|| closing.iter().find(special)).copied();
        frame.closes = end.is_some();
        let end = end.unwrap_or(tokenizer.eos());
        stops.insert(end);
        Ok(Renderer { tokenizer, template, frame, end, stops })
    }

    /// Words to ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The id that ends a completion: the first stop id that the template writes after one, else its first special
    /// token, else the tokenizer's EOS.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The ids at which generation stops: those of the tokenizer, and [`Renderer::end`].
    pub fn stops(&self) -> &BTreeSet<u32> {
        &self.stops
    }

    /// What the template's generation prompt opens and a finished turn lacks, such as a think block; empty for
    /// most templates. Completions are trained after it, although they were written without it.
    pub fn opened(&self) -> &str {
        &self.frame.opened
    }

    /// The tokenizer as it is saved beside a model: with the template in it, so that transformers'
    /// `apply_chat_template` gives these ids.
    pub fn exported(&self) -> Tokenizer {
        let template = self.template.source(&self.tokenizer);
        let day = self.template.date();
        self.tokenizer.clone().with_chat_template(Some(template)).with_date(day).with_stops(&self.stops)
    }

    /// A conversation that the model is to answer. A plain template's prompt begins with BOS where the tokenizer
    /// adds one; a chat template writes its own.
    ///
    /// # Errors
    /// Any error of the template or the tokenizer.
    pub fn ask(&self, conversation: Conversation) -> Result<Asked<'_>, Error> {
        let Rendered { text, spelled } = self.rendered(&conversation, Template::render_prompt)?;
        let ids = self.encode(&text, &spelled)?;
        Ok(Asked { renderer: self, conversation, text, ids })
    }

    /// What the template marks as the model's in a conversation that ends with `completion`. As in transformers a
    /// span reaches from the token of its first character to that of its last, so a token that reaches over the
    /// edge of a span belongs to it.
    ///
    /// # Errors
    /// As for [`Renderer::ask`]; the template marks nothing.
    pub(crate) fn marked(&self, conversation: &Conversation, completion: &str) -> Result<Marked, Error> {
        let (signed, sign) = self.signed(&answered(conversation, completion))?;
        let (text, spans) = self.template.render_marked(&signed)?;
        // A span that a template has captured may be counted from elsewhere, and end anywhere.
        let clean = |at: usize| {
            let at = text.floor_char_boundary(at);
            at - sign.map_or(0, |sign| text[..at].matches(sign).count() * sign.len_utf8())
        };
        let spans: Vec<Range<usize>> = spans.iter().map(|span| clean(span.start)..clean(span.end)).collect();
        let Rendered { text, spelled } = self.unsigned(text, sign);
        let located = self.tokenizer.locate_rendered(&text, &spelled)?;
        let ids: Vec<u32> = located.iter().map(|&(id, _)| id).collect();
        let token_at = |at: usize| {
            let token = located.partition_point(|(_, bytes)| bytes.end <= at);
            (token < located.len()).then_some(token)
        };
        let cut = |span: Range<usize>| {
            let last = text[..span.end].char_indices().next_back().map_or(0, |(at, _)| at);
            // No token is predicted before the first.
            let begin = token_at(span.start)?.max(1);
            let end = token_at(last).map_or(ids.len(), |token| token + 1);
            (begin < end).then_some(begin..end)
        };
        let spans: Vec<Range<usize>> = spans.into_iter().filter_map(cut).collect();
        Ok(Marked { text, ids, spans })
    }

    /// The ids of the last `length` bytes.
    fn continued(&self, whole: &Rendered, length: usize) -> Result<Vec<u32>, Error> {
        let from = whole.text.len() - length;
        let after = whole.spelled.iter().filter(|range| range.start >= from);
        let spelled: Vec<Range<usize>> = after.map(|range| range.start - from..range.end - from).collect();
        self.tokenizer.encode_continuation(&whole.text[from..], &spelled)
    }

    fn encode(&self, text: &str, spelled: &[Range<usize>]) -> Result<Vec<u32>, Error> {
        let mut ids = self.tokenizer.encode_rendered(text, spelled)?;
        if let Some(bos) =
            self.tokenizer.prepended().filter(|bos| !self.template.writes_marks() && ids.first() != Some(bos))
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Renders the conversation with a character of no text after the first one of every spelled special
    /// token, which no template takes for the token, and finds it again in what comes out.
    fn rendered(
        &self,
        conversation: &Conversation,
        render: fn(&Template, &Conversation) -> Result<String, Error>,
    ) -> Result<Rendered, Error> {
        let (signed, sign) = self.signed(conversation)?;
        Ok(self.unsigned(render(&self.template, &signed)?, sign))
    }

    /// The conversation with a sign in every spelled special token, and the sign, if any is spelled.
    fn signed(&self, conversation: &Conversation) -> Result<(Conversation, Option<char>), Error> {
        let spells = |message: &Message| self.tokenizer.special_in(&message.content).is_some();
        if !conversation.messages.iter().any(spells) {
            return Ok((conversation.clone(), None));
        }
        let occurs = |c: &char| conversation.messages.iter().any(|message| message.content.contains(*c));
        let Some(sign) = PRIVATE.clone().find(|c| !occurs(c)) else {
            return Err(Error::template("conversation", "it holds every private character of Unicode; shorten it"));
        };
        let mut signed = conversation.clone();
        for message in &mut signed.messages {
            message.content = self.sign(&message.content, sign);
        }
        Ok((signed, Some(sign)))
    }

    fn sign(&self, text: &str, sign: char) -> String {
        let mut signed = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            signed.push(first);
            let mark = self.tokenizer.longest_mark(rest).map(|mark| mark.name.as_str());
            let (_, after) = rest.split_at(first.len_utf8());
            rest = after;
            if let Some(mark) = mark {
                signed.push(sign);
                let (within, after) = rest.split_at(mark.len() - first.len_utf8());
                signed.push_str(within);
                rest = after;
            }
        }
        signed
    }

    /// A rendered text without the signs, and where they were.
    fn unsigned(&self, text: String, sign: Option<char>) -> Rendered {
        let Some(sign) = sign else { return Rendered { text, spelled: Vec::new() } };
        let clean = text.replace(sign, "");
        let mut spelled = Vec::new();
        for (number, (at, _)) in text.match_indices(sign).enumerate() {
            let after_first = at - number * sign.len_utf8();
            let start = clean[..after_first].char_indices().next_back().map_or(0, |(start, _)| start);
            if let Some(mark) = self.tokenizer.longest_mark(&clean[start..]) {
                spelled.push(start..start + mark.name.len());
            }
        }
        Rendered { text: clean, spelled }
    }
}

impl Asked<'_> {
    /// The ids of the prompt.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What the template wrote.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The ids of a completion; the last is a stop id.
    ///
    /// # Errors
    /// As for [`Renderer::ask`]; the template refuses a finished conversation.
    pub fn completion(&self, completion: &str) -> Result<Vec<u32>, Error> {
        let Renderer { frame, stops, end, .. } = self.renderer;
        let mut whole = self.renderer.rendered(&answered(&self.conversation, completion), Template::render_whole)?;
        if !frame.closes && whole.text.ends_with(&frame.closing) {
            whole.text.truncate(whole.text.len() - frame.closing.len());
        }
        let mut ids = match whole.text.strip_prefix(&self.text) {
            Some(rest) => {
                let all = self.renderer.encode(&whole.text, &whole.spelled)?;
                match all.strip_prefix(self.ids.as_slice()) {
                    Some(ids) => ids.to_vec(),
                    None => self.renderer.continued(&whole, rest.len())?,
                }
            }
            None => self.renderer.continued(&whole, frame.rest(&self.text, &whole.text, completion))?,
        };
        match ids.iter().position(|id| stops.contains(id)) {
            Some(at) => ids.truncate(at + 1),
            None => ids.push(*end),
        }
        Ok(ids)
    }
}

fn answered(conversation: &Conversation, completion: &str) -> Conversation {
    let mut whole = conversation.clone();
    whole.messages.push(Message::new(Role::Assistant, completion));
    whole
}

/// Characters that Unicode leaves to private use.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

impl Frame {
    /// Renders a conversation before and after a completion. Of a template that refuses finished conversations
    /// nothing is known: the model can be asked, and [`Asked::completion`] is refused as the template says.
    fn of(template: &Template) -> Result<Frame, Error> {
        const PROBE: &str = "Probably so";
        let mut conversation = Conversation { messages: vec![Message::new(Role::User, "Is it so?")] };
        let prompt = template.render_prompt(&conversation)?;
        conversation.messages.push(Message::new(Role::Assistant, PROBE));
        let Ok(whole) = template.render_whole(&conversation) else { return Ok(Frame::default()) };
        let Some(at) = whole.rfind(PROBE) else { return Ok(Frame::default()) };
        let common = common_prefix(&prompt, &whole[..at]);
        Ok(Frame {
            opened: prompt[common..].to_owned(),
            lead: whole[common..at].to_owned(),
            closing: whole[at + PROBE.len()..].to_owned(),
            closes: false,
        })
    }

    /// How many of the last bytes of `whole` answer a prompt that does not begin it: because the generation
    /// prompt opens something, or because the template writes an earlier turn otherwise once it is answered.
    fn rest(&self, prompt: &str, whole: &str, completion: &str) -> usize {
        let before = prompt.strip_suffix(&self.opened).unwrap_or(prompt);
        if let Some(rest) = whole.strip_prefix(before) {
            return rest.len();
        }
        // What closes the turn may spell the completion too.
        let closing = if self.closes { self.closing.as_str() } else { "" };
        let body = whole.strip_suffix(closing).unwrap_or(whole);
        let said = body.rfind(completion).or_else(|| body.rfind(completion.trim())).unwrap_or(body.len());
        let lead = if whole[..said].ends_with(&self.lead) { self.lead.len() } else { 0 };
        whole.len() - said + lead
    }
}

/// The bytes, whole characters, that two texts begin with alike.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests;
