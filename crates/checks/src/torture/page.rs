//! docs/reliability.md: what was tried, survived and lost. The page holds every number that it was made
//! from, so that it can be read back and compared with what this program would write.

use super::Death;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

const PAGE: &str = "docs/reliability.md";

/// Everything that one torture found.
#[derive(Default)]
pub(super) struct Found {
    /// Files and bytes of the run that all others were compared with.
    pub(super) whole: (usize, u64),
    /// Calls that a process could be made to die before.
    pub(super) points: usize,
    pub(super) random: Vec<Death>,
    pub(super) chosen: Vec<Death>,
    pub(super) failing: Vec<Death>,
    pub(super) full: Vec<Death>,
    pub(super) power: Vec<Death>,
    pub(super) lies: Vec<Death>,
    /// What became of hostile inputs, as a table.
    pub(super) inputs: String,
}

impl Found {
    fn tables(&self) -> [&[Death]; 6] {
        [&self.random, &self.chosen, &self.failing, &self.full, &self.power, &self.lies]
    }

    pub(super) fn lost(&self) -> usize {
        self.tables().iter().flat_map(|deaths| deaths.iter()).filter(|death| death.lost.is_some()).count()
    }

    /// One line for the end.
    pub(super) fn summary(&self) -> String {
        let [random, chosen, failing, full, power, lies] = self.tables().map(<[Death]>::len);
        format!(
            "torture: {random} deaths at random instants, {chosen} before chosen system calls, {failing} by failing \
             calls, {full} by a full disk, {power} by power cuts, {lies} with a damaged checkpoint: {} lost",
            self.lost()
        )
    }

    /// With the tables of ranks and servers that were there: those are killed by commands of their own.
    fn record(&self, [ranks, servers]: [Rows; 2]) -> Record {
        let facts = [self.whole.0 as u64, self.whole.1 / 1_000_000, self.points as u64];
        let [random, chosen, failing, full, power, lies] = self.tables().map(Rows::of);
        let tables = [random, chosen, failing, full, power, lies, ranks, servers];
        Record { facts, tables, inputs: self.inputs.trim().to_owned() }
    }
}

/// The numbers of the page.
#[derive(Debug, PartialEq)]
pub(super) struct Record {
    /// Files compared, their megabytes, points to choose from.
    facts: [u64; 3],
    tables: [Rows; 8],
    pub(super) inputs: String,
}

/// Where the ranks stand among the tables.
const RANKS: usize = 6;

/// And the servers.
const SERVERS: usize = 7;

/// Tried, with a folder half written, and lost, by place and by what the process died of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows(BTreeMap<(String, String), [u64; 3]>);

impl Rows {
    fn of(deaths: &[Death]) -> Rows {
        let mut rows = Rows::default();
        for death in deaths {
            let row = rows.0.entry((death.stage.to_owned(), death.how.clone())).or_default();
            row[0] += 1;
            row[1] += u64::from(death.torn);
            row[2] += u64::from(death.lost.is_some());
        }
        rows
    }

    fn sum(&self, column: usize) -> u64 {
        self.0.values().map(|row| row[column]).sum()
    }
}

const FRONT: &str = "\
# What it survives

Written by `cargo xtask torture`, which does all of it again; `cargo xtask torture --kills 1000 --seed 2` does
more of it elsewhere. `--check` compares the page with what it is made from and kills nothing; CI does that,
and repeats a slice of the torture (`--slice`: a few deaths of each kind, about two minutes).

A *death* is one end of a process before its time. The processes are `instruct`, as people install it, on
[configs/torture.toml](../configs/torture.toml): all stages within seconds, with dropout, a pretraining mix, an
adaptive price of divergence, a value model, an average of the policy, candidates, and a checkpoint every other
step. The data is the embedded instruction world, a simulation. After its deaths a run is continued with
`--resume` to its end and **every file of its folder is compared byte for byte** with that of a run that was left
alone: weights, optimizer states, averages, every checkpoint kept, metrics, samples, models, and the results of
the evaluation. Left out are wall-clock seconds (`seconds.json`, and the field of that name in `timings.jsonl` and
`eval/results.json`, whose other content is compared), peak memory, the page made of all that (`report.html`), what ranks cost (`ranks.json`, and `shared` in
`eval/results.json`), and the lock. One byte that differs, or a
continuation that fails, loses all deaths of that run.

