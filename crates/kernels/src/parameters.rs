//! All parameters of a model in one flat buffer, and the flat gradient beside it.

use crate::{
    Error, Result,
    bf16::Right,
    flat::Flat,
    kept_awake,
    matrix::Matrix,
    op::Elements,
    weights::{Packed, multiplies_in_bf16},
};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

/// Elements to which every parameter's start is aligned, so that block-wise walks (norms, hashes,
/// shards) never see two parameters in one block.
pub const BLOCK: usize = 4096;

/// A parameter to make: its name and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The canonical name, for example `layers.0.qkv.weight`.
    pub name: String,
    /// The shape, `(out, in)` for matrices.
    pub shape: Vec<usize>,
}

impl Spec {
    /// A specification from anything that reads as a name and a shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Spec {
        Spec { name: name.into(), shape: shape.into() }
    }
}

/// The way the operations on a set of parameters are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Own kernels on the CPU: parameters are untracked views of the flat buffer, and backward
    /// passes add weight gradients straight into the flat gradient. Everything is `f32`, except that a
    /// compute dtype of `bf16` rounds the factors of matrix products, whose sums stay `f32`.
    Fused,
    /// Plain Candle operations on any device: parameters are ordinary variables. Slower, and the
    /// oracle that the fused path is tested against.
    Composed,
}

/// Where one parameter lies in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first element, a multiple of [`BLOCK`].
    pub offset: usize,
    /// Its number of elements, the product of the shape.
    pub len: usize,
}

impl Slot {
    /// The elements of this parameter in the flat buffer. Those from here to the next slot are
    /// padding, zero in weights and gradients alike.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// The blocks of this parameter in the flat buffer, which no other has a part in; none without elements.
    pub fn blocks(&self) -> Range<usize> {
        self.offset / BLOCK..(self.offset + self.len).div_ceil(BLOCK)
    }
}

/// All parameters of one model: one flat `f32` buffer of weights, one of gradients, names sorted.
///
/// Master weights and gradients live on the host in both paths; on another device or in another
/// dtype the composed path keeps a copy for computing, refilled after every [`Params::update`].
///
/// Two backward passes of the same parameters must not run inside one rayon pool at the same time:
/// an operation holds the gradient's lock while it works in parallel.
#[derive(Debug)]
pub struct Params {
    slots: Vec<Slot>,
    params: BTreeMap<String, Param>,
    weights: Tensor,
    gradient: Gradient,
    sentinel: Var,
    device: Device,
    path: Path,
    compute: DType,
}

impl Params {
    /// Parameters of these names and shapes, all zero. `compute` is the dtype of the composed
    /// path's variables, and on the fused path, where it is `f32` or `bf16`, that of the factors of matrix
    /// products; masters are `f32` whatever it is.
    ///
    /// Errors: a name given twice; the fused path on a device or in a dtype it does not have.
    pub fn zeros(specs: Vec<Spec>, device: &Device, path: Path, compute: DType) -> Result<Params> {
        if path == Path::Fused && !(device.is_cpu() && matches!(compute, DType::F32 | DType::BF16)) {
            return Err(Error::FusedElsewhere { dtype: compute.as_str(), device: format!("{device:?}") });
        }
        let slots = lay_out(specs)?;
        let total = padded_len(&slots);
        let weights = Tensor::zeros(total, DType::F32, &Device::Cpu)?;
        Params::over(slots, weights, device, path, compute)
    }

    /// The parameters' places in the flat buffer, in its order (names sorted).
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Elements of the flat buffer, padding included: a multiple of [`BLOCK`].
    pub fn len(&self) -> usize {
        padded_len(&self.slots)
    }

    /// Whether there are no parameters at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The device that operations run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype that operations compute in.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// How operations on these parameters are computed.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The parameter of this name: a cheap handle that sees every later update.
    ///
    /// Errors: no parameter has this name.
    pub fn get(&self, name: &str) -> Result<Param> {
        self.params.get(name).cloned().ok_or_else(|| Error::UnknownParameter { name: name.to_owned() })
    }

