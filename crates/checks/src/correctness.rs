//! `correctness`: what the tests measured against independent references, as docs/correctness.md; and
//! which test notices when a formula is broken on purpose.

use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::terminal::{print, say};

mod breaks;
mod compatibility;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare the page with what the tests measure now, and change nothing
    #[arg(long)]
    check: bool,
    /// Break the formulas of fixtures/reference/breaks.toml one by one, in a copy of the repository, and
    /// record which tests fail (half an hour at first, which builds everything again)
    #[arg(long, conflicts_with = "check")]
    breaks: bool,
    /// With --breaks: break only what the tests of this package are to notice (may be repeated); the page keeps its
    /// other rows
    #[arg(long, requires = "breaks", value_name = "NAME")]
    package: Vec<String>,
    /// What the tests measured; without it they are run
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,
}

const PAGE: &str = "docs/correctness.md";
const COMPATIBILITY: &str = "docs/compatibility.md";
const CLAIMS: &str = "fixtures/reference/claims.toml";
const BREAKS: &str = "fixtures/reference/breaks.toml";
/// What begins the part of the page that `--breaks` writes.
const BROKEN: &str = "\n## Formulas broken on purpose\n";

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::process::root()?;
    let page = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    let (table, broken) = page.split_once(BROKEN).unwrap_or((&page, ""));
    let listed = breaks::read(&root.join(BREAKS))?;
    if args.breaks {
        breaks::check_rest(&listed, &args.package, broken)?;
        let noticed = breaks::run(&root, &listed, &args.package)?;
        let broken = breaks::section(&listed, &noticed, broken)?;
        fs::write(root.join(PAGE), format!("{table}{BROKEN}{broken}"))?;
        print(&format!("correctness: {} broken formulas, each noticed; written to {PAGE}", noticed.len()));
        return Ok(());
    }
    let claims = read_claims(&root)?;
    let measured = match &args.measured {
        Some(file) => read_measured(file)?,
        None => measure(&root)?,
    };
    let absent = absent(&claims, &measured)?;
    for claim in &absent {
        say(&format!("skipped: {} needs {}", claim.name, claim.needs.as_deref().unwrap_or_default()));
    }
    let versions = versions(&root.join("fixtures/reference"))?;
    let new = render(&claims, &measured, &versions);
    let read = compatibility::render(&claims, &measured, &versions)?;
    if args.check {
        compare(table, &new, &absent)?;
        compatibility::compare(&fs::read_to_string(root.join(COMPATIBILITY)).unwrap_or_default(), &read)?;
        breaks::check(&root, broken, &listed)?;
        print(&format!("correctness: {} claims hold, {PAGE} is up to date", measured.len()));
        return Ok(());
    }
    if !absent.is_empty() {
        bail!("the page has a row for every claim, so all of them have to be measured");
    }
    fs::write(root.join(PAGE), format!("{new}{BROKEN}{broken}"))?;
    fs::write(root.join(COMPATIBILITY), read)?;
    print(&format!("correctness: {} claims hold, written to {PAGE} and {COMPATIBILITY}", measured.len()));
    Ok(())
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    group: Vec<Group>,
    /// The sections of the page on compatibility: claims whose cases are listed one by one.
    #[serde(default)]
    compatibility: Vec<compatibility::Section>,
}

/// A table of the page.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    title: String,
    claim: Vec<Claim>,
}

/// What one row of a table says.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    /// As in the tests: `group/what`.
    name: String,
    /// What is compared.
    says: String,
    /// What it is compared with; `{torch}` becomes the package with the version recorded beside the
    /// golden values.
    reference: String,
    /// What its tests look for outside of the repository, if they do.
    needs: Option<String>,
}

impl Claims {
    fn all(&self) -> impl Iterator<Item = &Claim> {
        self.group.iter().flat_map(|group| &group.claim)
    }
}

impl Claim {
    /// What it is compared with, and in which version.
    fn reference(&self, versions: &BTreeMap<String, String>) -> String {
        let mut reference = self.reference.clone();
        for (package, version) in versions {
            // What follows a plus names the build, which differs between machines.
            let version = version.split('+').next().unwrap_or(version);
            reference = reference.replace(&format!("{{{package}}}"), &format!("{package} {version}"));
        }
        reference
    }
}

/// All cases of one claim.
struct Measured {
    cases: BTreeSet<String>,
    worst: f64,
    worst_case: String,
    tolerance: f64,
    files: BTreeSet<String>,
}

fn read_claims(root: &Path) -> Result<Claims> {
    let text = fs::read_to_string(root.join(CLAIMS)).with_context(|| format!("cannot read {CLAIMS}"))?;
    toml::from_str(&text).with_context(|| CLAIMS.to_owned())
}