The promise holds for one type of CPU and one number of threads.
";

/// Title and explanation of each table.
const SECTIONS: [(&str, &str); 8] = [
    (
        "Killed at random instants",
        "Every run is hit in each of its stages, and every other time once more while it recovers (`recovery`: \
         reading data, verifying, cutting journals). SIGINT and SIGTERM let the step end, save, and must say how to \
         go on; SIGKILL lets nothing. *Half written* counts deaths that left a folder under its temporary name.",
    ),
    (
        "Killed between two system calls of a checkpoint",
        "strace kills the process as it enters a call, so the disk has seen all calls before it and none after. The \
         points are the calls that change the disk from the sync of the journals to the removal of the oldest \
         checkpoint, and of the candidates, averages and models committed after it.",
    ),
    (
        "System calls that fail",
        "strace lets one call of a checkpoint fail. The process has to end with exit code 2 and a message that names \
         the file and the reason; where the disk is full, also what to do.",
    ),
    (
        "A full disk",
        "A file system in memory that is too small, and grows a little after each refusal. *Refused before writing* is \
         the estimate of a checkpoint against the free space; the others ran out while writing journals or models.",
    ),
    (
        "Power cuts, simulated",
        "A process dies before a random call of a stage. Then everything it had not synced is taken back or filled \
         with zeros or garbage, as POSIX lets a file system do: content that was not synced, and names in folders that \
         were not synced, each folder up to a random point of its history. A checkpoint whose folder was synced after \
         its renaming must be there afterwards. What a removal took cannot be brought back, so removals count as done.",
    ),
    (
        "Disks that lie",
        "One file of the newest checkpoint is cut, overwritten or removed although it had been synced. The \
         continuation has to name the checkpoint in a warning and go on from the one before.",
    ),
    (
        "Ranks and launchers",
        "Written by `cargo xtask torture --ranks PROGRAM`, of a program with the feature `mpi` under Open MPI, one thread \
         a rank, with `model.leaves = 4`. A rank or its launcher is struck in each stage, the run goes on with 1, 2 or \
         4 ranks by chance, and its files are compared with those of one process. A rank that is stopped ends the job \
         once the others have waited too long. No process may be left.",
    ),
    (
        "A server under its clients",
        "Written by `cargo xtask torture --server`. 32 clients give feedback to `instruct serve` without a pause, and \
         whoever has heard nothing when it dies sends the same again to the next server, over one folder. It is killed \
         from outside, or by strace before a write or a sync of its own, whereupon what it had not synced is taken back \
         as in a power cut. Whatever a client was told is saved has to stand in the log once, whole, and nothing may \
         stand there that nobody sent. *Half written* counts deaths that left half a line.",
    ),
];

/// What is promised of checkpoints, and the tests that hold it, beside the tables above.
const CLAUSES: [(&str, &[&str]); 9] = [
    (
        "written under a temporary name, synced, renamed, its folder synced; so are new folders above it",
        &["a_run_killed_between_any_two_writes_ends_like_one_that_was_not", "what_is_not_synced_may_go"],
    ),
    (
        "a manifest with sizes and hashes, sealed by a hash of its own",
        &["equal_content_gives_equal_bytes", "damage_is_named"],
    ),
    (
        "a damaged or half-written one is recognised, named and passed over for the one before it",
        &["damaged_checkpoints_are_named_and_passed_over", "a_damaged_checkpoint_is_named_and_passed_over"],
    ),
    (
        "a damaged candidate is named, with what to remove so that it is made again",
        &["named_checkpoints_are_verified", "a_damaged_candidate_is_named_and_can_be_made_again"],
    ),
    (
        "the last `checkpoints.keep` are kept, and every candidate of SFT and PPO; an interruption adds none",
        &["killed_runs_end_with_the_same_bytes", "an_interrupted_run_leaves_no_other_checkpoints"],
    ),
    (
        "free space is compared with a checkpoint's full size before even the first",
        &["a_full_disk_is_noticed_before_writing"],
    ),
    (
        "a run folder is locked against a second process, which is told the first one's number",
        &["a_second_process_is_refused_until_the_first_is_gone", "a_second_process_is_told_the_number_of_the_first"],
    ),
    (
        "another configuration is refused with the lines that differ",
        &[
            "another_configuration_is_refused_with_the_difference",
            "a_changed_configuration_is_refused_with_the_difference",
        ],
    ),
    ("progress that cannot be shown ends no run", &["a_run_outlives_its_terminal"]),
];