    /// Overwrites one parameter, in row-major order.
    ///
    /// Errors: no parameter has this name; `values` does not fill its shape.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<()> {
        let slot = self.slot(name)?;
        if values.len() != slot.len {
            let (name, shape) = (name.to_owned(), slot.shape.clone());
            return Err(Error::ParameterLength { name, shape, got: values.len() });
        }
        in_place(&self.weights, |weights| weights.on_host()[slot.range()].copy_from_slice(values))?;
        self.refill(slot)
    }

    /// Overwrites every parameter where it lies, several at a time: `f(slot, values)`, in row-major order.
    pub fn fill(&self, f: impl Fn(&Slot, &mut [f32]) + Sync) -> Result<()> {
        in_place(&self.weights, |weights| {
            let (mut parts, mut rest, mut at) = (Vec::new(), weights.on_host(), 0);
            for slot in &self.slots {
                let (values, after) = rest[slot.offset - at..].split_at_mut(slot.len);
                parts.push((slot, values));
                (rest, at) = (after, slot.offset + slot.len);
            }
            parts.into_par_iter().for_each(|(slot, values)| f(slot, values));
        })?;
        self.slots.iter().try_for_each(|slot| self.refill(slot))
    }

    /// One parameter's weights, in row-major order.
    ///
    /// Errors: no parameter has this name.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let range = self.slot(name)?.range();
        self.with_weights(|weights| weights[range].to_vec())
    }

    /// One parameter's accumulated gradient, in row-major order.
    ///
    /// Errors: no parameter has this name.
    pub fn grad(&self, name: &str) -> Result<Vec<f32>> {
        let range = self.slot(name)?.range();
        self.with_grads(|grads| grads[range].to_vec())
    }

    /// The same weights in storage of their own, with a gradient of their own that is zero: a
    /// reference policy is this, or it would follow the policy it is compared with.
    pub fn deep_copy(&self) -> Result<Params> {
        let weights = self.weights.copy()?.detach();
        let copy = Params::over(self.slots.clone(), weights, &self.device, self.path, self.compute)?;
        Ok(copy)
    }

    /// The same parameters for inference alone, at half the memory: matrices of more than a few rows are
    /// held in bf16 and have no place in the flat buffer, so that [`Params::slots`] names only the others.
    /// A backward pass through them is an error.
    ///
    /// Errors: parameters of the composed path.
    pub fn held_in_bf16(&self) -> Result<Params> {
        if self.path != Path::Fused {
            let (dtype, device) = (self.compute.as_str(), format!("{:?}", self.device));
            return Err(Error::FusedElsewhere { dtype, device });
        }
        let (in_bf16, rest): (Vec<&Slot>, Vec<&Slot>) =
            self.slots.iter().partition(|slot| multiplies_in_bf16(&slot.shape));
        let specs = rest.iter().map(|slot| Spec::new(slot.name.as_str(), slot.shape.as_slice())).collect();
        let mut held = Params::zeros(specs, &self.device, self.path, DType::BF16)?;
        rest.iter().try_for_each(|slot| held.set(&slot.name, &self.read(&slot.name)?))?;
        for slot in in_bf16 {
            let rows =
                self.with_weights(|w| Right::rows_of(Matrix::new(&w[slot.range()], slot.shape[0], slot.shape[1])))?;
            let inner = Inner { slot: slot.clone(), kind: Kind::Held(Arc::new(rows)) };
            held.params.insert(slot.name.clone(), Param { inner: Arc::new(inner) });
        }
        Ok(held)
    }

    /// The tracked scalar that enters at [`crate::embedding`] when a graph is to be recorded. It
    /// carries no number; it only makes what is computed from it tracked.
    pub fn sentinel(&self) -> &Tensor {
        self.sentinel.as_tensor()
    }

    /// Runs the backward pass of `loss` and adds every parameter's gradient to the flat gradient.
    /// Call it for several micro-batches to accumulate.
    pub fn backward(&self, loss: &Tensor) -> Result<()> {
        let mut grads = kept_awake(|| loss.backward())?;
        for slot in &self.slots {
            let Kind::Composed { var, .. } = &self.params[&slot.name].inner.kind else { continue };
            // Detached, because a variable's gradient would otherwise keep the whole graph alive.
            let Some(grad) = grads.remove(var) else { continue };
            let grad = grad.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let mut sums = self.gradient.whole();
            sums.numbers.on_host()[slot.range()].iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
        }
        Ok(())
    }

    /// Sets the flat gradient to zero. Nothing is written yet: the next addition to a parameter's part first makes
    /// it zero, or overwrites it.
    pub fn zero_grad(&self) {
        self.gradient.reset();
    }

    /// Sets the flat gradient to zero and gives its memory back until it is wanted again.
    pub fn release_grad(&self) {
        drop(self.gradient.take());
    }

    /// Sets the flat gradient to zero and hands its memory to `other`: two models that learn in turns need
    /// memory for one gradient. If it went back to the system instead, its pages would be cleared anew at every turn.
    /// When `other` has summed a gradient already, or needs more memory than this, the memory does go back.
    pub fn hand_over_grad(&self, other: &Params) {
        other.gradient.adopt(self.gradient.take());
    }

    /// Exchanges the flat gradient with `other`, which moves no number. A flat without elements is a gradient of
    /// zeros that has no memory yet, on either side.
    ///
    /// A gradient that is to go on from zero in the memory of `other` needs [`Params::zero_grad`] after this.
    ///
    /// # Panics
    /// When `other` has elements, and not as many as the weights.
    pub fn swap_grad(&self, other: &mut Flat) {
        assert!(other.is_empty() || other.len() == self.len(), "a gradient of {} for {}", other.len(), self.len());
        self.gradient.swap(other);
    }

    /// Lends the weights to a walk over blocks that leaves them as they are: `f(weights)`.
    pub fn weights<R>(&self, f: impl FnOnce(&Flat) -> R) -> Result<R> {
        in_place(&self.weights, |weights| f(weights))
    }

    /// Lends the gradient to a walk over blocks: `f(gradient)`.
    pub fn gradient<R>(&self, f: impl FnOnce(&mut Flat) -> R) -> R {
        f(&mut self.gradient.whole().numbers)
    }

    /// Lends weights and gradient to the walk of an optimizer's step: `f(weights, gradient)`. Every
    /// handle and view sees the new weights afterwards.
    pub fn step<R>(&self, f: impl FnOnce(&mut Flat, &mut Flat) -> R) -> Result<R> {
        let result = {
            let mut gradient = self.gradient.whole();
            in_place(&self.weights, |weights| f(weights, &mut gradient.numbers))?
        };
        self.slots.iter().try_for_each(|slot| self.refill(slot))?;
        Ok(result)
    }

    /// Lends the numbers of the flat weights: `f(weights)`.
    pub fn with_weights<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        Ok(f(&Elements::of(&self.weights)?))
    }

    /// Lends the numbers of the flat gradient: `f(gradient)`.
    pub fn with_grads<R>(&self, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        Ok(self.gradient(|gradient| f(gradient.on_host())))
    }

    /// As [`Params::step`], with their numbers: `f(weights, gradient)`.
    pub fn update<R>(&self, f: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> Result<R> {
        self.step(|weights, gradient| f(weights.on_host(), gradient.on_host()))
    }

    fn over(slots: Vec<Slot>, weights: Tensor, device: &Device, path: Path, compute: DType) -> Result<Params> {
        let gradient = Gradient::zeros(&slots);
        let mut params = BTreeMap::new();
        for (number, slot) in slots.iter().enumerate() {
            let view = weights.narrow(0, slot.offset, slot.len)?.reshape(slot.shape.as_slice())?;
            let kind = match path {
                Path::Fused => {
                    let in_bf16 = compute == DType::BF16 && multiplies_in_bf16(&slot.shape);
                    Kind::Fused { view, gradient: gradient.clone(), number, packed: in_bf16.then(Packed::default) }
                }
                Path::Composed => {
                    let var = Var::from_tensor(&view.to_device(device)?.to_dtype(compute)?)?;
                    Kind::Composed { detached: var.as_detached_tensor(), var }
                }
            };
            params.insert(slot.name.clone(), Param { inner: Arc::new(Inner { slot: slot.clone(), kind }) });
        }
        let carried = if path == Path::Fused { DType::F32 } else { compute };
        let sentinel = Var::zeros((), carried, device)?;
        Ok(Params { slots, params, weights, gradient, sentinel, device: device.clone(), path, compute })
    }

    fn slot(&self, name: &str) -> Result<&Slot> {
        let at = self.slots.binary_search_by(|slot| slot.name.as_str().cmp(name));
        at.map(|i| &self.slots[i]).map_err(|_| Error::UnknownParameter { name: name.to_owned() })
    }

    /// Copies a master weight into the variable that computes with it; on the fused path they are
    /// the same memory.
    fn refill(&self, slot: &Slot) -> Result<()> {
        let var = match &self.params[&slot.name].inner.kind {
            Kind::Composed { var, .. } => var,
            Kind::Fused { packed, .. } => {
                packed.iter().for_each(Packed::drop_kept);
                return Ok(());
            }
            Kind::Held(_) => return Ok(()),
        };
        let master = self.weights.narrow(0, slot.offset, slot.len)?.reshape(slot.shape.as_slice())?;
        Ok(var.set(&master.to_device(&self.device)?.to_dtype(self.compute)?)?)
    }
}

