//! docs/reliability.md: what was tried, survived and lost.

use super::Death;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

const PAGE: &str = "docs/reliability.md";

/// Everything that one torture found.
pub(super) struct Found {
    pub(super) random: Vec<Death>,
    pub(super) chosen: Vec<Death>,
}

impl Found {
    fn all(&self) -> impl Iterator<Item = &Death> {
        self.random.iter().chain(&self.chosen)
    }

    pub(super) fn lost(&self) -> usize {
        self.all().filter(|death| death.lost.is_some()).count()
    }

    /// One line for the end.
    pub(super) fn summary(&self) -> String {
        let (random, chosen) = (self.random.len(), self.chosen.len());
        format!("torture: {random} deaths at random instants, {chosen} before chosen calls, {} lost", self.lost())
    }
}

pub(super) fn write(root: &Path, found: &Found) -> Result<()> {
    let mut page = String::from("# What it survives\n");
    page += "\n## Killed at random instants\n\n";
    page += &table("where the run stood", &found.random);
    page += "\n## Killed between two system calls of a checkpoint\n\n";
    page += &table("stage", &found.chosen);
    fs::write(root.join(PAGE), page).with_context(|| format!("cannot write {PAGE}"))
}

/// Rows of place and means, with what was tried, survived and lost.
fn table(place: &str, deaths: &[Death]) -> String {
    let mut rows: BTreeMap<(&str, &str), [usize; 3]> = BTreeMap::new();
    for death in deaths {
        let row = rows.entry((death.stage, &death.how)).or_default();
        row[0] += 1;
        row[1] += usize::from(death.torn);
        row[2] += usize::from(death.lost.is_some());
    }
    let mut text = format!("| {place} | died by | tried | folder half written | survived | lost |\n|---|---|---|---|---|---|\n");
    for ((stage, how), [tried, torn, lost]) in rows {
        let _ = writeln!(text, "| {stage} | {how} | {tried} | {torn} | {} | {lost} |", tried - lost);
    }
    text
}

pub(super) fn check(root: &Path) -> Result<()> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    if page.is_empty() {
        bail!("{PAGE} is empty");
    }
    Ok(())
}
