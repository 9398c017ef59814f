//! `score`: what a model says of given texts, as JSON lines.

use crate::{
    config::{DeviceName, Precision},
    prepare::{device, open_decoder},
    terminal::print,
};
use anyhow::{Context, Result, bail};
use instruct_data::{Conversation, Message, Packed, Role, Template, Tokenizer, read_text};
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
    /// Lines {"text": ...} or {"prompt": ..., "completion": ...}
    #[arg(long)]
    input: PathBuf,
    /// Where to write; without it, standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Text around a prompt with {prompt} in it; without one, the model's chat template if it has
    /// one, else the prompt as it is
    #[arg(long, default_value = "")]
    template: String,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Text { text: String },
    Pair { prompt: String, completion: String },
}

/// A line in ids: what comes first is not scored, what comes after is.
struct Tokens {
    prompt: Vec<u32>,
    completion: Vec<u32>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (checkpoint, decoder) = open_decoder(&args.model, &device(args.device)?, Precision::F32)?;
    let tokenizer = match checkpoint.tokenizer() {
        Some(fields) => Tokenizer::from_gguf(fields)?,
        None => Tokenizer::from_folder(&args.model)?,
    };
    tokenizer.check_vocab(decoder.config().vocab)?;
    let template = match args.template.as_str() {
        "" => Template::of(&tokenizer)?,
        text => Some(Template::plain(text)?),
    };
    let lines = read_lines(args)?;
    let mut rows = String::new();
    for (number, line) in &lines {
        let tokens = encode(line, &tokenizer, template.as_ref())?;
        let at = || format!("{}:{number}", args.input.display());
        let longest = decoder.config().context;
        if tokens.prompt.len() + tokens.completion.len() > longest {
            bail!("{}: longer than the model's context of {longest} tokens; shorten it", at());
        }
        let row = match decoder.head() {
            HeadKind::Score => score(&decoder, &tokens).with_context(at)?,
            HeadKind::LanguageModel | HeadKind::LanguageModelWithValue => {
                logprobs(&decoder, &tokens).with_context(at)?
            }
            HeadKind::Value => bail!("{}: a value model has no score of a whole text", args.model.display()),
        };
        rows.push_str(&format!("{row}\n"));
    }
    match &args.out {
        None => print(rows.trim_end()),
        Some(path) => super::write_whole(path, rows.as_bytes())?,
    }
    Ok(())
}

/// Bytes of the whole input, and of one line of it.
const INPUT_BYTES: usize = 64 << 20;
const LINE_BYTES: usize = 4 << 20;

/// Every line that is not empty, with its number; all problems at once.
fn read_lines(args: &Args) -> Result<Vec<(usize, Line)>> {
    let path = args.input.display();
    let text = read_text(&args.input, INPUT_BYTES)?;
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        if line.len() > LINE_BYTES {
            problems.push(format!("{path}:{number}: longer than {LINE_BYTES} bytes; divide it"));
            continue;
        }
        match serde_json::from_str::<Line>(line) {
            Ok(Line::Text { text }) if text.is_empty() => {
                problems.push(format!("{path}:{number}: `text` is empty; fill it or remove the line"))
            }
            Ok(Line::Pair { completion, .. }) if completion.is_empty() => {
                problems.push(format!("{path}:{number}: `completion` is empty; fill it or remove the line"));
            }
            Ok(line) => lines.push((number, line)),
            Err(_) => problems.push(format!(
                "{path}:{number}: write {{\"text\": ...}} or {{\"prompt\": ..., \"completion\": ...}}, both of strings"
            )),
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

fn encode(line: &Line, tokenizer: &Tokenizer, template: Option<&Template>) -> Result<Tokens> {
    Ok(match line {
        Line::Text { text } => Tokens { prompt: Vec::new(), completion: tokenizer.encode_prompt(text)? },
        Line::Pair { prompt, completion } => {
            let conversation = Conversation { messages: vec![Message::new(Role::User, prompt)] };
            let (rendered, completion) = match template {
                Some(template) => (template.render_prompt(&conversation)?, template.render_completion(completion)),
                None => (prompt.clone(), completion.clone()),
            };
            let mut completion = tokenizer.encode(&completion)?;
            completion.push(tokenizer.eos());
            Tokens { prompt: tokenizer.encode_prompt(&rendered)?, completion }
        }
    })
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