/// One parameter: a cheap handle to its weights and to its place in the gradient.
#[derive(Clone, Debug)]
pub struct Param {
    inner: Arc<Inner>,
}

impl Param {
    /// The weights as an untracked tensor, for inspection.
    ///
    /// Errors: a matrix that is held in bf16.
    pub fn tensor(&self) -> Result<&Tensor> {
        Ok(self.value(false)?)
    }

    /// The parameter's name.
    pub fn name(&self) -> &str {
        &self.inner.slot.name
    }

    /// The parameter's shape.
    pub fn shape(&self) -> &[usize] {
        &self.inner.slot.shape
    }

    /// How operations on this parameter are computed.
    pub fn path(&self) -> Path {
        match self.inner.kind {
            Kind::Fused { .. } | Kind::Held(_) => Path::Fused,
            Kind::Composed { .. } => Path::Composed,
        }
    }

    /// The tensor for plain Candle operations, tracked when the operation's input is, so that inference
    /// records nothing.
    ///
    /// Errors: a parameter of the fused path that is held in bf16.
    pub(crate) fn value(&self, tracked: bool) -> candle_core::Result<&Tensor> {
        match &self.inner.kind {
            Kind::Fused { view, .. } => Ok(view),
            Kind::Composed { var, .. } if tracked => Ok(var.as_tensor()),
            Kind::Composed { detached, .. } => Ok(detached),
            Kind::Held(_) => candle_core::bail!("{} is held in bf16", self.name()),
        }
    }

