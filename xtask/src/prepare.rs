//! From files to token ids: the base model with its tokenizer and template, and every data set
//! read, cleaned, split by user and tokenised.

use crate::{
    asked::Asked,
    config::{Config, DataConfig, DeviceName, JudgeName, Precision},
    embedded,
    kept::Kept,
    progress::Progress,
    terminal::say,
    until::Until,
};
use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use instruct_data::{
    Caps, Content, Conversation, Date, Demonstration, DemonstrationTokens, EncodeReport, Encoder, LeakCheck, Limits,
    Loss, Message, Overlong, PersonalReport, PretrainText, Prompt, Ranking, Read, Record, RecordError, Renderer, Role,
    Side, Split, SplitPlan, Template, Tokenizer, cap_per_user, dedup, read_reporting, remove_personal, sample,
    text_windows,
};
use instruct_kernels::{DeviceChoice, Path as KernelPath, bf16_unit, probe_device};
use instruct_model::{Checkpoint, Config as Description, Decoder};
use instruct_reward_model::Group;
use instruct_sft::Example;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// A language model before its weights are read: where it lies, what it is, and what it takes to talk to
/// it.
pub struct Base {
    /// A Hugging Face folder or a GGUF file; of the base inside this program, where it was unpacked, which
    /// is gone after.
    pub path: PathBuf,
    /// Where it is to be computed.
    pub device: Device,
    /// Its shape.
    pub description: Description,
    /// How it is talked to: conversations to ids, and back.
    pub renderer: Renderer,
    /// Bytes that reading its weights once has left with the allocator, for the stages to take again.
    pub retained: u64,
}

/// Every data set of a run, in token ids.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Material {
    pub(crate) demonstrations: Split<Example>,
    /// The last reply of every demonstration that is trained on, where training takes others too.
    last_replies: Option<Vec<Example>>,
    pub(crate) rankings: Vec<RankedGroup>,
    /// Rankings that nothing trains on: those of validation and test users.
    pub(crate) held_out_rankings: Vec<RankedGroup>,
    pub(crate) prompts: Split<PromptIds>,
    pub(crate) windows: Vec<Vec<u32>>,
    pub(crate) held_out_windows: Vec<Vec<u32>>,
    /// The tasks that training asks for, where the judge can read them.
    pub(crate) asked: Option<Asked>,
    /// What was read, dropped and kept, a line each.
    pub(crate) report: Vec<String>,
}

/// What decides how records become ids, but for the files themselves: where it and they are the same, so is the
/// [`Material`].
#[derive(Serialize)]
pub(crate) struct Recipe<'a> {
    seed: u64,
    template: &'a str,
    date: &'a str,
    max_prompt: usize,
    max_completion: usize,
    overlong: Overlong,
    loss: Loss,
    data: &'a DataConfig,
    /// Where the files lie that are not inside this program: the report names them.
    places: Vec<PathBuf>,
    /// Most tokens of an answer in PPO, where windows of text are as long as its episodes.
    max_new_tokens: Option<usize>,
    /// The model's, in tokens.
    context: usize,
    /// How far the run goes, where a judge must be able to read what it is asked on the way.
    judged_until: Option<Until>,
}

impl<'a> Recipe<'a> {
    pub(crate) fn of(config: &'a Config, model: &Description, until: Until) -> Recipe<'a> {
        let Config { seed, data, model: words, ppo, .. } = config;
        Recipe {
            seed: *seed,
            template: &words.template,
            date: &words.date,
            max_prompt: words.max_prompt,
            max_completion: words.max_completion,
            overlong: words.overlong,
            loss: words.loss,
            data,
            places: own_files(data),
            max_new_tokens: (data.window == 0).then_some(ppo.max_new_tokens),
            context: model.context,
            judged_until: (data.judge == JudgeName::InstructionWorld).then_some(until),
        }
    }
}

/// A ranking in ids, beside what the evaluation says of the record it came from.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RankedGroup {
    /// The record's.
    pub(crate) id: String,
    pub(crate) group: Group,
    /// The prompt's words.
    pub(crate) prompt: String,
    /// The words of each completion of the group.
    pub(crate) completions: Vec<String>,
    pub(crate) labeler: Option<String>,
    pub(crate) use_case: Option<String>,
    pub(crate) confidence: Option<f32>,
}

