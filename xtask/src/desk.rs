//! A folder of feedback: what people are asked, what was served to them, what they said, and who they are.
//!
//! | file | holds |
//! |---|---|
//! | `tasks.jsonl` | what people are asked |
//! | `answers.jsonl` | what was served to people who let it be kept |
//! | `log.jsonl` | what they said; only ever appended to |
//! | `labelers.toml` | names, roles and the SHA-256 of tokens |
//! | `local.token` | the token of whoever sits at this machine, where no labelers are named |
//! | `guidelines.md` | what a good completion is |
//! | `.lock` | held by the one program that works here |

use anyhow::{Context, Result, bail};
use instruct_feedback::{Collected, LineError, Torn, read_answers, read_log, read_tasks};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

pub(crate) const TASKS: &str = "tasks.jsonl";
pub(crate) const ANSWERS: &str = "answers.jsonl";
pub(crate) const LOG: &str = "log.jsonl";
const LABELERS: &str = "labelers.toml";
#[cfg(feature = "serve")]
const LOCAL: &str = "local.token";
#[cfg(feature = "serve")]
const GUIDELINES: &str = "guidelines.md";
const LOCK: &str = ".lock";

/// The name of whoever sits at this machine.
pub(crate) const LOCAL_LABELER: &str = "local";

/// What people are told where nobody wrote guidelines.
#[cfg(feature = "serve")]
const DEFAULT_GUIDELINES: &str = include_str!("guidelines.md");

/// A folder of feedback that no other program works in.
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

/// A person who may give feedback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Labeler {
    pub(crate) id: String,
    /// SHA-256 of the token, in hexadecimal digits.
    pub(crate) token_sha256: String,
    pub(crate) role: Role,
}

/// What a person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Give feedback, and see one's own.
    Labeler,
    /// See what all did, and take the records out.
    Admin,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labelers {
    #[serde(default)]
    labeler: Vec<Labeler>,
}

