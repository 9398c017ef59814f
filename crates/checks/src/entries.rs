//! One function per parser of untrusted bytes: whatever the bytes are, it returns. A panic is a
//! defect, and so is a promise of the parser that does not hold.
//!
//! Parsers read files, so the bytes are written to one: opening, decompressing and seeking are
//! tried with the rest. Where a parser reads several files the bytes are cut at NULs, which none of
//! them may hold.

use instruct_data::{
    Caps, Content, Conversation, Demonstration, Encoder, Limits, Loss, Message, Origin, Overlong, PretrainText, Prompt,
    Ranking, Record, Renderer, Role, Template, Tokenizer, read, train_bpe,
};
use instruct_feedback::{Event, Submission, read_answers, read_log, read_tasks};
use instruct_model::Checkpoint;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use tempfile::TempDir;
use xtask::config::Config;

/// An entry by its name, which is also that of its target and of its folder of inputs.
pub type Entry = (&'static str, fn(&[u8]));

/// Every entry.
pub const ENTRIES: [Entry; 10] = [
    ("records", records),
    ("config", config),
    ("model_config", model_config),
    ("safetensors", safetensors),
    ("shards", shards),
    ("gguf", gguf),
    ("template", template),
    ("tokenizer", tokenizer),
    ("requests", requests),
    ("feedback", feedback),
];

/// Records of all four kinds. What was read is written as the house writes it and must read back
/// as itself.
pub fn records(bytes: &[u8]) {
    let folder = Folder::new();
    let path = folder.put("bytes.jsonl", bytes);
    reread::<Prompt>(&path, &folder);
    reread::<Demonstration>(&path, &folder);
    reread::<Ranking>(&path, &folder);
    reread::<PretrainText>(&path, &folder);
    let text = folder.put("bytes.txt", bytes);
    named(&text, read::<PretrainText>(&[&text], &limits()).map_err(|e| e.to_string()).map(drop));
}

fn reread<T: Record>(path: &Path, folder: &Folder) {
    let records = match read::<T>(&[path], &limits()) {
        Ok(read) => read.records,
        Err(error) => return named(path, Err(error.to_string())),
    };
    let lines = |records: &[T]| records.iter().map(|record| record.to_line() + "\n").collect::<String>();
    if records.is_empty() {
        return;
    }
    let again = folder.put("again.jsonl", lines(&records).as_bytes());
    match read::<T>(&[&again], &limits()) {
        Ok(read) => assert_eq!(lines(&read.records), lines(&records)),
        Err(error) => panic!("what was written does not read back: {error}"),
    }
}

/// Small enough that the limits themselves are tried.
fn limits() -> Limits {
    Limits { line: 4_096, values: 256, spread: 8_192, whole: 16_384, file: 65_536, ratio: 20, problems: 30 }
}

/// A configuration file, and after every NUL one `key=value`. What is resolved must read back as
/// itself.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let settings: Vec<String> = parts.map(str::to_owned).collect();
    match Config::load(file, "bytes.toml", &settings) {
        Ok(config) => {
            let text = toml::to_string(&config).expect("what was read can be written");
            assert_eq!(Config::load(&text, "again", &[]).expect("what was written can be read"), config);
        }
        Err(error) => assert!(format!("{error:#}").contains("bytes.toml"), "{error:#}"),
    }
}

/// `config.json`, and after a NUL `generation_config.json`.
pub fn model_config(bytes: &[u8]) {
    let folder = Folder::new();
    folder.put_parts(&["config.json", "generation_config.json"], bytes);
    let opened = Checkpoint::open(folder.path());
    named(folder.path(), opened.map_err(|e| e.to_string()).map(drop));
}

/// `model.safetensors` beside a sound description.
pub fn safetensors(bytes: &[u8]) {
    let folder = Folder::new();
    folder.put("config.json", GPT2.as_bytes());
    folder.put("model.safetensors", bytes);
    open(folder.path());
}

