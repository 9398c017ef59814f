//! How long large data takes from its file to ids, and what that holds: the first time, and when it was kept.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Config, Decoder, HeadKind, Precision as StoredAs};
use instruct_random::Source;
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use xtask::{
    machine::peak_memory_mb_of,
    terminal::{print, say},
    write_whole,
};

/// Tokens of a prompt, and of its completion.
const TOKENS: usize = 60;

/// Records whose file is large enough to be kept.
const FEWEST: usize = 20_000;

/// A chat template in the manner of ChatML.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Generates so many demonstrations in the words of GPT-2, and starts a run on them twice that trains nothing.
///
/// Errors: GPT-2's vocabulary is not there; the program fails.
pub(super) fn run(records: usize, out: Option<&Path>) -> Result<()> {
    ensure!(records >= FEWEST, "--prepare takes at least {FEWEST} records: less is not kept");
    let root = crate::process::root()?;
    let program = crate::process::program(&root)?;
    let shared = std::env::var("INSTRUCT_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let words = root.join(shared).join("tokenizers/gpt2");
    ensure!(words.is_dir(), "{} is not there: set INSTRUCT_SHARED", words.display());
    let folder = tempfile::tempdir_in(root.join("target")).context("cannot make a folder under target/")?;
    let at = |name: &str| folder.path().join(name);
    let vocabulary = model(&words, &at("model"))?;
    say(&format!("writing {records} demonstrations"));
    demonstrations(&vocabulary, records, &at("demonstrations.jsonl"))?;
    let config = format!(
        "[model]\nbase = {:?}\nmax-prompt = 128\nmax-completion = 128\n[data]\ndemonstrations = [{:?}]\n\
         [sft-init]\npretraining-share = 0.0\n",
        at("model"),
        at("demonstrations.jsonl")
    );
    fs::write(at("config.toml"), config)?;
    let mut table = format!(
        "{records} demonstrations of {TOKENS} and {TOKENS} tokens, vocabulary of GPT-2, chat template; {} threads\n",
        std::thread::available_parallelism()?
    );
    for (what, said) in [("from the file", "prepared data: kept in"), ("kept", "prepared data: read from")] {
        let started = start(&program, folder.path(), said)?;
        let _ =
            writeln!(table, "{what:>16}  {:7.1} s  {:6.0} MB of 2^20 bytes at most", started.seconds, started.peak_mb);
    }
    let size = |path: &Path| Ok::<f64, std::io::Error>(fs::metadata(path)?.len() as f64 / 1e6);
    let kept = fs::read_dir(at("cache"))?.next().context("nothing was kept")??.path();
    let (file, kept) = (size(&at("demonstrations.jsonl"))?, size(&kept)?);
    let _ = writeln!(table, "the file has {file:.0} MB of a million bytes, what is kept {kept:.0}");
    print(&table);
    out.map_or(Ok(()), |out| {
        fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        write_whole(&out.join("prepare.txt"), table.as_bytes())
    })
}

/// Writes a small model with the vocabulary of GPT-2, and returns its words: tokens that begin with a space and
/// stay one token wherever they stand.
fn model(words: &Path, folder: &Path) -> Result<Vec<String>> {
    let entries: std::collections::BTreeMap<String, u32> =
        serde_json::from_slice(&fs::read(words.join("encoder.json"))?).context("encoder.json")?;
    let config = Config { bos: None, ..Config::tiny_gpt2(50_257 + 2, 16, 1, 1, 256) };
    let config = Config { eos: [50_258].into(), ..config };
    let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, KernelPath::Fused, DType::F32)?;
    decoder.save(folder, StoredAs::F32)?;
    fs::copy(words.join("encoder.json"), folder.join("vocab.json"))?;
    fs::copy(words.join("vocab.bpe"), folder.join("merges.txt"))?;
    let added = |content: &str| serde_json::json!({ "content": content, "special": true });
    let settings = serde_json::json!({
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
        "added_tokens_decoder": { "50257": added("<|im_start|>"), "50258": added("<|im_end|>") },
    });
    fs::write(folder.join("tokenizer_config.json"), settings.to_string())?;
    // The vocabulary writes a space as this letter.
    let word = |entry: String| {
        let letters = entry.strip_prefix('\u{120}')?;
        letters.bytes().all(|byte| byte.is_ascii_lowercase()).then(|| format!(" {letters}"))
    };
    let found: Vec<String> = entries.into_keys().filter_map(word).collect();
    ensure!(found.len() > 10_000, "{} holds few words", words.display());
    Ok(found)
}

fn demonstrations(words: &[String], records: usize, path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let source = Source::new(1, "bench/prepare");
    for record in 0..records as u64 {
        let mut draws = source.at([record]);
        let mut text = || -> String { (0..TOKENS).filter_map(|_| draws.pick(words)).map(String::as_str).collect() };
        let line = serde_json::json!({ "prompt": text().trim_start(), "completion": text().trim_start() });
        writeln!(file, "{line}")?;
    }
    Ok(file.flush()?)
}

struct Started {
    seconds: f64,
    /// The most memory that it held, in megabytes of 2^20 bytes.
    peak_mb: f64,
}

/// Starts the program in `folder`, and looks at what it holds until it ends. What it says must hold `said`.
fn start(program: &Path, folder: &Path, said: &str) -> Result<Started> {
    let mut command = Command::new(program);
    command.args(["sft", "--dry-run", "--config", "config.toml"]).current_dir(folder).env("INSTRUCT_CACHE", "cache");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(folder.join("said.txt"))?);
    let begun = Instant::now();
    let mut process = command.spawn().context("cannot start the program")?;
    let number = process.id().to_string();
    let mut peak_mb = 0.0f64;
    let ended = loop {
        // The system counts the most that was ever held, so only what is taken after the last look is missed.
        peak_mb = peak_mb.max(peak_memory_mb_of(&number));
        match process.try_wait()? {
            Some(ended) => break ended,
            None => sleep(Duration::from_millis(20)),
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let text = fs::read_to_string(folder.join("said.txt"))?;
    if !ended.success() || !text.contains(said) {
        bail!("the program ended with {ended} and did not say `{said}`:\n{text}");
    }
    Ok(Started { seconds, peak_mb })
}