/// At least so many deaths at random instants and before chosen calls are on the page.
const ENOUGH: [u64; 2] = [200, 30];

/// And so many of ranks and launchers.
pub(super) const ENOUGH_RANKS: usize = 60;

/// And so many of servers.
pub(super) const ENOUGH_SERVERS: usize = 60;

/// Writes the page, unless too little was tried for one.
pub(super) fn write(root: &Path, found: &Found) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let tables = read(&page)?.tables;
    let record = found.record([tables[RANKS].clone(), tables[SERVERS].clone()]);
    record.suffices_alone()?;
    fs::write(root.join(PAGE), render(&record, root)?).with_context(|| format!("cannot write {PAGE}"))
}

/// Writes the page anew around the numbers that it has, after `change` where there are new ones.
pub(super) fn rewrite(root: &Path, change: Option<&dyn Fn(&mut Record)>) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut record = read(&page)?;
    change.iter().for_each(|change| change(&mut record));
    let page = render(&record, root)?;
    fs::write(root.join(PAGE), page).with_context(|| format!("cannot write {PAGE}"))
}

/// Compares the page with what it would be, were it made anew with its own numbers, and the numbers with
/// what was asked for.
pub(super) fn check(root: &Path) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let record = read(&page)?;
    record.suffices()?;
    let new = render(&record, root)?;
    let differs = page.lines().zip(new.lines()).find(|(old, new)| old != new);
    if let Some((old, new)) = differs {
        bail!("{PAGE} is not up to date: run `cargo xtask torture`\n  page: {old}\n  now:  {new}");
    }
    if page != new {
        bail!("{PAGE} is not up to date: it has another length; run `cargo xtask torture`");
    }
    clauses_have_tests(root)?;
    xtask::terminal::print(&format!("torture: {PAGE} is up to date, {} deaths, 0 lost", record.tried()));
    Ok(())
}

impl Record {
    /// Replaces the table of ranks and launchers.
    pub(super) fn take_ranks(&mut self, deaths: &[Death]) {
        self.tables[RANKS] = Rows::of(deaths);
    }

    /// Replaces the table of servers.
    pub(super) fn take_servers(&mut self, deaths: &[Death]) {
        self.tables[SERVERS] = Rows::of(deaths);
    }

    fn tried(&self) -> u64 {
        self.tables.iter().map(|rows| rows.sum(0)).sum()
    }

    /// Refuses a page on which too little was tried.
    fn suffices(&self) -> Result<()> {
        self.suffices_alone()?;
        for (table, enough, whose) in
            [(RANKS, ENOUGH_RANKS, "ranks and launchers"), (SERVERS, ENOUGH_SERVERS, "servers")]
        {
            let [tried, lost] = [0, 2].map(|column| self.tables[table].sum(column));
            if tried < enough as u64 || lost > 0 {
                bail!("{PAGE} needs {enough} deaths of {whose}, none lost, and has {tried}, {lost} lost");
            }
        }
        Ok(())
    }