/// `model.safetensors.index.json` beside a sound description and a file of weights.
pub fn shards(bytes: &[u8]) {
    let folder = Folder::new();
    folder.put("config.json", GPT2.as_bytes());
    folder.put("a.safetensors", weights());
    folder.put("model.safetensors.index.json", bytes);
    open(folder.path());
}

/// A GGUF file with all that stands in it.
pub fn gguf(bytes: &[u8]) {
    let folder = Folder::new();
    open(&folder.put("bytes.gguf", bytes));
}

/// A chat template over several conversations; and the same text as a plain template.
pub fn template(bytes: &[u8]) {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let tokenizer =
        TOKENIZER.get_or_init(|| train_bpe(["ab ab"], 258, &["<|end|>"]).expect("two bytes occur together twice"));
    for template in [Template::chat(source, tokenizer), Template::plain(source)].into_iter().flatten() {
        render(&template);
        encode(tokenizer, template);
    }
}

/// Makes ids of a conversation whose words spell a special token, in every way.
fn encode(tokenizer: &Tokenizer, template: Template) {
    let Ok(renderer) = Renderer::new(tokenizer.clone(), template) else { return };
    let turns = [(Role::User, "a<|end|>\u{301} "), (Role::Assistant, "<|end|>"), (Role::User, "\u{1F600}")];
    let messages = turns.map(|(role, text)| Message::new(role, text)).to_vec();
    let prompt = Prompt {
        id: String::new(),
        content: Content::Messages(Conversation { messages }),
        user: None,
        use_case: None,
        origin: Origin::new("conversation", 1),
    };
    let records = [Demonstration { prompt, completion: " b<|end|>\n".to_owned() }];
    for loss in [Loss::Last, Loss::All, Loss::Generation] {
        let caps = Caps { prompt: usize::MAX, completion: usize::MAX };
        let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Refuse, loss };
        // It may refuse a conversation.
        let Ok((found, _)) = encoder.demonstrations(&records) else { continue };
        for tokens in found.iter().filter(|_| loss != Loss::Generation) {
            let ends = tokens.completion.iter().filter(|id| renderer.stops().contains(id)).count();
            assert!(
                ends == 1 && renderer.stops().contains(tokens.completion.last().unwrap_or(&0)),
                "one end, the last"
            );
        }
    }
}

fn render(template: &Template) {
    use Role::{Assistant, System, User};
    for roles in [&[User][..], &[System, User], &[User, Assistant, User], &[User, User]] {
        let messages = roles.iter().map(|role: &Role| Message::new(role.clone(), "What, \"{{ x }}\"?\n ")).collect();
        // It may refuse a conversation.
        if let Ok(text) = template.render_prompt(&Conversation { messages }) {
            assert!(text.len() <= 16 << 20, "{} bytes were written", text.len());
        }
    }
}

/// The files of a tokenizer, one after each NUL; one that is empty is absent.
pub fn tokenizer(bytes: &[u8]) {
    let folder = Folder::new();
    let names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "config.json",
        "added_tokens.json",
    ];
    folder.put_parts(&names, bytes);
    match Tokenizer::from_folder(folder.path()) {
        Ok(tokenizer) => use_tokenizer(&tokenizer),
        Err(error) => named(folder.path(), Err(error.to_string())),
    }
}

/// Encodes, decodes, and writes the tokenizer out: what it writes must load and encode alike.
fn use_tokenizer(tokenizer: &Tokenizer) {
    let text = "User: What's  a\u{301} \u{1F600} <|endoftext|>\n\u{2581}12345?";
    let encode = |tokenizer: &Tokenizer| (tokenizer.encode(text).ok(), tokenizer.encode_prompt(text).ok());
    let ids = encode(tokenizer);
    for ids in [&ids.0, &ids.1].into_iter().flatten() {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "an id beyond the vocabulary");
    }
    let all: Vec<u32> = (0..tokenizer.vocab_size().min(500) as u32 + 2).collect();
    // A decoder may refuse.
    let _ = (tokenizer.decode(&all), tokenizer.decode_with_specials(&all));
    if let Ok(Some(template)) = Template::of(tokenizer) {
        render(&template);
    }
}