/// Runs the tests, which append what they measure to a file.
fn measure(root: &Path) -> Result<BTreeMap<String, Measured>> {
    let file = tempfile::NamedTempFile::new()?;
    let mut tests = Command::new("cargo");
    tests.args(["test", "--release", "--workspace", "--quiet"]).env(instruct_claims::FILE, file.path());
    crate::process::execute(tests.current_dir(root))?;
    read_measured(file.path())
}

/// Lines of claim, case, difference, tolerance and source file, separated by tabs.
fn read_measured(file: &Path) -> Result<BTreeMap<String, Measured>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut measured = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let at = || format!("{}:{number}: `{line}`", file.display());
        let [claim, case, difference, tolerance, source] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("{} has not five fields", at());
        };
        let (difference, tolerance) =
            (difference.parse::<f64>().with_context(at)?, tolerance.parse::<f64>().with_context(at)?);
        if difference.is_nan() || difference > tolerance {
            bail!("{} does not hold", at());
        }
        let entry = measured.entry(claim.to_owned()).or_insert_with(|| Measured {
            cases: BTreeSet::new(),
            worst: -1.0,
            worst_case: String::new(),
            tolerance,
            files: BTreeSet::new(),
        });
        if entry.tolerance != tolerance {
            bail!("{} has another tolerance than before, {:e}: make it a claim of its own", at(), entry.tolerance);
        }
        entry.cases.insert(case.to_owned());
        entry.files.insert(source.to_owned());
        // Of equals the first by name, so that the page does not depend on the order of tests.
        if difference > entry.worst || (difference == entry.worst && *case < *entry.worst_case) {
            (entry.worst, entry.worst_case) = (difference, case.to_owned());
        }
    }
    Ok(measured)
}

/// Refuses what is explained and not measured, or measured and not explained. Returns the claims that
/// could not be measured because what they need is not there.
fn absent<'a>(claims: &'a Claims, measured: &BTreeMap<String, Measured>) -> Result<Vec<&'a Claim>> {
    let names: BTreeSet<&str> = claims.all().map(|claim| claim.name.as_str()).collect();
    if let Some(unlisted) = measured.keys().find(|name| !names.contains(name.as_str())) {
        bail!("a test measures `{unlisted}`, which {CLAIMS} does not explain");
    }
    let absent: Vec<&Claim> = claims.all().filter(|claim| !measured.contains_key(&claim.name)).collect();
    if let Some(claim) = absent.iter().find(|claim| claim.needs.is_none()) {
        bail!("{CLAIMS} explains `{}`, which no test measures", claim.name);
    }
    Ok(absent)
}

/// The versions that golden values were made with, by package.
fn versions(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    let folders = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    for file in folders.into_iter().chain([folder.to_owned()]).map(|folder| folder.join("versions.json")) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let entries: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        for (package, version) in entries {
            let Some(version) = version.as_str().map(str::to_owned) else { continue };
            let before = versions.entry(package.clone()).or_insert_with(|| version.clone());
            if *before != version {
                bail!("{}: {package} {version}, elsewhere {before}: make all golden values anew", file.display());
            }
        }
    }
    Ok(versions)
}

const FRONT: &str = "\
# What is held to a reference, and how far from it

Written by `cargo xtask correctness` from what the tests measured; CI compares it with a new run
(`--check`). Golden values lie in [fixtures/reference](../fixtures/reference), each beside the script that made
it, its seed and its versions, and `cargo xtask reference --check` makes them anew. Running the tests needs
no Python.

Differences are absolute unless the row says what they are relative to. A row shows the worst of its cases
and where the test of it lies. What one machine measured stands under *worst*: others round differently,
within the tolerance. Where our own forward is the reference, a row shows that two ways through our code
agree, and others show that one of them is right.
";

/// The page up to the broken formulas.
fn render(claims: &Claims, measured: &BTreeMap<String, Measured>, versions: &BTreeMap<String, String>) -> String {
    let mut page = FRONT.to_owned();
    for group in &claims.group {
        let _ = write!(page, "\n## {}\n\n", group.title);
        page += "| what is compared | with | cases | tolerance | worst | in the case | test |\n|---|---|---|---|---|---|---|\n";
        for claim in &group.claim {
            let reference = claim.reference(versions);
            let _ = write!(page, "| `{}` {} | {reference} |", claim.name, claim.says);
            if let Some(found) = measured.get(&claim.name) {
                let tolerance =
                    if found.tolerance > 0.0 { format!("{:.0e}", found.tolerance) } else { "equal".to_owned() };
                let worst = if found.worst > 0.0 { format!("{:.1e}", found.worst) } else { "0".to_owned() };
                let (cases, case, places) = (found.cases.len(), &found.worst_case, places(&found.files));
                let _ = write!(page, " {cases} | {tolerance} | {worst} | {case} | {places} |");
            }
            page.push('\n');
        }
    }
    page
}

