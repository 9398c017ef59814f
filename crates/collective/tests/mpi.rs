//! Ranks of real launchers: this program starts itself under mpirun, and then plays a rank.
//!
//! `INSTRUCT_MPIRUN` names another launcher than `mpirun`; with `INSTRUCT_MPI_REQUIRED` a machine without it fails
//! instead of skipping. No test measures time: what would wait for ever runs into the launcher's own limit, whose exit
//! code is none that a test asks for.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "clippy does not count a helper in tests/ as a test"
)]

use instruct_collective::{Clock, Host, LIMIT, connect};
use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Which part a rank plays, and the folder where it leaves its process number.
const CASE: &str = "INSTRUCT_RANK_CASE";
const FOLDER: &str = "INSTRUCT_RANK_FOLDER";
/// The watchdog's limit in seconds.
const SECONDS: &str = "INSTRUCT_RANK_SECONDS";

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// When the wait began that a watchdog is to end.
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// Stands still until [`BEGUN`], so that no busy machine lets the watchdog bite earlier.
struct Real;

impl Clock for Real {
    fn now(&self) -> Duration {
        BEGUN.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// What the launcher starts: no test, but a rank when it is asked to be one.
#[test]
fn rank_program() {
    if let (Ok(case), Ok(folder)) = (env::var(CASE), env::var(FOLDER)) {
        fs::write(Path::new(&folder).join(std::process::id().to_string()), "").unwrap();
        std::process::exit(play(&case));
    }
}

fn play(case: &str) -> i32 {
    let say = |message: &str| eprintln!("{message}");
    let limit = env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok()).map_or(LIMIT, Duration::from_secs);
    let host = Host { limit, ..Host::new(|name| env::var(name).ok(), Real, say) };
    let work = |ranks: &dyn instruct_collective::Collective| -> Result<(), Failed> { parts::play(case, ranks) };
    let outcome = connect(&host).map_err(Failed::from).and_then(|ranks| instruct_collective::run(ranks, &say, work));
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

/// What came of a job.
#[derive(Debug)]
struct Ended {
    code: i32,
    text: String,
}

impl Ended {
    /// MPICH's launcher may name the signal by which it ended another rank in place of the code of the rank that ended
    /// the job.
    #[track_caller]
    #[cfg(feature = "mpi")]
    fn ended_with(&self, code: i32) {
        let ended_by_mpich = self.code == 9 && self.text.contains("BAD TERMINATION");
        assert!(self.code == code || ended_by_mpich, "{self:?}");
    }

    #[track_caller]
    fn says(&self, part: &str) {
        assert!(self.text.contains(part), "`{part}` is not in {self:?}");
    }
}

/// Jobs run one at a time, or ranks would wait for cores instead of each other.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a job of `ranks` ranks that play `case`, and sees that nothing of it is left. `None` without a launcher.
fn launch(ranks: usize, case: &str, variables: &[(&str, &str)]) -> Option<Ended> {
    let launcher = env::var("INSTRUCT_MPIRUN").unwrap_or_else(|_| "mpirun".to_owned());
    if Command::new(&launcher).arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(env::var("INSTRUCT_MPI_REQUIRED").is_err(), "{launcher} is not installed, and it is required here");
        eprintln!("SKIPPED: {launcher} is not installed, so no rank was started");
        return None;
    }
    let ranks = ranks.to_string();
    Some(start(&[&launcher, "-np", &ranks, &myself()], case, variables))
}

fn myself() -> String {
    env::current_exe().unwrap().display().to_string()
}

fn start(words: &[&str], case: &str, variables: &[(&str, &str)]) -> Ended {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = env::temp_dir().join(format!("instruct-ranks-{}-{case}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["rank_program", "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .env(FOLDER, &folder)
        .env("MPIEXEC_TIMEOUT", "900")
        // Open MPI: more ranks than cores, not pinned to one of them, and by root where a container knows no other.
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    for process in fs::read_dir(&folder).unwrap() {
        let process = process.unwrap().file_name().into_string().unwrap();
        assert!(ends(&process), "process {process} is left over from {case}: {text}");
    }
    fs::remove_dir_all(&folder).unwrap();
    Ended { code: output.status.code().unwrap_or(-1), text }
}

/// Whether a process ends, where the system lists processes as files: the launcher may return just before its last rank.
fn ends(process: &str) -> bool {
    let running = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // A process that only waits to be counted by its parent has ended.
        stat.rsplit(')').next().is_some_and(|state| !state.trim().is_empty() && !state.trim().starts_with('Z'))
    };
    for _ in 0..3_000 {
        if !running() {
            return true;
        }
        thread::sleep(Duration::from_millis(100));
    }
    false
}

#[cfg(not(feature = "mpi"))]
mod parts {
    pub(crate) fn play(_: &str, _: &dyn instruct_collective::Collective) -> Result<(), super::Failed> {
        Err("a rank without MPI got to work".into())
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn built_without_mpi_it_refuses_to_be_one_of_several() {
    if let Some(ended) = launch(2, "refuse", &[]) {
        assert_eq!(ended.code, 1, "{ended:?}");
        ended.says("started 2 ranks, but this program was built without MPI: each of them would train alone");
    }
}

#[cfg(feature = "mpi")]
mod parts {
    //! What ranks do, by the name of the case.

    use super::Failed;
    use instruct_collective::{Collective, NOTHING, deal, span};
    use std::{ops::Range, process::Command, thread, time::Duration};

    pub(crate) fn play(case: &str, ranks: &dyn Collective) -> Result<(), Failed> {
        ranks.barrier()?;
        super::BEGUN.get_or_init(std::time::Instant::now);
        let second = ranks.rank() == 1;
        match case {
            "numbers" => numbers(ranks)?,
            "error" if second => return Err("no more luck".into()),
            "panic" if second => panic!("no more nerve"),
            "kill" if second => signal("KILL"),
            "stop" if second => signal("STOP"),
            "disagree" => ranks.agree("the weights", if second { 2 } else { 1 })?,
            "apart" if second => ranks.agree("the weights", 1)?,
            "apart" => ranks.all_gather(&mut [0.0; 5])?,
            "early" if second => return Ok(()),
            _ => ranks.reduce_scatter(&mut [1.0; 5000])?,
        }
        Ok(())
    }

    /// Sends this rank a signal that it does not outlive.
    fn signal(name: &str) {
        let own = std::process::id();
        Command::new("sh").args(["-c", &format!("kill -{name} {own}")]).status().unwrap();
        // On a busy machine this thread can go on for a while before the signal is delivered.
        thread::sleep(Duration::from_secs(600));
    }

    /// Every call with real numbers; rank 0 prints the hash of all results.
    fn numbers(ranks: &dyn Collective) -> Result<(), Failed> {
        let (rank, world) = (ranks.rank(), ranks.world());
        let mut hash = 0;
        // The second buffer is longer than a bucket.
        for (leaves, len) in [(6, 40_003), (4, 7_000_000)] {
            let dealt = deal(leaves, rank, world);
            let mut flat = if dealt.is_empty() { vec![NOTHING; len] } else { sum(dealt, len) };
            ranks.reduce_scatter(&mut flat)?;
            let own = span(len, rank, world);
            flat[..own.start].fill(f32::NAN);
            flat[own.end..].fill(f32::NAN);
            ranks.all_gather(&mut flat)?;
            hash = flat
                .iter()
                .fold(hash, |hash: u64, x| (hash.rotate_left(7) ^ u64::from(x.to_bits())).wrapping_mul(0x9e37_79b9));
        }
        ranks.agree("the sums", hash)?;
        bytes_and_slots(ranks)?;
        if rank == 0 {
            println!("hash {hash:016x} on {world} ranks by {}", ranks.engine());
        }
        Ok(())
    }

    /// The sum of a run of leaves, in the tree that ranks go on with.
    fn sum(leaves: Range<usize>, len: usize) -> Vec<f32> {
        let Range { start, end } = leaves;
        if end - start == 1 {
            // Tenths and zeros of both signs: in another order the sum has other bits.
            let value = |i: usize| if i % 7 == start { -0.0 } else { ((i * 37 + start * 101) % 4099) as f32 * 0.1 };
            return (0..len).map(value).collect();
        }
        let middle = start + (end - start).next_power_of_two() / 2;
        let (mut left, right) = (sum(start..middle, len), sum(middle..end, len));
        left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
        left
    }

    fn bytes_and_slots(ranks: &dyn Collective) -> Result<(), Failed> {
        let (rank, world) = (ranks.rank(), ranks.world());
        let text = |rank: usize| vec![rank as u8; 1000 * rank];
        let gathered = ranks.all_gather_bytes(&text(rank))?;
        assert_eq!(gathered, (0..world).map(text).collect::<Vec<_>>());
        let mut bytes = text(rank);
        ranks.broadcast_bytes(world - 1, &mut bytes)?;
        assert_eq!(bytes, text(world - 1));
        let mut slots = vec![0.0; 3 * world];
        slots[3 * rank] = -0.0;
        slots[3 * rank + 1] = 0.1 * rank as f64;
        ranks.slots(&mut slots)?;
        for other in 0..world {
            assert_eq!(slots[3 * other].to_bits(), (-0.0f64).to_bits());
            assert_eq!(slots[3 * other + 1], 0.1 * other as f64);
        }
        assert!(ranks.local_rank() < ranks.local_world() && ranks.local_world() <= world);
        assert!(world == 1 || ranks.spent().sent > 0);
        Ok(())
    }
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use super::*;
    use instruct_collective::{FAILED, OVERDUE};

    #[test]
    fn any_number_of_ranks_has_the_bits_of_one() {
        let hash = |ranks| {
            let ended = launch(ranks, "numbers", &[])?;
            assert_eq!(ended.code, 0, "{ended:?}");
            ended.says(&format!("on {ranks} ranks by mpi"));
            let hash = ended.text.lines().find_map(|line| line.split("hash ").nth(1)?.split(' ').next());
            Some(hash.unwrap().to_owned())
        };
        if let Some(alone) = hash(1) {
            for ranks in [2, 3, 4] {
                assert_eq!(hash(ranks), Some(alone.clone()), "{ranks} ranks");
            }
        }
    }

    #[test]
    fn an_error_on_one_rank_is_told_and_ends_the_job() {
        if let Some(ended) = launch(3, "error", &[]) {
            ended.ended_with(FAILED);
            ended.says("rank 1 of 3: no more luck");
        }
    }

    #[test]
    fn a_panic_on_one_rank_is_told_and_ends_the_job() {
        if let Some(ended) = launch(3, "panic", &[]) {
            ended.ended_with(FAILED);
            ended.says("rank 1 of 3: panicked: no more nerve");
        }
    }

    #[test]
    fn a_killed_rank_ends_the_job() {
        if let Some(ended) = launch(3, "kill", &[]) {
            // Open MPI's launcher reports it as a shell does, MPICH's by the signal's number.
            assert!([128 + 9, 9].contains(&ended.code), "{ended:?}");
        }
    }

    #[test]
    fn the_watchdog_ends_the_job_of_a_stopped_rank() {
        if let Some(ended) = launch(2, "stop", &[(SECONDS, "4")]) {
            ended.ended_with(OVERDUE);
            ended.says("rank 0 of 2 has waited in reduce_scatter");
        }
    }

    #[test]
    fn ranks_that_differ_are_told() {
        if let Some(ended) = launch(3, "disagree", &[]) {
            ended.ended_with(FAILED);
            ended.says("disagree about the weights: 0000000000000001 on ranks 0, 2; 0000000000000002 on rank 1");
        }
    }

    #[test]
    fn ranks_at_different_places_are_told() {
        if let Some(ended) = launch(2, "apart", &[]) {
            ended.ended_with(FAILED);
            ended.says("not at the same place: all_gather of 5 numbers on rank 0; agree on the subject");
        }
        if let Some(ended) = launch(2, "early", &[]) {
            ended.ended_with(FAILED);
            ended.says("reduce_scatter of 5000 numbers on rank 0; barrier on rank 1");
        }
    }

    #[test]
    fn a_launcher_that_does_not_speak_mpi_is_refused() {
        // What Slurm's default leaves: two ranks are promised, and MPI finds one.
        let ended = start(&[&myself()], "refuse", &[("SLURM_STEP_NUM_TASKS", "2")]);
        assert_eq!(ended.code, 1, "{ended:?}");
        ended.says("started 2 ranks, but this program finds itself alone in its MPI");
        ended.says("srun --mpi=pmix");
    }
}
