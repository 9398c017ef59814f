//! Hostile and broken inputs: each is given to the real program, which must refuse it with one
//! message, in little time and memory, and leave nothing behind.
//!
//! `fixtures/bad/expectations.toml` has a row per input. Time is that of processors: on a busy machine a
//! process waits, and that is no fault of the input's.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// The most resident memory that refusing an input may take.
pub const MEGABYTES: f64 = 200.0;

/// The time that processors may spend on refusing an input.
pub const SECONDS: f64 = 2.0;

/// How long anybody waits for an input, by the clock, before it counts as one that hangs: far more than a
/// busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// What became of one input.
#[derive(Clone, Debug)]
pub struct Row {
    /// `kind/what is wrong with it`.
    pub name: String,
    /// Whether the input is legal after all, and was to be read.
    pub legal: bool,
    /// Why it was not tried; nothing else is known then.
    pub skipped: Option<String>,
    /// Seconds that processors spent on the process.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub megabytes: f64,
    /// What the program said, on standard error.
    pub message: String,
    /// Every expectation that was not met.
    pub problems: Vec<String>,
}

/// Gives every input of `repository` to `program`, each in an empty folder. One that takes longer
/// than `patience` is killed, and has failed.
///
/// Errors: the rows cannot be read or do not describe an input.
pub fn run(program: &Path, repository: &Path, patience: Duration) -> Result<Vec<Row>> {
    let place = repository.join("fixtures/bad/expectations.toml");
    let text = fs::read_to_string(&place).with_context(|| format!("cannot read {}", place.display()))?;
    let Expectations { input } = toml::from_str(&text).with_context(|| place.display().to_string())?;
    let names: BTreeSet<&str> = input.iter().map(|input| input.name.as_str()).collect();
    if names.len() < input.len() {
        bail!("{}: two inputs have one name", place.display());
    }
    unused(&input, repository)?;
    let one = |input: &Input| try_one(input, program, repository, patience).with_context(|| input.name.clone());
    input.iter().map(one).collect()
}

/// The rows as a Markdown table, one line per kind of input.
pub fn table(rows: &[Row]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        kinds.entry(row.name.split('/').next().unwrap_or_default()).or_default().push(row);
    }
    let mut text =
        "| input | tried | refused as expected | legal, read | failed | skipped | most processor time, s | most memory, MB |\n\
        |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (kind, rows) in &kinds {
        text.push_str(&line(kind, rows));
    }
    text.push_str(&line("all", &rows.iter().collect::<Vec<_>>()));
    text
}

fn line(kind: &str, rows: &[&Row]) -> String {
    let count = |f: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| row.skipped.is_none() && f(row)).count();
    let most = |f: &dyn Fn(&Row) -> f64| rows.iter().map(|row| f(row)).fold(0.0, f64::max);
    format!(
        "| {kind} | {} | {} | {} | {} | {} | {:.2} | {:.0} |\n",
        count(&|_| true),
        count(&|row| row.problems.is_empty() && !row.legal),
        count(&|row| row.problems.is_empty() && row.legal),
        count(&|row| !row.problems.is_empty()),
        rows.iter().filter(|row| row.skipped.is_some()).count(),
        most(&|row| row.seconds),
        most(&|row| row.megabytes),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectations {
    input: Vec<Input>,
}

/// An input, the command that reads it, and what the command must say. In the command and in what
/// it says `{}` is the input's path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    /// A committed file or folder of fixtures/bad.
    file: Option<String>,
    /// A folder of the repository whose files lie under those of `file`, or beside what is made.
    over: Option<String>,
    /// What is not committed.
    make: Option<Make>,
    run: Vec<String>,
    /// Path with line, byte, field or whatever finds the fault.
    #[serde(default)]
    at: String,
    /// What is wrong.
    #[serde(default)]
    says: Vec<String>,
    /// The next thing to do.
    #[serde(default)]
    next: String,
    /// Why the input is legal; it must then be read.
    legal: Option<String>,
}

