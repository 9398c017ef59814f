//! `tasks`: what people are asked to rank, or to write.

use super::opening::Opening;
use crate::{
    desk::{Folder, TASKS},
    embedded,
    prepare::account,
    progress::Progress,
    terminal::say,
};
use anyhow::{Context, Result, bail};
use instruct_data::{Limits, Prompt, read};
use instruct_feedback::{
    Applied, MAX_COMPLETIONS, Made, Options, Refusal, Sampled, Settings, State, Task, read_tasks, records, tasks_from,
};
use instruct_model::{Request, SLOTS, Sampling, generate_reporting};
use instruct_random::Source;
use std::path::{Path, PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct tasks --feedback runs/0001/feedback --prompts prompts.jsonl --model runs/0001/ppo-ptx/model -k 4
  instruct tasks --feedback FOLDER --prompts prompts.jsonl --model OLD --model NEW -k 2   # who wrote what stays hidden
  instruct tasks --feedback FOLDER --thumbs --model runs/0001/ppo-ptx/model               # what had a thumb alone";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of feedback, where `instruct serve` finds the tasks
    #[arg(long)]
    feedback: PathBuf,
    /// Files of prompt records; `embedded:prompts.jsonl` are those of the simulation inside this program
    #[arg(long, required_unless_present = "thumbs")]
    prompts: Vec<PathBuf>,
    /// The prompts of the chat whose answer got a thumb and nothing more, those with a thumb down first
    #[arg(long)]
    thumbs: bool,
    /// Model folder or .gguf file whose answers are ranked; several are mixed. Without one people write the answers
    #[arg(long)]
    model: Vec<PathBuf>,
    /// Answers of each model to a prompt
    #[arg(short, long, default_value_t = 4)]
    k: usize,
    /// Only so many of the prompts of --prompts, chosen by the seed; 0 is all
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// 0 takes the most probable token
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Cap on an answer, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Keys the draws
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Answers written at a time; changes speed and memory, never the text
    #[arg(long, default_value_t = SLOTS)]
    slots: usize,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.k == 0 || args.max_new_tokens == 0 || args.slots == 0 {
        bail!("-k, --max-new-tokens and --slots must be above 0");
    }
    if args.model.len() == 1 && args.k == 1 {
        bail!("one answer of one model leaves nothing to rank; take -k 2 or more, or a second --model");
    }
    if args.k * args.model.len() > MAX_COMPLETIONS {
        bail!(
            "{} answers are more than {MAX_COMPLETIONS}, which a person can rank; lower -k",
            args.k * args.model.len()
        );
    }
    let folder = Folder::open(&args.feedback)?;
    let mut all = if args.thumbs { of_thumbs(&folder)? } else { Vec::new() };
    let of_chat = all.len();
    if !args.prompts.is_empty() {
        all.extend(prompts(args)?);
    }
    let tasks = match args.model.is_empty() {
        true => all.iter().map(Task::demonstrate).collect(),
        false => ranked(args, all, of_chat)?,
    };
    add(&folder, tasks)
}

/// The prompts, or so many of them as are wanted.
fn prompts(args: &Args) -> Result<Vec<Prompt>> {
    let unpacked = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = embedded::unpack(unpacked.path())?;
    let path = |path: &PathBuf| match path.to_string_lossy().strip_prefix(embedded::PREFIX) {
        Some(name) => folder.join(name),
        None => path.clone(),
    };
    let read = read::<Prompt>(&args.prompts.iter().map(path).collect::<Vec<_>>(), &Limits::default())?;
    account("prompts", &read).iter().for_each(|line| say(line));
    let mut prompts = read.records;
    if args.limit > 0 && args.limit < prompts.len() {
        let mut chosen = Source::new(args.seed, "tasks/prompts").at([]).permutation(prompts.len());
        chosen.truncate(args.limit);
        chosen.sort_unstable();
        prompts = chosen.into_iter().map(|at| prompts[at].clone()).collect();
    }
    Ok(prompts)
}

/// What people said of an answer alone makes nothing that can be trained on, so its prompt is asked again.
fn of_thumbs(folder: &Folder) -> Result<Vec<Prompt>> {
    let state = State::of(Settings::default(), folder.collected()?)?;
    let prompts = records(&state, &Options::default()).prompts;
    say(&format!("{} prompts of answers with a thumb", prompts.len()));
    Ok(prompts)
}

