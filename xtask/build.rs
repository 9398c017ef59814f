//! Tells the program which commit it was built from, because the folder in which it runs is no sign of that.

use std::{fs, path::Path, process::Command};

fn main() {
    println!("cargo::rustc-env=INSTRUCT_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
    println!("cargo::rerun-if-changed=build.rs");
    // The journal of HEAD grows with each commit and each change of branches.
    for file in ["HEAD", "logs/HEAD"].iter().filter_map(|name| git(&["rev-parse", "--git-path", name])) {
        if Path::new(&file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
}

/// The commit that a package names which was made from a repository, else that of the repository which tracks this
/// file; another repository may lie around both.
fn commit() -> Option<String> {
    if let Ok(text) = fs::read_to_string(".cargo_vcs_info.json") {
        let hash = text.split('"').skip_while(|part| *part != "sha1").nth(2)?;
        return Some(hash.to_owned());
    }
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