/// How an input is made that is too large, or too odd, to be committed.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Make {
    /// Text that repeats itself.
    Text(Text),
    /// Nothing stands at the path.
    Absent(String),
    /// A symbolic link to itself.
    Loop(String),
    /// An empty folder.
    Folder(String),
    /// A named pipe that nobody writes to.
    Pipe(String),
    /// A file without permissions.
    Unreadable(String),
    /// A link from inside a committed folder to a folder above it.
    LinkedUp(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    file: String,
    #[serde(default)]
    start: String,
    repeat: String,
    times: usize,
    #[serde(default)]
    end: String,
    /// `gz` or `zst`.
    compress: Option<String>,
    /// Cut so many bytes off the end, after compression.
    #[serde(default)]
    cut: usize,
}

/// Every committed input belongs to a row; a forgotten one would look as if it were tried.
fn unused(inputs: &[Input], repository: &Path) -> Result<()> {
    let folder = repository.join("fixtures/bad");
    let used: BTreeSet<PathBuf> =
        inputs.iter().filter_map(|input| input.file.as_ref()).map(|f| folder.join(f)).collect();
    for kind in fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        for entry in fs::read_dir(&kind)? {
            let path = entry?.path();
            if !used.contains(&path) {
                bail!("{}: no row of expectations.toml has it", path.display());
            }
        }
    }
    Ok(())
}

fn try_one(input: &Input, program: &Path, repository: &Path, patience: Duration) -> Result<Row> {
    let mut row = Row {
        name: input.name.clone(),
        legal: input.legal.is_some(),
        skipped: None,
        seconds: 0.0,
        megabytes: 0.0,
        message: String::new(),
        problems: Vec::new(),
    };
    let (desk, records) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let path = match place(input, desk.path(), repository)? {
        Placed::At(path) => path,
        Placed::Skipped(why) => return Ok(Row { skipped: Some(why), ..row }),
    };
    let before = listing(desk.path())?;
    let base = repository.join("fixtures/base").canonicalize()?;
    let arguments = input.run.iter().map(|part| part.replace("{}", &path).replace("{base}", &base.to_string_lossy()));
    let status = start(input, program, arguments, desk.path(), records.path(), patience)?;
    let usage = fs::read_to_string(records.path().join("usage")).unwrap_or_default();
    let mut usage = usage.split(' ').map(|number| number.trim().parse().unwrap_or(f64::INFINITY));
    row.megabytes = usage.next().unwrap_or(f64::INFINITY);
    row.seconds = usage.next().unwrap_or(f64::INFINITY);
    row.message = String::from_utf8_lossy(&fs::read(records.path().join("stderr"))?).into_owned();
    let printed = fs::metadata(records.path().join("stdout"))?.len();
    row.problems = judge(input, &path, &row, status, printed);
    let after = listing(desk.path())?;
    row.problems.extend(after.difference(&before).map(|left| format!("it left {} behind", left.display())));
    row.problems.extend(before.difference(&after).map(|gone| format!("it took {} away", gone.display())));
    Ok(row)
}

/// Every expectation that the process did not meet.
fn judge(input: &Input, path: &str, row: &Row, status: Option<ExitStatus>, printed: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    let Some(status) = status else { return vec!["it did not end, and was killed".to_owned()] };
    let message = &row.message;
    expect(row.megabytes <= MEGABYTES, format!("{:.0} MB of memory", row.megabytes));
    expect(row.legal || row.seconds <= SECONDS, format!("{:.1} s of processors", row.seconds));
    expect(!message.contains("panicked"), "it panicked".to_owned());
    if row.legal {
        expect(status.success(), format!("this is legal, and it ended with {status}: {message}"));
        return problems;
    }
    expect(status.code() == Some(2), format!("it ended with {status}, not with exit code 2"));
    expect(printed == 0, format!("{printed} bytes went to standard output"));
    expect(message.starts_with("error: "), format!("no error message: {message}"));
    expect(message.matches("error: ").count() == 1, format!("more than one error message: {message}"));
    expect(message.len() < 20_000, format!("a message of {} bytes", message.len()));
    let control = message.chars().find(|c| c.is_control() && *c != '\n');
    expect(control.is_none(), format!("the message holds {control:?}, which a terminal obeys"));
    for part in input.says.iter().chain([&input.at, &input.next]) {
        let part = part.replace("{}", path);
        expect(message.contains(&part), format!("`{part}` is not in: {message}"));
    }
    problems
}

