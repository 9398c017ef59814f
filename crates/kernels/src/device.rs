//! Which device computes: the CPU, or a GPU when there is one.

use crate::Result;
use candle_core::Device;

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

/// Opens the device. Never panics: without a driver, `Auto` is the CPU and `Cuda` an error.
pub fn probe_device(want: DeviceChoice) -> Result<Device> {
    match want {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(open_cuda().unwrap_or(Device::Cpu)),
        DeviceChoice::Cuda => open_cuda(),
    }
}

/// Looks for the driver first, because `Device::new_cuda` panics where the library is missing.
fn open_cuda() -> Result<Device> {
    Ok(Device::new_cuda(0)?)
}
