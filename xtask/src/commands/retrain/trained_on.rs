//! What a retrained run was trained on: written down when it begins, so that it repeats, continues and can be named
//! when somebody wants to be forgotten.

use crate::{
    config::Config,
    desk::{self, hex},
    terminal::say,
};
use anyhow::{Context, Result, bail};
use instruct_data::Record;
use instruct_feedback::{Options, Rated, Records, Settings, State, records};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What a run was trained from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Retrained {
    from: PathBuf,
    /// The folders of feedback that it was trained on: this one's, and those of the runs before.
    feedback: Vec<PathBuf>,
    /// SHA-256 of what was said there by then.
    log_sha256: String,
    /// The rankings that came of it.
    rankings: PathBuf,
    /// The keys of these records.
    keys: Vec<String>,
    /// Those among them that the old run was not trained on.
    new: Vec<String>,
    /// The keys of the thumbs of answers of which nothing else was said by then.
    #[serde(default)]
    thumbs: Vec<String>,
    /// The demonstrations that came of it, where fine-tuning had some.
    #[serde(default)]
    demonstrations: Option<PathBuf>,
    /// The keys of these.
    #[serde(default)]
    demonstrated: Vec<String>,
    /// The keys of all that the old policy was made with, where PPO goes on with it.
    #[serde(default)]
    descends: Vec<String>,
    #[serde(flatten)]
    pub(super) how: How,
}

/// How a run is trained from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct How {
    /// PPO goes on with the old policy.
    #[serde(default)]
    pub(super) continues: bool,
    /// Fine-tuning is done anew, with the demonstrations of people.
    #[serde(default)]
    pub(super) fine_tunes: bool,
    /// Edited answers are not put above what they were made of.
    #[serde(default)]
    pub(super) leaves_out_edits: bool,
    /// People compare the new policy with the old one.
    #[serde(default)]
    pub(super) asks_people: bool,
}

/// The file of a run that says what it was trained from.
const FILE: &str = "retrained.json";

/// Where the records of runs lie, in a folder of feedback.
pub(crate) const FROZEN: &str = "frozen";

impl Retrained {
    /// What a run was trained from, if it was retrained.
    ///
    /// Errors: a file that cannot be read, or is none of this program's.
    pub(crate) fn read(run: &Path) -> Result<Option<Retrained>> {
        super::read(&run.join(FILE))
    }

    /// Whether a run says what it was trained from.
    pub(super) fn is_written(run: &Path) -> bool {
        run.join(FILE).is_file()
    }

    pub(super) fn write(&self, dir: &instruct_runs::RunDir<'_>) -> Result<()> {
        dir.write_json(FILE, self)?;
        Ok(())
    }