/// Starts the program on an input and waits for its end; without a status it was killed.
fn start(
    input: &Input,
    program: &Path,
    arguments: impl Iterator<Item = String>,
    desk: &Path,
    records: &Path,
    patience: Duration,
) -> Result<Option<ExitStatus>> {
    if input.legal.is_none() && [&input.at, &input.next].iter().any(|part| part.is_empty()) {
        bail!("the row says neither where the fault lies nor what to do next");
    }
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(desk)
        .env("INSTRUCT_USAGE", records.join("usage"))
        .stdin(Stdio::null())
        .stdout(fs::File::create(records.join("stdout"))?)
        .stderr(fs::File::create(records.join("stderr"))?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    wait(&mut child, begun, patience)
}

fn wait(child: &mut Child, begun: Instant, patience: Duration) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

enum Placed {
    /// By its path from the desk.
    At(String),
    Skipped(String),
}

/// Puts the input on the desk.
fn place(input: &Input, desk: &Path, repository: &Path) -> Result<Placed> {
    let Some(file) = &input.file else {
        let made = input.make.as_ref().context("neither `file` nor `make`")?;
        if let (Some(over), Make::Text(Text { file, .. })) = (&input.over, made) {
            copy(&repository.join(over), desk.join(file).parent().context("it is to be made in a folder")?)?;
        }
        return make(made, desk);
    };
    let from = repository.join("fixtures/bad").join(file);
    let name = from.file_name().and_then(|name| name.to_str()).context("the file has no name")?.to_owned();
    if let Some(over) = &input.over {
        copy(&repository.join(over), &desk.join(&name))?;
    }
    copy(&from, &desk.join(&name))?;
    if let Some(Make::LinkedUp(link)) = &input.make {
        std::os::unix::fs::symlink("..", desk.join(&name).join(link))?;
    }
    Ok(Placed::At(name))
}

fn make(make: &Make, desk: &Path) -> Result<Placed> {
    let name = match make {
        Make::Text(text) => {
            fs::write(desk.join(&text.file), repeated(text)?)?;
            &text.file
        }
        Make::Absent(name) => name,
        Make::Folder(name) => {
            fs::create_dir(desk.join(name))?;
            name
        }
        Make::Loop(name) => {
            std::os::unix::fs::symlink(name, desk.join(name))?;
            name
        }
        Make::Pipe(name) => {
            let made = Command::new("mkfifo").arg(desk.join(name)).status();
            if !made.is_ok_and(|status| status.success()) {
                return Ok(Placed::Skipped("this system makes no named pipes".to_owned()));
            }
            name
        }
        Make::Unreadable(name) => {
            let path = desk.join(name);
            fs::write(&path, "{}")?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o0))?;
            if fs::File::open(&path).is_ok() {
                return Ok(Placed::Skipped("this user may read everything".to_owned()));
            }
            name
        }
        Make::LinkedUp(_) => bail!("a link stands in a committed folder: add `file`"),
    };
    Ok(Placed::At(name.clone()))
}

fn repeated(text: &Text) -> Result<Vec<u8>> {
    let write = |to: &mut dyn Write| -> std::io::Result<()> {
        to.write_all(text.start.as_bytes())?;
        let block = text.repeat.repeat(1_000);
        (0..text.times / 1_000).try_for_each(|_| to.write_all(block.as_bytes()))?;
        to.write_all(text.repeat.repeat(text.times % 1_000).as_bytes())?;
        to.write_all(text.end.as_bytes())
    };
    let mut bytes = match text.compress.as_deref() {
        None => {
            let mut plain = Vec::new();
            write(&mut plain)?;
            plain
        }
        Some("gz") => {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            write(&mut packed)?;
            packed.finish()?
        }
        Some("zst") => {
            let mut packed = zstd::Encoder::new(Vec::new(), 1)?;
            write(&mut packed)?;
            packed.finish()?
        }
        Some(other) => bail!("`compress` is {other}; gz and zst are known"),
    };
    bytes.truncate(bytes.len() - text.cut);
    Ok(bytes)
}

/// Copies a file, or a folder of files.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Every path below a folder; links are not followed.
fn listing(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        found.insert(entry.path());
        if entry.file_type()?.is_dir() {
            found.append(&mut listing(&entry.path())?);
        }
    }
    Ok(found)
}
