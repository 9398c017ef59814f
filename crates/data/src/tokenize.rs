//! Records become ids within caps, with an account of what was left out.

use crate::{
    error::{Error, Problem, Problems, RecordError},
    record::{
        Content, Conversation, Demonstration, Message, PretrainText, Prompt, Ranking, Record, Role, distinct_pairs,
        pairs,
    },
    renderer::{Asked, Marked, Renderer},
    tokenizer::Tokenizer,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The longest prompt and the longest completion (what ends it included), in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Of a prompt, template and BOS included.
    pub prompt: usize,
    /// Of a completion, what ends it included.
    pub completion: usize,
}

impl Caps {
    /// Prompts at most half the context, completions at most the other half (\[IG\] appendix A).
    pub fn halves(context: usize) -> Caps {
        Caps { prompt: context / 2, completion: context - context / 2 }
    }
}

/// What happens to a record that does not fit the caps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// All such records are reported and none is returned.
    Refuse,
    /// It is left out and counted.
    #[default]
    Drop,
    /// A plain-text prompt is cut at its last newline until it fits (as \[N\] does). A prompt that never
    /// fits is left out, and so are conversations and completions that do not fit. A completion is never
    /// cut, because an end after half a sentence teaches the model to stop there.
    CutPrompt,
}

/// What a demonstration of several turns teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Its last reply, to what was said before.
    #[default]
    Last,
    /// Each of its replies, to what was said before that reply: as many demonstrations as there are replies.
    All,
    /// What the chat template marks with `{% generation %}`, each span as a demonstration of its own.
    Generation,
}

/// Everything that turns records into ids.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// Conversations to ids.
    pub renderer: &'a Renderer,
    /// Longest prompt and completion.
    pub caps: Caps,
    /// What to do with records that are longer.
    pub overlong: Overlong,
    /// What demonstrations of several turns teach.
    pub loss: Loss,
}

/// A prompt in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// Index of its record in the slice that was encoded.
    pub record: usize,
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
}

/// A demonstration in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemonstrationTokens {
    /// Index of its record.
    pub record: usize,
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The completion. Its last id is a stop id, but for a span of [`Loss::Generation`], which ends where the
    /// template says; [`EncodeReport::unended`] counts those that end otherwise.
    pub completion: Vec<u32>,
}

/// A ranking in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankingTokens {
    /// Index of its record.
    pub record: usize,
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The K >= 2 completions that fit, each ending with a stop id.
    pub completions: Vec<Vec<u32>>,
    /// Their indices in the record, for quality and flags.
    pub kept: Vec<usize>,
    /// Their ranks, 1 = best of all that were ranked.
    pub ranks: Vec<u32>,
}

/// What was encoded and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeReport {
    /// Records encoded; of demonstrations, the replies or spans that are trained on.
    pub kept: usize,
    /// Of these, prompts that were cut.
    pub cut: usize,
    /// Records, or of demonstrations the replies or spans, left out because of their prompt's length.
    pub long_prompts: usize,
    /// The same, left out because their prompt has no token.
    pub empty_prompts: usize,
    /// Completions or spans left out because of their length. Where too few remain, the record is left out too.
    pub long_completions: usize,
    /// Rankings left out because fewer than two of their completions fit; under [`Loss::Generation`] demonstrations
    /// of which no span fits.
    pub incomplete: usize,
    /// Records of which the prompt or a completion spells a special token. It is encoded as words, so that the
    /// model does not obey it.
    pub special_tokens: usize,
    /// Pairs of completions that are ranked and equal, token by token. They form no pair.
    pub equal_pairs: usize,
    /// Records with a message, of the system or of a further voice, of which the chat template writes nothing.
    pub unwritten: usize,
    /// Spans of [`Loss::Generation`] that end without a stop id, and so teach no end.
    pub unended: usize,
}

impl EncodeReport {
    /// Whether spans were encoded and all of them are [unended](EncodeReport::unended): who learns from these alone
    /// never stops.
    pub fn teaches_no_end(&self) -> bool {
        self.unended > 0 && self.unended == self.kept
    }
}

