//! `score`: what a model says of given texts, as JSON lines.

use crate::{
    config::{DeviceName, Precision},
    prepare::{Wording, device, open_decoder, open_tokenizer, renderer},
    terminal::print,
};
use anyhow::{Context, Result, bail};
use instruct_data::{Conversation, Date, Message, Packed, Renderer, Role, Template, Tokenizer, read_text};
use instruct_kernels::token_logprob;
use instruct_model::{Decoder, HeadKind, Pass};
use instruct_reward_model::{Item, scores};
use serde::Deserialize;
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "Examples:
  instruct score --model runs/0001/reward-model/model --input pairs.jsonl
  instruct score --model MODEL.gguf --input texts.jsonl --out logprobs.jsonl";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder or .gguf file: a language model or a reward model
    #[arg(long)]
    model: PathBuf,
    /// Lines {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [...]} that end with the assistant; an
    /// "id" is written out again
    #[arg(long)]
    input: PathBuf,
    /// Where to write; without it, standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Text around a prompt with {prompt} in it; without one, the model's chat template if it has
    /// one, else the prompt as it is
    #[arg(long, default_value = "")]
    template: String,
    /// Day that the chat template is told, as 2024-07-26; without one, that of the model's folder
    #[arg(long)]
    date: Option<Date>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
}

/// What a line may hold. Who wrote a record and what it asks for do not change its ids.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<serde_json::Value>,
    #[serde(rename = "user")]
    _user: Option<serde_json::Value>,
    #[serde(rename = "use_case")]
    _use_case: Option<serde_json::Value>,
    text: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Spoken>>,
    completion: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spoken {
    role: Role,
    content: String,
}

/// What is scored.
enum Scored {
    Text(String),
    Reply(Conversation, String),
}

/// A line in ids: what comes first is not scored, what comes after is.
struct Tokens {
    prompt: Vec<u32>,
    completion: Vec<u32>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (checkpoint, decoder) = open_decoder(&args.model, &device(args.device)?, Precision::F32)?;
    let tokenizer = open_tokenizer(&checkpoint, &args.model)?;
    let lines = read_lines(args)?;
    let replies = lines.iter().any(|line| matches!(line.scored, Scored::Reply(..)));
    // Texts need no template, and one that cannot be read must not stand in their way.
    let renderer = replies.then(|| worded(&tokenizer, args)).transpose()?;
    let mut rows = String::new();
    for Numbered { number, id, scored } in &lines {
        let at = || format!("{}:{number}", args.input.display());
        let tokens = encode(scored, &tokenizer, renderer.as_ref()).with_context(at)?;
        let longest = decoder.config().context;
        if tokens.prompt.len() + tokens.completion.len() > longest {
            bail!("{}: longer than the model's context of {longest} tokens; shorten it", at());
        }
        let mut row = match decoder.head() {
            HeadKind::Score => score(&decoder, &tokens).with_context(at)?,
            HeadKind::LanguageModel | HeadKind::LanguageModelWithValue => {
                logprobs(&decoder, &tokens).with_context(at)?
            }
            HeadKind::Value => bail!("{}: a value model has no score of a whole text", args.model.display()),
        };
        if let Some(id) = id {
            row["id"] = id.clone();
        }
        rows.push_str(&format!("{row}\n"));
    }
    match &args.out {
        None => print(rows.trim_end()),
        Some(path) => super::write_whole(path, rows.as_bytes())?,
    }
    Ok(())
}

/// How conversations are put to the model: with the template that was given, else with its own, else as they
/// are.
fn worded(tokenizer: &Tokenizer, args: &Args) -> Result<Renderer> {
    let template = super::typed(&args.template);
    let wording = Wording { template: &template, option: "--template", date: args.date };
    match renderer(tokenizer, &wording)? {
        Some(renderer) => Ok(renderer),
        None => Ok(Renderer::new(tokenizer.clone(), Template::plain("{prompt}")?)?),
    }
}

/// Bytes of the whole input, and of one line of it.
const INPUT_BYTES: usize = 64 << 20;
const LINE_BYTES: usize = 4 << 20;

/// A line with its number.
struct Numbered {
    number: usize,
    id: Option<serde_json::Value>,
    scored: Scored,
}

