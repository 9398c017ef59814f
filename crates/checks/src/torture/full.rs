//! A disk that is really full: a small file system in memory, in a mount namespace of its own, that
//! grows a little after each refusal.

use super::{Death, victim::Victim};
use anyhow::{Context, Result, bail};
use std::{fs, process::Command};

/// Sizes of the file system, in megabytes, up to one that holds a whole run.
const SIZES: [u64; 14] = [2, 8, 24, 40, 56, 80, 104, 128, 152, 176, 200, 232, 264, 600];

/// Runs the program at each size, on the same folder, until it comes to its end; every refusal but the
/// last is a death. `None` where the system does not let this user make a mount namespace.
pub(super) fn fill(victim: &Victim, sizes: usize) -> Result<Option<Vec<Death>>> {
    if !is_possible() {
        return Ok(None);
    }
    let sizes: Vec<u64> = spread_out(sizes);
    let list = sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let script = format!(
        "set -e; mkdir -p small; mount -t tmpfs -o size=1m tmpfs small; path=$PATH\n\
         for size in {list}; do\n\
         mount -o remount,size=${{size}}m small\n\
         set +e; PATH= ./program pipeline --config torture.toml --resume --run small/run > /dev/null 2> said-$size\n\
         echo $? > code-$size; set -e; PATH=$path\n\
         done; cp -r small/run filled"
    );
    let mut process = Command::new("unshare");
    process.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(&victim.folder);
    let (status, said) = Victim::end(process)?;
    if !status.success() {
        bail!("the script that fills a disk ended with {status}:\n{said}");
    }
    let mut deaths = Vec::new();
    for size in &sizes {
        let read = |kind: &str| {
            let path = victim.folder.join(format!("{kind}-{size}"));
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (code, said) = (read("code")?, read("said")?);
        match code.trim() {
            "0" => continue,
            "2" if said.contains("free some space") && !said.contains("panicked") => {}
            code => bail!("on a disk of {size} MB the program ended with {code}:\n{said}"),
        }
        let kind = if said.contains("bytes free") { "refused before writing" } else { "ran out while writing" };
        deaths.push(Death { stage: "any", how: kind.to_owned(), torn: false, lost: None });
    }
    super::settle(victim, "filled", deaths).map(Some)
}

/// So many of the sizes, the last among them.
fn spread_out(count: usize) -> Vec<u64> {
    let count = count.clamp(2, SIZES.len());
    (0..count).map(|i| SIZES[i * (SIZES.len() - 1) / (count - 1)]).collect()
}

fn is_possible() -> bool {
    let probe = "mkdir -p small && mount -t tmpfs -o size=1m tmpfs small";
    let folder = tempfile::tempdir().ok();
    let run = |folder: &tempfile::TempDir| {
        let mut process = Command::new("unshare");
        process.args(["--user", "--map-root-user", "--mount", "sh", "-c", probe]).current_dir(folder.path());
        process.output().is_ok_and(|output| output.status.success())
    };
    folder.as_ref().is_some_and(run)
}
