//! What several test modules share.

use candle_core::{DType, Device};
use instruct_kernels::{Params, Path, Spec};

/// Zero parameters of these names and shapes, on the oracle's path.
pub(crate) fn params(shapes: &[(&str, &[usize])]) -> Params {
    let specs = shapes.iter().map(|&(name, shape)| Spec::new(name, shape)).collect();
    Params::zeros(specs, &Device::Cpu, Path::Composed, DType::F32).unwrap()
}

/// Fails at the worst element. A NaN cannot pass.
#[track_caller]
pub(crate) fn assert_close(name: &str, got: &[f32], want: &[f32], atol: f32, rtol: f32) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let excess = got.iter().zip(want).map(|(g, w)| (g - w).abs() / (atol + rtol * w.abs()));
    let worst = excess.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((i, ratio)) = worst
        && ratio.partial_cmp(&1.0).is_none_or(|order| order.is_gt())
    {
        panic!("{name}[{i}]: got {}, want {} ({ratio:.1}x the tolerance)", got[i], want[i]);
    }
}

/// An error of this crate on a rank that is a thread.
#[derive(Debug, PartialEq)]
pub(crate) struct Told(String);

impl From<crate::Error> for Told {
    fn from(error: crate::Error) -> Told {
        Told(error.to_string())
    }
}

impl From<instruct_collective::Error> for Told {
    fn from(error: instruct_collective::Error) -> Told {
        Told(error.to_string())
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
