//! The arguments of a call, handed to parameters as Python does.

use super::{
    fault::{Done, Fault},
    value::Value,
};
use std::sync::Arc;

/// What a call is given: by place, and by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) places: Vec<Value>,
    pub(super) names: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// The arguments of parameters with these names, in their order. A parameter without a name takes its
    /// argument by place alone.
    ///
    /// Errors: an argument that no parameter takes, or a second one for a parameter.
    pub(super) fn bind<const N: usize>(&self, of: &str, parameters: [&str; N]) -> Done<[Option<Value>; N]> {
        if self.places.len() > N {
            return Err(Fault::refused(format!("{of}() takes at most {N} arguments ({} given)", self.places.len())));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(&self.places) {
            *slot = Some(value.clone());
        }
        for (name, value) in &self.names {
            let slot = parameters.iter().position(|parameter| **parameter == **name).map(|at| &mut bound[at]);
            match slot {
                Some(slot @ None) => *slot = Some(value.clone()),
                _ => return Err(Fault::refused(format!("{of}() does not take the argument `{name}` here"))),
            }
        }
        Ok(bound)
    }
}