/// A prompt in ids, beside its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PromptIds {
    pub(crate) text: String,
    /// The conversation, where it is more than one message of the user with these words; else empty.
    pub(crate) turns: Vec<(Role, String)>,
    pub(crate) use_case: String,
    /// Who wrote it, where that is known.
    pub(crate) user: Option<String>,
    pub(crate) ids: Vec<u32>,
}

impl PromptIds {
    /// The words as a record holds them.
    pub(crate) fn content(&self) -> Content {
        if self.turns.is_empty() {
            return Content::Text(self.text.clone());
        }
        let message = |(role, content): &(Role, String)| Message { role: role.clone(), content: content.clone() };
        Content::Messages(Conversation { messages: self.turns.iter().map(message).collect() })
    }
}

/// The device that a configuration asks for.
pub(crate) fn device(name: DeviceName) -> Result<Device> {
    Ok(probe_device(match name {
        DeviceName::Cpu => DeviceChoice::Cpu,
        DeviceName::Cuda => DeviceChoice::Cuda,
        DeviceName::Auto => DeviceChoice::Auto,
    })?)
}

/// The precision that this processor computes in when `asked` for one: without instructions for bf16 it
/// computes in f32, because bf16 would only be slow.
pub(crate) fn available(asked: Precision) -> Precision {
    if bf16_unit().is_some() { asked } else { Precision::F32 }
}

/// Opens a decoder from a Hugging Face folder or a GGUF file, with the fast path of its device.
///
/// Errors: files that are absent, broken or of a family that is not known.
pub fn open_decoder(path: &Path, device: &Device, precision: Precision) -> Result<(Checkpoint, Decoder)> {
    let checkpoint = Checkpoint::open(path)?;
    let (kernels, compute) = if device.is_cpu() {
        (KernelPath::Fused, available(precision).dtype())
    } else {
        (KernelPath::Composed, DType::BF16)
    };
    let decoder = Decoder::from_checkpoint(&checkpoint, device, kernels, compute)?;
    Ok((checkpoint, decoder))
}

/// How a person wants prompts to be put to a model.
pub struct Wording<'a> {
    /// Text around a prompt; empty for the model's chat template.
    pub template: &'a str,
    /// What the person sets it with, for messages.
    pub option: &'a str,
    /// The day that a chat template is told; without one, the day that the model's folder names.
    pub date: Option<Date>,
}

/// Opens a language model without its weights, with its tokenizer and the template that puts prompts to
/// it: the template of `wording` when it is not empty, else the model's own.
///
/// Errors: files that are absent or broken; a vocabulary larger than the model's; no template.
pub fn open_base(path: &Path, wording: Wording<'_>, device: &Device) -> Result<Base> {
    let checkpoint = Checkpoint::open(path)?;
    let tokenizer = open_tokenizer(&checkpoint, path)?;
    let description = checkpoint.config().clone();
    let Some(renderer) = renderer(&tokenizer, &wording)? else {
        bail!(
            "{}: the model has no chat template; give {}, for example \"User: {{prompt}}\\nAssistant:\"",
            path.display(),
            wording.option
        );
    };
    Ok(Base { path: path.to_owned(), device: device.clone(), description, renderer, retained: 0 })
}