/// Opens a checkpoint and reads all of it, as a command does.
fn open(path: &Path) {
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return named(path, Err(error.to_string())),
    };
    if let Some(fields) = checkpoint.tokenizer()
        && let Ok(tokenizer) = Tokenizer::from_gguf(fields)
    {
        use_tokenizer(&tokenizer);
    }
    named(path, checkpoint.tensors().map_err(|e| e.to_string()).map(drop));
}

/// A refusal names the file, or the folder that it is in, and says what to do.
#[track_caller]
fn named(path: &Path, outcome: Result<(), String>) {
    if let Err(message) = outcome {
        assert!(message.contains(&path.display().to_string()), "no path in: {message}");
    }
}

/// A temporary folder, in memory where there is such a place.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Folder(made.expect("a temporary folder can be made"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).expect("a temporary file can be written");
        path
    }

    /// Writes the pieces between NULs under these names, except empty ones.
    fn put_parts(&self, names: &[&str], bytes: &[u8]) {
        let parts = bytes.splitn(names.len(), |&byte| byte == 0);
        names
            .iter()
            .zip(parts)
            .filter(|(_, part)| !part.is_empty())
            .for_each(|(name, part)| drop(self.put(name, part)));
    }
}

/// The description of a decoder of a few dozen weights.
const GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 3, "n_embd": 2, "n_head": 1, "n_layer": 1, "n_positions": 2,
    "n_inner": 2, "eos_token_id": 2}"#;

/// Its weights.
fn weights() -> &'static [u8] {
    static WEIGHTS: OnceLock<Vec<u8>> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let config = instruct_model::Config { inner: 2, ..instruct_model::Config::tiny_gpt2(3, 2, 1, 1, 2) };
        let folder = Folder::new();
        let head = instruct_model::HeadKind::LanguageModel;
        let shapes: std::collections::BTreeMap<String, Vec<usize>> = config.specs(head).into_iter().collect();
        let zeros = |name: &str| Ok(vec![0.0; shapes[name].iter().product()]);
        instruct_model::save(folder.path(), &config, head, &zeros, instruct_model::Precision::F32)
            .expect("a temporary folder can be written");
        fs::read(folder.path().join("model.safetensors")).expect("it was just written")
    })
}

/// Bodies of requests for completions. What is refused says why in a sentence.
pub fn requests(bytes: &[u8]) {
    for parsed in [instruct_serve::chat(bytes), instruct_serve::completions(bytes)] {
        match parsed {
            Ok(asked) => assert!((1..=8).contains(&asked.n) && asked.temperature.is_finite(), "{asked:?}"),
            Err(refusal) => assert!(refusal.status == 400 && !refusal.message.is_empty(), "{refusal:?}"),
        }
    }
}

/// What people say, as pages send it and as files hold it. What was read is written as it was.
pub fn feedback(bytes: &[u8]) {
    for parsed in [Submission::parse(bytes), Submission::parse_retraction(bytes)].into_iter().flatten() {
        let event = parsed.event("ann", 7);
        let (again, torn) = read_log(event.line().as_bytes()).expect("what was taken is a line of the log");
        assert!(torn.is_none() && again == [event]);
    }
    if let Ok((events, torn)) = read_log(bytes) {
        let lines: String = events.iter().map(Event::line).collect();
        assert_eq!(read_log(lines.as_bytes()).map(|(events, _)| events), Ok(events));
        assert!(torn.is_none_or(|torn| torn.offset + torn.bytes == bytes.len()));
    }
    let _ = (read_tasks(bytes), read_answers(bytes));
}
