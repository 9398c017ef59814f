//! What a launcher left in the environment, and the engine that follows from it.

use crate::{
    Collective, Solo,
    collective::Say,
    error::{Error, Result},
    watch::{Clock, LIMIT},
};
use std::{fmt, sync::Arc, time::Duration};

/// The environment: what a variable of a name holds, if it is set.
pub type Env = dyn Fn(&str) -> Option<String> + Send + Sync;

/// What the program hands in: its environment, its time and its voice.
#[derive(Clone)]
pub struct Host {
    /// Looks a variable of the environment up.
    pub env: Arc<Env>,
    /// What the watchdog measures with.
    pub clock: Arc<dyn Clock>,
    /// How long a call may wait without getting on; [`LIMIT`] unless somebody asks for another.
    pub limit: Duration,
    /// Where last words go, from the rank's own thread or the watchdog's.
    pub say: Arc<Say>,
}

impl Host {
    /// A host with the usual limit.
    pub fn new(
        env: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        clock: impl Clock + 'static,
        say: impl Fn(&str) + Send + Sync + 'static,
    ) -> Host {
        Host { env: Arc::new(env), clock: Arc::new(clock), limit: LIMIT, say: Arc::new(say) }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// What a launcher says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// How many ranks it started, at least; a launcher that says only which rank this is starts one more than that.
    pub ranks: usize,
    /// The variable that says so.
    pub by: &'static str,
}

/// Variables that hold the number of ranks: of Open MPI's mpirun, of MPICH's and Slurm's PMI, of a step of Slurm.
const COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", SLURM];
const SLURM: &str = "SLURM_STEP_NUM_TASKS";
/// Holds the number of this rank, whatever launcher speaks PMIx.
const PMIX: &str = "PMIX_RANK";

/// Which launcher started this process, if any: what the environment says of the most ranks.
///
/// ```
/// use instruct_collective::launched;
///
/// let srun = |name: &str| (name == "SLURM_STEP_NUM_TASKS").then(|| "4".to_owned());
/// assert_eq!(launched(&srun).unwrap().ranks, 4);
/// assert_eq!(launched(&|_| None), None);
/// ```
pub fn launched(env: &dyn Fn(&str) -> Option<String>) -> Option<Launched> {
    // Slurm leaves its variable empty in the shell of a batch job, which is no launcher.
    let number = |name: &str| env(name)?.trim().parse::<usize>().ok();
    let counts = COUNTS.into_iter().filter_map(|by| Some(Launched { ranks: number(by)?, by }));
    let place = number(PMIX).map(|rank| Launched { ranks: rank.saturating_add(1), by: PMIX });
    // Of equals the first, which is the launcher closest to the process.
    counts.chain(place).reduce(|most, other| if other.ranks > most.ranks { other } else { most })
}

/// Connects this process to the other ranks of its job: a [`Solo`] when no launcher started it, otherwise MPI.
///
/// # Errors
///
/// [`Error::Refused`] when a launcher started several ranks and this process sees only itself: the program was built
/// without the feature `mpi`, or the launcher does not speak with its MPI. What MPI itself cannot start with ends the
/// process there, with MPI's own message.
pub fn connect(host: &Host) -> Result<Box<dyn Collective>> {
    match launched(&*host.env) {
        None => Ok(Box::new(Solo)),
        Some(launched) => connect_launched(host, launched),
    }
}

#[cfg(not(feature = "mpi"))]
fn connect_launched(_: &Host, Launched { ranks, by }: Launched) -> Result<Box<dyn Collective>> {
    if ranks <= 1 {
        return Ok(Box::new(Solo));
    }
    let (why, cure) = (
        "was built without MPI",
        "Build it with `--features mpi`, or start it without a launcher, which makes one rank.",
    );
    Err(Error::Refused { by, ranks, why, cure })
}

#[cfg(feature = "mpi")]
fn connect_launched(host: &Host, launched: Launched) -> Result<Box<dyn Collective>> {
    // A single task of Slurm needs no MPI, and one that Slurm was not told to prepare for MPI might not start it.
    if launched.ranks <= 1 && launched.by == SLURM {
        return Ok(Box::new(Solo));
    }
    let mpi = crate::Mpi::connect(host)?;
    if mpi.world() > 1 || launched.ranks <= 1 {
        return Ok(Box::new(mpi));
    }
    Box::new(mpi).finish()?;
    Err(unseen(launched))
}

/// MPI started, and found itself alone.
#[cfg(feature = "mpi")]
fn unseen(Launched { ranks, by }: Launched) -> Error {
    let cure = if by == SLURM {
        "Start it with `srun --mpi=pmix` (`srun --mpi=list` says what there is), or with `mpirun` inside the job."
    } else {
        "Start it with the launcher of the MPI that it was built with: Open MPI's mpirun for Open MPI, MPICH's for MPICH."
    };
    Error::Refused { by, ranks, why: "finds itself alone in its MPI", cure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Still;

    fn host(variables: &'static [(&str, &str)]) -> Host {
        let env = |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        Host::new(env, Still, |_| ())
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let of = |variables| launched(&*host(variables).env);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "")]), None);
        for by in COUNTS {
            let variables: &'static [_] = Box::leak(Box::new([(by, "2")]));
            assert_eq!(of(variables), Some(Launched { ranks: 2, by }));
        }
        assert_eq!(of(&[("PMIX_RANK", "3")]), Some(Launched { ranks: 4, by: "PMIX_RANK" }));
        let mpirun_in_a_step = of(&[("SLURM_STEP_NUM_TASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "8"), ("PMIX_RANK", "7")]);
        assert_eq!(mpirun_in_a_step, Some(Launched { ranks: 8, by: "OMPI_COMM_WORLD_SIZE" }));
    }

    #[test]
    fn without_a_launcher_there_is_one_rank() {
        assert_eq!(connect(&host(&[])).unwrap().engine(), "solo");
        assert_eq!(connect(&host(&[("SLURM_STEP_NUM_TASKS", "1")])).unwrap().engine(), "solo");
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn a_program_without_mpi_does_not_train_alone_beside_others() {
        let error = connect(&host(&[("SLURM_STEP_NUM_TASKS", "2")])).err().unwrap();
        assert!(error.to_string().contains("started 2 ranks, but this program was built without MPI"), "{error}");
        assert_eq!(connect(&host(&[("OMPI_COMM_WORLD_SIZE", "1")])).unwrap().engine(), "solo");
    }
}