/// How conversations are put to a model: with the template of `wording` when it is not empty, else with the
/// model's own; `None` when it has none. Says what every command should know of the template.
///
/// Errors: the template cannot be rendered.
pub(crate) fn renderer(tokenizer: &Tokenizer, wording: &Wording<'_>) -> Result<Option<Renderer>> {
    let &Wording { template, option, date } = wording;
    let template = match template {
        "" => Template::of(tokenizer).map_err(|why| anyhow!("{why} with {option}"))?,
        text => Some(Template::plain(text)?),
    };
    let Some(template) = template else { return Ok(None) };
    let template = if let Some(date) = date { template.with_date(date) } else { template };
    let renderer = Renderer::new(tokenizer.clone(), template)?;
    let opened = renderer.opened();
    if !opened.is_empty() {
        say(&format!(
            "template: its generation prompt ends with {opened:?}, which a finished turn lacks; replies are trained \
             and scored as they are written, after it"
        ));
    }
    Ok(Some(renderer))
}

/// The tokenizer of a model: from inside a GGUF file, or from beside a folder's weights.
///
/// Errors: files that are absent or broken; more entries than the model has rows.
pub(crate) fn open_tokenizer(checkpoint: &Checkpoint, path: &Path) -> Result<Tokenizer> {
    let tokenizer = match checkpoint.tokenizer() {
        Some(fields) => Tokenizer::from_gguf(fields)?,
        None => Tokenizer::from_folder(path)?,
    };
    tokenizer.check_vocab(checkpoint.config().vocab)?;
    Ok(tokenizer)
}

impl Base {
    /// Reads the weights: from the path, or from inside this program.
    ///
    /// Errors: as [`open_decoder`]; no room for a temporary folder.
    pub(crate) fn decoder(&self, config: &Config) -> Result<Decoder> {
        if config.model.base != embedded::BASE {
            return Ok(open_decoder(&self.path, &self.device, config.model.precision)?.1);
        }
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let path = base_path(embedded::BASE, &embedded::unpack(folder.path())?);
        Ok(open_decoder(&path, &self.device, config.model.precision)?.1)
    }
}

impl Material {
    /// Reads and prepares everything that `config` names, or reads what an earlier run [kept](crate::kept) of it.
    /// `embedded` is where this binary's own files have been unpacked.
    ///
    /// Errors: whatever a reader refuses; a record on two sides of the split; nothing left of what is taken `until`
    /// there.
    pub(crate) fn prepare(
        config: &Config,
        base: &Base,
        embedded: &Path,
        until: Until,
        kept: Option<Kept<'_>>,
    ) -> Result<Material> {
        // What no data can mend is refused before any is read.
        length_caps(config, &base.description, until)?;
        let recipe = Recipe::of(config, &base.description, until);
        let make = || Material::read(&recipe, base, embedded);
        let material = match kept {
            Some(kept) => kept.read_or(&recipe, make)?,
            None => make()?,
        };
        material.refuse_nothing(config, until)?;
        Ok(material)
    }

