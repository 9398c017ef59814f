//! The thread that writes down what people say: it alone holds the state and the files, and nobody hears that something
//! is saved before it is on the disk.

use crate::Refusal;
use instruct_feedback::{
    Answer, Applied, Collected, Event, Refusal as NotTaken, Refused, Settings, State, read_answers, read_log,
    read_tasks,
};
use serde_json::{Value, json};
use std::{io, sync::mpsc, thread};
use tokio::sync::oneshot;

/// Where what people say is kept. Its files are only appended to.
pub trait Store: Send {
    /// All bytes of a file; none where it does not exist.
    ///
    /// # Errors
    /// The disk's.
    fn read(&mut self, file: File) -> io::Result<Vec<u8>>;

    /// Appends, and returns when the bytes would survive a power cut.
    ///
    /// # Errors
    /// The disk's; then a part may have been written.
    fn append(&mut self, file: File, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to so many bytes.
    ///
    /// # Errors
    /// The disk's.
    fn cut(&mut self, file: File, bytes: u64) -> io::Result<()>;
}

/// A file of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// What people are asked.
    Tasks,
    /// What was served to people who let it be kept.
    Answers,
    /// What people said.
    Log,
}

impl File {
    /// All of them, in the order in which they are read: later ones name what is in earlier ones.
    pub const ALL: [File; 3] = [File::Tasks, File::Answers, File::Log];

    /// Its name in a folder.
    pub fn name(self) -> &'static str {
        match self {
            File::Tasks => "tasks.jsonl",
            File::Answers => "answers.jsonl",
            File::Log => "log.jsonl",
        }
    }
}

/// What is wrong with the files of a desk.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The disk does not let itself be read, or be cut.
    #[error("{file}: {source}", file = .file.name())]
    Disk {
        /// The file.
        file: File,
        /// Why.
        source: io::Error,
    },
    /// A line is none of this program's.
    #[error("{file}: {problem}", file = .file.name())]
    Line {
        /// The file.
        file: File,
        /// Which line, and what is wrong with it.
        problem: instruct_feedback::LineError,
    },
    /// Lines that are sound one by one do not fit together.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// The state that the files of a store make, and their lengths.
#[derive(Debug)]
struct Opened {
    state: State,
    bytes: [u64; 3],
    /// Ends of files that were cut off, each with its bytes.
    torn: Vec<(File, usize)>,
}

/// Reads the files; cuts off what a program or machine that died left half written, of which nobody was told that it
/// is saved.
fn open(store: &mut dyn Store, settings: Settings) -> Result<Opened, DeskError> {
    let mut collected = Collected::default();
    let (mut bytes, mut torn) = ([0; 3], Vec::new());
    for (place, file) in File::ALL.into_iter().enumerate() {
        let disk = |source| DeskError::Disk { file, source };
        let content = store.read(file).map_err(disk)?;
        let line = |problem| DeskError::Line { file, problem };
        let end = match file {
            File::Tasks => read_tasks(&content).map(|(tasks, end)| (collected.tasks = tasks, end).1).map_err(line)?,
            File::Answers => {
                read_answers(&content).map(|(answers, end)| (collected.answers = answers, end).1).map_err(line)?
            }
            File::Log => read_log(&content).map(|(events, end)| (collected.events = events, end).1).map_err(line)?,
        };
        bytes[place] = end.map_or(content.len(), |end| end.offset) as u64;
        if let Some(end) = end {
            store.cut(file, bytes[place]).map_err(disk)?;
            torn.push((file, end.bytes));
        }
    }
    Ok(Opened { state: State::of(settings, collected)?, bytes, torn })
}

/// Hands the thread what people say, and hears when it is saved.
#[derive(Clone)]
pub(crate) struct Desk {
    orders: mpsc::SyncSender<Order>,
}

/// Reads the state.
type Look = Box<dyn FnOnce(&mut State) -> Result<Value, Refusal> + Send>;

enum Wish {
    Look(Look),
    Say(Event),
    Keep(Vec<Answer>),
}

struct Order {
    wish: Wish,
    answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// Orders that may wait; more are told to come again.
const QUEUE: usize = 1_024;
/// Orders that are synced together at most.
const TOGETHER: usize = 256;

impl Desk {
    /// Opens the files and starts the thread, which ends with the last handle. Says which files had an end that was cut
    /// off, and how many bytes.
    pub(crate) fn start(
        mut store: Box<dyn Store>,
        settings: Settings,
    ) -> Result<(Desk, Vec<(File, usize)>), DeskError> {
        let Opened { state, bytes, torn } = open(&mut *store, settings)?;
        let (orders, receiver) = mpsc::sync_channel(QUEUE);
        let mut keeper = Keeper { store, settings, state, bytes, is_broken: false };
        thread::spawn(move || keeper.run(&receiver));
        Ok((Desk { orders }, torn))
    }

