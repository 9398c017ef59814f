//! What a person sees of work that takes long: a bar on a terminal, a line now and then elsewhere.

use crate::terminal::{is_quiet, say};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// All bars of the terminal, one below the other: work within a stage has one of its own.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How often a line appears where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

/// Work of which so much is done. Its rate and the time left are those of this process.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    unit: &'static str,
    begun: Instant,
    /// What was done before this process began to count.
    first: Option<u64>,
    last_line: Instant,
    done: u64,
    total: u64,
}

impl Progress {
    /// Nothing done yet of work that is counted in `unit`, for example `prompts`. On a terminal the bar
    /// appears at once.
    pub(crate) fn new(label: &str, unit: &'static str) -> Progress {
        let bar = (std::io::stderr().is_terminal() && !is_quiet()).then(|| {
            let bar = BARS.add(ProgressBar::new(0));
            let template = "{prefix:>22} {bar:24} {pos}/{len}  {per_sec}  ETA {eta}  {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.with_prefix(label.to_owned())
        });
        let now = Instant::now();
        Progress { bar, label: label.to_owned(), unit, begun: now, first: None, last_line: now, done: 0, total: 0 }
    }

    /// Work of `total` units, nothing of it done.
    pub(crate) fn of(label: &str, total: usize, unit: &'static str) -> Progress {
        let mut progress = Progress::new(label, unit);
        progress.first = Some(0);
        progress.at(0, total as u64, "");
        progress
    }

    /// `done` of `total` units are done, with a remark about the last. The end is said in any case.
    pub(crate) fn step(&mut self, done: u64, total: u64, remark: &str) {
        self.at(done, total, remark);
        if done == total && self.bar.is_none() {
            self.say_line(remark);
        }
    }

    /// So many units more are done.
    pub(crate) fn advance(&mut self, units: usize) {
        self.at(self.done + units as u64, self.total, "");
    }

    fn at(&mut self, done: u64, total: u64, remark: &str) {
        self.first.get_or_insert(done.saturating_sub(1));
        (self.done, self.total) = (done, total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(remark.to_owned());
        } else if done < total && self.last_line.elapsed() > EVERY {
            self.say_line(remark);
        }
    }

    fn say_line(&mut self, remark: &str) {
        let Progress { label, unit, done, total, .. } = self;
        let rate = (*done - self.first.unwrap_or(0)) as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        let left = (*total - *done) as f64 / rate.max(1e-9);
        say(&format!("{label:>22} {done}/{total}  {rate:.2} {unit}/s  ETA {left:.0} s  {remark}"));
        self.last_line = Instant::now();
    }

    /// A line of its own, above the bar.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Leaves the bar on the terminal, full only where everything is done.
    pub(crate) fn keep(&self) {
        match &self.bar {
            Some(bar) if self.done == self.total => bar.finish(),
            // A bar that jumps to its end would say that an interrupted stage is done.
            Some(bar) => bar.abandon(),
            None => {}
        }
    }
}

impl Drop for Progress {
    /// Takes a bar away that nobody kept.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.as_ref().filter(|bar| !bar.is_finished()) {
            bar.finish_and_clear();
        }
    }
}