    fn read(recipe: &Recipe<'_>, base: &Base, embedded: &Path) -> Result<Material> {
        let data = recipe.data;
        let plan = SplitPlan { seed: recipe.seed, validation: data.validation, test: data.test };
        let mut report = Vec::new();
        let demonstrations = load::<Demonstration>(&data.demonstrations, data, &plan, embedded, &mut report)?;
        let rankings = load::<Ranking>(&data.rankings, data, &plan, embedded, &mut report)?;
        // A judge is trained on those that are held out.
        let rankings = match data.remove_personal {
            true => Split {
                validation: impersonal("ranking", rankings.validation, &mut report),
                test: impersonal("ranking", rankings.test, &mut report),
                ..rankings
            },
            false => rankings,
        };
        let prompts = load::<Prompt>(&data.prompts, data, &plan, embedded, &mut report)?;
        let prompts = with_own_test(prompts, data, embedded, &mut report)?;
        let mut leaks = LeakCheck::new(data.dedup_prefix);
        leaks.add_held_out("demonstrations", &demonstrations);
        leaks.add_held_out("rankings", &rankings);
        leaks.add_held_out("prompts", &prompts);
        let (demonstrations, rankings, prompts) = clean(&leaks, demonstrations, rankings, prompts, &mut report);

        let asked = match recipe.judged_until {
            Some(until) => Asked::of(data.judge, &demonstrations, &rankings, &prompts, until)?,
            None => None,
        };

        let caps = Caps { prompt: recipe.max_prompt, completion: recipe.max_completion };
        let encoder = Encoder { renderer: &base.renderer, caps, overlong: recipe.overlong, loss: recipe.loss };
        let last_replies = last_replies(&encoder, &demonstrations.train, &mut report)?;
        let demonstrations = examples(&encoder, demonstrations, &mut report)?;
        let rankings = map(rankings, |side, records| groups(&encoder, side, records, &mut report))?;
        let prompts = map(prompts, |side, records| prompt_ids(&encoder, side, &records, &mut report))?;
        let (demonstrations, rankings, prompts) = match recipe.overlong {
            Overlong::CutPrompt => apart(demonstrations, rankings, prompts, &mut report),
            Overlong::Drop | Overlong::Refuse => (demonstrations, rankings, prompts),
        };
        let length = match data.window {
            0 => {
                let prompt = median(prompts.train.iter().map(|p| p.ids.len()));
                recipe.max_new_tokens.unwrap_or(0).saturating_add(prompt).min(recipe.context)
            }
            length => length,
        };
        let (windows, held_out_windows) = windows(data, base, embedded, length, &mut report)?;
        Ok(Material {
            demonstrations,
            last_replies,
            held_out_rankings: rankings.validation.into_iter().chain(rankings.test).collect(),
            rankings: rankings.train,
            prompts,
            windows,
            held_out_windows,
            asked,
            report,
        })
    }

    /// The last reply of every demonstration that is trained on, whatever is trained.
    pub(crate) fn last_replies(&self) -> &[Example] {
        self.last_replies.as_ref().unwrap_or(&self.demonstrations.train)
    }

    fn refuse_nothing(&self, config: &Config, until: Until) -> Result<()> {
        let sets = self.sets(config, until);
        let empty = sets.iter().filter(|(_, n, taken)| *taken && *n == 0);
        let empty: Vec<&str> = empty.map(|(name, ..)| *name).collect();
        if empty.is_empty() {
            return Ok(());
        }
        bail!(
            "after cleaning, splitting and length caps nothing is left of: {}; raise `model.max-prompt` or \
             `model.max-completion`, lower `data.window`, change `data.validation` or `data.test`, or add files\n  {}",
            empty.join(", "),
            self.report.join("\n  ")
        )
    }