    /// The same of all tables but those of ranks and servers, which other commands make.
    fn suffices_alone(&self) -> Result<()> {
        for (rows, (title, _)) in self.tables[..RANKS].iter().zip(SECTIONS) {
            if rows.sum(0) == 0 || rows.sum(2) > 0 {
                bail!("{PAGE}: {title}: {} tried, {} lost", rows.sum(0), rows.sum(2));
            }
        }
        for (rows, enough) in self.tables.iter().zip(ENOUGH) {
            if rows.sum(0) < enough {
                bail!("{PAGE} needs {enough} deaths in a table that has {}: raise --kills or --points", rows.sum(0));
            }
            for stage in ["sft-baseline", "reward-model", "ppo-ptx"] {
                if !rows.0.keys().any(|(place, _)| place == stage) {
                    bail!("{PAGE}: no death in {stage}");
                }
            }
        }
        Ok(())
    }
}

fn render(record: &Record, root: &Path) -> Result<String> {
    let mut page = FRONT.to_owned();
    let [files, megabytes, points] = record.facts;
    let _ = write!(
        page,
        "\n| files compared | megabytes | points to choose from | deaths | lost |\n|---|---|---|---|---|\n"
    );
    let lost: u64 = record.tables.iter().map(|rows| rows.sum(2)).sum();
    let _ = writeln!(page, "| {files} | {megabytes} | {points} | {} | {lost} |", record.tried());
    for ((title, says), rows) in SECTIONS.iter().zip(&record.tables) {
        let _ = write!(page, "\n## {title}\n\n{says}\n\n");
        page += &table(rows);
    }
    page += "\n## Checkpoints\n\n| promise | tests |\n|---|---|\n";
    for (clause, tests) in CLAUSES {
        let tests: Vec<String> = tests.iter().map(|test| format!("`{test}`")).collect();
        let _ = writeln!(page, "| {clause} | {} |", tests.join(", "));
    }
    if !record.inputs.is_empty() {
        let _ = writeln!(page, "{INPUTS}{}", record.inputs);
    }
    page += &fuzzing(root)?;
    page += &guards(root);
    Ok(page)
}

/// What begins the table of inputs.
const INPUTS: &str = "\n## Inputs\n\n";

const HEAD: &str = "| stage | died of | tried | half written | survived | lost |\n|---|---|---|---|---|---|\n";

fn table(rows: &Rows) -> String {
    let mut text = HEAD.to_owned();
    for ((stage, how), [tried, torn, lost]) in &rows.0 {
        let _ = writeln!(text, "| {stage} | {how} | {tried} | {torn} | {} | {lost} |", tried - lost);
    }
    let [tried, torn, lost] = [0, 1, 2].map(|column| rows.sum(column));
    let _ = writeln!(text, "| **all** | | **{tried}** | **{torn}** | **{}** | **{lost}** |", tried - lost);
    text
}

/// The numbers of a page that [`render`] wrote.
fn read(page: &str) -> Result<Record> {
    let facts = page.split("|---|---|---|---|---|\n").nth(1).and_then(|rest| rest.lines().next());
    let facts: Vec<u64> =
        cells(facts.context("the page has no table of facts")?).filter_map(|c| c.parse().ok()).collect();
    let [files, megabytes, points, ..] = facts[..] else { bail!("{PAGE}: the table of facts has not five numbers") };
    let mut tables = Vec::new();
    for (title, _) in SECTIONS {
        let section = page.split(&format!("\n## {title}\n")).nth(1).and_then(|rest| rest.split(HEAD).nth(1));
        let section = section.with_context(|| format!("{PAGE} has no table `{title}`"))?;
        let mut rows = Rows::default();
        for line in section.lines().take_while(|line| line.starts_with("| ") && !line.contains("**all**")) {
            let cells: Vec<&str> = cells(line).collect();
            let [stage, how, tried, torn, _, lost] = cells[..] else { bail!("{PAGE}: `{line}` has not six cells") };
            let number = |cell: &str| cell.parse().with_context(|| format!("{PAGE}: `{cell}` is no number"));
            rows.0.insert((stage.to_owned(), how.to_owned()), [number(tried)?, number(torn)?, number(lost)?]);
        }
        tables.push(rows);
    }
    let tables = tables.try_into().ok().context("every section has a table")?;
    let inputs = page.split(INPUTS).nth(1).and_then(|rest| rest.split("\n## ").next());
    Ok(Record { facts: [files, megabytes, points], tables, inputs: inputs.unwrap_or_default().trim().to_owned() })
}