/// The files, or their folders when they are many.
fn places(files: &BTreeSet<String>) -> String {
    let folder = |file: &str| file.rsplit_once('/').map_or(file, |(folder, _)| folder).to_owned();
    let named: BTreeSet<String> =
        if files.len() > 3 { files.iter().map(|file| folder(file)).collect() } else { files.clone() };
    named.into_iter().collect::<Vec<_>>().join(", ")
}

/// Compares two pages line by line, leaving out the measurements of rows, and rows of `absent` claims.
fn compare(committed: &str, new: &str, absent: &[&Claim]) -> Result<()> {
    let kept = |line: &&str| row(line).is_none_or(|name| absent.iter().all(|claim| claim.name != name));
    let (mut old, mut new) = (committed.lines().filter(kept), new.lines().filter(kept));
    loop {
        match (old.next(), new.next()) {
            (None, None) => return Ok(()),
            (a, b) if a.map(stable) == b.map(stable) => {}
            (a, b) => bail!(
                "{PAGE} is not up to date: run `cargo xtask correctness`\n  page: {}\n  now:  {}",
                a.unwrap_or("(ends)"),
                b.unwrap_or("(ends)")
            ),
        }
    }
}

/// The claim whose row this is.
fn row(line: &str) -> Option<&str> {
    Some(line.strip_prefix("| `")?.split_once('`')?.0)
}

/// What does not depend on the machine in one line: all of it but a row's worst difference and case, and
/// for kernels, which are run at every level of instructions that there is, the number of cases.
fn stable(line: &str) -> Vec<&str> {
    let measured: &[usize] = match row(line) {
        Some(claim) if claim.starts_with("kernels/") => &[2, 4, 5],
        Some(_) => &[4, 5],
        None => &[],
    };
    line.split(" | ").enumerate().filter(|(column, _)| !measured.contains(column)).map(|(_, cell)| cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(lines: &str) -> Result<BTreeMap<String, Measured>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines).unwrap();
        read_measured(file.path())
    }

    fn claims() -> Claims {
        toml::from_str(
            "[[group]]\ntitle = 'G'\n[[group.claim]]\nname = 'g/a'\nsays = 's'\nreference = '{torch}'\n\
             [[group.claim]]\nname = 'g/b'\nsays = 's'\nreference = 'us'\nneeds = 'a file'\n",
        )
        .unwrap()
    }

    #[test]
    fn a_row_shows_the_worst_case() {
        let found = measured("g/a\tx\t1e-9\t1e-6\tf.rs\ng/a\ty\t2e-8\t1e-6\tf.rs\n").unwrap();
        let versions = BTreeMap::from([("torch".to_owned(), "2.0+cpu".to_owned())]);
        let page = render(&claims(), &found, &versions);
        assert!(page.contains("| `g/a` s | torch 2.0 | 2 | 1e-6 | 2.0e-8 | y | f.rs |\n"), "{page}");
        assert_eq!(absent(&claims(), &found).unwrap()[0].name, "g/b");
    }

    #[track_caller]
    fn refused(lines: &str, part: &str) {
        let outcome = measured(lines).and_then(|found| Ok(absent(&claims(), &found)?.len()));
        let message = format!("{:#}", outcome.unwrap_err());
        assert!(message.contains(part), "{message}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        refused("", "which no test measures");
        refused("g/c\tx\t0\t0\tf.rs\n", "does not explain");
        refused("g/a\tx\t2e-6\t1e-6\tf.rs\n", "does not hold");
        refused("g/a\tx\tNaN\t1e-6\tf.rs\n", "does not hold");
        refused("g/a\tx\t0\n", "five fields");
        refused("g/a\tx\t0\t1e-6\tf.rs\ng/a\tx\t0\t1e-5\tf.rs\n", "another tolerance");
    }

    #[test]
    fn pages_are_compared_without_measurements() {
        let of = |difference: &str, tolerance: &str| {
            let found = measured(&format!("g/a\tx\t{difference}\t{tolerance}\tf.rs\n")).unwrap();
            render(&claims(), &found, &BTreeMap::new())
        };
        let (claims, page) = (claims(), of("1e-9", "1e-6"));
        let absent: Vec<&Claim> = claims.all().skip(1).collect();
        assert!(compare(&page, &of("2e-9", "1e-6"), &absent).is_ok());
        assert!(compare(&page, &of("1e-9", "1e-5"), &absent).is_err());
        assert!(compare(&page.replace("`g/a` s", "`g/a` t"), &page, &absent).is_err());
        assert!(compare(&page.replace("`g/b` s", "`g/b` t"), &page, &absent).is_ok());
        assert!(compare(&page.replace("`g/b` s", "`g/b` t"), &page, &[]).is_err());
        assert!(compare("", &page, &absent).is_err());
    }
}