    /// The weights in row-major order.
    ///
    /// Errors: a parameter that is held in bf16, or on another device.
    pub(crate) fn elements(&self) -> candle_core::Result<Elements<'_>> {
        Elements::of(self.value(false)?)
    }

    /// The weights of a matrix that is held in bf16, its rows as columns of a product.
    pub(crate) fn held(&self) -> Option<&Arc<Right>> {
        match &self.inner.kind {
            Kind::Held(held) => Some(held),
            _ => None,
        }
    }

    /// Where to keep the weights packed, for a matrix whose products are of bf16.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        match &self.inner.kind {
            Kind::Fused { packed, .. } => packed.as_ref(),
            _ => None,
        }
    }

    /// Lends this parameter's part of the gradient to a fused backward pass.
    /// On the composed path there is none to lend, because Candle collects the gradients.
    pub(crate) fn accumulate<R>(&self, f: impl FnOnce(&mut Sum) -> R) -> Option<R> {
        let Kind::Fused { gradient, number, .. } = &self.inner.kind else { return None };
        let Sums { numbers, begun } = &mut *gradient.lock();
        let numbers = &mut numbers.on_host()[self.inner.slot.range()];
        Some(f(&mut Sum { numbers, begun: &mut begun[*number] }))
    }
}

/// One parameter's part of the gradient, in row-major order: nothing until something was added.
pub(crate) struct Sum<'a> {
    numbers: &'a mut [f32],
    begun: &'a mut bool,
}

