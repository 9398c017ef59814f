//! How many submissions of people a server saves in a second, each synced to the disk before its answer.

use crate::server::Server;
use anyhow::{Result, anyhow};
use serde_json::json;
use std::{fs, path::Path, process::Command, thread, time::Instant};

/// Submissions of each person. A person who sends more than 240 in a minute is slowed down.
const EACH: usize = 200;

/// Lets so many people submit demonstrations without a pause to a server of `model`; returns what came of it in a line.
pub(super) fn rate(program: &Path, model: &Path, people: usize) -> Result<String> {
    // Where files are kept in memory a sync costs nothing, as the system's folder for temporary files may be.
    let place = tempfile::tempdir_in(crate::process::root()?)?;
    let feedback = place.path().join("feedback");
    fs::create_dir(&feedback)?;
    let tokens: Vec<String> =
        (0..people).map(|number| Server::link(program, &feedback, &format!("p{number}"))).collect::<Result<_>>()?;
    let server = Server::start(Command::new(program).arg("serve").arg(model).arg("--feedback").arg(&feedback))?;
    let begun = Instant::now();
    let submit = |token: &str, who: usize| -> Result<()> {
        for number in 0..EACH {
            let said = json!({ "key": format!("k-{who}-{number}"), "kind": "demonstration", "seconds": 1,
                "messages": [{ "role": "user", "content": "Name a colour." }], "text": "Red, or green, or blue." });
            server.post(token, "/api/feedback", &said)?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let submit = &submit;
        let clients: Vec<_> =
            tokens.iter().enumerate().map(|(who, token)| scope.spawn(move || submit(token, who))).collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let saved = fs::read_to_string(feedback.join("log.jsonl"))?.lines().count();
    Ok(format!(
        "{people} people: {saved} submissions saved in {seconds:.1} s, {:.0} a second, each synced before its answer\n",
        saved as f64 / seconds
    ))
}
