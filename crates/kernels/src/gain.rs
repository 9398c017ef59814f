//! The gain of a root-mean-square norm.

use crate::{Param, Result, wide::multiply_by_vector};
use candle_core::{DType, Tensor};

/// What an RMS norm multiplies by: a parameter, or 1 plus a parameter (Gemma, arXiv 2403.08295), which then starts at 0
/// and is drawn to 0 by weight decay.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use instruct_kernels::{Gain, Params, Path, Spec, rms_norm};
///
/// let params = Params::zeros(vec![Spec::new("w", [2])], &Device::Cpu, Path::Fused, DType::F32)?;
/// let x = Tensor::new(&[[3f32, -3.]], &Device::Cpu)?;
/// let y = rms_norm(&x, Gain::one_plus(&params.get("w")?), 1e-12)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[1., -1.]]);
/// # Ok::<(), instruct_kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gain {
    param: Param,
    offset: f32,
}

impl Gain {
    /// 1 plus the parameter.
    pub fn one_plus(param: &Param) -> Gain {
        Gain { param: param.clone(), offset: 1.0 }
    }

    /// The parameter, whose gradient is the gain's.
    pub(crate) fn param(&self) -> &Param {
        &self.param
    }

    /// The gain's numbers, for fused operations.
    pub(crate) fn numbers(&self) -> candle_core::Result<Vec<f32>> {
        let stored = self.param.elements()?;
        Ok(if self.offset == 0.0 { stored.to_vec() } else { stored.iter().map(|w| self.offset + w).collect() })
    }

    /// The gain times `unit (.., C)`, whose dtype is wide: the product in `dtype`.
    ///
    /// As in transformers a parameter itself multiplies what was rounded to `dtype`, but 1 plus a parameter is added
    /// and multiplied in the wide dtype, because bf16 would lose most of a small parameter beside the 1.
    pub(crate) fn multiply(&self, unit: &Tensor, dtype: DType, tracked: bool) -> Result<Tensor> {
        let stored = self.param.value(tracked)?;
        if self.offset == 0.0 {
            return multiply_by_vector(&unit.to_dtype(dtype)?, stored);
        }
        let gain = (stored.to_dtype(unit.dtype())? + f64::from(self.offset))?;
        Ok(unit.broadcast_mul(&gain)?.to_dtype(dtype)?)
    }
}

impl From<&Param> for Gain {
    fn from(param: &Param) -> Gain {
        Gain { param: param.clone(), offset: 0.0 }
    }
}

impl From<&Gain> for Gain {
    fn from(gain: &Gain) -> Gain {
        gain.clone()
    }
}