/// Every line that is not empty; all problems at once.
fn read_lines(args: &Args) -> Result<Vec<Numbered>> {
    let path = args.input.display();
    let text = read_text(&args.input, INPUT_BYTES)?;
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        match read_line(line.trim_start_matches('\u{FEFF}')) {
            Ok((id, scored)) => lines.push(Numbered { number, id, scored }),
            Err(problem) => problems.push(format!("{path}:{number}: {problem}")),
        }
    }
    if !problems.is_empty() {
        bail!("{} problem(s):\n  {}", problems.len(), problems.join("\n  "));
    }
    if lines.is_empty() {
        bail!("{path}: there is no line to score; give it at least one");
    }
    Ok(lines)
}

/// The id and the words of a line, or what is wrong with it.
fn read_line(line: &str) -> Result<(Option<serde_json::Value>, Scored), String> {
    if line.len() > LINE_BYTES {
        return Err(format!("longer than {LINE_BYTES} bytes; divide it"));
    }
    let Line { id, text, prompt, messages, completion, .. } =
        serde_json::from_str(line).map_err(|why| format!("{why}; write {SHAPES}"))?;
    let user = |prompt| vec![Message::new(Role::User, prompt)];
    let said = |spoken: Vec<Spoken>| spoken.into_iter().map(|turn| Message::new(turn.role, turn.content)).collect();
    let (name, words, messages) = match (text, prompt, messages.map(said), completion) {
        (Some(text), None, None, None) => ("text", text, None),
        (None, Some(prompt), None, Some(completion)) => ("completion", completion, Some(user(prompt))),
        (None, None, Some(messages), Some(completion)) => ("completion", completion, Some(messages)),
        (None, None, Some(mut messages), None) => match messages.pop_if(|last| last.role == Role::Assistant) {
            Some(last) => ("messages", last.content, Some(messages)),
            None => return Err("`messages` do not end with the assistant, whose words are scored; add them".to_owned()),
        },
        _ => return Err(format!("write {SHAPES}")),
    };
    match messages {
        _ if words.is_empty() => Err(format!("`{name}` is empty; fill it or remove the line")),
        None => Ok((id, Scored::Text(words))),
        Some(messages) => Ok((id, Scored::Reply(Conversation { messages }, words))),
    }
}

const SHAPES: &str = "{\"text\": ...}, {\"prompt\": ..., \"completion\": ...} or {\"messages\": [...]}, of strings";

fn encode(scored: &Scored, tokenizer: &Tokenizer, renderer: Option<&Renderer>) -> Result<Tokens> {
    match scored {
        Scored::Text(text) => Ok(Tokens { prompt: Vec::new(), completion: tokenizer.encode_prompt(text)? }),
        Scored::Reply(conversation, reply) => {
            let renderer = renderer.context("replies have a renderer")?;
            let asked = renderer.ask(conversation.clone())?;
            Ok(Tokens { prompt: asked.ids().to_vec(), completion: asked.completion(reply)? })
        }
    }
}

/// A reward model's score, read at the last token.
fn score(decoder: &Decoder, tokens: &Tokens) -> Result<serde_json::Value> {
    // A text without a prompt is one sequence; its score stands at its end all the same.
    let item = match tokens.prompt.as_slice() {
        [] => Item { prompt: &tokens.completion, completion: &[] },
        prompt => Item { prompt, completion: &tokens.completion },
    };
    Ok(serde_json::json!({ "score": scores(decoder, &[item], usize::MAX)?[0] }))
}

/// Log-probability of every token given those before it; the first has none.
fn logprobs(decoder: &Decoder, tokens: &Tokens) -> Result<serde_json::Value> {
    let ids: Vec<u32> = tokens.prompt.iter().chain(&tokens.completion).copied().collect();
    let mut batch = Packed::new();
    batch.push_text(&ids, 0, 1.0);
    let (rows, targets): (Vec<u32>, Vec<u32>) = batch.predictions().iter().map(|p| (p.row, p.target)).unzip();
    let mut logprobs = vec![None];
    if !targets.is_empty() {
        let hidden = decoder.hidden(&batch, Pass::Infer)?;
        let both = token_logprob(&hidden, decoder.unembedding()?, &rows, &targets, 1.0)?;
        let both = both.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
        logprobs.extend(both.into_iter().map(|row| Some(row[0])));
    }
    let prompt = tokens.prompt.len();
    Ok(serde_json::json!({ "ids": ids, "logprobs": logprobs, "prompt_tokens": prompt }))
}
