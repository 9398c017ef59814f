//! Which device computes: the CPU, or a GPU when there is one.

use crate::Result;
use candle_core::Device;

/// Opens the device. Never panics: without the `cuda` feature, a driver or a GPU, `Auto` is the CPU
/// and `Cuda` an error.
pub fn probe_device(want: DeviceChoice) -> Result<Device> {
    match want {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(open_cuda().unwrap_or(Device::Cpu)),
        DeviceChoice::Cuda => open_cuda(),
    }
}

/// The device a person asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// The first GPU when this build and this machine have one, else the CPU.
    Auto,
    /// The first GPU, or an error.
    Cuda,
}

fn open_cuda() -> Result<Device> {
    check_driver()?;
    Ok(Device::new_cuda(0)?)
}

/// `Device::new_cuda` panics where the driver's library is missing, so this looks for the library first.
#[cfg(feature = "cuda")]
fn check_driver() -> Result<()> {
    // SAFETY: loading the driver runs its initialisers, which Candle's first call would run too.
    #[allow(unsafe_code)]
    match unsafe { libloading::Library::new("libcuda.so.1") } {
        Ok(_) => Ok(()),
        Err(error) => Err(candle_core::Error::msg(format!("no CUDA driver: {error}")).into()),
    }
}

/// Without the feature Candle's own error says so.
#[cfg(not(feature = "cuda"))]
fn check_driver() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_computes_on_the_cpu() {
        assert!(probe_device(DeviceChoice::default()).unwrap().is_cpu());
        let cuda = probe_device(DeviceChoice::Cuda);
        assert_eq!(probe_device(DeviceChoice::Auto).unwrap().is_cpu(), cuda.is_err());
    }
}
