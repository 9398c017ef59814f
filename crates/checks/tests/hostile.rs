//! Every input of fixtures/bad is refused, or read where it is legal, by the real program.

use instruct_checks::inputs;
use std::path::Path;

#[test]
fn hostile_inputs_are_refused_with_one_message_and_leave_nothing() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let program = instruct_checks::program(&repository).unwrap();
    let rows = inputs::run(&program, &repository, inputs::PATIENCE).unwrap();
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
