//! Formulas broken on purpose: each in a copy of the repository, to see which tests notice.

use super::BREAKS;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::terminal::say;

/// One formula and how it is broken.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Break {
    /// What is wrong then.
    says: String,
    /// The file that holds the formula.
    file: String,
    /// Text that stands in it once.
    old: String,
    /// What stands there instead.
    new: String,
    /// The package whose tests should notice.
    package: String,
    /// Whether these are the tests inside its library alone; those outside may run whole pipelines.
    #[serde(default)]
    library: bool,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    #[serde(rename = "break")]
    breaks: Vec<Break>,
}

/// A broken formula, and the tests that failed.
pub(super) struct Noticed<'a> {
    broken: &'a Break,
    tests: Vec<String>,
}

/// The list, whose texts all stand where it says.
pub(super) fn read(file: &Path) -> Result<Vec<Break>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {BREAKS}"))?;
    let listed: Listed = toml::from_str(&text).with_context(|| BREAKS.to_owned())?;
    Ok(listed.breaks)
}

/// Breaks one formula at a time: all, or those that the tests of these `packages` are to notice.
///
/// Errors: a package of which nothing is listed; the unbroken copy fails a test, or a broken one fails none.
pub(super) fn run<'a>(root: &Path, listed: &'a [Break], packages: &[String]) -> Result<Vec<Noticed<'a>>> {
    if let Some(unknown) = packages.iter().find(|name| listed.iter().all(|broken| broken.package != **name)) {
        bail!("{BREAKS} lists nothing that the tests of {unknown} are to notice");
    }
    let chosen = |broken: &&Break| packages.is_empty() || packages.contains(&broken.package);
    let listed: Vec<&Break> = listed.iter().filter(chosen).collect();
    let copy = Copy::of(root)?;
    let tests: BTreeSet<(&str, bool)> = listed.iter().map(|broken| broken.tests()).collect();
    for (package, library) in tests {
        say(&format!("unbroken: {package}"));
        let failed = copy.failing(package, library)?;
        if !failed.is_empty() {
            bail!("nothing is broken yet, and {package} fails {}", failed.join(", "));
        }
    }
    let mut noticed = Vec::new();
    for broken in listed {
        let path = copy.root.join(&broken.file);
        let whole = fs::read_to_string(&path).with_context(|| broken.file.clone())?;
        fs::write(&path, broken.applied_to(&whole)?)?;
        let (package, library) = broken.tests();
        let tests = copy.failing(package, library)?;
        fs::write(&path, whole)?;
        say(&format!(
            "{}: {}",
            broken.says,
            if tests.is_empty() { "NOT NOTICED".to_owned() } else { tests.join(", ") }
        ));
        noticed.push(Noticed { broken, tests });
    }
    let missed: Vec<&str> = noticed.iter().filter(|n| n.tests.is_empty()).map(|n| n.broken.says.as_str()).collect();
    if missed.is_empty() {
        return Ok(noticed);
    }
    bail!("no test noticed: {}", missed.join("; "))
}

impl Break {
    /// The tests that should notice: a package, and whether those in its library alone.
    fn tests(&self) -> (&str, bool) {
        (&self.package, self.library)
    }

    /// How its row on the page begins.
    fn begins(&self) -> String {
        format!("| {} | {} | ", self.says, self.file)
    }

    fn applied_to(&self, whole: &str) -> Result<String> {
        match whole.matches(&self.old).count() {
            1 => Ok(whole.replacen(&self.old, &self.new, 1)),
            n => bail!("{BREAKS}, `{}`: {} holds `{}` {n} times, not once", self.says, self.file, self.old),
        }
    }
}

/// A copy of the repository, built in a folder of its own: cargo takes the crates of two checkouts for
/// the same, and would leave broken ones to the original.
struct Copy {
    root: PathBuf,
    original: PathBuf,
}

impl Copy {
    fn of(original: &Path) -> Result<Copy> {
        let root = original.join("target/breaks/copy");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(original).output()?;
        let files = String::from_utf8(listed.stdout)?;
        for file in files.split('\0').filter(|file| !file.is_empty()) {
            let to = root.join(file);
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::copy(original.join(file), &to).with_context(|| file.to_owned())?;
        }
        Ok(Copy { root, original: original.to_owned() })
    }

    /// Names of the tests of `package` that fail, or of those in its `library` alone.
    fn failing(&self, package: &str, library: bool) -> Result<Vec<String>> {
        let mut tests = Command::new("cargo");
        tests.args(["test", "--release", "--offline", "--no-fail-fast", "--lib", "--package", package]);
        tests.args((!library).then_some("--tests"));
        tests.current_dir(&self.root).env("CARGO_TARGET_DIR", self.original.join("target/breaks/target"));
        tests.env_remove(instruct_claims::FILE).env("RUST_BACKTRACE", "0");
        let shared = std::env::var_os("INSTRUCT_SHARED").map_or_else(|| "../shared".into(), PathBuf::from);
        tests.env("INSTRUCT_SHARED", self.original.join(shared));
        let output = tests.output().context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failed: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_owned))
            .collect();
        if !output.status.success() && failed.is_empty() {
            bail!("{package} does not run:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(failed)
    }
}

const FRONT: &str = "\
\nWritten by `cargo xtask correctness --breaks`: one change at a time in a copy of the repository, then the
tests of one package. Changes are listed in [breaks.toml](../fixtures/reference/breaks.toml).

| what was broken | where | tests that failed | for example |
|---|---|---|---|
";

/// Refuses, before anything is built, to leave out what was never broken.
pub(super) fn check_rest(listed: &[Break], packages: &[String], page: &str) -> Result<()> {
    let chosen = |broken: &Break| packages.is_empty() || packages.contains(&broken.package);
    let row = |broken: &Break| page.lines().any(|row| row.starts_with(&broken.begins()));
    match listed.iter().find(|broken| !chosen(broken) && !row(broken)) {
        Some(broken) => bail!("`{}` was never broken: name {} too", broken.says, broken.package),
        None => Ok(()),
    }
}

/// The part of the page about all that is `listed`: what was noticed now, and `old` rows of the rest.
///
/// Errors: one was broken neither now nor before.
pub(super) fn section(listed: &[Break], noticed: &[Noticed<'_>], old: &str) -> Result<String> {
    let mut text = FRONT.to_owned();
    for broken in listed {
        let begins = broken.begins();
        let row = match noticed.iter().find(|noticed| std::ptr::eq(noticed.broken, broken)) {
            Some(Noticed { tests, .. }) => format!("{begins}{} | `{}` |", tests.len(), tests[0]),
            None => match old.lines().find(|row| row.starts_with(&begins)) {
                Some(row) => row.to_owned(),
                None => bail!("`{}` was never broken: name {} too", broken.says, broken.package),
            },
        };
        let _ = writeln!(text, "{row}");
    }
    Ok(text)
}

/// Checks that the page shows every broken formula of the list and no other, and that the list still
/// fits the code.
pub(super) fn check(root: &Path, page: &str, listed: &[Break]) -> Result<()> {
    for broken in listed {
        broken.applied_to(&fs::read_to_string(root.join(&broken.file)).with_context(|| broken.file.clone())?)?;
    }
    let begins: Vec<String> = listed.iter().map(Break::begins).collect();
    let rows: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("|---")).skip(1).collect();
    if rows.len() != begins.len() || rows.iter().zip(&begins).any(|(row, begin)| !row.starts_with(begin.as_str())) {
        bail!("{} does not show the formulas of {BREAKS}: run `cargo xtask correctness --breaks`", super::PAGE);
    }
    Ok(())
}
