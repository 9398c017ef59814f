//! `doctor`: what this machine and this build offer, line by line, with what to do about each lack.

use crate::{
    config::DeviceName,
    machine::cpu_model,
    memory::{Machine, mega},
    prepare::device,
    terminal::print,
};
use anyhow::{Result, bail};
use instruct_kernels::{bf16_unit, cpu_level, denormals_flushed};
use serde::Serialize;

pub(crate) const EXAMPLES: &str = "Examples:
  instruct doctor
  instruct doctor --json";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// What was found about one thing, and what to do about it; no advice where all is well.
#[derive(Serialize)]
struct Line {
    name: &'static str,
    status: Status,
    found: String,
    advice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    /// Something that makes every run wrong or very slow.
    Error,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let lines = examine()?;
    if args.json {
        print(&serde_json::to_string_pretty(&lines)?);
    } else {
        lines.iter().for_each(|line| print(&line.text()));
    }
    match lines.iter().find(|line| line.status == Status::Error) {
        Some(line) => bail!("{}: {}", line.name, line.advice.as_deref().unwrap_or(&line.found)),
        None => Ok(()),
    }
}

impl Line {
    fn ok(name: &'static str, found: impl Into<String>) -> Line {
        Line { name, status: Status::Ok, found: found.into(), advice: None }
    }

    /// `Ok` when `fine`, else a line with this status and advice.
    fn check(name: &'static str, found: String, fine: bool, status: Status, advice: &str) -> Line {
        if fine { Line::ok(name, found) } else { Line { name, status, found, advice: Some(advice.to_owned()) } }
    }

    fn text(&self) -> String {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Error => "ERROR",
        };
        let advice = self.advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"));
        format!("{status:>8}  {:>18}  {}{advice}", self.name, self.found)
    }
}

fn examine() -> Result<Vec<Line>> {
    let warning = Status::Warning;
    let (flushed, level) = (denormals_flushed(), cpu_level());
    let on = flushed.iter().filter(|&&on| on).count();
    let threads = rayon::current_num_threads();
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    let cuda = cfg!(feature = "cuda");
    let device = format!("{:?}", device(DeviceName::Auto)?);
    Ok(vec![
        Line::ok("version", env!("CARGO_PKG_VERSION")),
        Line::ok("features", if cuda { "cuda" } else { "none (cpu only)" }),
        Line::check(
            "device",
            device.clone(),
            !cuda || device != "Cpu",
            warning,
            "this build can use a GPU and finds none: check the driver, or build without the feature",
        ),
        Line::ok("cpu", cpu_model()),
        Line::check(
            "kernels",
            format!("{level}, f32"),
            level != "portable",
            warning,
            "this processor has no AVX2: training is several times slower than on one that has",
        ),
        Line::check(
            "bf16 products",
            bf16_unit().unwrap_or("no instructions for them").to_owned(),
            bf16_unit().is_some(),
            warning,
            "`model.precision` and `model.frozen` = \"bf16\" compute in f32 here",
        ),
        Line::check(
            "threads",
            format!("{threads} of {cores}"),
            threads == cores,
            warning,
            "RAYON_NUM_THREADS decides; another number of threads gives other last bits",
        ),
        memory(),
        Line::check(
            "denormals flushed",
            format!("on {on} of {} threads", flushed.len()),
            on == flushed.len(),
            Status::Error,
            "some threads compute with denormals, which can make a backward pass 35 times slower: report this machine",
        ),
    ])
}

/// What a run may take; a limit of a control group is below what the machine has.
fn memory() -> Line {
    /// The embedded flow takes some 300 MB.
    const LITTLE: u64 = 1_000_000_000;
    match Machine::read(0) {
        None => Line::check(
            "memory",
            "unknown".to_owned(),
            false,
            Status::Warning,
            "this system does not tell, so that no run is refused for want of it: set `memory.limit-mb`",
        ),
        Some(machine) => Line::check(
            "memory",
            format!("a run may take {}", mega(machine.limit)),
            machine.limit > LITTLE,
            Status::Warning,
            "close other programs, or raise the limit of the control group",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_comes_with_advice() {
        let fine = Line::check("a", "b".to_owned(), true, Status::Error, "do this");
        assert_eq!(fine.text().trim_start(), "ok                   a  b");
        let bad = Line::check("a", "b".to_owned(), false, Status::Warning, "do this");
        assert!(bad.text().contains("warning") && bad.text().ends_with("b; do this"));
        let lines = examine().unwrap();
        assert!(lines.iter().all(|line| (line.status == Status::Ok) == line.advice.is_none()));
        assert!(serde_json::to_string(&lines).unwrap().contains("\"status\":\"ok\""));
    }
}
