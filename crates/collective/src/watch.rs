//! The watchdog: a call that waits too long ends the process, because nothing else would.

use crate::collective::{Say, Spent};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The exit code of a process whose watchdog ended it, as that of `timeout`.
pub const OVERDUE: i32 = 124;

/// How long a call may wait unless the caller of this crate says otherwise: longer than what one rank does alone while
/// the others wait for it, such as writing a checkpoint.
pub const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How long a rank stays after its last words. A launcher that hears of the end of the job stops forwarding what ranks
/// have written (MPICH's does), and of the message that matters most nobody would read a line.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Time, which the program hands in.
pub trait Clock: Send + Sync {
    /// Time since some moment that stays the same; it never goes back.
    fn now(&self) -> Duration;

    /// Returns after about that time.
    fn sleep(&self, time: Duration);
}

/// What a rank is doing, for the watchdog to see.
pub(crate) struct Watch {
    clock: Arc<dyn Clock>,
    /// The call that the rank is in and when it last got on there.
    inside: Mutex<Option<(&'static str, Duration)>>,
    /// What the rank calls itself, once it knows.
    who: OnceLock<String>,
    closed: AtomicBool,
    /// What calls have cost so far.
    spent: Mutex<Spent>,
}

impl Watch {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Watch {
        Watch {
            clock,
            inside: Mutex::new(None),
            who: OnceLock::new(),
            closed: AtomicBool::new(false),
            spent: Mutex::default(),
        }
    }

    /// Says who this rank is.
    #[cfg(feature = "mpi")]
    pub(crate) fn introduce(&self, rank: usize, world: usize) {
        // A rank has one number, so a second introduction would say the same.
        let _ = self.who.set(format!("rank {rank} of {world}"));
    }

    /// Marks the rank as inside `call` until the value is dropped.
    pub(crate) fn enter(&self, call: &'static str) -> Inside<'_> {
        self.mark(Some(call));
        Inside { watch: self, call, begun: self.clock.now() }
    }

    /// What calls that have ended took, and what was sent in all.
    pub(crate) fn spent(&self) -> Spent {
        *self.costs()
    }

    /// Counts bytes that went to other ranks.
    pub(crate) fn sent(&self, bytes: u64) {
        self.costs().sent += bytes;
    }

    fn costs(&self) -> MutexGuard<'_, Spent> {
        // Whoever held the lock could not leave a half-written number.
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the watchdog home; it goes after its next look.
    #[cfg(feature = "mpi")]
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Waits until the launcher has passed on what this rank said.
    pub(crate) fn linger(&self) {
        self.clock.sleep(LAST_WORDS);
    }

    fn mark(&self, call: Option<&'static str>) {
        let state = call.map(|call| (call, self.clock.now()));
        // Whoever held the lock could not leave a half-written value.
        *self.inside.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// What to say when the rank has waited longer than `limit`.
    fn overdue(&self, limit: Duration) -> Option<String> {
        let (call, since) = (*self.inside.lock().unwrap_or_else(PoisonError::into_inner))?;
        let waited = self.clock.now().saturating_sub(since);
        let who = self.who.get().map_or("a rank", String::as_str);
        (waited > limit).then(|| {
            format!(
                "{who} has waited in {call} for {} s without getting on, more than the limit of {} s: another rank is \
                 stopped, lost, or still busy elsewhere. This process ends with code {OVERDUE}, and the job with it. \
                 If the others were only busy, raise the limit.",
                waited.as_secs(),
                limit.as_secs()
            )
        })
    }

    /// Looks again and again until the rank is done or overdue; then says so and calls `leave`.
    #[cfg_attr(
        not(any(feature = "mpi", test)),
        expect(dead_code, reason = "without MPI no engine waits for another process")
    )]
    pub(crate) fn guard(&self, limit: Duration, say: &Say, leave: impl FnOnce(i32)) {
        while !self.closed.load(Ordering::Relaxed) {
            self.clock.sleep((limit / 10).clamp(Duration::from_millis(10), Duration::from_secs(1)));
            if let Some(message) = self.overdue(limit) {
                say(&message);
                self.linger();
                return leave(OVERDUE);
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("inside", &self.inside).field("who", &self.who).finish_non_exhaustive()
    }
}

/// A rank inside a call.
pub(crate) struct Inside<'a> {
    watch: &'a Watch,
    call: &'static str,
    begun: Duration,
}

impl Inside<'_> {
    /// Starts the wait anew: something has arrived.
    pub(crate) fn goes_on(&self) {
        self.watch.mark(Some(self.call));
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.watch.mark(None);
        self.watch.costs().waited += self.watch.clock.now().saturating_sub(self.begun);
    }
}

/// A clock that stands still, for ranks that nobody watches.
pub(crate) struct Still;

impl Clock for Still {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that goes only while somebody sleeps.
    #[derive(Default)]
    struct Slept(Mutex<Duration>);

    impl Clock for Slept {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    #[test]
    fn a_call_that_does_not_end_ends_the_process() {
        let clock = Arc::new(Slept::default());
        let watch = Watch::new(clock.clone());
        let said = Mutex::new(String::new());
        // A static callback is what the signature asks for; the lock is leaked to be one.
        let said: &'static Mutex<String> = Box::leak(Box::new(said));
        let mut left = None;
        let _inside = watch.enter("barrier");
        watch.guard(Duration::from_secs(60), &|message| message.clone_into(&mut said.lock().unwrap()), |code| {
            left = Some(code);
        });
        assert_eq!(left, Some(OVERDUE));
        let late = clock.now() - LAST_WORDS;
        assert_eq!(late, Duration::from_secs(61), "a second past the limit, as it looks once a second");
        assert!(said.lock().unwrap().starts_with("a rank has waited in barrier for 61 s"), "{said:?}");
    }

    #[test]
    fn time_outside_calls_and_time_before_something_arrived_do_not_count() {
        let clock = Arc::new(Slept::default());
        let watch = Watch::new(clock.clone());
        let minute = Duration::from_secs(60);
        clock.sleep(10 * minute);
        assert_eq!(watch.overdue(minute), None);
        let inside = watch.enter("all_gather");
        clock.sleep(minute);
        inside.goes_on();
        clock.sleep(minute);
        assert_eq!(watch.overdue(minute), None);
        clock.sleep(Duration::from_secs(1));
        assert!(watch.overdue(minute).is_some());
        drop(inside);
        assert_eq!(watch.overdue(minute), None);
        watch.sent(7);
        assert_eq!(watch.spent(), Spent { waited: 2 * minute + Duration::from_secs(1), sent: 7 });
    }
}
