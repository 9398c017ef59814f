//! What a process asked of the system about its run folder, read from a log of strace.

use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

/// The calls that change what is on the disk, or promise that it is there.
pub(super) const NAMES: [&str; 9] =
    ["openat", "write", "fsync", "fdatasync", "rename", "mkdir", "unlink", "unlinkat", "ftruncate"];

/// What strace is told in order to log them.
pub(super) fn trace() -> [String; 2] {
    ["-e".to_owned(), format!("trace={}", NAMES.join(","))]
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    /// Which call of this name it is of its thread, from 1: how strace counts.
    pub(super) ordinal: usize,
    /// The file or folder, and what it was renamed to, relative to the run.
    pub(super) paths: Vec<String>,
    /// Everything between the parentheses.
    arguments: String,
    /// What it returned; `None` when the process died before.
    pub(super) result: Option<i64>,
    /// Whether strace made it fail.
    pub(super) is_injected: bool,
}

impl Call {
    /// Whether a process that dies before this call leaves something else than one that dies before
    /// the next.
    pub(super) fn changes(&self) -> bool {
        self.name != "openat" || self.arguments.contains("O_CREAT")
    }

    /// Whether a file is emptied or made.
    pub(super) fn truncates(&self) -> bool {
        self.arguments.contains("O_TRUNC")
    }

    /// The last number among the arguments: a length.
    pub(super) fn length(&self) -> Option<u64> {
        self.arguments.rsplit(", ").next()?.parse().ok()
    }
}

/// Reads the log of a process that worked in `folder` on `run`; only calls about the run are kept.
pub(super) fn read(log: &Path, folder: &Path, run: &str) -> Result<Vec<Call>> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    if text.is_empty() {
        bail!("strace logged nothing");
    }
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in whole_lines(&text) {
        let Some((thread, name, rest)) = begins_call(&line) else { continue };
        let count = counts.entry((thread.to_owned(), name.to_owned())).or_default();
        *count += 1;
        let (arguments, result) = rest.rsplit_once(") ").unwrap_or((rest, ""));
        let result = result.trim_start().strip_prefix("= ").and_then(|result| result.split(' ').next()?.parse().ok());
        // A descriptor is shown with its path, which is none of the result's number.
        let result = result.or_else(|| descriptor(rest));
        let paths = paths(name, arguments, folder);
        let paths: Vec<String> = paths.iter().filter_map(|path| inside(path, &folder.join(run))).collect();
        if !paths.is_empty() {
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            let is_injected = rest.ends_with("(INJECTED)");
            calls.push(Call { name, ordinal: *count, paths, arguments, result, is_injected });
        }
    }
    Ok(calls)
}

/// The lines of a log, where a call that another thread's came between stands whole in the place where it ended; one
/// that never ended stands last.
fn whole_lines(text: &str) -> Vec<String> {
    let (mut lines, mut begun) = (Vec::new(), BTreeMap::new());
    for line in text.lines() {
        let thread = line.split(' ').next().unwrap_or_default();
        if let Some(start) = line.strip_suffix("<unfinished ...>") {
            begun.insert(thread, start.trim_end().to_owned());
        } else if let Some((_, rest)) = line.split_once("<... ")
            && let Some((_, rest)) = rest.split_once(" resumed>")
            && let Some(start) = begun.remove(thread)
        {
            lines.push(start + rest);
        } else {
            lines.push(line.to_owned());
        }
    }
    lines.extend(begun.into_values());
    lines
}

/// `123 write(4</x>, ""..., 5) = 5` as thread, name and what follows the parenthesis.
fn begins_call(line: &str) -> Option<(&str, &str, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, rest) = rest.trim_start().split_once('(')?;
    NAMES.contains(&name).then_some((thread, name, rest))
}

/// The number of a result like `= 4</path>`.
fn descriptor(rest: &str) -> Option<i64> {
    rest.rsplit_once(") = ")?.1.split('<').next()?.parse().ok()
}

/// The paths a call is about: of its descriptor, or what is quoted, from the folder that stands before.
fn paths(name: &str, arguments: &str, folder: &Path) -> Vec<PathBuf> {
    if ["write", "fsync", "fdatasync", "ftruncate"].contains(&name) {
        let path = arguments.split_once('<').and_then(|(_, rest)| rest.split('>').next());
        return path.map(PathBuf::from).into_iter().collect();
    }
    let before_quote = arguments.split('"').next().unwrap_or_default();
    let base = before_quote.split_once('<').and_then(|(_, rest)| rest.split('>').next());
    let base = base.map_or_else(|| folder.to_owned(), PathBuf::from);
    arguments.split('"').skip(1).step_by(2).map(|quoted| base.join(quoted)).collect()
}

fn inside(path: &Path, run: &Path) -> Option<String> {
    let rest = path.strip_prefix(run).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| rest.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
7 execve(\"/f/program\", [], 0x1) = 0
8 mkdir(\"run/ppo\", 0777) = 0
8 mkdir(\"elsewhere\", 0777) = 0
8 openat(AT_FDCWD</f>, \"run/ppo/a.jsonl\", O_WRONLY|O_CREAT|O_APPEND|O_CLOEXEC, 0666) = 4</f/run/ppo/a.jsonl>
9 write(2</f/err>, \"\"..., 9) = 9
8 write(4</f/run/ppo/a.jsonl>, \"\"..., 12) = 12
8 fsync(4</f/run/ppo/a.jsonl>)     = 0
8 mkdir(\"run/ppo\", 0777) = -1 EEXIST (File exists)
8 openat(5</f/run/ppo>, \"b\", O_RDONLY|O_CLOEXEC) = 6</f/run/ppo/b>
8 unlinkat(5</f/run/ppo>, \"b\", 0) = 0
8 rename(\"run/ppo/.tmp-x\", \"run/ppo/x\") = ?
8 +++ killed by SIGKILL +++
";

    #[test]
    fn a_log_is_read_as_calls_about_the_run() {
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), LOG).unwrap();
        let calls = read(log.path(), Path::new("/f"), "run").unwrap();
        let shown = |call: &Call| format!("{} {} {} {:?}", call.name, call.ordinal, call.paths.join(" "), call.result);
        assert_eq!(
            calls.iter().map(shown).collect::<Vec<_>>(),
            [
                "mkdir 1 ppo Some(0)",
                "openat 1 ppo/a.jsonl Some(4)",
                "write 1 ppo/a.jsonl Some(12)",
                "fsync 1 ppo/a.jsonl Some(0)",
                "mkdir 3 ppo Some(-1)",
                "openat 2 ppo/b Some(6)",
                "unlinkat 1 ppo/b Some(0)",
                "rename 1 ppo/.tmp-x ppo/x None",
            ]
        );
        assert_eq!(calls[2].length(), Some(12));
        assert_eq!(calls.iter().filter(|call| !call.changes()).count(), 1);
    }

    #[test]
    fn a_call_that_another_came_between_stands_where_it_ended() {
        let log = "8 write(4</f/r/a>, \"\"..., 12 <unfinished ...>\n9 fsync(5</f/r/b>) = 0\n\
                   8 <... write resumed>) = 12\n8 fdatasync(4</f/r/a> <unfinished ...>\n9 +++ killed by SIGKILL +++\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), log).unwrap();
        let calls = read(file.path(), Path::new("/f"), "r").unwrap();
        let shown: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.result)).collect();
        assert_eq!(shown, [("fsync", Some(0)), ("write", Some(12)), ("fdatasync", None)]);
    }
}