    /// What there is of everything, and whether it is taken on the way.
    fn sets(&self, config: &Config, until: Until) -> [(&'static str, usize, bool); 10] {
        let held_out_text = !config.data.pretraining.is_empty() || !config.data.pretraining_held_out.is_empty();
        [
            ("demonstrations", self.demonstrations.train.len(), true),
            ("held-out demonstrations", self.demonstrations.validation.len(), true),
            ("last replies of demonstrations", self.last_replies().len(), until >= Until::RewardModel),
            ("rankings", self.rankings.len(), until >= Until::RewardModel),
            ("held-out rankings", self.held_out_rankings.len(), until >= Until::RewardModel),
            ("prompts", self.prompts.train.len(), until >= Until::Ppo),
            ("validation prompts", self.prompts.validation.len(), until >= Until::Ppo),
            ("test prompts", self.prompts.test.len(), until >= Until::Evaluation),
            ("pretraining windows", self.windows.len(), until.mixes(config)),
            ("held-out pretraining windows", self.held_out_windows.len(), until >= Until::Evaluation && held_out_text),
        ]
    }

    /// What was read, dropped and kept, for the report of the run.
    pub(crate) fn counted(&self, config: &Config, until: Until) -> serde_json::Value {
        let taken = self.sets(config, until).into_iter().filter(|(_, _, taken)| *taken);
        let sets: serde_json::Map<String, serde_json::Value> =
            taken.map(|(name, count, _)| (name.to_owned(), count.into())).collect();
        serde_json::json!({ "sets": sets, "lines": self.report })
    }
}

/// Refuses caps on prompt and completion that together do not fit the model.
fn length_caps(config: &Config, model: &Description, until: Until) -> Result<()> {
    let context = model.context;
    let longest = until.longest_completion(config);
    if config.model.max_prompt.saturating_add(longest) > context {
        bail!(
            "`model.max-prompt` ({}) and the longest completion ({longest}) do not fit the model's context of {context} \
             tokens; lower `model.max-prompt`, `model.max-completion`, `ppo.max-new-tokens` or \
             `evaluate.max-new-tokens`",
            config.model.max_prompt,
        );
    }
    if config.data.window > context {
        bail!("`data.window` ({}) does not fit the model's context of {context} tokens; lower it", config.data.window);
    }
    Ok(())
}

/// Reads, cleans and splits one kind of record.
fn load<T: Record>(
    names: &[String],
    data: &DataConfig,
    plan: &SplitPlan,
    embedded: &Path,
    report: &mut Vec<String>,
) -> Result<Split<T>> {
    if names.is_empty() {
        return Ok(Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() });
    }
    let paths = resolve(names, embedded);
    let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default().to_lowercase();
    let read = read_showing::<T>(&paths, &kind).with_context(|| format!("reading {kind} records"))?;
    let found = read.records.len();
    let (account, skipped) = (account(&kind, &read), read.skipped.len());
    let (records, repeats) = dedup(read.records, data.dedup_prefix);
    let (mut records, capped) = cap_per_user(records, data.per_user);
    if data.limit > 0 {
        records = sample(records, data.limit, plan.seed);
    }
    report.push(format!(
        "{kind}: {found} read, {} skipped, {} repeated, {} over the cap of {} per user, {} kept",
        skipped,
        repeats.repeated + repeats.near,
        capped.removed,
        data.per_user,
        records.len(),
    ));
    report.extend(account);
    let split = plan.split(records)?;
    if !data.remove_personal {
        return Ok(split);
    }
    let train = impersonal(&kind, split.train, report);
    Ok(Split { train, ..split })
}

/// The records without an e-mail address or a telephone number.
fn impersonal<T: Record>(kind: &str, records: Vec<T>, report: &mut Vec<String>) -> Vec<T> {
    let (kept, PersonalReport { removed, emails, phones, .. }) = remove_personal(records);
    if removed > 0 {
        report.push(format!(
            "{kind}: {removed} left training for what they say of people: {emails} e-mail addresses, {phones} telephone \
             numbers"
        ));
    }
    kept
}

/// Puts a person's own test prompts in place of those that were split off, which join validation but for what the test
/// prompts ask too.
fn with_own_test(
    prompts: Split<Prompt>,
    data: &DataConfig,
    embedded: &Path,
    report: &mut Vec<String>,
) -> Result<Split<Prompt>> {
    if data.test_prompts.is_empty() {
        return Ok(prompts);
    }
    let read = read_showing::<Prompt>(&resolve(&data.test_prompts, embedded), "test prompt");
    let read = read.context("reading test prompts")?;
    let mut own = LeakCheck::new(data.dedup_prefix);
    own.add("test prompts", Side::Test, &read.records);
    let (validation, removed) = own.clean([prompts.validation, prompts.test].concat());
    report.push(format!(
        "test prompts: {} read; {removed} validation prompts left, of the same person or \
         asking the same",
        read.records.len()
    ));
    report.extend(account("test prompts", &read));
    Ok(Split { train: prompts.train, validation, test: read.records })
}

