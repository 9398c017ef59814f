//! What is drawn becomes the parts of a response.

use crate::{
    Refusal,
    spelling::{Spelling, Stops, Trim},
    talk::Piece,
    voice::Voice,
    written::{Shape, Told, Usage, Whole},
};
use instruct_data::Error;
use instruct_model::{Drawn, End};

/// The choices of a response, as far as they are written.
pub(crate) struct Writing {
    choices: Vec<Choice>,
    prompt_tokens: usize,
    tells_logprobs: bool,
}

struct Choice {
    spelling: Spelling,
    stops: Stops,
    /// In a conversation, where white space around an answer is nobody's.
    trim: Option<Trim>,
    text: String,
    told: Vec<Told>,
    finish: Option<&'static str>,
}

/// What a token adds to a choice.
pub(crate) struct Part {
    pub(crate) choice: usize,
    pub(crate) text: String,
    pub(crate) told: Option<Told>,
    /// Why the choice ends here, if it does.
    pub(crate) finish: Option<&'static str>,
    /// Whether the model would go on.
    pub(crate) is_cut: bool,
}

impl Writing {
    pub(crate) fn new(
        shape: Shape,
        choices: usize,
        prompt_tokens: usize,
        stop: &[String],
        tells_logprobs: bool,
    ) -> Writing {
        let choice = |_| Choice {
            spelling: Spelling::default(),
            stops: Stops::new(stop.to_vec()),
            trim: (shape == Shape::Chat).then(Trim::default),
            text: String::new(),
            told: Vec::new(),
            finish: None,
        };
        Writing { choices: (0..choices).map(choice).collect(), prompt_tokens, tells_logprobs }
    }

    /// Adds a token; nothing, where its choice has ended.
    pub(crate) fn hear(&mut self, voice: &Voice, piece: Piece) -> Result<Option<Part>, Refusal> {
        let Piece { choice, drawn, end } = piece;
        let told = self.tells_logprobs.then(|| told(voice, &drawn)).transpose().map_err(unspelled)?;
        let Some(writing) = self.choices.get_mut(choice).filter(|choice| choice.finish.is_none()) else {
            return Ok(None);
        };
        let (text, is_stopped) = writing.spell(voice, drawn.token, end).map_err(unspelled)?;
        writing.text.push_str(&text);
        // What ends a completion is no part of it.
        let told = told.filter(|_| !is_stopped && end != Some(End::Stop));
        writing.told.extend(told.clone());
        writing.finish = match end {
            _ if is_stopped => Some("stop"),
            Some(End::Stop) => Some("stop"),
            Some(End::Cap | End::Room) => Some("length"),
            None => None,
        };
        Ok(Some(Part { choice, text, told, finish: writing.finish, is_cut: is_stopped && end.is_none() }))
    }

    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        Usage { prompt: self.prompt_tokens, completion: self.choices.iter().map(|choice| choice.spelling.len()).sum() }
    }

    /// Whether every choice has ended.
    pub(crate) fn is_whole(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// The texts so far.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.choices.iter().map(|choice| choice.text.as_str())
    }

    pub(crate) fn into_whole(self) -> Vec<Whole> {
        let tells = self.tells_logprobs;
        let whole = |Choice { text, told, finish, .. }| Whole {
            text,
            finish: finish.unwrap_or("length"),
            logprobs: tells.then_some(told),
        };
        self.choices.into_iter().map(whole).collect()
    }
}

impl Choice {
    /// The text that is certain with this token, and whether a text that ends the completion follows it.
    fn spell(&mut self, voice: &Voice, token: u32, end: Option<End>) -> Result<(String, bool), Error> {
        let mut part = self.spelling.push(voice.tokenizer(), token)?;
        if end.is_some() {
            part.push_str(&self.spelling.finish(voice.tokenizer())?);
        }
        let (mut text, is_stopped) = self.stops.push(&part);
        if end.is_some() && !is_stopped {
            text.push_str(&self.stops.finish());
        }
        if let Some(trim) = &mut self.trim {
            text = trim.push(&text);
        }
        Ok((text, is_stopped))
    }
}

fn told(voice: &Voice, drawn: &Drawn) -> Result<Told, Error> {
    let spell = |id: u32| voice.tokenizer().decode_with_specials(&[id]);
    let alternative = |&(id, logprob): &(u32, f32)| Ok((spell(id)?, logprob));
    let alternatives = drawn.alternatives.iter().map(alternative).collect::<Result<_, Error>>()?;
    Ok(Told { text: spell(drawn.token)?, logprob: drawn.logprob, alternatives })
}

fn unspelled(why: Error) -> Refusal {
    Refusal::new(500, format!("the answer cannot be spelled: {why}"))
}