impl Sum<'_> {
    /// The sum so far, zeros at first.
    pub(crate) fn numbers(&mut self) -> &mut [f32] {
        let (numbers, is_first) = self.begin();
        if is_first {
            numbers.par_chunks_mut(BLOCK).for_each(|block| block.fill(0.0));
        }
        numbers
    }

    /// The memory of the sum, and whether there is no sum yet: then the caller overwrites all of it, which spares
    /// writing zeros and reading them again.
    pub(crate) fn begin(&mut self) -> (&mut [f32], bool) {
        (self.numbers, !std::mem::replace(self.begun, true))
    }
}

#[derive(Debug)]
struct Inner {
    slot: Slot,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Fused {
        view: Tensor,
        gradient: Gradient,
        /// Of the slot.
        number: usize,
        packed: Option<Packed>,
    },
    /// A matrix in bf16 alone, for inference on the fused path.
    Held(Arc<Right>),
    Composed {
        var: Var,
        detached: Tensor,
    },
}

/// The flat gradient, shared by the parameters and by the operations recorded in a graph.
#[derive(Clone)]
struct Gradient {
    sums: Arc<Mutex<Sums>>,
    /// What belongs to each slot.
    ranges: Arc<[Range<usize>]>,
    len: usize,
}

/// What the gradient is made of.
#[derive(Default)]
struct Sums {
    /// As long as the weights, or empty until it is first needed, because most models are never trained. Zero between
    /// the slots.
    numbers: Flat,
    /// For each slot, whether its numbers are a sum. Otherwise they mean nothing, and the sum is zero.
    begun: Vec<bool>,
}

impl std::fmt::Debug for Gradient {
    /// Without its numbers, which are as many as the model's parameters.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gradient({})", self.len)
    }
}

impl Gradient {
    fn zeros(slots: &[Slot]) -> Gradient {
        Gradient { sums: Arc::default(), ranges: slots.iter().map(Slot::range).collect(), len: padded_len(slots) }
    }

    /// Makes it zero, and gives its memory away.
    fn take(&self) -> Flat {
        std::mem::take(&mut *self.sums()).numbers
    }

    /// Exchanges it with another sum in every slot, or with none at all.
    fn swap(&self, other: &mut Flat) {
        let mut sums = self.sums();
        self.fill(&mut sums);
        std::mem::swap(&mut sums.numbers, other);
        sums.begun = vec![true; self.ranges.len()];
    }

    /// Uses this memory from now on, if it suffices and there is none yet.
    fn adopt(&self, flat: Flat) {
        let mut sums = self.sums();
        let mut memory = flat.into_host();
        if sums.numbers.is_empty() && memory.capacity() >= self.len {
            memory.resize(self.len, 0.0);
            let ends = self.ranges.iter().skip(1).map(|range| range.start).chain([self.len]);
            self.ranges.iter().zip(ends).for_each(|(range, end)| memory[range.end..end].fill(0.0));
            *sums = Sums { numbers: memory.into(), begun: vec![false; self.ranges.len()] };
        }
    }

    /// Makes it zero without touching a number.
    fn reset(&self) {
        self.sums().begun.fill(false);
    }

