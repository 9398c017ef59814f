//! What the system says of this machine and of this process.

use std::path::Path;

/// The processor's name, where the system tells it.
pub fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_owned()
}

/// The processors that this process may run on, as `0-3,8`; `?` where the system does not tell.
pub(crate) fn processors() -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map_or_else(|| "?".to_owned(), |list| list.trim().to_owned())
}

/// The most memory that this process has held, in megabytes of 2^20 bytes; 0 where the system does not
/// tell.
pub fn peak_memory_mb() -> f64 {
    peak_memory_mb_of("self")
}

/// The same of another process, by its number.
pub fn peak_memory_mb_of(process: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmHWM"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}

/// Seconds that processors have spent on this process, all threads together; `None` where the system does
/// not tell. A busy machine makes a process wait, and not this number grow.
pub fn processor_seconds() -> Option<f64> {
    /// Linux counts in hundredths of a second for programs, whatever the kernel does.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses, which may hold spaces.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / TICKS)
}

/// Names a file to which the program writes, as it ends, the megabytes it has held at most and the seconds
/// that processors spent on it. The system forgets both with the process.
const USAGE: &str = "INSTRUCT_USAGE";

/// Writes the file that [`USAGE`] names, if it names one.
pub(crate) fn leave_usage() {
    let Some(path) = std::env::var_os(USAGE) else { return };
    let usage = format!("{} {}", peak_memory_mb(), processor_seconds().unwrap_or(f64::NAN));
    // Nobody is told when it fails: whoever asked finds no file.
    let _ = std::fs::write(Path::new(&path), usage);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_knows_what_it_took() {
        let before = processor_seconds().unwrap();
        let mut sum = 0u64;
        while processor_seconds().unwrap() < before + 0.02 {
            sum = (0..1_000_000u64).fold(sum, |sum, x| sum.wrapping_mul(31).wrapping_add(x));
        }
        assert!(sum != 1 && peak_memory_mb() > 1.0 && !cpu_model().is_empty());
    }
}
