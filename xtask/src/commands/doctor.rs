//! `doctor`: what this machine and this build offer.

use crate::{
    config::DeviceName,
    memory::{Machine, mega},
    prepare::device,
    print,
};
use anyhow::Result;
use instruct_kernels::{bf16_unit, cpu_level, denormals_flushed};

pub(crate) fn run() -> Result<()> {
    let flushed = denormals_flushed();
    let rows = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("features", if cfg!(feature = "cuda") { "cuda".to_owned() } else { "none (cpu only)".to_owned() }),
        ("device", format!("{:?}", device(DeviceName::Auto)?)),
        ("cpu", cpu_model()),
        ("kernels", format!("{}, f32", cpu_level())),
        ("bf16 products", bf16_unit().unwrap_or("no instructions for them").to_owned()),
        ("threads", rayon::current_num_threads().to_string()),
        ("memory", memory()),
        ("a run may take", Machine::read(0).map_or("unknown".to_owned(), |machine| mega(machine.limit))),
        ("denormals flushed", format!("on {} of {} threads", flushed.iter().filter(|&&on| on).count(), flushed.len())),
    ];
    rows.iter().for_each(|(name, value)| print(&format!("{name:>18}  {value}")));
    if flushed.iter().all(|&on| on) {
        return Ok(());
    }
    anyhow::bail!("some threads compute with denormals, which can make a backward pass 35 times slower")
}

/// The processor's name, where the system tells it.
pub(crate) fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_owned()
}

fn memory() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / (1 << 20) as f64)
    };
    match (gib("MemAvailable"), gib("MemTotal")) {
        (Some(available), Some(total)) => format!("{available:.1} of {total:.1} GiB available"),
        _ => "unknown".to_owned(),
    }
}
