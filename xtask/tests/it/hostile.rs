//! Every input of fixtures/bad is refused, or read where it is legal, by the real program.

#[allow(dead_code, reason = "the table is for the command")]
#[path = "../../src/commands/torture/inputs.rs"]
mod inputs;

use std::{path::Path, time::Duration};

#[test]
fn hostile_inputs_are_refused_with_one_message_and_leave_nothing() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // The time is not what is tested here, on a machine that other tests keep busy: this ends one
    // that hangs.
    let patience = Duration::from_secs(120);
    let rows = inputs::run(Path::new(env!("CARGO_BIN_EXE_xtask")), &repository, patience).unwrap();
    assert!(rows.len() >= 120, "{} inputs", rows.len());
    for (name, why) in rows.iter().filter_map(|row| Some((&row.name, row.skipped.as_ref()?))) {
        println!("skipped: {name}: {why}");
    }
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.problems.is_empty())
        .map(|row| format!("{}:\n  {}", row.name, row.problems.join("\n  ")))
        .collect();
    assert!(failed.is_empty(), "{} of {} inputs:\n{}", failed.len(), rows.len(), failed.join("\n"));
}