impl Encoder<'_> {
    /// Encodes prompts.
    ///
    /// # Errors
    /// [`Error::Problems`] under [`Overlong::Refuse`]; any error of the template or the tokenizer.
    pub fn prompts(&self, records: &[Prompt]) -> Result<(Vec<PromptTokens>, EncodeReport), Error> {
        self.all(records, |run, record, prompt| {
            run.count_spelled(&prompt.content.texts());
            let asked = run.prompt(prompt)?;
            Ok(asked.map(|asked| PromptTokens { record, prompt: asked.ids().to_vec() }))
        })
    }

    /// Encodes demonstrations: one for each thing that a record teaches, see [`Loss`].
    ///
    /// # Errors
    /// As for [`Encoder::prompts`]; [`Error::Template`] under [`Loss::Generation`] when the template marks nothing.
    pub fn demonstrations(&self, records: &[Demonstration]) -> Result<(Vec<DemonstrationTokens>, EncodeReport), Error> {
        self.all(records, |run, record, demonstration| {
            run.count_spelled(&demonstration.texts());
            let taught = |(prompt, completion)| DemonstrationTokens { record, prompt, completion };
            if self.loss == Loss::Generation {
                return Ok(run.marked(demonstration)?.into_iter().map(taught).collect());
            }
            let mut replies = if self.loss == Loss::All { earlier_replies(demonstration) } else { Vec::new() };
            replies.push((demonstration.prompt.clone(), &demonstration.completion));
            let mut kept = Vec::new();
            for (prompt, text) in &replies {
                let Some(asked) = run.prompt(prompt)? else { continue };
                let completion = run.completion(prompt, &asked, "completion", text)?;
                kept.extend(completion.map(|completion| taught((asked.ids().to_vec(), completion))));
            }
            Ok(kept)
        })
    }

    /// Encodes rankings. A completion that is too long leaves its group; a group with fewer than
    /// two left is left out.
    ///
    /// # Errors
    /// As for [`Encoder::prompts`].
    pub fn rankings(&self, records: &[Ranking]) -> Result<(Vec<RankingTokens>, EncodeReport), Error> {
        self.all(records, |run, record, ranking| {
            run.count_spelled(&ranking.texts());
            let Some(asked) = run.prompt(&ranking.prompt)? else { return Ok(None) };
            let mut tokens = RankingTokens {
                record,
                prompt: asked.ids().to_vec(),
                completions: Vec::new(),
                kept: Vec::new(),
                ranks: Vec::new(),
            };
            for (i, (text, &rank)) in ranking.completions.iter().zip(&ranking.ranks).enumerate() {
                if let Some(completion) = run.completion(&ranking.prompt, &asked, &format!("completions[{i}]"), text)? {
                    tokens.completions.push(completion);
                    tokens.kept.push(i);
                    tokens.ranks.push(rank);
                }
            }
            run.report.equal_pairs +=
                pairs(&tokens.ranks).len() - distinct_pairs(&tokens.ranks, &tokens.completions).len();
            let enough = tokens.kept.len() >= 2;
            run.report.incomplete += usize::from(!enough);
            Ok(enough.then_some(tokens))
        })
    }

    /// Encodes the records on all processors, a piece at a time. What comes out, the problems and the first error
    /// are in the order of the records, whoever was ready first.
    fn all<R: Sync, T: Send, I: IntoIterator<Item = T>>(
        &self,
        records: &[R],
        encode: impl Fn(&mut Run<'_>, usize, &R) -> Result<I, Error> + Sync,
    ) -> Result<(Vec<T>, EncodeReport), Error> {
        let piece = |(number, records): (usize, &[R])| {
            let mut run =
                Run { encoder: self, report: EncodeReport::default(), problems: Vec::new(), unwritten: false };
            let mut kept = Vec::new();
            for (i, record) in (number * PIECE..).zip(records) {
                kept.extend(encode(&mut run, i, record)?);
                run.report.unwritten += usize::from(std::mem::take(&mut run.unwritten));
            }
            Ok((kept, run.report, run.problems))
        };
        let pieces: Vec<Result<_, Error>> = records.par_chunks(PIECE).enumerate().map(piece).collect();
        let many = pieces.iter().flatten().map(|(kept, ..)| kept.len()).sum();
        let (mut kept, mut report, mut problems) = (Vec::with_capacity(many), EncodeReport::default(), Vec::new());
        for piece in pieces {
            let (mut here, counted, mut refused) = piece?;
            kept.append(&mut here);
            report.add(&counted);
            problems.append(&mut refused);
        }
        report.kept = kept.len();
        if problems.is_empty() { Ok((kept, report)) } else { Err(Problems(problems).into()) }
    }
}