    /// With memory for every slot.
    fn lock(&self) -> MutexGuard<'_, Sums> {
        let mut sums = self.sums();
        if sums.numbers.is_empty() {
            // The system hands out these zeros when a page is first touched. Writing zeros would touch all pages now.
            *sums = Sums { numbers: Flat::zeros(self.len), begun: vec![true; self.ranges.len()] };
        }
        sums
    }

    /// With a sum in every slot.
    fn whole(&self) -> MutexGuard<'_, Sums> {
        let mut sums = self.lock();
        self.fill(&mut sums);
        sums
    }

    /// Puts a sum into every slot of the memory that is there.
    fn fill(&self, sums: &mut Sums) {
        let Sums { numbers, begun } = sums;
        if numbers.is_empty() {
            return;
        }
        for (range, begun) in self.ranges.iter().zip(begun) {
            Sum { numbers: &mut numbers.on_host()[range.clone()], begun }.numbers();
        }
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(|poisoned| {
            // A panic of another thread that held the lock leaves an incomplete sum, which counts as none, but never a
            // broken vector.
            let mut sums = poisoned.into_inner();
            sums.begun.fill(false);
            self.sums.clear_poison();
            sums
        })
    }
}

fn lay_out(mut specs: Vec<Spec>) -> Result<Vec<Slot>> {
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let mut slots: Vec<Slot> = Vec::with_capacity(specs.len());
    for Spec { name, shape } in specs {
        if slots.last().is_some_and(|last| last.name == name) {
            return Err(Error::DuplicateParameter { name });
        }
        let offset = padded_len(&slots);
        slots.push(Slot { len: shape.iter().product(), name, shape, offset });
    }
    Ok(slots)
}

fn padded_len(slots: &[Slot]) -> usize {
    slots.last().map_or(0, |last| last.range().end.next_multiple_of(BLOCK))
}

/// Lends the whole memory of the flat weights, which every view of them shares.
fn in_place<R>(weights: &Tensor, f: impl FnOnce(&mut Flat) -> R) -> Result<R> {
    let op = InPlace { f: RefCell::new(Some(f)), result: RefCell::new(None) };
    weights.inplace_op1(&op)?;
    Ok(op.result.into_inner().expect("an in-place operation that succeeds has run its closure"))
}

/// Runs a closure on a tensor's own memory.
struct InPlace<F, R> {
    f: RefCell<Option<F>>,
    result: RefCell<Option<R>>,
}

