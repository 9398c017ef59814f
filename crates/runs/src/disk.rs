//! Every change to a run folder goes through here: each call is one step that a crash can fall
//! between, so tests can let a process die at any of them.

use crate::{Error, Result};
use serde::Serialize;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Turns the operating system's refusal into this crate's error.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), doing, source }
}

/// Makes a folder and its parents, and waits until their names are on the disk; one that exists is
/// fine. Without the wait a power cut could take a folder away with all that was synced inside it.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    let absent: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    create_staged(path)?;
    let parents = absent.iter().filter_map(|folder| folder.parent());
    parents.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).try_for_each(sync_names)
}

/// Makes a folder that will be renamed once it is whole: until then it may be lost.
pub(crate) fn create_staged(path: &Path) -> Result<()> {
    alive().and_then(|()| fs::create_dir_all(path)).map_err(failed("create", path))
}

/// Syncs a folder that may belong to somebody else, who lets us make folders in it and not read it.
fn sync_names(folder: &Path) -> Result<()> {
    match sync(folder) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Writes a file and waits until it is on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        append_bytes(&mut file, bytes)?;
        flush(&file)
    };
    write().map_err(failed("write", path))
}

/// Writes a file so that any crash leaves the old content or the new, never a part.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".tmp");
    let staged = Path::new(&staged);
    write(staged, bytes)?;
    rename(staged, path)?;
    path.parent().map_or(Ok(()), sync)
}

/// A value as JSON lines that a person reads, ending with a newline.
pub(crate) fn pretty_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Malformed { path: path.to_owned(), problem: error.to_string() })?;
    text.push(b'\n');
    Ok(text)
}

/// Appends to an open file.
pub(crate) fn append(path: &Path, file: &mut File, bytes: &[u8]) -> Result<()> {
    append_bytes(file, bytes).map_err(failed("write", path))
}

/// Cuts a file to `len` bytes.
pub(crate) fn cut(path: &Path, file: &File, len: u64) -> Result<()> {
    alive().and_then(|()| file.set_len(len)).map_err(failed("cut", path))
}

/// Waits until a file's content, or a folder's list of names, is on the disk.
pub(crate) fn sync(path: &Path) -> Result<()> {
    alive().and_then(|()| flush(&File::open(path)?)).map_err(failed("sync", path))
}

/// Renames a file or folder.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    alive().and_then(|()| fs::rename(from, to)).map_err(failed("rename", from))
}

/// Removes a file or a folder with all it holds; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let remove = || match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    alive().and_then(|()| remove()).map_err(failed("remove", path))
}

/// The names in a folder, sorted; none when it does not exist.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(failed("list", folder)),
    }
}

/// Bytes of all files in a folder and those in it; none when it does not exist.
pub(crate) fn bytes(folder: &Path) -> Result<u64> {
    let of = |name: String| {
        let path = folder.join(name);
        if path.is_dir() { bytes(&path) } else { Ok(fs::metadata(&path).map_err(failed("read", &path))?.len()) }
    };
    names(folder)?.into_iter().map(of).sum()
}

/// Refuses when the file system of `folder` has less than `needed` bytes left.
pub(crate) fn ensure_space(folder: &Path, needed: u64) -> Result<()> {
    match free_bytes(folder) {
        Some(available) if available < needed => Err(Error::NoSpace { path: folder.to_owned(), needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write; unknown where the system does not say.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(test)]
    if let Some(pretended) = death::PRETENDED_FREE.get() {
        return Some(pretended);
    }
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_frsize.checked_mul(system.f_bavail)
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

fn append_bytes(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    // A process can die in the middle of a write, so the simulated one does.
    alive().inspect_err(|_| drop(file.write_all(&bytes[..bytes.len() / 2])))?;
    file.write_all(bytes)
}

/// Tests die in thousands of places but never lose power, so only they need not wait for the disk.
fn flush(file: &File) -> io::Result<()> {
    if cfg!(test) { Ok(()) } else { file.sync_all() }
}

/// Outside tests a process is alive as long as it runs.
#[cfg(not(test))]
fn alive() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use death::alive;

/// A simulated death: after a number of steps nothing reaches the disk any more.
#[cfg(test)]
pub(crate) mod death {
    use std::{cell::Cell, io};

    thread_local! {
        /// Steps left to live; `None` is for ever.
        pub(crate) static STEPS_LEFT: Cell<Option<u64>> = const { Cell::new(None) };
        /// A pretended amount of free space.
        pub(crate) static PRETENDED_FREE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(crate) fn alive() -> io::Result<()> {
        match STEPS_LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("simulated death")),
            Some(left) => {
                STEPS_LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