/// What a person must hear of what was read: a line for each reason for which records were left out, with
/// their number and the first of them, and a line for each file of which there is more to say.
pub(crate) fn account<T>(kind: &str, read: &Read<T>) -> Vec<String> {
    let mut reasons: BTreeMap<String, (usize, &RecordError)> = BTreeMap::new();
    for error in &read.skipped {
        let reason = format!("field `{}` {}", error.field.as_deref().unwrap_or_default(), error.problem);
        reasons.entry(reason).or_insert((0, error)).0 += 1;
    }
    let left_out = reasons
        .into_iter()
        .map(|(reason, (number, first))| format!("{kind}: {number} skipped: {reason} (the first at {})", first.origin));
    left_out.chain(read.remarks.iter().map(|remarks| format!("{kind}: {remarks}"))).collect()
}

/// Reads files, with progress in bytes.
fn read_showing<T: Record>(paths: &[PathBuf], kind: &str) -> Result<Read<T>, instruct_data::Error> {
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len() as usize);
    let mut progress = Progress::of(&format!("reading {kind}s"), paths.iter().map(size).sum(), "bytes");
    read_reporting::<T>(paths, &Limits::default(), &mut |bytes| progress.advance(bytes as usize))
}

/// Paths of the named files; `embedded:NAME` lies where the binary's own files were unpacked.
pub(crate) fn resolve(names: &[String], unpacked: &Path) -> Vec<PathBuf> {
    let path = |name: &String| match name.strip_prefix(embedded::PREFIX) {
        Some(name) => unpacked.join(name),
        None => expand(name),
    };
    names.iter().map(path).collect()
}

/// Paths of the named files of data that are not inside this program.
pub(crate) fn own_files(data: &DataConfig) -> Vec<PathBuf> {
    let names = data.files().map(|(_, name)| name).filter(|name| !name.starts_with(embedded::PREFIX));
    names.map(|name| expand(name)).collect()
}

/// Where the model that `model.base` names lies; the embedded one where the binary's own files were unpacked.
pub(crate) fn base_path(name: &str, unpacked: &Path) -> PathBuf {
    if name == embedded::BASE { unpacked.join("base") } else { expand(name) }
}

/// `$INSTRUCT_SHARED` at the start of a path, by default `../shared`.
pub(crate) fn expand(name: &str) -> PathBuf {
    match name.strip_prefix("$INSTRUCT_SHARED") {
        Some(rest) => {
            let shared = std::env::var("INSTRUCT_SHARED").unwrap_or_else(|_| "../shared".to_owned());
            PathBuf::from(format!("{shared}{rest}"))
        }
        None => PathBuf::from(name),
    }
}

/// Removes from training whatever shares a prompt with a held-out record of any set: where sets
/// name different users, or none, one prompt can fall on both sides.
fn clean(
    leaks: &LeakCheck,
    demonstrations: Split<Demonstration>,
    rankings: Split<Ranking>,
    prompts: Split<Prompt>,
    report: &mut Vec<String>,
) -> (Split<Demonstration>, Split<Ranking>, Split<Prompt>) {
    let (train_d, removed_d) = leaks.clean(demonstrations.train);
    let (train_r, removed_r) = leaks.clean(rankings.train);
    let (train_p, removed_p) = leaks.clean(prompts.train);
    report.push(format!(
        "leak check: {removed_d} demonstrations, {removed_r} rankings, {removed_p} prompts shared a prompt with \
         held-out data and left training"
    ));
    (
        Split { train: train_d, ..demonstrations },
        Split { train: train_r, ..rankings },
        Split { train: train_p, ..prompts },
    )
}

