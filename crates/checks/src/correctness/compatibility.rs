//! docs/compatibility.md: which models, tokenizers and templates are known to be read rightly, out of the
//! same measurements as docs/correctness.md.

use super::{COMPATIBILITY, Claims, Measured, places};
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// A claim whose cases are listed.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    title: String,
    /// The name of the claim.
    claim: String,
    /// What its cases are.
    says: String,
}

const FRONT: &str = "\
# What is read, and what says so

Written by `cargo xtask correctness` from what the tests measured, as [correctness.md](correctness.md) is; CI
compares it with a new run. Every row is a case that a test holds to its reference, within the tolerance of
the claim that is named; *equal* is equality. What is not listed here is held to no reference.
";

/// The page.
///
/// Errors: a section of a claim that does not exist, or that was not measured.
pub(super) fn render(
    claims: &Claims,
    measured: &BTreeMap<String, Measured>,
    versions: &BTreeMap<String, String>,
) -> Result<String> {
    let mut page = FRONT.to_owned();
    for section in &claims.compatibility {
        let claim = claims.all().find(|claim| claim.name == section.claim);
        let claim = claim.with_context(|| format!("there is no claim `{}` to list the cases of", section.claim))?;
        let found = measured.get(&claim.name).with_context(|| format!("`{}` was not measured", claim.name))?;
        let tolerance = if found.tolerance > 0.0 { format!("{:.0e}", found.tolerance) } else { "equal".to_owned() };
        let (reference, places) = (claim.reference(versions), places(&found.files));
        let _ = write!(page, "\n## {}\n\n{}\n\n", section.title, section.says);
        let _ = write!(page, "Claim `{}`, with {reference}, {tolerance}; test: {places}.\n\n", claim.name);
        for (subject, ways) in subjects(&found.cases) {
            let ways = if ways.is_empty() { String::new() } else { format!(": {}", ways.join("; ")) };
            let _ = writeln!(page, "- {subject}{ways}");
        }
    }
    Ok(page)
}

/// Cases by their first word, with the rest of each.
fn subjects(cases: &BTreeSet<String>) -> BTreeMap<&str, Vec<&str>> {
    let mut subjects: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for case in cases {
        let (subject, way) = case.split_once(' ').unwrap_or((case, ""));
        let ways = subjects.entry(subject.trim_end_matches(',')).or_default();
        ways.extend(Some(way).filter(|way| !way.is_empty()));
    }
    subjects
}

/// Errors: the two pages differ.
pub(super) fn compare(committed: &str, new: &str) -> Result<()> {
    if committed != new {
        bail!("{COMPATIBILITY} is not up to date: run `cargo xtask correctness`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_lists_the_cases_of_its_claim() {
        let claims: Claims = toml::from_str(
            "[[group]]\ntitle = 'G'\n[[group.claim]]\nname = 'g/a'\nsays = 's'\nreference = '{torch}'\n\
             [[compatibility]]\ntitle = 'T'\nclaim = 'g/a'\nsays = 'W'\n",
        )
        .unwrap();
        let versions = BTreeMap::from([("torch".to_owned(), "2.0+cpu".to_owned())]);
        let found = Measured {
            cases: ["x in a", "x in b", "y"].map(str::to_owned).into(),
            worst: 0.0,
            worst_case: "x".to_owned(),
            tolerance: 0.0,
            files: BTreeSet::from(["f.rs".to_owned()]),
        };
        let measured = BTreeMap::from([("g/a".to_owned(), found)]);
        let page = render(&claims, &measured, &versions).unwrap();
        assert!(
            page.ends_with("## T\n\nW\n\nClaim `g/a`, with torch 2.0, equal; test: f.rs.\n\n- x: in a; in b\n- y\n"),
            "{page}"
        );
        assert!(compare(&page, &page).is_ok() && compare("", &page).is_err());
        assert!(render(&claims, &BTreeMap::new(), &versions).is_err());
    }
}
