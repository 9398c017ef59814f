//! Exported folders, against what transformers made of the same bytes: `cargo xtask reference` writes the
//! folders once more and has `fixtures/reference/exports.py` load them, render prompts and generate.

use candle_core::{DType, Device};
use instruct_data::{Content, Renderer, Template, Tokenizer};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Checkpoint, Config, Decoder, HeadKind, Request, Sampling, generate};
use instruct_random::Source;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What transformers found in a folder.
#[derive(Deserialize)]
struct Loaded {
    files: BTreeMap<String, String>,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    prompt: Vec<u32>,
    completion: Vec<u32>,
}

const MAX_NEW_TOKENS: usize = 24;

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/reference")
}

/// The cases of `reference.py`, one folder each.
fn cases() -> Vec<String> {
    let folders = fs::read_dir(reference()).unwrap().map(|entry| entry.unwrap());
    let cases = folders.filter(|folder| folder.path().join("config.json").exists());
    let names: BTreeSet<String> = cases.map(|case| case.file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

/// What a folder is made of.
struct Case {
    /// The case of `reference.py` whose shape it has.
    shape: String,
    /// A plain template, or the name of one of `replies.py`.
    template: &'static str,
    /// The folder's name after the shape.
    name: &'static str,
    /// A tokenizer of `replies.py`, and what stands beside it.
    tokenizer: (&'static str, &'static str),
}

/// As `replies.py` writes it.
const NAMED: &str = r#"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}"#;
/// In the manner of Qwen 2.5: the tokenizer pads with the BOS of `config.json`, and knows no BOS.
const PADS_WITH_BOS: &str = r#"{"bos_token": null, "eos_token": "</s>", "pad_token": "<s>"}"#;
/// In the manner of Llama 2.
const BEGINS: &str = r#"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true}"#;

const PLAIN: &str = "User: {prompt}\nAssistant:";

/// Every family with a plain and a chat template; then tokenizers of other kinds.
fn all() -> Vec<Case> {
    let both = [("plain", PLAIN), ("chatml", "chatml")];
    let each = |shape: String| {
        both.map(|(name, template)| Case { shape: shape.clone(), template, name, tokenizer: ("bytes", NAMED) })
    };
    let others = [
        ("qwen2-tied", "pads-with-bos", "chatml", ("bytes", PADS_WITH_BOS)),
        ("llama-untied", "sentencepiece", "chatml", ("always", NAMED)),
        ("llama-untied", "sentencepiece-begins", PLAIN, ("always", BEGINS)),
        ("llama-untied", "sentencepiece-spells-bos", "<s>[INST] {prompt} [/INST]", ("always", BEGINS)),
    ];
    let others =
        others.map(|(shape, name, template, tokenizer)| Case { shape: shape.to_owned(), template, name, tokenizer });
    cases().into_iter().flat_map(each).chain(others).collect()
}

/// A model as a run would train it: the shape of a case, a tokenizer with a template, and weights that are
/// fractions of powers of two, so that their bytes hang on no processor's logarithm.
struct Trained {
    decoder: Decoder,
    renderer: Renderer,
}

impl Trained {
    fn new(case: &Case) -> Trained {
        let (vocabulary, beside) = case.tokenizer;
        let folder = tempfile::tempdir().unwrap();
        let whole = reference().join("replies").join(vocabulary).join("tokenizer.json");
        fs::copy(whole, folder.path().join("tokenizer.json")).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), beside).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let template = if case.template.contains("{prompt}") {
            Template::plain(case.template).unwrap()
        } else {
            let golden = fs::read(reference().join("replies/golden.json")).unwrap();
            let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
            Template::chat(golden["templates"][case.template].as_str().unwrap(), &tokenizer).unwrap()
        };
        let renderer = Renderer::new(tokenizer, template).unwrap();
        let known = Checkpoint::open(reference().join(&case.shape)).unwrap().config().clone();
        // Rows beyond the tokenizer's entries, as many models have.
        let vocab = renderer.tokenizer().vocab_size() + 4;
        let config = Config { vocab, context: 128, bos: Some(0), eos: [1].into(), pad: None, ..known };
        let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, KernelPath::Fused, DType::F32);
        let decoder = decoder.unwrap();
        let end = renderer.end() as usize;
        decoder.params().fill(|slot, values| fill(&slot.name, slot.shape.get(1).copied(), end, values)).unwrap();
        Trained { decoder, renderer }
    }

    fn save(&self, folder: &Path, head: HeadKind) {
        let decoder = self.decoder.with_head(head, 1).unwrap();
        if head == HeadKind::Score {
            decoder.params().fill(|slot, values| fill(&slot.name, None, usize::MAX, values)).unwrap();
        }
        xtask::save_model(&decoder, &self.renderer.exported(), folder).unwrap();
    }

    fn answer(&self, text: &str) -> (Vec<u32>, Vec<u32>) {
        let prompt = self.renderer.ask(Content::Text(text.to_owned()).conversation()).unwrap().ids().to_vec();
        let stops = self.renderer.stops().clone();
        let sampling = Sampling { temperature: 0.0, ..Sampling::plain(stops, MAX_NEW_TOKENS) };
        let request = [Request { episode: 0, prompt: prompt.clone() }];
        let completions = generate(&self.decoder, &request, &sampling, Source::new(1, "exports")).unwrap();
        (prompt, completions[0].ids.clone())
    }
}