/// Removes from training what cutting made the same prompt as a held-out one.
fn apart(
    mut demonstrations: Split<Example>,
    mut rankings: Split<RankedGroup>,
    mut prompts: Split<PromptIds>,
    report: &mut Vec<String>,
) -> (Split<Example>, Split<RankedGroup>, Split<PromptIds>) {
    let d = demonstrations.validation.iter().chain(&demonstrations.test).map(|of| &of.prompt);
    let r = rankings.validation.iter().chain(&rankings.test).map(|of| &of.group.prompt);
    let p = prompts.validation.iter().chain(&prompts.test).map(|of| &of.ids);
    let held_out: BTreeSet<Vec<u32>> = d.chain(r).chain(p).cloned().collect();
    let before = demonstrations.train.len() + rankings.train.len() + prompts.train.len();
    demonstrations.train.retain(|of| !held_out.contains(&of.prompt));
    rankings.train.retain(|of| !held_out.contains(&of.group.prompt));
    prompts.train.retain(|of| !held_out.contains(&of.ids));
    let removed = before - demonstrations.train.len() - rankings.train.len() - prompts.train.len();
    report.push(format!("leak check: {removed} records left training whose prompt, as it was cut, is held out"));
    (demonstrations, rankings, prompts)
}

/// Every side of a split through `f`, which is told what the side is called in messages.
fn map<T, U>(split: Split<T>, mut f: impl FnMut(&str, Vec<T>) -> Result<Vec<U>>) -> Result<Split<U>> {
    Ok(Split {
        train: f("training", split.train)?,
        validation: f("validation", split.validation)?,
        test: f("test", split.test)?,
    })
}

/// The last reply of every demonstration, where training takes others too.
fn last_replies(
    encoder: &Encoder<'_>,
    records: &[Demonstration],
    report: &mut Vec<String>,
) -> Result<Option<Vec<Example>>> {
    if encoder.loss == Loss::Last {
        return Ok(None);
    }
    let (tokens, kept) = Encoder { loss: Loss::Last, ..*encoder }.demonstrations(records)?;
    // What else there is to say of these records is said where they are encoded for training.
    let EncodeReport { long_prompts, long_completions, .. } = kept;
    let lengths = EncodeReport { long_prompts, long_completions, ..EncodeReport::default() };
    note("last replies", &lengths, KEYS, report);
    Ok(Some(tokens.into_iter().map(example).collect()))
}

fn examples(encoder: &Encoder<'_>, records: Split<Demonstration>, report: &mut Vec<String>) -> Result<Split<Example>> {
    let mut learned = None;
    let split = map(records, |side, records| {
        let (tokens, kept) = encoder.demonstrations(&records)?;
        note(&format!("demonstrations, {side}"), &kept, KEYS, report);
        // The first side is the one that is trained on.
        learned.get_or_insert(kept);
        Ok(tokens.into_iter().map(example).collect())
    })?;
    if learned.is_some_and(|kept| kept.teaches_no_end()) {
        bail!(
            "`model.loss` is `generation`, and `{{% generation %}}` of the chat template marks no token that ends a \
             reply, in none of the demonstrations; mark it, or set `model.loss` to `last` or `all`"
        );
    }
    Ok(split)
}

fn example(tokens: DemonstrationTokens) -> Example {
    Example { prompt: tokens.prompt, completion: tokens.completion }
}

fn groups(
    encoder: &Encoder<'_>,
    side: &str,
    records: Vec<Ranking>,
    report: &mut Vec<String>,
) -> Result<Vec<RankedGroup>> {
    let (tokens, kept) = encoder.rankings(&records)?;
    note(&format!("rankings, {side}"), &kept, KEYS, report);
    let group = |t: instruct_data::RankingTokens| {
        let record = &records[t.record];
        RankedGroup {
            id: record.prompt.id.clone(),
            group: Group { prompt: t.prompt, completions: t.completions, ranks: t.ranks },
            prompt: record.subject(),
            completions: t.kept.iter().map(|&i| record.completions[i].clone()).collect(),
            labeler: record.labeler.clone(),
            use_case: record.prompt.use_case.clone(),
            confidence: record.confidence,
        }
    };
    Ok(tokens.into_iter().map(group).collect())
}

