//! `generate`: completions of prompts as JSON lines, or a chat on a terminal.

use super::opening::Opening;
use crate::{
    prepare::{Base, account},
    terminal::{print, say},
};
use anyhow::{Context, Result, bail};
use instruct_data::{Content, Conversation, Limits, Message, Prompt, Role, read};
use instruct_model::{Completion, Decoder, Request, SLOTS, Sampling, generate, generate_reporting};
use instruct_random::Source;
use std::{
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct generate --model runs/0001/ppo-ptx/model --prompt \"Name a colour.\"
  instruct generate --model MODEL.gguf --prompts prompts.jsonl -n 4 --out answers.jsonl
  instruct generate --model MODEL.gguf               # a chat";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder or .gguf file
    #[arg(long)]
    model: PathBuf,
    /// One prompt
    #[arg(long, conflicts_with = "prompts")]
    prompt: Option<String>,
    /// File of prompt records
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Completions per prompt
    #[arg(short, long, default_value_t = 1)]
    n: usize,
    /// 0 takes the most probable token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Draw only from the K most probable tokens; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw only from the most probable tokens that add up to P
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Cap on a completion, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Completions decoded at a time; changes speed and memory, never the text
    #[arg(long, default_value_t = SLOTS)]
    slots: usize,
    /// Keys the draws
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write; without it, standard output
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        bail!("--temperature {} must be 0 or more", args.temperature);
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        bail!("--top-p {} must lie above 0 and at most at 1", args.top_p);
    }
    if args.n == 0 || args.max_new_tokens == 0 || args.slots == 0 {
        bail!("-n, --max-new-tokens and --slots must be above 0");
    }
    let (base, decoder) = args.opening.open(&args.model)?;
    let model = Talking { base, decoder };
    match (&args.prompt, &args.prompts) {
        (Some(prompt), _) => {
            let content = Content::Text(prompt.clone());
            complete(args, &model, &[("--prompt".to_owned(), "prompt".to_owned(), content)])
        }
        (None, Some(file)) => {
            let read = read::<Prompt>(&[file], &Limits::default())?;
            account("prompts", &read).iter().for_each(|line| say(line));
            let prompts: Vec<_> = read.records.into_iter().map(|p| (p.origin.to_string(), p.id, p.content)).collect();
            complete(args, &model, &prompts)
        }
        (None, None) if std::io::stdin().is_terminal() => chat(args, &model),
        (None, None) => bail!("give --prompt TEXT or --prompts FILE (a chat needs a terminal)"),
    }
}

/// A model with what it takes to talk to it.
struct Talking {
    base: Base,
    decoder: Decoder,
}

/// Completes prompts, each with its place, its id and its words.
fn complete(args: &Args, model: &Talking, prompts: &[(String, String, Content)]) -> Result<()> {
    let Talking { base, decoder } = model;
    let fitting = |(place, _, content): &(String, String, Content)| {
        let ids = encode(base, content).with_context(|| place.clone())?;
        let context = decoder.config().context;
        match ids.len() {
            0 => bail!("{place}: the prompt has no token in this model's vocabulary; change it, or name another model"),
            tokens if tokens >= context => {
                bail!("{place}: {tokens} tokens leave no room in the model's context of {context}; shorten it")
            }
            _ => Ok(ids),
        }
    };
    let ids: Vec<Vec<u32>> = prompts.iter().map(fitting).collect::<Result<_>>()?;
    let repeated = ids.iter().flat_map(|ids| std::iter::repeat_n(ids, args.n));
    let requests: Vec<Request> =
        (0..).zip(repeated).map(|(episode, prompt)| Request { episode, prompt: prompt.clone() }).collect();
    let completions =
        generate_reporting(decoder, &requests, &sampling(args, base), args.slots, source(args), &mut |_| ())?;
    let mut lines = String::new();
    for (index, completion) in completions.iter().enumerate() {
        let (_, id, content) = &prompts[index / args.n];
        let row = serde_json::json!({
            "id": if args.n == 1 { id.clone() } else { format!("{id}#{}", index % args.n) },
            "prompt": content.texts().last(),
            "completion": base.renderer.tokenizer().decode(&completion.ids)?,
            "ids": completion.ids,
            "logprobs": completion.logprobs,
            "ended_by_eos": completion.ended_by_eos,
        });
        lines.push_str(&format!("{row}\n"));
    }
    match &args.out {
        None => print(lines.trim_end()),
        Some(path) => super::write_whole(path, lines.as_bytes())?,
    }
    Ok(())
}

/// Reads lines until the end of the input; the conversation so far is the prompt.
fn chat(args: &Args, model: &Talking) -> Result<()> {
    let Talking { base, decoder } = model;
    say("Type a message; Ctrl-D ends the chat.");
    let mut conversation = Conversation::default();
    for turn in 0.. {
        let Some(line) = ask()? else { return Ok(()) };
        conversation.messages.push(Message::new(Role::User, line));
        let prompt = encode(base, &Content::Messages(conversation.clone()))?;
        let requests = [Request { episode: turn, prompt }];
        let completions = generate(decoder, &requests, &sampling(args, base), source(args))?;
        let answer = reply(base, &completions)?;
        print(&answer);
        conversation.messages.push(Message::new(Role::Assistant, answer));
    }
    Ok(())
}

fn ask() -> Result<Option<String>> {
    let mut out = std::io::stderr();
    write!(out, "> ")?;
    out.flush()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim().to_owned()))
}

fn reply(base: &Base, completions: &[Completion]) -> Result<String> {
    let completion = completions.first().context("one request gives one completion")?;
    Ok(base.renderer.tokenizer().decode(&completion.ids)?.trim().to_owned())
}

fn encode(base: &Base, content: &Content) -> Result<Vec<u32>> {
    Ok(base.renderer.ask(content.conversation())?.ids().to_vec())
}

fn sampling(args: &Args, base: &Base) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        ..Sampling::plain(base.renderer.stops().clone(), args.max_new_tokens)
    }
}

fn source(args: &Args) -> Source {
    Source::new(args.seed, "generate")
}