    /// What a function makes of the state.
    pub(crate) async fn look(
        &self,
        look: impl FnOnce(&mut State) -> Result<Value, Refusal> + Send + 'static,
    ) -> Result<Value, Refusal> {
        self.order(Wish::Look(Box::new(look))).await
    }

    /// Saves an event; returns when it is on the disk.
    pub(crate) async fn say(&self, event: Event) -> Result<Value, Refusal> {
        self.order(Wish::Say(event)).await
    }

    /// Saves answers that were served, so that people can say something of them.
    pub(crate) async fn keep(&self, answers: Vec<Answer>) -> Result<Value, Refusal> {
        self.order(Wish::Keep(answers)).await
    }

    async fn order(&self, wish: Wish) -> Result<Value, Refusal> {
        let (answer, answered) = oneshot::channel();
        match self.orders.try_send(Order { wish, answer }) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(_)) => return Err(Refusal::busy("too many people speak at once; try again")),
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(gone()),
        }
        answered.await.map_err(|_| gone())?
    }
}

fn gone() -> Refusal {
    Refusal::new(500, "what people say cannot be written down any more; start the server again")
}

struct Keeper {
    store: Box<dyn Store>,
    settings: Settings,
    state: State,
    /// Bytes of the files that are certain, in the order of [`File::ALL`].
    bytes: [u64; 3],
    /// The files could neither be written nor be brought back to what is certain.
    is_broken: bool,
}

/// What is to be written for several orders together, and who waits for it.
#[derive(Default)]
struct Batch {
    answers: String,
    log: String,
    waiting: Vec<(oneshot::Sender<Result<Value, Refusal>>, Value)>,
}

impl Keeper {
    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut batch = Batch::default();
            std::iter::once(first)
                .chain(orders.try_iter().take(TOGETHER))
                .for_each(|order| self.take(order, &mut batch));
            self.save(batch);
        }
    }

    fn take(&mut self, Order { wish, answer }: Order, batch: &mut Batch) {
        // Whoever has gone does not hear it, and finds it saved when coming back.
        let taken = match wish {
            _ if self.is_broken => Err(gone()),
            Wish::Look(look) => {
                let _ = answer.send(look(&mut self.state));
                return;
            }
            Wish::Say(event) => self.say(event, batch),
            Wish::Keep(answers) => self.keep(answers, batch),
        };
        match taken {
            // Also of what is repeated: the first one may stand in this batch.
            Ok(value) => batch.waiting.push((answer, value)),
            Err(refusal) => drop(answer.send(Err(refusal))),
        }
    }

    fn say(&mut self, event: Event, batch: &mut Batch) -> Result<Value, Refusal> {
        let (line, key) = (event.line(), event.key.clone());
        if self.state.apply(event).map_err(not_taken)? == Applied::Saved {
            batch.log.push_str(&line);
        }
        Ok(json!({ "saved": key }))
    }

    fn keep(&mut self, answers: Vec<Answer>, batch: &mut Batch) -> Result<Value, Refusal> {
        for answer in answers {
            let line = answer.line();
            if self.state.add_answer(answer).map_err(not_taken)? == Applied::Saved {
                batch.answers.push_str(&line);
            }
        }
        Ok(Value::Null)
    }

    /// Writes a batch, and tells those who wait. Answers go first, because events name them.
    fn save(&mut self, batch: Batch) {
        let Batch { answers, log, waiting } = batch;
        let written = self.append(1, &answers).and_then(|()| self.append(2, &log));
        let refusal = written.err().map(|error| self.undo(&error));
        for (answer, value) in waiting {
            let _ = answer.send(refusal.clone().map_or(Ok(value), Err));
        }
    }

    fn append(&mut self, place: usize, lines: &str) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.store.append(File::ALL[place], lines.as_bytes())?;
        self.bytes[place] += lines.len() as u64;
        Ok(())
    }

    /// Brings files and state back to what is certain, and says why nothing was saved.
    fn undo(&mut self, error: &io::Error) -> Refusal {
        let cut = File::ALL.into_iter().zip(self.bytes).try_for_each(|(file, bytes)| self.store.cut(file, bytes));
        match cut.ok().and_then(|()| open(&mut *self.store, self.settings).ok()) {
            Some(Opened { state, bytes, .. }) => (self.state, self.bytes) = (state, bytes),
            None => self.is_broken = true,
        }
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let status = if is_full { 507 } else { 500 };
        Refusal::new(status, format!("nothing was saved, because the disk refuses: {error}"))
    }
}

/// What the fold refuses, in the words of the interface.
fn not_taken(refusal: NotTaken) -> Refusal {
    let status = match &refusal {
        NotTaken::Used { .. } => 409,
        NotTaken::UnknownTask { .. } | NotTaken::UnknownAnswer { .. } => 404,
        NotTaken::NotYours { .. } => 403,
        _ => 400,
    };
    let param = match &refusal {
        NotTaken::Fault(fault) => fault.parameter().map(str::to_owned),
        _ => None,
    };
    Refusal { param, ..Refusal::new(status, refusal.to_string()) }
}

#[cfg(test)]
mod tests;
