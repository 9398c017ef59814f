//! What can go wrong in an operation: the wrong shape, the wrong name, or Candle itself.

/// An error of this crate. Shapes are checked before Candle sees them, so that the message names
/// the operation and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Candle refused: a device without memory, a dtype without a kernel.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// An argument has the wrong shape.
    #[error("{op}: {argument} must be {expected}, got {got:?}")]
    Shape {
        /// The operation, as its function is called.
        op: &'static str,
        /// The argument, as the function calls it.
        argument: &'static str,
        /// The shape wanted, in the letters of the documentation.
        expected: String,
        /// The shape received.
        got: Vec<usize>,
    },
    /// A token id, row or target points outside its table.
    #[error("{op}: {argument}[{at}] is {index}, but there are only {bound}")]
    Index {
        /// The operation, as its function is called.
        op: &'static str,
        /// The argument, as the function calls it.
        argument: &'static str,
        /// Place within the argument.
        at: usize,
        /// The index found there.
        index: u32,
        /// The number of things that can be pointed at.
        bound: usize,
    },
    /// A number is outside the range in which the operation is defined.
    #[error("{op}: {argument} must be {expected}, got {got}")]
    Value {
        /// The operation, as its function is called.
        op: &'static str,
        /// The argument, as the function calls it.
        argument: &'static str,
        /// The range wanted.
        expected: &'static str,
        /// The number received.
        got: f64,
    },
    /// No parameter has this name.
    #[error("there is no parameter named {name}")]
    UnknownParameter {
        /// The name asked for.
        name: String,
    },
    /// Two specifications share a name.
    #[error("parameter {name} is specified twice")]
    DuplicateParameter {
        /// The name that occurs twice.
        name: String,
    },
    /// The number of values does not match the shape of the parameter.
    #[error("parameter {name} has shape {shape:?}, which is not {got} values")]
    ParameterLength {
        /// The parameter's name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of values offered.
        got: usize,
    },
    /// The fused path computes in `f32` on the CPU and nowhere else.
    #[error(
        "the fused path computes in f32 or bf16 on the CPU, not in {dtype} on {device}: use the composed path there"
    )]
    FusedElsewhere {
        /// The dtype asked for.
        dtype: &'static str,
        /// The device asked for.
        device: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
