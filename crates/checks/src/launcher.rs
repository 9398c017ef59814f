//! The launcher that starts ranks: `mpirun`, or what INSTRUCT_MPIRUN names.

use std::{env, process::Command};

/// The launcher, told to start so many ranks of what is added to it. As root it starts them too, more of them than there
/// are processors, and binds none of them to one, as machines that test programs need it.
pub(crate) fn launcher(ranks: usize) -> Command {
    let mut launcher = Command::new(env::var_os("INSTRUCT_MPIRUN").unwrap_or_else(|| "mpirun".into()));
    launcher.args(["-np", &ranks.to_string()]);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ] {
        launcher.env(name, value);
    }
    launcher
}
