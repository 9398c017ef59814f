//! Tokenisation of the parts: prompt and completion are encoded apart and joined as ids, so that no
//! token straddles the boundary and the loss mask is exact.

use crate::{
    error::{Error, Problem, Problems, RecordError},
    record::{Content, Demonstration, PretrainText, Prompt, Ranking},
    template::Template,
    tokenizer::Tokenizer,
};

/// The longest prompt and the longest completion (its EOS included), in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Of a prompt, template and BOS included.
    pub prompt: usize,
    /// Of a completion, EOS included.
    pub completion: usize,
}

impl Caps {
    /// Prompts at most half the context, completions at most the other half (\[IG\] appendix A).
    pub fn halves(context: usize) -> Caps {
        Caps { prompt: context / 2, completion: context - context / 2 }
    }
}

/// What happens to a record that does not fit the caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlong {
    /// All such records are reported and none is returned.
    Refuse,
    /// It is left out and counted.
    Drop,
    /// A plain-text prompt is cut at its last newline until it fits (as \[N\] does). A prompt that never
    /// fits is left out, and so are conversations and completions that do not fit. A completion is never
    /// cut, because an EOS after half a sentence teaches the model to stop there.
    CutPrompt,
}

/// Everything that turns records into ids.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// Words to ids.
    pub tokenizer: &'a Tokenizer,
    /// Conversations to text.
    pub template: &'a Template,
    /// Longest prompt and completion.
    pub caps: Caps,
    /// What to do with records that are longer.
    pub overlong: Overlong,
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
    /// The completion; its last id is EOS.
    pub completion: Vec<u32>,
}

/// A ranking in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankingTokens {
    /// Index of its record.
    pub record: usize,
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The K >= 2 completions that fit, each ending with EOS.
    pub completions: Vec<Vec<u32>>,
    /// Their indices in the record, for quality and flags.
    pub kept: Vec<usize>,
    /// Their ranks, 1 = best of all that were ranked.
    pub ranks: Vec<u32>,
}

/// What was encoded and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeReport {
    /// Records encoded.
    pub kept: usize,
    /// Of these, prompts that were cut.
    pub cut: usize,
    /// Records left out because of their prompt's length.
    pub long_prompts: usize,
    /// Completions left out because of their length. Where too few remain, the record is left out too.
    pub long_completions: usize,
    /// Records left out because too few of their completions fit.
    pub incomplete: usize,
    /// Records left out because their prompt spells a special token, which the model would obey.
    pub special_tokens: usize,
}