    /// Writes the records that come of what was said by now beside the log, under their hash: whatever is said later
    /// changes nothing for this run.
    pub(super) fn freeze(from: &Path, feedback: Option<&Path>, how: How) -> Result<Retrained> {
        let options = &Options { edits_as_pairs: !how.leaves_out_edits, ..Options::default() };
        let before = Retrained::read(from)?;
        let folder = feedback.map_or_else(|| from.join("feedback"), Path::to_owned);
        let whole = |path: &Path| fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()));
        let folder = whole(&folder)?;
        let mut folders = before.as_ref().map(|before| before.feedback.clone()).unwrap_or_default();
        // The last is where this run's people are.
        folders.retain(|known| *known != folder);
        folders.push(folder.clone());
        let (log, said) = said_in(&folders, options)?;
        if said.rankings.is_empty() {
            bail!("{}: nothing was said that is a ranking; rank some answers first", folder.display());
        }
        say(&format!("what people said makes {} rankings", said.rankings.len()));
        let keys: Vec<String> = said.rankings.iter().map(|record| record.prompt.id.clone()).collect();
        let thumbs = said.thumbs.iter().filter(|rated| rated.alone).map(|rated| rated.id.clone()).collect();
        let known: BTreeSet<&String> = before.iter().flat_map(|before| &before.keys).collect();
        let new = keys.iter().filter(|key| !known.contains(key)).cloned().collect();
        let descends = before.as_ref().filter(|_| how.continues).map(Retrained::all_keys).unwrap_or_default();
        let rankings = frozen(&folder, &said.rankings)?;
        let (demonstrations, demonstrated) = if how.fine_tunes && !said.demonstrations.is_empty() {
            say(&format!("what people said makes {} demonstrations", said.demonstrations.len()));
            let keys = said.demonstrations.iter().map(|record| record.prompt.id.clone()).collect();
            (Some(frozen(&folder, &said.demonstrations)?), keys)
        } else if how.fine_tunes {
            say("warning: there is no demonstration of people, so --fine-tune trains on the old ones alone");
            (None, Vec::new())
        } else {
            before.map_or((None, Vec::new()), |before| (before.demonstrations, before.demonstrated))
        };
        if let Some(gone) = demonstrations.as_ref().filter(|path| !path.is_file()) {
            bail!(
                "{} is gone, on which the old run was fine-tuned; --fine-tune does that anew, without what was removed",
                gone.display()
            );
        }
        let unused = said.demonstrations.iter().filter(|record| !demonstrated.contains(&record.prompt.id)).count();
        if unused > 0 {
            say(&format!("{unused} demonstrations are not used: --fine-tune trains the first step anew, on them too"));
        }
        let (from, log_sha256) = (whole(from)?, hex(&Sha256::digest(&log)));
        Ok(Retrained {
            from,
            feedback: folders,
            log_sha256,
            rankings,
            keys,
            new,
            thumbs,
            demonstrations,
            demonstrated,
            descends,
            how,
        })
    }

    /// The configuration of the old run under `key=value` settings, with what people said to this and earlier ones beside
    /// its own records.
    pub(super) fn config(&self, settings: &[String]) -> Result<Config> {
        let mut config = Config::read(&self.from.join("config.toml"), settings)?;
        let before = Retrained::read(&self.from)?;
        // What was said before is frozen anew with the rest: it may have been taken back, or said otherwise.
        let earlier = before.map(|before| (before.rankings, before.demonstrations));
        let replace = |files: &mut Vec<String>, earlier: Option<&Path>, new: Option<&Path>| {
            let name = |path: &Path| path.display().to_string();
            files.retain(|file| Some(file) != earlier.map(name).as_ref());
            files.extend(new.map(name));
        };
        let (rankings, demonstrations) = earlier.unzip();
        replace(&mut config.data.rankings, rankings.as_deref(), Some(&self.rankings));
        let demonstrations = demonstrations.flatten();
        replace(&mut config.data.demonstrations, demonstrations.as_deref(), self.demonstrations.as_deref());
        Ok(config)
    }

    /// The old run.
    pub(super) fn from(&self) -> &Path {
        &self.from
    }

    /// The folder of feedback whose people are asked further.
    pub(super) fn feedback(&self) -> Result<&Path> {
        self.feedback.last().map(PathBuf::as_path).context("the run names no folder of feedback")
    }

    /// The keys of the rankings that the old run had not.
    pub(super) fn new_keys(&self) -> BTreeSet<&str> {
        self.new.iter().map(String::as_str).collect()
    }

    /// The thumbs that measure its reward model, as far as the folders still have them.
    pub(super) fn thumbs(&self) -> Result<Vec<Rated>> {
        let (_, said) = said_in(&self.feedback, &Options::default())?;
        Ok(said.thumbs.into_iter().filter(|rated| self.thumbs.contains(&rated.id)).collect())
    }

    /// How many of these records the run, or the policy that it goes on with, was made with: trained on, or measured by.
    pub(crate) fn count_of(&self, keys: &[String]) -> usize {
        let own: BTreeSet<String> = self.all_keys().into_iter().collect();
        keys.iter().filter(|key| own.contains(*key)).count()
    }

    /// The frozen files of the run.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        [Some(self.rankings.clone()), self.demonstrations.clone()].into_iter().flatten()
    }

    /// The folders of feedback that it was trained on.
    pub(crate) fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.feedback.iter().cloned()
    }

    fn all_keys(&self) -> Vec<String> {
        self.keys.iter().chain(&self.demonstrated).chain(&self.descends).cloned().collect()
    }
}

/// What was said in all these folders: the lines of their logs, and the records that come of them.
fn said_in(folders: &[PathBuf], options: &Options) -> Result<(String, Records)> {
    let (mut log, mut all) = (String::new(), Records::default());
    for folder in folders {
        let collected = desk::collected(folder)?;
        log.extend(collected.events.iter().map(|event| event.line()));
        let Records { rankings, demonstrations, thumbs, .. } =
            records(&State::of(Settings::default(), collected)?, options);
        all.rankings.extend(rankings);
        all.demonstrations.extend(demonstrations);
        all.thumbs.extend(thumbs);
    }
    Ok((log, all))
}

/// Writes records into the folder's frozen ones, under the hash of their lines; returns the path.
fn frozen<R: Record>(folder: &Path, records: &[R]) -> Result<PathBuf> {
    let lines: String = records.iter().map(|record| record.to_line() + "\n").collect();
    let folder = folder.join(FROZEN);
    let path = folder.join(format!("{}.jsonl", &hex(&Sha256::digest(&lines))[..16]));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    crate::write_whole(&path, lines.as_bytes())?;
    Ok(path)
}