/// Records that one processor encodes at a time: few enough that all have work, many enough that handing
/// them out costs nothing.
const PIECE: usize = 64;

impl EncodeReport {
    fn add(&mut self, other: &EncodeReport) {
        let EncodeReport {
            kept,
            cut,
            long_prompts,
            empty_prompts,
            long_completions,
            incomplete,
            special_tokens,
            equal_pairs,
            unwritten,
            unended,
        } = other;
        self.kept += kept;
        self.cut += cut;
        self.long_prompts += long_prompts;
        self.empty_prompts += empty_prompts;
        self.long_completions += long_completions;
        self.incomplete += incomplete;
        self.special_tokens += special_tokens;
        self.equal_pairs += equal_pairs;
        self.unwritten += unwritten;
        self.unended += unended;
    }
}

/// The model's turns within the prompt, each with what was said before it.
fn earlier_replies(demonstration: &Demonstration) -> Vec<(Prompt, &String)> {
    let Content::Messages(conversation) = &demonstration.prompt.content else { return Vec::new() };
    let turns = conversation.messages.iter().enumerate();
    let answers = |&(i, turn): &(usize, &Message)| i > 0 && turn.role == Role::Assistant;
    let replies = turns.filter(answers).map(|(i, turn)| {
        let messages = conversation.messages[..i].to_vec();
        let prompt = Content::Messages(Conversation { messages });
        (Prompt { content: prompt, ..demonstration.prompt.clone() }, &turn.content)
    });
    replies.collect()
}

/// Whether some of these words are not in the text.
fn lacks(text: &str, words: &[String]) -> bool {
    words.iter().any(|words| !text.contains(words.trim()))
}

/// The ids before what is learned, and those of what is.
type Span = (Vec<u32>, Vec<u32>);

/// One pass over a piece of a data set.
struct Run<'a> {
    encoder: &'a Encoder<'a>,
    report: EncodeReport,
    problems: Vec<RecordError>,
    /// Whether the template left out a message of the present record.
    unwritten: bool,
}

impl<'a> Run<'a> {
    fn count_spelled(&mut self, texts: &[&str]) {
        let spells = |text: &&str| self.encoder.renderer.tokenizer().special_in(text).is_some();
        self.report.special_tokens += usize::from(texts.iter().any(spells));
    }

    /// The spans that the template marks in the whole conversation and that fit, each behind what stands before it.
    fn marked(&mut self, demonstration: &Demonstration) -> Result<Vec<Span>, Error> {
        let Caps { prompt: before, completion } = self.encoder.caps;
        let conversation = demonstration.prompt.content.conversation();
        let other = self.other_words(&conversation);
        let Marked { text, ids, spans } = self.encoder.renderer.marked(&conversation, &demonstration.completion)?;
        self.unwritten |= lacks(&text, &other);
        let mut fitting = Vec::new();
        for span in spans {
            let (count, tokens, limit) = if span.start > before {
                (&mut self.report.long_prompts, span.start, before)
            } else if span.len() > completion {
                (&mut self.report.long_completions, span.len(), completion)
            } else {
                let ends = ids[span.clone()].last().is_some_and(|id| self.encoder.renderer.stops().contains(id));
                self.report.unended += usize::from(!ends);
                fitting.push((ids[..span.start].to_vec(), ids[span].to_vec()));
                continue;
            };
            *count += 1;
            self.refuse(&demonstration.prompt, "completion", Problem::TooLong { tokens, limit });
        }
        self.report.incomplete += usize::from(fitting.is_empty());
        Ok(fitting)
    }