/// Weights that look random. The rows of the token that ends replies are larger, so that some end.
fn fill(name: &str, columns: Option<usize>, end: usize, values: &mut [f32]) {
    let seed = name.bytes().fold(7u64, |seed, byte| (seed * 31 + u64::from(byte)) % 100_003);
    for (i, value) in values.iter_mut().enumerate() {
        let mixed = (seed * 7_919 + i as u64 * 104_729 + (i as u64 * i as u64) % 8_191 * 613) % 1_021;
        let drawn = mixed as f32 / 2_048.0 - 0.25;
        let louder =
            if columns.is_some_and(|columns| i / columns == end) && !name.starts_with("layers") { 2.0 } else { 1.0 };
        *value = if name.contains("norm") && name.ends_with("weight") { 1.0 + drawn } else { drawn * louder };
    }
}

const KINDS: [(&str, HeadKind); 2] = [("policy", HeadKind::LanguageModel), ("reward", HeadKind::Score)];

/// All folders, for the script.
#[test]
#[ignore = "writes folders for a script; see the module"]
fn exports_for_transformers() {
    let out = PathBuf::from(std::env::var("INSTRUCT_OUT").expect("INSTRUCT_OUT names the folder to write"));
    for case in all() {
        let trained = Trained::new(&case);
        for (kind, head) in KINDS {
            trained.save(&out.join(format!("{}-{}-{kind}", case.shape, case.name)), head);
        }
    }
}

#[test]
fn transformers_loads_every_export_and_stops_where_we_stop() {
    let golden = fs::read(reference().join("exports.json")).unwrap();
    let golden: BTreeMap<String, Loaded> = serde_json::from_slice(&golden).unwrap();
    let mut seen = BTreeSet::new();
    for case in all() {
        let trained = Trained::new(&case);
        for (kind, head) in KINDS {
            let name = format!("{}-{}-{kind}", case.shape, case.name);
            let folder = tempfile::tempdir().unwrap();
            trained.save(folder.path(), head);
            check(&trained, &name, folder.path(), &golden[&name]);
            instruct_claims::holds("text/exports", &format!("{} {}, {kind}", case.shape, case.name), 0.0, 0.0);
            seen.insert(name);
        }
    }
    assert_eq!(seen, golden.keys().cloned().collect(), "every folder that transformers loaded is written here");
    let ended = golden.values().flat_map(|loaded| &loaded.answers).filter(|a| a.completion.len() < MAX_NEW_TOKENS);
    assert!(ended.count() >= golden.len(), "answers that end by themselves are common");
}

#[track_caller]
fn check(trained: &Trained, name: &str, folder: &Path, loaded: &Loaded) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let hash = |path: PathBuf| Sha256::digest(fs::read(path).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    let written: BTreeMap<String, String> =
        files.map(|file| (file.file_name().into_string().unwrap(), hash(file.path()))).collect();
    assert_eq!(
        written, loaded.files,
        "{name} is not what transformers loaded: run `cargo xtask reference`, and look at why it changed"
    );
    for answer in &loaded.answers {
        let found = trained.answer(&answer.text);
        assert_eq!(found, (answer.prompt.clone(), answer.completion.clone()), "{name}: {:?}", answer.text);
    }
}
