//! Every committed input of the fuzz targets, through the functions that they call: what once broke a
//! parser is read, or refused, ever after.

use crate::entries::ENTRIES;
use std::{fs, panic::catch_unwind, path::Path};

#[test]
fn every_committed_input_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut broken = Vec::new();
    for (name, entry) in ENTRIES {
        let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 10, "{name} has {} inputs", files.len());
        for file in files {
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(|| entry(&bytes)).is_err() {
                broken.push(file.display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let folders = fs::read_dir(&corpus).unwrap().count();
    assert_eq!(folders, ENTRIES.len(), "a folder of inputs belongs to no entry");
}
