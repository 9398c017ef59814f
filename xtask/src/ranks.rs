//! Several processes that do one run: how they find each other, meet in the run folder, and speak with one voice.
//!
//! All of them read the same and go through the same stages. What they share is the leaves of each training step
//! (`model.leaves`), whose gradients they add in the order in which one process would, the optimizer's state, and
//! whatever is asked of models: answers, scores, log-probabilities.

use crate::{
    machine,
    terminal::{be_quiet, say, say_at_all_costs},
};
use anyhow::{Context, Result, bail};
use instruct_collective::{Clock, Collective, Host, connect, launched, run, span};
use instruct_runs::{Array, BoxError, Ranks, Take};
use std::time::{Duration, Instant};

/// The variable that holds how many seconds a rank waits for the others before it ends the job.
const LIMIT: &str = "INSTRUCT_RANK_LIMIT";

/// Does `work` on every rank that the launcher started; on one without a launcher.
///
/// Errors: those of `work`; ranks that do not see each other. On several ranks an error ends the job, and this does not
/// return.
pub fn on_ranks(work: impl FnOnce(&dyn Collective) -> Result<()>) -> Result<()> {
    let mut host = Host::new(|name| std::env::var(name).ok(), Time(Instant::now()), say_at_all_costs);
    if let Ok(seconds) = std::env::var(LIMIT) {
        let seconds = seconds.parse().ok().filter(|&seconds: &u64| seconds > 0);
        host.limit = Duration::from_secs(seconds.with_context(|| format!("{LIMIT} is no number of seconds"))?);
    }
    let ranks = connect(&host)?;
    if ranks.rank() > 0 {
        be_quiet();
    } else if ranks.world() > 1 {
        let (threads, processors) = (rayon::current_num_threads(), machine::processors());
        let plural = if threads == 1 { "" } else { "s" };
        say(&format!(
            "{} ranks over {}, {} on this machine; the first has {threads} thread{plural} on processors {processors}",
            ranks.world(),
            ranks.engine(),
            ranks.local_world()
        ));
    }
    run(ranks, &say_at_all_costs, work)
}

/// Refuses to do the same work once for each rank, in a command that only one process runs.
///
/// Errors: a launcher started several.
pub(crate) fn refuse_ranks() -> Result<()> {
    match launched(&|name| std::env::var(name).ok()).filter(|launched| launched.ranks > 1) {
        Some(launched) => bail!(
            "{} says that a launcher started {} ranks, and only `pipeline`, `sft`, `reward-model`, `ppo` and `evaluate` \
             share their work among ranks; start this command alone",
            launched.by,
            launched.ranks
        ),
        None => Ok(()),
    }
}

/// What the first rank has, on every rank.
///
/// Errors: those of the ranks.
pub(crate) fn of_first(ranks: &dyn Collective, own: &str) -> Result<String> {
    let mut bytes = own.as_bytes().to_vec();
    ranks.broadcast_bytes(0, &mut bytes)?;
    String::from_utf8(bytes).context("the first rank sent no text")
}

/// Ranks in a run folder, of which the first writes.
pub(crate) struct Party<'a>(pub(crate) &'a dyn Collective);

impl Ranks for Party<'_> {
    fn writes(&self) -> bool {
        self.0.rank() == 0
    }

    fn meet(&self) -> Result<(), BoxError> {
        Ok(self.0.barrier()?)
    }

    fn told(&self, answer: bool) -> Result<bool, BoxError> {
        let mut bytes = vec![u8::from(answer)];
        self.0.broadcast_bytes(0, &mut bytes)?;
        Ok(bytes == [1])
    }

    fn collect(&self, array: &Array<'_>, take: &mut Take<'_>) -> Result<(), BoxError> {
        let (rank, world) = (self.0.rank(), self.0.world());
        if (array.start, array.numbers.len())
            != (span(array.len, rank, world).start, span(array.len, rank, world).len())
        {
            return Err("a rank holds another part of an array than its own".into());
        }
        for root in 0..world {
            let theirs = span(array.len, root, world).len();
            for start in (0..theirs).step_by(PIECE) {
                let len = PIECE.min(theirs - start);
                let own = if root == rank { &array.numbers[start..start + len] } else { &[] };
                let mut bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
                self.0.broadcast_bytes(root, &mut bytes)?;
                if self.writes() {
                    let piece: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
                    take(&piece)?;
                }
            }
        }
        Ok(())
    }

    fn agree(&self, what: &str, hash: u64) -> Result<(), BoxError> {
        Ok(self.0.agree(what, hash)?)
    }
}

/// Numbers that travel at a time on their way to a file.
const PIECE: usize = 1 << 20;

/// The time of this machine.
struct Time(Instant);

impl Clock for Time {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