impl Folder {
    /// Opens a folder, which is made if it is not there.
    ///
    /// Errors: another program works in it; the disk's.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        make(path).with_context(|| format!("cannot make {}", path.display()))?;
        let at = path.join(LOCK);
        let failed = || format!("cannot lock {}", at.display());
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&at).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message.
                let _ = lock.read_to_string(&mut holder);
                bail!("{} is in use by process {}; stop it first", path.display(), holder.trim());
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).with_context(failed)?;
        let folder = Folder { path: path.to_owned(), _lock: lock };
        folder.sync().with_context(|| format!("cannot sync {}", path.display()))?;
        Ok(folder)
    }

    /// Brings to the disk what a program that died has written: people who ask again are told that it is saved.
    fn sync(&self) -> io::Result<()> {
        for name in [TASKS, ANSWERS, LOG] {
            match File::open(self.path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?.sync_all()?,
            }
        }
        File::open(&self.path)?.sync_all()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of a file; none where it does not exist.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_if_there(&self.path.join(name))
    }

    /// Appends, and returns when the bytes would survive a power cut.
    pub(crate) fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        let is_new = !path.exists();
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        if is_new { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    /// Replaces a file, so that any crash leaves the old content or the new. A new one may be read by its owner alone, an
    /// old one by whom it could before.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, staged) = (self.path.join(name), self.path.join(format!("{name}.tmp")));
        // What a program that died left there, perhaps for others to read.
        if let Err(error) = fs::remove_file(&staged)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut new = OpenOptions::new();
        new.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut new, 0o600);
        let mut file = new.open(&staged)?;
        if let Ok(old) = fs::metadata(&path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(staged, path)?;
        File::open(&self.path)?.sync_all()
    }

    /// Cuts a file to so many bytes.
    #[cfg_attr(not(feature = "serve"), allow(dead_code))]
    pub(crate) fn cut(&self, name: &str, bytes: u64) -> io::Result<()> {
        match OpenOptions::new().write(true).open(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && bytes == 0 => Ok(()),
            other => {
                let file = other?;
                file.set_len(bytes)?;
                file.sync_all()
            }
        }
    }

    /// As [`collected`].
    pub(crate) fn collected(&self) -> Result<Collected> {
        collected(&self.path)
    }

    /// What a good completion is, in Markdown.
    #[cfg(feature = "serve")]
    pub(crate) fn guidelines(&self) -> Result<String> {
        let own = self.read(GUIDELINES).with_context(|| format!("cannot read {GUIDELINES}"))?;
        if own.is_empty() {
            return Ok(DEFAULT_GUIDELINES.to_owned());
        }
        String::from_utf8(own).with_context(|| format!("{}: this is no UTF-8", self.path.join(GUIDELINES).display()))
    }

    /// The people who are named; none where nobody is.
    pub(crate) fn labelers(&self) -> Result<Vec<Labeler>> {
        let path = self.path.join(LABELERS);
        let text = String::from_utf8(self.read(LABELERS)?).with_context(|| path.display().to_string())?;
        let Labelers { labeler } = toml::from_str(&text).with_context(|| path.display().to_string())?;
        for (at, one) in labeler.iter().enumerate() {
            let again = labeler[..at].iter().find(|other| other.id == one.id || other.token_sha256 == one.token_sha256);
            if !is_name(&one.id) || one.id == LOCAL_LABELER || again.is_some() {
                bail!("{}: `{}` is no name, or name or token stand there twice", path.display(), one.id);
            }
        }
        Ok(labeler)
    }

    /// Takes a person out of those who may give feedback; false if nobody has this name.
    pub(crate) fn unname(&self, id: &str) -> Result<bool> {
        let mut labelers = self.labelers()?;
        let before = labelers.len();
        labelers.retain(|labeler| labeler.id != id);
        if labelers.len() < before {
            let text = toml::to_string(&Labelers { labeler: labelers })?;
            self.replace(LABELERS, text.as_bytes()).with_context(|| format!("cannot write {LABELERS}"))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Names a person, whose earlier token is worth nothing from then on; returns the token, which is not kept.
    pub(crate) fn name(&self, id: &str, role: Role) -> Result<String> {
        let token = token()?;
        let mut labelers = self.labelers()?;
        labelers.retain(|labeler| labeler.id != id);
        labelers.push(Labeler { id: id.to_owned(), token_sha256: hex(&Sha256::digest(&token)), role });
        let text = toml::to_string(&Labelers { labeler: labelers })?;
        self.replace(LABELERS, text.as_bytes()).with_context(|| format!("cannot write {LABELERS}"))?;
        Ok(token)
    }

    /// The token of whoever sits at this machine, the same at every start.
    #[cfg(feature = "serve")]
    pub(crate) fn local_token(&self) -> Result<String> {
        let path = self.path.join(LOCAL);
        let known = String::from_utf8_lossy(&self.read(LOCAL)?).trim().to_owned();
        // What a power cut left there could be guessed.
        if digest_of(&known).is_some() {
            return Ok(known);
        }
        if !known.is_empty() {
            crate::terminal::say(&format!("{}: this is none of our tokens; a new one takes its place", path.display()));
        }
        let token = token()?;
        self.replace(LOCAL, format!("{token}\n").as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(token)
    }
}

/// Makes a folder for its owner alone, and waits until its name is on the disk.
fn make(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Whether people can be called so.
pub(crate) fn is_name(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(is_plain)
}

/// Everything that people were asked, were served and said, in a folder that a server may be working in. A half line at
/// the end of a file is left out: nobody was told that it is saved.
///
/// Errors: a line that is none of this program's, with its place.
pub(crate) fn collected(folder: &Path) -> Result<Collected> {
    let at = |name: &str| folder.join(name).display().to_string();
    let read = |name: &str| read_if_there(&folder.join(name)).with_context(|| format!("cannot read {}", at(name)));
    fn lines<T>(read: Result<(Vec<T>, Option<Torn>), LineError>, at: String) -> Result<Vec<T>> {
        read.map(|(lines, _)| lines).with_context(|| at)
    }
    // The log first: what it names was written before it.
    let events = lines(read_log(&read(LOG)?), at(LOG))?;
    let answers = lines(read_answers(&read(ANSWERS)?), at(ANSWERS))?;
    Ok(Collected { tasks: lines(read_tasks(&read(TASKS)?), at(TASKS))?, answers, events })
}

/// All bytes of a file; none where it does not exist.
fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(feature = "serve")]
impl instruct_serve::Store for Folder {
    fn read(&mut self, file: instruct_serve::File) -> io::Result<Vec<u8>> {
        Folder::read(self, file.name())
    }

    fn append(&mut self, file: instruct_serve::File, bytes: &[u8]) -> io::Result<()> {
        Folder::append(self, file.name(), bytes)
    }

    fn cut(&mut self, file: instruct_serve::File, bytes: u64) -> io::Result<()> {
        Folder::cut(self, file.name(), bytes)
    }
}

/// 256 bits that nobody can guess, in hexadecimal digits.
fn token() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|why| anyhow::anyhow!("the system gives no random numbers: {why}"))?;
    Ok(hex(&bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for.
#[cfg_attr(not(feature = "serve"), allow(dead_code))]
pub(crate) fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let byte = |at: usize| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok();
    let is_digest = hex.len() == 64 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = is_digest.then(|| (0..32).map(byte).collect())?;
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_what_is_appended_for_one_program_at_a_time() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("feedback");
        let folder = Folder::open(&path).unwrap();
        assert_eq!(folder.collected().unwrap(), Collected::default());
        folder.append(LOG, b"one\n").unwrap();
        folder.append(LOG, b"two\n").unwrap();
        assert_eq!(folder.read(LOG).unwrap(), b"one\ntwo\n");
        let found = format!("{:#}", folder.collected().unwrap_err());
        assert!(found.contains("log.jsonl: line 1"), "{found}");
        folder.cut(LOG, 4).unwrap();
        assert_eq!(folder.read(LOG).unwrap(), b"one\n");
        let other = Folder::open(&path).err().unwrap().to_string();
        assert!(other.contains(&format!("in use by process {}", std::process::id())), "{other}");
        drop(folder);
        assert!(Folder::open(&path).is_ok());
    }

    #[test]
    fn people_are_named_by_tokens_that_are_not_kept() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(folder.labelers().unwrap(), []);
        let first = folder.name("ann", Role::Labeler).unwrap();
        let second = folder.name("ann", Role::Admin).unwrap();
        folder.name("bob", Role::Labeler).unwrap();
        let [ann, bob] = folder.labelers().unwrap().try_into().unwrap();
        assert_eq!((ann.id.as_str(), ann.role, bob.role), ("ann", Role::Admin, Role::Labeler));
        let sha = |token: &str| <[u8; 32]>::from(Sha256::digest(token));
        assert_eq!(digest_of(&ann.token_sha256), Some(sha(&second)));
        assert!(first != second && first.len() == 64);
        let kept = String::from_utf8(folder.read(LABELERS).unwrap()).unwrap();
        assert!(!kept.contains(&first) && !kept.contains(&second));
    }

    #[cfg(feature = "serve")]
    #[test]
    fn whoever_sits_at_this_machine_has_one_token_that_cannot_be_guessed() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let local = folder.local_token().unwrap();
        assert_eq!(folder.local_token().unwrap(), local);
        // Where a power cut left something else, nobody comes in with that.
        for left in ["", "}}}}", &"\0".repeat(64), &local[1..]] {
            fs::write(place.path().join(LOCAL), left).unwrap();
            let new = folder.local_token().unwrap();
            assert!(new != local && new != left && new.len() == 64);
        }
    }

    #[test]
    fn digits_that_are_none_are_no_digest() {
        for none in ["", "0", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert_eq!(digest_of(none), None, "{none}");
        }
        assert_eq!(digest_of(&"0f".repeat(32)), Some([15; 32]));
    }
}