impl Encoder<'_> {
    /// Encodes prompts.
    ///
    /// # Errors
    /// [`Error::Problems`] under [`Overlong::Refuse`]; any error of the template or the tokenizer.
    pub fn prompts(&self, records: &[Prompt]) -> Result<(Vec<PromptTokens>, EncodeReport), Error> {
        self.all(records, |run, record, prompt| {
            let prompt = run.prompt(prompt)?;
            Ok(prompt.map(|prompt| PromptTokens { record, prompt }))
        })
    }

    /// Encodes demonstrations.
    ///
    /// # Errors
    /// As for [`Encoder::prompts`].
    pub fn demonstrations(&self, records: &[Demonstration]) -> Result<(Vec<DemonstrationTokens>, EncodeReport), Error> {
        self.all(records, |run, record, demonstration| {
            let Some(prompt) = run.prompt(&demonstration.prompt)? else { return Ok(None) };
            let completion = run.completion(&demonstration.prompt, "completion", &demonstration.completion)?;
            run.report.incomplete += usize::from(completion.is_none());
            Ok(completion.map(|completion| DemonstrationTokens { record, prompt, completion }))
        })
    }

    /// Encodes rankings. A completion that is too long leaves its group; a group with fewer than
    /// two left is left out.
    ///
    /// # Errors
    /// As for [`Encoder::prompts`].
    pub fn rankings(&self, records: &[Ranking]) -> Result<(Vec<RankingTokens>, EncodeReport), Error> {
        self.all(records, |run, record, ranking| {
            let Some(prompt) = run.prompt(&ranking.prompt)? else { return Ok(None) };
            let mut tokens =
                RankingTokens { record, prompt, completions: Vec::new(), kept: Vec::new(), ranks: Vec::new() };
            for (i, (text, &rank)) in ranking.completions.iter().zip(&ranking.ranks).enumerate() {
                if let Some(completion) = run.completion(&ranking.prompt, &format!("completions[{i}]"), text)? {
                    tokens.completions.push(completion);
                    tokens.kept.push(i);
                    tokens.ranks.push(rank);
                }
            }
            let enough = tokens.kept.len() >= 2;
            run.report.incomplete += usize::from(!enough);
            Ok(enough.then_some(tokens))
        })
    }

    /// The ids of one prompt, whatever its length: for a prompt typed in.
    ///
    /// # Errors
    /// Any error of the template or the tokenizer.
    pub fn prompt_ids(&self, content: &Content) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode_prompt(&self.template.render_prompt(&content.conversation())?)
    }

    /// The ids of one completion, whatever its length; the last is EOS.
    ///
    /// # Errors
    /// Any error of the tokenizer.
    pub fn completion_ids(&self, completion: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.tokenizer.encode(&self.template.render_completion(completion))?;
        ids.push(self.tokenizer.eos());
        Ok(ids)
    }

    fn all<R, T>(
        &self,
        records: &[R],
        encode: impl Fn(&mut Run<'_>, usize, &R) -> Result<Option<T>, Error>,
    ) -> Result<(Vec<T>, EncodeReport), Error> {
        let mut run = Run { encoder: self, report: EncodeReport::default(), problems: Vec::new() };
        let mut kept = Vec::new();
        for (i, record) in records.iter().enumerate() {
            kept.extend(encode(&mut run, i, record)?);
        }
        run.report.kept = kept.len();
        if run.problems.is_empty() { Ok((kept, run.report)) } else { Err(Problems(run.problems).into()) }
    }
}

/// One pass over a data set.
struct Run<'a> {
    encoder: &'a Encoder<'a>,
    report: EncodeReport,
    problems: Vec<RecordError>,
}

impl Run<'_> {
    fn prompt(&mut self, prompt: &Prompt) -> Result<Option<Vec<u32>>, Error> {
        let field = if matches!(prompt.content, Content::Text(_)) { "prompt" } else { "messages" };
        let spelled = prompt.content.texts().into_iter().find_map(|text| self.encoder.tokenizer.special_in(text));
        if let Some(token) = spelled {
            let token = token.to_owned();
            self.report.special_tokens += 1;
            self.refuse(prompt, field, Problem::SpecialToken { token });
            return Ok(None);
        }
        let limit = self.encoder.caps.prompt;
        let ids = self.encoder.prompt_ids(&prompt.content)?;
        if ids.is_empty() {
            self.refuse(prompt, field, Problem::Empty);
            return Ok(None);
        }
        if ids.len() <= limit {
            return Ok(Some(ids));
        }
        let cut = match (&prompt.content, self.encoder.overlong) {
            (Content::Text(text), Overlong::CutPrompt) => self.cut(text)?,
            _ => None,
        };
        match cut {
            Some(_) => self.report.cut += 1,
            None => {
                self.report.long_prompts += 1;
                self.refuse(prompt, field, Problem::TooLong { tokens: ids.len(), limit });
            }
        }
        Ok(cut)
    }

    /// Cuts the text at its last newline, again and again, and returns its ids once they fit.
    fn cut(&self, text: &str) -> Result<Option<Vec<u32>>, Error> {
        let mut rest = text;
        while let Some((shorter, _)) = rest.rsplit_once('\n') {
            rest = shorter.trim_end();
            if rest.is_empty() {
                break;
            }
            let ids = self.encoder.prompt_ids(&Content::Text(rest.to_owned()))?;
            if ids.len() <= self.encoder.caps.prompt {
                return Ok(Some(ids));
            }
        }
        Ok(None)
    }

    fn completion(&mut self, prompt: &Prompt, field: &str, text: &str) -> Result<Option<Vec<u32>>, Error> {
        let limit = self.encoder.caps.completion;
        let ids = self.encoder.completion_ids(text)?;
        if ids.len() <= limit {
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
