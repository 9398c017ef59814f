//! What a server that asks people holds beside its model.

use crate::{
    Refusal,
    desk::{Desk, DeskError, File, Store},
};
use instruct_feedback::{Answer, Settings};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// Where what people say goes, and what they are told.
pub struct People {
    pub(crate) desk: Desk,
    /// What a good completion is, in Markdown.
    pub(crate) guidelines: String,
    /// Whether answers in the chat are kept, so that people can say something of them. Pages say which.
    pub(crate) keeps_answers: bool,
    /// Answers that are still being written.
    open: Arc<Mutex<BTreeSet<String>>>,
    paces: Mutex<BTreeMap<String, Pace>>,
}

/// Requests of one person in one minute.
#[derive(Clone, Copy, Default)]
struct Pace {
    minute: u64,
    requests: u32,
}

/// Requests that a person, and all who have no token together, may send in a minute.
const MOST: u32 = 240;
/// How often, and how many times, is looked whether an answer is still being written.
const LOOK: (Duration, u32) = (Duration::from_millis(20), 500);

impl People {
    /// Opens what was said before, and says which files had an end that was cut off: a program or machine had died while
    /// it was written, so nobody was told that it is saved.
    ///
    /// # Errors
    /// Files that cannot be read, or that are none of this program's.
    pub fn open(
        store: Box<dyn Store>,
        settings: Settings,
        guidelines: String,
        keeps_answers: bool,
    ) -> Result<(People, Vec<(File, usize)>), DeskError> {
        let (desk, torn) = Desk::start(store, settings)?;
        let (open, paces) = Default::default();
        Ok((People { desk, guidelines, keeps_answers, open, paces }, torn))
    }

    /// Counts a request of a person, and refuses more than a person sends.
    pub(crate) fn pace(&self, who: &str, now: u64) -> Result<(), Refusal> {
        let mut paces = lock(&self.paces);
        let minute = now / 60;
        paces.retain(|_, pace| pace.minute == minute);
        let pace = paces.entry(who.to_owned()).or_insert(Pace { minute, requests: 0 });
        pace.requests += 1;
        let seconds = (60 - now % 60) as u32;
        if pace.requests > MOST {
            return Err(Refusal { retry_after: Some(seconds), ..Refusal::busy("too many requests in this minute") });
        }
        Ok(())
    }

    /// Marks answers as being written until the mark is dropped.
    pub(crate) fn mark(&self, answers: &[String]) -> Mark {
        lock(&self.open).extend(answers.iter().cloned());
        Mark { open: self.open.clone(), answers: answers.to_vec() }
    }

    /// Waits until none of these answers is being written any more. Whoever stops one says something of it before the
    /// server knows that it is stopped.
    pub(crate) async fn wait_for(&self, answers: &[&str]) {
        for _ in 0..LOOK.1 {
            if !answers.iter().any(|answer| lock(&self.open).contains(*answer)) {
                return;
            }
            sleep(LOOK.0).await;
        }
    }
}

/// Answers that are being written.
pub(crate) struct Mark {
    open: Arc<Mutex<BTreeSet<String>>>,
    answers: Vec<String>,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.retain(|answer| !self.answers.contains(answer));
    }
}

/// Keeps the answers of a request when they are written.
pub(crate) struct Keeping {
    pub(crate) desk: Desk,
    /// The answers, without their texts.
    pub(crate) answers: Vec<Answer>,
    /// Dropped when they are kept.
    pub(crate) _mark: Mark,
}

impl Keeping {
    /// Keeps what was written. If the disk refuses, people hear it when they say something of an answer that is not
    /// there.
    pub(crate) async fn keep<'t>(self, texts: impl Iterator<Item = &'t str>) {
        let with = |(answer, text): (Answer, &str)| Answer { text: text.to_owned(), ..answer };
        let _ = self.desk.keep(self.answers.into_iter().zip(texts).map(with).collect()).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Store for Nothing {
        fn read(&mut self, _: File) -> std::io::Result<Vec<u8>> {
            Ok(Vec::new())
        }
        fn append(&mut self, _: File, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
        fn cut(&mut self, _: File, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_person_is_slowed_down_alone_and_for_a_minute() {
        let (people, _) = People::open(Box::new(Nothing), Settings::default(), String::new(), true).unwrap();
        assert!((0..MOST).all(|_| people.pace("ann", 120).is_ok()));
        let refusal = people.pace("ann", 150).unwrap_err();
        assert_eq!((refusal.status, refusal.retry_after), (429, Some(30)));
        assert!(people.pace("bob", 150).is_ok() && people.pace("ann", 180).is_ok());
    }

    #[test]
    fn an_answer_is_marked_until_it_is_written() {
        let (people, _) = People::open(Box::new(Nothing), Settings::default(), String::new(), true).unwrap();
        let mark = people.mark(&["a-1".to_owned(), "a-2".to_owned()]);
        let waits = || {
            let wait =
                async { tokio::time::timeout(Duration::from_millis(60), people.wait_for(&["a-2"])).await.is_err() };
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(wait)
        };
        assert!(waits());
        drop(mark);
        assert!(!waits());
    }
}
