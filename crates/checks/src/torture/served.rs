//! A server that dies under its clients: what they were told is saved must be in the log once, whatever it died of.

use super::{
    Death,
    calls::{self, Call},
    power::Disk,
    traced,
    victim::Victim,
};
use crate::server::{Begun, Server};
use anyhow::{Context, Result, bail, ensure};
use instruct_feedback::{Event, Said, To, read_log};
use instruct_random::{Draws, Source};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use xtask::terminal::say;

/// Clients that write at a time, each a person of their own.
const CLIENTS: usize = 32;

/// The folder of feedback, in that of the torture.
const FEEDBACK: &str = "feedback";

/// Submissions after which a server is killed from outside, at most.
const MOST: u64 = 200;

/// Submissions of one client to one server that are no end.
const ENDLESS: usize = 500;

/// The calls before which a server dies, and how many of them it has made by then, at most.
const POINTS: [(&str, u64); 3] = [("fdatasync", 30), ("fdatasync", 5), ("write", 60)];

/// The same of a server that follows on one that died: soon, while some of what it says is saved was written by that one.
const AGAIN: [(&str, u64); 3] = [("fdatasync", 1), ("fdatasync", 3), ("write", 40)];

/// A server's model, folder and clients.
struct Scene<'a> {
    victim: &'a Victim,
    model: PathBuf,
    tokens: Vec<String>,
    told: Told,
}

/// What all clients together know.
#[derive(Default)]
struct Told {
    /// Keys of what was acknowledged.
    saved: Mutex<BTreeSet<String>>,
    /// What a client sends again, because the server died before it answered.
    unanswered: Mutex<BTreeMap<usize, Value>>,
    /// How many submissions each client has made.
    made: Mutex<BTreeMap<usize, u64>>,
    /// What the server refused, which it never should.
    refused: Mutex<Vec<String>>,
    /// Keys that were reported to be wrong in the log.
    reported: Mutex<BTreeSet<String>>,
}

/// Lets a server die `count` times, from outside and by power cuts in turn; also says how much was saved meanwhile.
pub(super) fn kill(victim: &Victim, root: &Path, count: usize, seed: u64) -> Result<(Vec<Death>, String)> {
    ensure!(traced::is_possible(), "half of the deaths need strace, and there is none that may trace: install it");
    let scene = Scene::new(victim, root.join("fixtures/base"))?;
    let mut deaths = Vec::new();
    for number in 0..count as u64 {
        let mut draws = Source::new(seed, "torture/server").at([number]);
        let how = if number.is_multiple_of(2) {
            scene.die_from_outside(&mut draws)?
        } else {
            scene.die_of_a_power_cut(&mut draws)?
        };
        let torn = fs::read(scene.log()).unwrap_or_default().last().is_some_and(|byte| *byte != b'\n');
        // The next server cuts off what is half.
        Server::start(&mut scene.serve())?.stop()?;
        let lost = scene.lost()?;
        lost.iter().for_each(|lost| say(&format!("torture: LOST: {how}: {lost}")));
        deaths.push(Death { stage: "serve", how, torn, lost });
        super::progress("of a server", &deaths);
    }
    // Whoever had heard nothing asks once more.
    let server = Server::start(&mut scene.serve())?;
    let unanswered = std::mem::take(&mut *guard(&scene.told.unanswered));
    for (client, said) in unanswered {
        ensure!(scene.send(&server, client, said)?, "the last server is gone");
    }
    server.stop()?;
    if let Some(lost) = scene.lost()? {
        bail!("what was sent again to the last server: {lost}");
    }
    let (saved, lines) = (guard(&scene.told.saved).len(), read_log(&fs::read(scene.log())?)?.0.len());
    Ok((deaths, format!("{saved} submissions acknowledged, {lines} lines in the log")))
}