fn prompt_ids(
    encoder: &Encoder<'_>,
    side: &str,
    records: &[Prompt],
    report: &mut Vec<String>,
) -> Result<Vec<PromptIds>> {
    let (tokens, kept) = encoder.prompts(records)?;
    note(&format!("prompts, {side}"), &kept, KEYS, report);
    let prompt = |t: instruct_data::PromptTokens| PromptIds {
        text: records[t.record].subject(),
        turns: match &records[t.record].content {
            Content::Text(_) => Vec::new(),
            Content::Messages(said) => {
                said.messages.iter().map(|one| (one.role.clone(), one.content.clone())).collect()
            }
        },
        use_case: records[t.record].use_case.clone().unwrap_or_else(|| "all".to_owned()),
        user: records[t.record].user.clone(),
        ids: t.prompt,
    };
    Ok(tokens.into_iter().map(prompt).collect())
}

/// What a person sets the caps on prompts and completions with, for messages.
#[derive(Clone, Copy)]
pub(crate) struct CapNames {
    pub(crate) prompt: &'static str,
    pub(crate) completion: &'static str,
}

/// Those of a configuration.
const KEYS: CapNames = CapNames { prompt: "`model.max-prompt`", completion: "`model.max-completion`" };

/// What was left out on the way to ids, and what else only a tokenizer can tell: a line for each reason.
pub(crate) fn note(kind: &str, kept: &EncodeReport, caps: CapNames, report: &mut Vec<String>) {
    let CapNames { prompt, completion } = caps;
    let reasons = [
        (kept.long_prompts, format!("left out: the prompt is longer than {prompt}")),
        (kept.empty_prompts, "left out: the prompt has no token".to_owned()),
        (kept.long_completions, format!("completions left out: longer than {completion}")),
        (kept.incomplete, "left out: too few of their completions are left".to_owned()),
        (kept.cut, format!("with a prompt that was cut at a newline to fit {prompt}")),
        (
            kept.special_tokens,
            "with words that spell a special token of the model, which are encoded as words".to_owned(),
        ),
        (kept.equal_pairs, "pairs of equal completions, which are ranked and form no pair".to_owned()),
        (kept.unwritten, "with a message of which the chat template writes nothing".to_owned()),
        (
            kept.unended,
            "spans of the template that end without a token that ends a reply; no end is learned from them".to_owned(),
        ),
    ];
    let counted = reasons.into_iter().filter(|(number, _)| *number > 0);
    report.extend(counted.map(|(number, reason)| format!("{kind}: {number} {reason}")));
}

/// Texts of one length, in token ids.
type Windows = Vec<Vec<u32>>;

/// Windows of pretraining text for the mix, and held-out ones for the alignment tax.
fn windows(
    data: &DataConfig,
    base: &Base,
    embedded: &Path,
    length: usize,
    report: &mut Vec<String>,
) -> Result<(Windows, Windows)> {
    let mut cut = |names: &[String]| -> Result<Vec<Vec<u32>>> {
        let read = read_showing::<PretrainText>(&resolve(names, embedded), "text")?;
        report.extend(account("pretraining text", &read));
        let texts = match data.remove_personal {
            true => impersonal("pretraining text", read.records, report),
            false => read.records,
        };
        let (windows, left_over) = text_windows(base.renderer.tokenizer(), &texts, length)?;
        if left_over > 0 {
            report.push(format!("pretraining text: the last {left_over} tokens fill no window and are left out"));
        }
        Ok(windows)
    };
    let mut train = cut(&data.pretraining)?;
    let held_out = match data.pretraining_held_out.as_slice() {
        [] => train.split_off(train.len() - train.len() / 10),
        names => cut(names)?,
    };
    report.push(format!("pretraining text: {} windows of {length} tokens, {} held out", train.len(), held_out.len()));
    Ok((train, held_out))
}

fn median(lengths: impl Iterator<Item = usize>) -> usize {
    let mut sorted: Vec<usize> = lengths.collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests;