impl<F: FnOnce(&mut Flat) -> R, R> InplaceOp1 for InPlace<F, R> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(elements) = storage else { candle_core::bail!("expected f32") };
        if layout.contiguous_offsets() != Some((0, elements.len())) {
            candle_core::bail!("expected the whole memory");
        }
        if let Some(f) = self.f.take() {
            // A closure that panics poisons the tensor's lock, so nobody sees that its memory was away.
            let mut flat = Flat::from(std::mem::take(elements));
            self.result.replace(Some(f(&mut flat)));
            *elements = flat.into_host();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{embedding, gelu_tanh, layer_norm, linear, token_nll};
    use proptest::prelude::*;

    fn make(specs: &[(&str, &[usize])], path: Path) -> Params {
        let specs = specs.iter().map(|(name, shape)| Spec::new(*name, *shape)).collect();
        Params::zeros(specs, &Device::Cpu, path, DType::F32).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn slots_are_sorted_aligned_and_apart(
            shapes in proptest::collection::btree_map("[a-z.]{1,8}", proptest::collection::vec(0usize..90, 0..3), 0..12),
        ) {
            let specs = shapes.iter().rev().map(|(name, shape)| Spec::new(name, shape.as_slice())).collect();
            let slots = lay_out(specs).unwrap();
            prop_assert!(slots.iter().map(|slot| &slot.name).eq(shapes.keys()));
            prop_assert!(slots.iter().all(|slot| slot.offset % BLOCK == 0));
            prop_assert!(slots.iter().all(|slot| slot.len == slot.shape.iter().product::<usize>()));
            prop_assert!(slots.windows(2).all(|pair| pair[0].range().end <= pair[1].offset));
            prop_assert!(slots.windows(2).all(|pair| pair[1].offset - pair[0].range().end < BLOCK));
            prop_assert_eq!(padded_len(&slots) % BLOCK, 0);
        }
    }

    #[test]
    fn mistakes_name_the_parameter() {
        let twice = vec![Spec::new("a", [1]), Spec::new("b", [1]), Spec::new("a", [2])];
        let message = Params::zeros(twice, &Device::Cpu, Path::Fused, DType::F32).unwrap_err().to_string();
        assert_eq!(message, "parameter a is specified twice");
        let params = make(&[("a", &[2, 3])], Path::Fused);
        let message = params.set("a", &[1.0; 5]).unwrap_err().to_string();
        assert_eq!(message, "parameter a has shape [2, 3], which is not 5 values");
        assert_eq!(params.get("b").unwrap_err().to_string(), "there is no parameter named b");
        let refused = Params::zeros(vec![], &Device::Cpu, Path::Fused, DType::F16).unwrap_err();
        assert!(matches!(refused, Error::FusedElsewhere { dtype: "f16", .. }));
    }

    #[test]
    fn updates_reach_every_view_and_no_copy() {
        for path in [Path::Fused, Path::Composed] {
            let params = make(&[("a", &[2, 3]), ("b", &[4])], path);
            let (a, before) = (params.get("a").unwrap(), params.deep_copy().unwrap());
            params.with_grads(|grads| grads.fill(2.0)).unwrap();
            let sum = params.update(|weights, grads| {
                weights.iter_mut().zip(&*grads).for_each(|(weight, grad)| *weight += 0.5 * grad);
                weights.iter().sum::<f32>()
            });
            assert_eq!(sum.unwrap(), params.len() as f32);
            assert_eq!(a.value(false).unwrap().to_vec2::<f32>().unwrap(), [[1.0; 3]; 2], "{path:?}");
            assert_eq!(params.read("b").unwrap(), [1.0; 4]);
            assert_eq!(before.read("a").unwrap(), [0.0; 6], "{path:?}: a copy follows its original");
            assert_eq!(before.grad("a").unwrap(), [0.0; 6]);
            before.set("b", &[7.0; 4]).unwrap();
            assert_eq!(params.get("b").unwrap().value(false).unwrap().to_vec1::<f32>().unwrap(), [1.0; 4]);
            params.fill(|slot, values| values.fill(slot.len as f32)).unwrap();
            assert_eq!(a.value(false).unwrap().to_vec2::<f32>().unwrap(), [[6.0; 3]; 2], "{path:?}");
            assert_eq!(params.read("b").unwrap(), [4.0; 4]);
            before.fill(|_, values| values.fill(1.0)).unwrap();
            assert_eq!(before.with_weights(|weights| weights.iter().sum::<f32>()).unwrap(), 10.0, "padding stays 0");
        }
    }

    #[test]
    fn bf16_computes_in_a_copy_of_the_masters() {
        let specs = vec![Spec::new("a", [1, 2])];
        let params = Params::zeros(specs, &Device::Cpu, Path::Composed, DType::BF16).unwrap();
        params.set("a", &[1.0 + 1.0 / 1024.0, 2.0]).unwrap();
        let x = embedding(&[0, 0], &params.get("a").unwrap(), Some(params.sentinel())).unwrap();
        assert_eq!(x.dtype(), DType::BF16);
        params.backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert_eq!(params.grad("a").unwrap(), [4.0, 8.0]);
        assert_eq!(params.read("a").unwrap(), [1.0 + 1.0 / 1024.0, 2.0], "masters keep what bf16 cannot hold");
    }

    #[test]
    fn a_panic_leaves_no_gradient() {
        let params = make(&[("a", &[2]), ("b", &[2])], Path::Fused);
        let [a, b] = ["a", "b"].map(|name| params.get(name).unwrap());
        b.accumulate(|sum| sum.numbers().fill(3.0));
        let panics = || a.accumulate(|sum| -> () { panic!("after {:?}", sum.begin().1) });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(params.with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap());
        b.accumulate(|sum| sum.numbers().fill(3.0));
        assert_eq!(params.grad("b").unwrap(), [3.0; 2]);
    }

    /// Candle's own fused norms and softmax end the graph without an error; ours must not.
    #[test]
    fn every_parameter_receives_a_gradient_and_it_accumulates() {
        let specs: [(&str, &[usize]); 6] = [
            ("embed", &[11, 8]),
            ("norm.gain", &[8]),
            ("norm.bias", &[8]),
            ("up.weight", &[16, 8]),
            ("up.bias", &[16]),
            ("down.weight", &[8, 16]),
        ];
        for path in [Path::Fused, Path::Composed] {
            let params = make(&specs, path);
            for slot in params.slots() {
                params.set(&slot.name, &crate::check::normals(&slot.name, slot.len)).unwrap();
            }
            let get = |name| params.get(name).unwrap();
            let step = || {
                let x = embedding(&[1, 2, 3, 2], &get("embed"), Some(params.sentinel())).unwrap();
                let h = layer_norm(&x, &get("norm.gain"), &get("norm.bias"), 1e-5).unwrap();
                let h = gelu_tanh(&linear(&h, &get("up.weight"), Some(&get("up.bias"))).unwrap()).unwrap();
                let x = (x + linear(&h, &get("down.weight"), None).unwrap()).unwrap();
                // The head is tied to the embedding, so both add to one gradient.
                let loss = token_nll(&x, &get("embed"), &[0, 1, 2], &[2, 3, 2], &[0.5, 0.25, 0.25]).unwrap();
                params.backward(&loss).unwrap();
            };
            step();
            let once = params.with_grads(|grads| grads.to_vec()).unwrap();
            for slot in params.slots() {
                let grad = &once[slot.range()];
                assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "{path:?} {}", slot.name);
            }
            step();
            params
                .with_grads(|grads| {
                    assert!(
                        grads.iter().zip(&once).all(|(two, one)| (two - 2.0 * one).abs() <= 1e-5 * one.abs().max(0.1))
                    )
                })
                .unwrap();
            params.zero_grad();
            assert!(params.with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap());
            step();
            params.release_grad();
            assert!(params.with_grads(|grads| grads.len() == params.len() && grads.iter().all(|g| *g == 0.0)).unwrap());
            step();
            // To one whose gradient is longer, and back again.
            let longer = make(&[("longer", &[2, BLOCK]), ("still", &[2, BLOCK])], path);
            params.hand_over_grad(&longer);
            longer.with_grads(|grads| assert!(grads.len() == longer.len() && grads.iter().all(|g| *g == 0.0))).unwrap();
            longer.with_grads(|grads| grads.fill(1.0)).unwrap();
            longer.hand_over_grad(&params);
            assert!(params.with_grads(|grads| grads.len() == params.len() && grads.iter().all(|g| *g == 0.0)).unwrap());
            step();
            longer.with_grads(|grads| grads.fill(1.0)).unwrap();
            longer.hand_over_grad(&params);
            assert!(longer.with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap());
            assert!(params.with_grads(|grads| *grads == once).unwrap(), "{path:?}: not what the first step gave");
            // Out of the way, and back again. What was elsewhere in the meantime is not seen.
            let mut away = Flat::default();
            params.swap_grad(&mut away);
            assert_eq!(*away.read(), once);
            step();
            let mut other = Flat::from(once.iter().map(|g| 2.0 * g).collect::<Vec<_>>());
            params.swap_grad(&mut other);
            params.zero_grad();
            assert_eq!(*other.read(), once, "{path:?}: a gradient in new memory");
            assert!(params.with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap());
            params.swap_grad(&mut other);
            params.zero_grad();
            step();
            assert!(params.with_grads(|grads| *grads == once).unwrap(), "{path:?}: a gradient over old numbers");
            params.zero_grad();
            params.swap_grad(&mut away);
            assert!(params.with_grads(|grads| *grads == once).unwrap() && away.read().iter().all(|g| *g == 0.0));
        }
    }
}
