use super::*;
use instruct_data::{Content, Origin, Prompt};
use instruct_feedback::{Sampled, Submission, TaskKind, tasks_from};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

/// A disk in memory that can be full, and can break in the middle of a write.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    files: BTreeMap<File, Vec<u8>>,
    /// The next append writes a half and fails.
    fails: bool,
    /// No file can be cut.
    is_stuck: bool,
    syncs: usize,
}

impl Store for Disk {
    fn read(&mut self, file: File) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().files.get(&file).cloned().unwrap_or_default())
    }

    fn append(&mut self, file: File, bytes: &[u8]) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        let fails = inside.fails;
        let content = inside.files.entry(file).or_default();
        if fails {
            content.extend(&bytes[..bytes.len() / 2]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        content.extend(bytes);
        inside.syncs += 1;
        Ok(())
    }

    fn cut(&mut self, file: File, bytes: u64) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        if inside.is_stuck {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        inside.files.entry(file).or_default().truncate(bytes as usize);
        Ok(())
    }
}

impl Disk {
    fn log(&self) -> String {
        let bytes = self.0.lock().unwrap().files.get(&File::Log).cloned().unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }
}

/// A disk with a task.
fn disk() -> (Disk, String) {
    let content = Content::Text("Name a fruit.".to_owned());
    let prompt = Prompt { id: "p".into(), content, user: None, use_case: None, origin: Origin::new("p.jsonl", 1) };
    let completions = vec![("ppo".to_owned(), "An apple.".to_owned()), ("sft".to_owned(), "Fruit.".to_owned())];
    let task = tasks_from(&[Sampled { prompt, completions }], 7).unwrap().tasks.remove(0);
    let disk = Disk::default();
    disk.0.lock().unwrap().files.insert(File::Tasks, task.line().into_bytes());
    (disk, task.id)
}

fn ranking(key: &str, task: &str, best: u32) -> Event {
    let ranks = [best, 3 - best];
    let body = json!({ "key": key, "kind": "ranking", "task": task, "shown": [0, 1], "ranks": ranks, "seconds": 9 });
    Submission::parse(body.to_string().as_bytes()).unwrap().event("ann", 1_000)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn done(desk: &Desk) -> Value {
    let look = |state: &mut State| Ok(json!(state.queue("ann", TaskKind::Rank).done));
    run(desk.look(look)).unwrap()
}

#[test]
fn what_is_saved_is_on_the_disk_and_is_saved_once() {
    let (disk, task) = disk();
    let (desk, torn) = Desk::start(Box::new(disk.clone()), Settings::default()).unwrap();
    assert_eq!(torn, []);
    let event = ranking("k1", &task, 1);
    assert_eq!(run(desk.say(event.clone())), Ok(json!({ "saved": "k1" })));
    assert_eq!(disk.log(), event.line());
    assert_eq!(run(desk.say(event.clone())), Ok(json!({ "saved": "k1" })));
    assert_eq!((disk.log(), done(&desk)), (event.line(), json!(1)));
    let refused = |event: Event| run(desk.say(event)).unwrap_err().status;
    assert_eq!(refused(ranking("k1", &task, 2)), 409);
    assert_eq!(refused(ranking("k2", "t-none", 1)), 404);
    // The next server finds it.
    let (again, _) = Desk::start(Box::new(disk.clone()), Settings::default()).unwrap();
    assert_eq!(done(&again), json!(1));
}

#[test]
fn a_full_disk_saves_nothing_and_says_so_until_there_is_room() {
    let (disk, task) = disk();
    let (desk, _) = Desk::start(Box::new(disk.clone()), Settings::default()).unwrap();
    disk.0.lock().unwrap().fails = true;
    assert_eq!(run(desk.say(ranking("k1", &task, 1))).unwrap_err().status, 507);
    assert_eq!((disk.log(), done(&desk)), (String::new(), json!(0)));
    disk.0.lock().unwrap().fails = false;
    assert_eq!(run(desk.say(ranking("k1", &task, 1))), Ok(json!({ "saved": "k1" })));
    assert_eq!((disk.log().lines().count(), done(&desk)), (1, json!(1)));
    // A disk that cannot even be brought back is written to no more.
    (disk.0.lock().unwrap().fails, disk.0.lock().unwrap().is_stuck) = (true, true);
    assert_eq!(run(desk.say(ranking("k2", &task, 1))).unwrap_err().status, 507);
    disk.0.lock().unwrap().fails = false;
    assert_eq!(run(desk.say(ranking("k3", &task, 1))).unwrap_err().status, 500);
}

#[test]
fn a_torn_end_is_cut_and_a_broken_line_is_told_with_its_file() {
    let (disk, task) = disk();
    let whole = ranking("k1", &task, 1).line();
    let torn = &ranking("k2", &task, 2).line()[..30];
    disk.0.lock().unwrap().files.insert(File::Log, format!("{whole}{torn}").into_bytes());
    let (desk, cut) = Desk::start(Box::new(disk.clone()), Settings::default()).unwrap();
    assert_eq!((cut, disk.log(), done(&desk)), (vec![(File::Log, 30)], whole.clone(), json!(1)));
    disk.0.lock().unwrap().files.insert(File::Log, format!("nonsense\n{whole}").into_bytes());
    let found = Desk::start(Box::new(disk), Settings::default()).map(|_| ()).unwrap_err().to_string();
    assert!(found.starts_with("log.jsonl: line 1"), "{found}");
}

/// A disk that writes nothing before the other end of the channel is dropped.
struct Held {
    disk: Disk,
    until: mpsc::Receiver<()>,
}

impl Store for Held {
    fn read(&mut self, file: File) -> io::Result<Vec<u8>> {
        self.disk.read(file)
    }

    fn append(&mut self, file: File, bytes: &[u8]) -> io::Result<()> {
        let _ = self.until.recv();
        self.disk.append(file, bytes)
    }

    fn cut(&mut self, file: File, bytes: u64) -> io::Result<()> {
        self.disk.cut(file, bytes)
    }
}

/// Those who speak while the disk is busy wait for it together, once, and each is told.
#[test]
fn those_who_come_together_are_synced_together() {
    let (disk, task) = disk();
    let (open, until) = mpsc::channel();
    let held = Held { disk: disk.clone(), until };
    let (desk, _) = Desk::start(Box::new(held), Settings::default()).unwrap();
    let mut all: Vec<_> = (0..200)
        .map(|i| {
            let (desk, event) = (desk.clone(), ranking(&format!("k{i}"), &task, 1 + i % 2));
            Box::pin(async move { desk.say(event).await })
        })
        .collect();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(all.iter_mut().all(|said| said.as_mut().poll(&mut cx).is_pending()), "nothing is on the disk yet");
    drop(open);
    for (i, said) in all.into_iter().enumerate() {
        assert_eq!(run(said), Ok(json!({ "saved": format!("k{i}") })));
    }
    // Those that the thread found when it began, and all who came while these were written.
    assert_eq!(disk.log().lines().count(), 200);
    assert!(disk.0.lock().unwrap().syncs <= 2, "{} waits for the disk", disk.0.lock().unwrap().syncs);
}
