//! Writes the report of run folders: `page FOLDER... OUT.html`; of several one comparison.

use instruct_report::{Run, compare};
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let out = paths.pop().ok_or("name a run folder and the file to write")?;
    let read = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Run::from_files(&name, |path| fs::read(folder.join(path)).ok())
    };
    let runs: Vec<Run> = paths.iter().map(read).collect();
    let page = match runs.as_slice() {
        [] => return Err("name a run folder before the file to write".into()),
        [run] => run.page(),
        several => compare(several),
    };
    Ok(fs::write(out, page)?)
}