fn cells(line: &str) -> impl Iterator<Item = &str> {
    line.trim_matches(['|', ' ']).split('|').map(str::trim)
}

/// Every test that the page names is there.
fn clauses_have_tests(root: &Path) -> Result<()> {
    let mut sources = String::new();
    for folder in ["crates/runs/src", "crates/runs/tests", "crates/checks/src", "xtask/src", "xtask/tests"] {
        gather(&root.join(folder), &mut sources)?;
    }
    for test in CLAUSES.iter().flat_map(|(_, tests)| tests.iter()) {
        if !sources.contains(&format!("#[test]\n    fn {test}()"))
            && !sources.contains(&format!("#[test]\nfn {test}()"))
        {
            bail!("{PAGE} names a test `{test}`, which is nowhere");
        }
    }
    Ok(())
}

fn gather(folder: &Path, sources: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            gather(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *sources += &fs::read_to_string(&path)?;
        }
    }
    Ok(())
}

/// What `fuzz/record.toml` says of each target, one table of the file per row.
fn fuzzing(root: &Path) -> Result<String> {
    const RECORD: &str = "fuzz/record.toml";
    let Ok(text) = fs::read_to_string(root.join(RECORD)) else { return Ok(String::new()) };
    let record: toml::Table = text.parse().with_context(|| RECORD.to_owned())?;
    let mut page = format!("\n## Fuzzing\n\nFrom [{RECORD}](../{RECORD}).\n\n```toml\n");
    page += toml::to_string(&record)?.trim();
    page += "\n```\n";
    Ok(page)
}

/// Where the guards are listed, with the test of each.
fn guards(root: &Path) -> String {
    if !root.join("docs/guards.md").exists() {
        return String::new();
    }
    "\n## Guards\n\nWhat stops a run that goes wrong, and the test that provokes it: [guards.md](guards.md).\n"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let stages = ["sft-baseline", "reward-model", "ppo-ptx"];
        let row = |stage: &&str| ((**stage).to_owned(), "SIGKILL".to_owned());
        let rows = || Rows(stages.iter().map(|stage| (row(stage), [90, 3, 0])).collect());
        let tables = [rows(), rows(), rows(), rows(), rows(), rows(), rows(), rows()];
        Record { facts: [57, 262, 222], tables, inputs: "| input |\n|---|\n| JSON |".to_owned() }
    }

    #[test]
    fn a_page_is_read_back() {
        let page = render(&record(), Path::new("nowhere")).unwrap();
        assert!(page.contains("| sft-baseline | SIGKILL | 90 | 3 | 90 | 0 |\n"), "{page}");
        assert!(page.contains("| **all** | | **270** | **9** | **270** | **0** |\n"), "{page}");
        assert_eq!(read(&page).unwrap(), record());
    }

    #[test]
    fn too_little_or_a_loss_makes_no_page() {
        assert!(record().suffices().is_ok());
        let spoilt = |change: fn(&mut Record)| {
            let mut record = record();
            change(&mut record);
            format!("{:#}", record.suffices().unwrap_err())
        };
        assert!(spoilt(|r| r.tables[4].0.values_mut().for_each(|row| row[2] = 1)).contains("3 lost"));
        assert!(spoilt(|r| r.tables[0].0.values_mut().for_each(|row| row[0] = 66)).contains("needs 200"));
        assert!(spoilt(|r| r.tables[1].0.values_mut().for_each(|row| row[0] = 9)).contains("needs 30"));
        assert!(spoilt(|r| drop(r.tables[1].0.pop_first())).contains("no death in ppo-ptx"));
        assert!(spoilt(|r| r.tables[5].0.clear()).contains("0 tried"));
        assert!(spoilt(|r| r.tables[RANKS].0.clear()).contains("needs 60"));
        assert!(spoilt(|r| r.tables[RANKS].0.values_mut().for_each(|row| row[2] = 1)).contains("3 lost"));
        assert!(spoilt(|r| r.tables[SERVERS].0.clear()).contains("60 deaths of servers"));
    }
}