/// Ranking tasks of what the models answer. So many of the prompts, the first, are those of people's chats.
fn ranked(args: &Args, prompts: Vec<Prompt>, of_chat: usize) -> Result<Vec<Task>> {
    let mut sampled: Vec<Sampled> =
        prompts.into_iter().map(|prompt| Sampled { prompt, completions: Vec::new() }).collect();
    for (number, model) in args.model.iter().enumerate() {
        sample(args, number as u64, model, &mut sampled, of_chat)?;
    }
    let Made { tasks, too_few, repeated, unusable } = tasks_from(&sampled, args.seed)?;
    for (count, what) in [
        (too_few.len(), "prompts got fewer than two different answers, and give no task"),
        (repeated.len(), "prompts repeat an earlier one"),
        (unusable, "answers hold a character that no record may hold, and are left out"),
    ] {
        if count > 0 {
            say(&format!("{count} {what}"));
        }
    }
    Ok(tasks)
}

/// Adds the answers of a model.
fn sample(args: &Args, number: u64, path: &Path, sampled: &mut [Sampled], of_chat: usize) -> Result<()> {
    let (base, decoder) = args.opening.open(path)?;
    let (mut requests, mut asked_of) = (Vec::with_capacity(sampled.len() * args.k), Vec::new());
    for (at, Sampled { prompt, .. }) in sampled.iter().enumerate() {
        let asked = base.renderer.ask(prompt.content.conversation()).with_context(|| prompt.origin.to_string())?;
        let fits = !asked.ids().is_empty() && asked.ids().len() < decoder.config().context;
        if !fits && at < of_chat {
            // Nobody can leave a chat out of a file; without answers it gives no task.
            continue;
        }
        if !fits {
            let tokens = asked.ids().len();
            bail!(
                "{}: {tokens} tokens leave no room for an answer, or ask nothing; leave this prompt out",
                prompt.origin
            );
        }
        asked_of.push(at);
        let request = |j: usize| Request { episode: (at * args.k + j) as u64, prompt: asked.ids().to_vec() };
        requests.extend((0..args.k).map(request));
    }
    let sampling = Sampling {
        temperature: args.temperature,
        ..Sampling::plain(base.renderer.stops().clone(), args.max_new_tokens)
    };
    let mut progress = Progress::of(&path.display().to_string(), requests.len(), "answers");
    let source = Source::new(args.seed, "tasks").fork(number);
    let drawn = generate_reporting(&decoder, &requests, &sampling, args.slots, source, &mut |n| progress.advance(n))?;
    let name = name_of(path);
    for (i, completion) in drawn.iter().enumerate() {
        let text = base.renderer.tokenizer().decode(&completion.ids)?.trim().to_owned();
        sampled[asked_of[i / args.k]].completions.push((name.clone(), text));
    }
    Ok(())
}

/// What a model is called in tasks: the artefact and its run, or the name of its file or folder.
fn name_of(path: &Path) -> String {
    let part = |path: Option<&Path>| path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let artefact = path.parent();
    match (stem.as_str(), part(artefact), part(artefact.and_then(Path::parent))) {
        ("model", Some(artefact), Some(run)) => format!("{artefact} of {run}"),
        _ => stem,
    }
}

/// Writes down the tasks that are not there yet.
pub(super) fn add(folder: &Folder, tasks: Vec<Task>) -> Result<()> {
    let mut state = State::of(Settings::default(), folder.collected()?)?;
    let (mut lines, mut new, all) = (String::new(), 0, tasks.len());
    for task in tasks {
        let line = task.line();
        match state.add_task(task) {
            Ok(Applied::Saved) => {
                lines.push_str(&line);
                new += 1;
            }
            // The same words, perhaps of other models: people are asked once.
            Ok(Applied::Repeated) | Err(Refusal::Used { .. }) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    let at = folder.path().join(TASKS);
    // A half line that a program left which died would make what follows it unreadable.
    if let (_, Some(torn)) = read_tasks(&folder.read(TASKS)?).with_context(|| at.display().to_string())? {
        folder.cut(TASKS, torn.offset as u64)?;
    }
    folder.append(TASKS, lines.as_bytes()).with_context(|| format!("cannot write {}", at.display()))?;
    say(&format!("{new} tasks added to {}, {} were there already", at.display(), all - new));
    say("  people find them on the page Rank, or Demonstrate, of `instruct serve`");
    Ok(())
}