    /// What neither the person nor the model says, which a template may leave out. Words that spell a special token are
    /// written in pieces, so nothing is known of them.
    fn other_words(&self, conversation: &Conversation) -> Vec<String> {
        let tokenizer = self.encoder.renderer.tokenizer();
        let other = |m: &&Message| {
            matches!(m.role, Role::Other(_) | Role::System) && tokenizer.special_in(&m.content).is_none()
        };
        conversation.messages.iter().filter(other).map(|m| m.content.clone()).collect()
    }

    /// The prompt, cut if need be; `None` when it does not fit.
    fn prompt(&mut self, prompt: &Prompt) -> Result<Option<Asked<'a>>, Error> {
        let field = if matches!(prompt.content, Content::Text(_)) { "prompt" } else { "messages" };
        let limit = self.encoder.caps.prompt;
        let conversation = prompt.content.conversation();
        let other = self.other_words(&conversation);
        let asked = self.encoder.renderer.ask(conversation)?;
        self.unwritten |= lacks(asked.text(), &other);
        let tokens = asked.ids().len();
        if tokens == 0 {
            self.report.empty_prompts += 1;
            self.refuse(prompt, field, Problem::Empty);
            return Ok(None);
        }
        if tokens <= limit {
            return Ok(Some(asked));
        }
        let cut = match (&prompt.content, self.encoder.overlong) {
            (Content::Text(text), Overlong::CutPrompt) => self.cut(text)?,
            _ => None,
        };
        match cut {
            Some(_) => self.report.cut += 1,
            None => {
                self.report.long_prompts += 1;
                self.refuse(prompt, field, Problem::TooLong { tokens, limit });
            }
        }
        Ok(cut)
    }

    /// Cuts the text at its last newline, again and again, until it fits.
    fn cut(&self, text: &str) -> Result<Option<Asked<'a>>, Error> {
        let mut rest = text;
        while let Some((shorter, _)) = rest.rsplit_once('\n') {
            rest = shorter.trim_end();
            if rest.is_empty() {
                break;
            }
            let asked = self.encoder.renderer.ask(Content::Text(rest.to_owned()).conversation())?;
            if asked.ids().len() <= self.encoder.caps.prompt {
                return Ok(Some(asked));
            }
        }
        Ok(None)
    }

    /// The ids of a completion; `None` when it does not fit.
    fn completion(
        &mut self,
        prompt: &Prompt,
        asked: &Asked<'_>,
        field: &str,
        text: &str,
    ) -> Result<Option<Vec<u32>>, Error> {
        let limit = self.encoder.caps.completion;
        let mut ids = asked.completion(text)?;
        if ids.len() <= limit {
            // Millions of them are kept, and what ends them had doubled the room that each takes.
            ids.shrink_to_fit();
            return Ok(Some(ids));
        }
        self.report.long_completions += 1;
        self.refuse(prompt, field, Problem::TooLong { tokens: ids.len(), limit });
        Ok(None)
    }

    fn refuse(&mut self, prompt: &Prompt, field: &str, problem: Problem) {
        if self.encoder.overlong == Overlong::Refuse {
            let origin = prompt.origin.clone();
            self.problems.push(RecordError { origin, field: Some(field.to_owned()), problem });
        }
    }
}

/// Cuts pretraining text into examples: the documents, each closed by EOS, laid end to end and cut
/// into windows of `length` tokens. Returns the windows and the number of tokens left over at the
/// end, which are dropped.
///
/// # Errors
/// Any error of the tokenizer.
pub fn text_windows(
    tokenizer: &Tokenizer,
    texts: &[PretrainText],
    length: usize,
) -> Result<(Vec<Vec<u32>>, usize), Error> {
    let mut ids = Vec::new();
    for text in texts {
        ids.extend(tokenizer.encode(&text.text)?);
        ids.push(tokenizer.eos());
    }
    let windows = ids.chunks_exact(length.max(1));
    let left_over = windows.remainder().len();
    Ok((windows.map(<[u32]>::to_vec).collect(), left_over))
}

#[cfg(test)]
mod tests;
