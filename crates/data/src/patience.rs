//! Runs a computation that may never end in a thread of its own, and gives up waiting for it at a limit
//! of time or memory.

use std::{
    fs,
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc, OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// Processor time that the computation may take. Where the system does not report that, the time waited
/// counts instead.
const TIME: Duration = Duration::from_millis(500);

/// Bytes by which the computation may make the process grow, where the system reports them. Other threads
/// make the process grow too, so the computation is charged at most for the pages that it was the first to
/// touch. Where the system has large pages, every page counts as a large one, and that bound is loose.
const GROWTH: u64 = 48 << 20;

/// How often both are checked. A computation that has taken less processor time than this is not refused
/// for its memory.
const INTERVAL: Duration = Duration::from_millis(3);

/// Returns the result of `work`, or why the wait was given up. In that case the thread goes on: nothing
/// stops it but the end of the process.
pub(crate) fn patiently<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (tell, told) = mpsc::sync_channel(1);
    let (task, before) = (Arc::new(OnceLock::new()), resident());
    let worker = thread::Builder::new().spawn({
        let task = Arc::clone(&task);
        move || {
            // The folder in which the system reports on this thread.
            let _ = fs::read_link("/proc/thread-self").map(|path| task.set(Path::new("/proc").join(path)));
            // Nobody listens any more once patience has ended.
            drop(tell.send(work()));
        }
    });
    let worker = worker.map_err(|e| e.to_string())?;
    let (mut waited, largest_page) = (Duration::ZERO, largest_page());
    loop {
        match told.recv_timeout(INTERVAL) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => match worker.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("a thread that ends without a panic has told"),
            },
            Err(RecvTimeoutError::Timeout) => waited += INTERVAL,
        }
        let computed = task.get().and_then(|task| processor_time(task)).unwrap_or(waited);
        if computed > TIME {
            return Err(format!("no end after {} ms", TIME.as_millis()));
        }
        let touched = task.get().and_then(|task| page_faults(task)).map_or(0, |faults| faults * largest_page);
        if let (Some(before), Some(now)) = (before, resident())
            && computed > INTERVAL
            && now.saturating_sub(before).min(touched) > GROWTH
        {
            return Err(format!("it takes more than {} MiB", GROWTH >> 20));
        }
    }
}

/// What a thread has computed so far.
fn processor_time(task: &Path) -> Option<Duration> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// How many pages a thread was the first to touch: `minflt` of proc(5), the eighth after the name, which is
/// in parentheses and may hold anything.
fn page_faults(task: &Path) -> Option<u64> {
    let text = fs::read_to_string(task.join("stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// The most bytes that a page can have. Where small pages have more than 4 KiB and there are no large ones,
/// this is too low, and the computation may take as many times more memory.
fn largest_page() -> u64 {
    let large = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if large.is_ok_and(|text| !text.contains("[never]")) { 2 << 20 } else { 4 << 10 }
}

/// Bytes that the process holds.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// What is said of work that goes on until it is told to end.
    #[track_caller]
    fn check_refused(mut work: impl FnMut() + Send + 'static, why: &str) {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let said = patiently(move || {
            while !end.load(Ordering::Relaxed) {
                work();
            }
        });
        ended.store(true, Ordering::Relaxed);
        assert_eq!(said, Err(why.to_owned()));
    }

    /// Work that takes memory, so slowly that it is not refused for its time first, and bounded, come what may.
    fn grow() -> impl FnMut() + Send + 'static {
        let mut held = Vec::new();
        move || {
            if held.len() < 1_000 {
                held.push(vec![1u8; 1 << 20]);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn results_and_panics_come_through() {
        assert_eq!(patiently(|| 7), Ok(7));
        assert_eq!(patiently(|| thread::sleep(3 * INTERVAL)), Ok(()));
        // As a panic does, without its report.
        let panic = std::panic::catch_unwind(|| patiently(|| -> () { resume_unwind(Box::new("no")) }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"no"));
    }

    #[test]
    fn who_takes_memory_is_refused_and_nobody_else() {
        let grown = thread::spawn(|| resident().is_some().then(|| check_refused(grow(), "it takes more than 48 MiB")));
        check_refused(|| std::hint::black_box(()), "no end after 500 ms");
        grown.join().unwrap();
    }
}