impl Scene<'_> {
    fn new(victim: &Victim, model: PathBuf) -> Result<Scene<'_>> {
        let mut scene = Scene { victim, model, tokens: Vec::new(), told: Told::default() };
        for client in 0..CLIENTS {
            let mut command = Command::new(victim.program());
            command.args(["feedback", "link", FEEDBACK, &name(client)]).current_dir(&victim.folder);
            let output = command.output().context("cannot start the program")?;
            let link = String::from_utf8(output.stdout)?;
            scene.tokens.push(link.trim().split_once("#token=").context("a link has a token")?.1.to_owned());
        }
        // The files that every server has are there, and on the disk.
        Server::start(&mut scene.serve())?.stop()?;
        Ok(scene)
    }

    fn serve(&self) -> Command {
        let mut command = Command::new(self.victim.program());
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.arg("serve").arg(&self.model).args(["--feedback", FEEDBACK, "--slots", "1"]);
        command.args(["--template", "User: {prompt}\nAssistant:"]).current_dir(&self.victim.folder);
    }

    fn log(&self) -> PathBuf {
        self.victim.run(FEEDBACK).join("log.jsonl")
    }

    /// Killed when so many more submissions are saved.
    fn die_from_outside(&self, draws: &mut Draws) -> Result<String> {
        let mut server = Server::start(&mut self.serve())?;
        let wanted = guard(&self.told.saved).len() + 1 + draws.below(MOST) as usize;
        self.under_clients(&server, |are_there| {
            while guard(&self.told.saved).len() < wanted && are_there() {
                thread::sleep(Duration::from_millis(1));
            }
            server.signal("KILL")
        })?;
        server.wait()?;
        Ok("SIGKILL".to_owned())
    }

    /// Dies as it enters a call of its own, and what it had not synced is taken back; now and then only when
    /// the next server has died as well: what the first had written and not synced is for the second to bring to the disk.
    fn die_of_a_power_cut(&self, draws: &mut Draws) -> Result<String> {
        let before = self.lengths()?;
        let (mut disk, mut name) = (Disk::default(), "");
        let servers = 1 + draws.below(2) as usize;
        for points in &[POINTS, AGAIN][..servers] {
            let calls;
            (name, calls) = self.die_before_a_call(points, draws)?;
            disk.go_on(&calls, |path| before.get(path).copied());
            disk.take_lengths(&self.lengths()?);
        }
        disk.cut_power(&self.victim.run(FEEDBACK), draws)?;
        Ok(if servers == 1 {
            format!("power cut before {name}")
        } else {
            format!("power cut, {name} of a second server")
        })
    }

    /// The call, and what the server had asked of the system.
    fn die_before_a_call(
        &self,
        points: &[(&'static str, u64)],
        draws: &mut Draws,
    ) -> Result<(&'static str, Vec<Call>)> {
        let (name, most) = *draws.pick(points).context("there are calls to die before")?;
        let point = 1 + draws.below(most);
        let log = self.victim.folder.join("calls.log");
        // An earlier one would be read where strace does not start.
        fs::write(&log, "")?;
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-qq", "-s", "0", "-o"]).arg(&log).args(calls::trace());
        command.args(["-e", &format!("inject={name}:signal=KILL:when={point}")]).arg(self.victim.program());
        self.surround(&mut command);
        let (status, said) = match Server::begin(&mut command)? {
            Begun::Ended(status, said) => (status, said),
            Begun::Listening(mut server) => {
                self.under_clients(&server, |are_there| {
                    while are_there() {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })?;
                if !server.is_gone() {
                    server.kill_children();
                    let refused = guard(&self.told.refused).first().cloned().unwrap_or_default();
                    bail!("the server does not die before call {point} of {name}; it refused: {refused}");
                }
                (server.wait()?, String::new())
            }
        };
        ensure!(status.code().is_none(), "the server ended with {status} instead of dying before a {name}:\n{said}");
        Ok((name, calls::read(&log, &self.victim.folder, FEEDBACK)?))
    }

    /// How long each file in the folder is.
    fn lengths(&self) -> Result<BTreeMap<String, u64>> {
        let mut lengths = BTreeMap::new();
        for entry in fs::read_dir(self.victim.run(FEEDBACK))? {
            let entry = entry?;
            lengths.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
        }
        Ok(lengths)
    }

    /// Has all clients write until the server is gone; `meanwhile` is told whether one of them still does.
    fn under_clients(&self, server: &Server, meanwhile: impl FnOnce(&dyn Fn() -> bool) -> Result<()>) -> Result<()> {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || self.write(server, client))).collect();
            meanwhile(&|| clients.iter().any(|client| !client.is_finished()))
        })
    }

    /// Sends one submission after the other, the one that was not answered first, until the server is gone, or has
    /// outlived so many that it will not die.
    fn write(&self, server: &Server, client: usize) {
        for _ in 0..ENDLESS {
            let unanswered = guard(&self.told.unanswered).get(&client).cloned();
            let said = unanswered.unwrap_or_else(|| self.next(client));
            match self.send(server, client, said) {
                Ok(true) => {}
                Ok(false) => return,
                Err(refusal) => return guard(&self.told.refused).push(format!("{refusal:#}")),
            }
        }
    }

    fn next(&self, client: usize) -> Value {
        let mut made = guard(&self.told.made);
        let number = made.entry(client).or_default();
        *number += 1;
        let key = format!("k-{client}-{number}");
        json!({ "kind": "demonstration", "text": text_of(&key), "seconds": 1, "key": key,
            "messages": [{ "role": "user", "content": "Say a word." }] })
    }

    /// Whether the server said that it has saved this; an error where it refuses.
    fn send(&self, server: &Server, client: usize, said: Value) -> Result<bool> {
        guard(&self.told.unanswered).insert(client, said.clone());
        let Some(answer) = server.ask(&self.tokens[client], "/api/feedback", &said)? else { return Ok(false) };
        let saved = &answer["saved"];
        ensure!(*saved == said["key"], "another key is said to be saved: {saved}");
        guard(&self.told.saved).insert(saved.as_str().unwrap_or_default().to_owned());
        guard(&self.told.unanswered).remove(&client);
        Ok(true)
    }

    /// What is refused, lost, doubled, half or from nobody, and was not before.
    fn lost(&self) -> Result<Option<String>> {
        let mut found: Vec<String> = std::mem::take(&mut *guard(&self.told.refused));
        let (events, torn) = read_log(&fs::read(self.log())?)?;
        found.extend(torn.map(|_| "the log ends in half a line".to_owned()));
        let (mut keys, mut saved, mut told) = (BTreeSet::new(), guard(&self.told.saved), guard(&self.told.reported));
        for event in &events {
            let is_once = keys.insert(event.key.clone());
            if (!is_once || !self.is_as_sent(event)) && told.insert(event.key.clone()) {
                found.push(format!("{} is there twice, or was not sent so", event.key));
            }
        }
        let gone: Vec<String> = saved.difference(&keys).cloned().collect();
        for key in gone {
            saved.remove(&key);
            found.push(format!("{key} was saved, and is gone"));
        }
        Ok((!found.is_empty()).then(|| found.join("; ")))
    }

    /// Whether somebody sent this event, with these words.
    fn is_as_sent(&self, event: &Event) -> bool {
        let client: Option<usize> = event.by.strip_prefix("client-").and_then(|number| number.parse().ok());
        let sent = client.and_then(|client| {
            let number: u64 = event.key.strip_prefix(&format!("k-{client}-"))?.parse().ok()?;
            (number <= *guard(&self.told.made).get(&client)?).then_some(())
        });
        let words = match &event.said {
            Said::Demonstration(said) if matches!(said.to, To::Messages(_)) => Some(said.text.as_str()),
            _ => None,
        };
        sent.is_some() && words == Some(&text_of(&event.key))
    }
}

fn name(client: usize) -> String {
    format!("client-{client}")
}

/// Words of many lengths, some beyond a page of the disk.
fn text_of(key: &str) -> String {
    let length = Source::new(0, "torture/words").at_name(key).below(9) as usize;
    format!("{key} \u{2028} \"quoted\"\n").repeat(1 + length * length * length / 4)
}

/// What is behind a lock; no client panics while it holds one.
fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
