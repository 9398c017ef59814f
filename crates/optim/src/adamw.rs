//! AdamW over the flat buffer: clipping, decay, moments and the update in one pass.

use crate::{
    Error, Result,
    blocks::{clip_scale, own_square_sums, pairwise_sum, square_sums},
    state::{Arrays, Text, expect_layout, layout, take},
};
use instruct_collective::{Collective, span};
use instruct_kernels::{BLOCK, Flat, Params, Slot, widened};
use serde::{Deserialize, Serialize};

/// Decoupled weight decay Adam (Loshchilov and Hutter 2019, algorithm 2) over all of a model's
/// parameters.
///
/// Moments are flat buffers beside the weights. A step reads weights, moments and gradient once:
/// clipping is a factor on the gradient as it is read, and what it was is forgotten, so that the next
/// backward pass begins with zero.
///
/// Where ranks train together, each holds the moments of its own span of the weights, updates these weights, and gets
/// the others' (stage 1 of ZeRO, Rajbhandari et al. 2020). What a block becomes does not depend on who updates it.
pub struct AdamW {
    config: AdamConfig,
    slots: Vec<Slot>,
    roles: Vec<Role>,
    first: Flat,
    second: Flat,
    steps: u64,
    idle: bool,
}

/// The constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AdamConfig {
    /// Where epsilon stands.
    pub form: AdamForm,
    /// Decay of the first moment. 0.9 (InstructGPT, appendix C: all models).
    pub beta1: f64,
    /// Decay of the second moment. 0.95 (InstructGPT, appendix C: all models).
    pub beta2: f64,
    /// Added to the root of the second moment. 1e-8 is ours, InstructGPT gives none; 1e-5 in
    /// Ziegler et al. 2019.
    pub eps: f64,
    /// Decoupled decay per unit of learning rate. 0 is ours, InstructGPT gives none.
    pub weight_decay: f64,
    /// Largest norm of a step's gradient; 0 turns clipping off. 1.0 is ours, InstructGPT gives
    /// none; Ziegler et al. 2019 do not clip.
    pub clip_norm: f64,
}

impl Default for AdamConfig {
    fn default() -> AdamConfig {
        AdamConfig { form: AdamForm::PyTorch, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, clip_norm: 1.0 }
    }
}

/// Where epsilon stands: the two forms differ early on with the same epsilon (an approximate KL of
/// 0.00037 against 0.00237 in the GPT-2 replication of Ziegler et al. 2019).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdamForm {
    /// `p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)`.
    #[default]
    PyTorch,
    /// `p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)`, as in Ziegler et al. 2019.
    TensorFlow,
}

/// Parameters that are treated differently from the rest, by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Groups<'a> {
    /// Never touched, and absent from the gradient's norm: what the loss cannot see (a reward
    /// model's head bias) would otherwise turn rounding noise into full Adam steps.
    pub frozen: &'a [&'a str],
    /// Matrices that are not decayed. Vectors (gains, biases) never are.
    pub no_decay: &'a [&'a str],
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Norm of the gradient before clipping, over the parameters that train.
    pub grad_norm: f64,
    /// Whether it exceeded `clip_norm`.
    pub clipped: bool,
}

/// What happens to a block of the flat buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Decayed,
    Plain,
    Frozen,
}

/// One step's constants, as the inner loop reads them.
#[derive(Clone, Copy)]
struct Constants {
    scale: f32,
    keep_first: f32,
    keep_second: f32,
    add_second: f32,
    rate: f32,
    correction: f32,
    eps: f32,
    decay: f32,
}

impl AdamW {
    /// An optimizer for `params`, before its first step.
    ///
    /// Errors: a constant outside its range; a group names a parameter that does not exist.
    pub fn new(params: &Params, config: AdamConfig, groups: Groups<'_>) -> Result<AdamW> {
        config.validate()?;
        let roles = roles(params.slots(), params.len(), groups)?;
        let zeros = || Flat::zeros(params.len());
        Ok(AdamW {
            config,
            slots: params.slots().to_vec(),
            roles,
            first: zeros(),
            second: zeros(),
            steps: 0,
            idle: true,
        })
    }

    /// Keeps of the moments what this rank updates, and gives the memory of the rest back. [`AdamW::step`] does it too; a
    /// loop that does it before its first backward pass never holds whole moments beside a gradient.
    ///
    /// # Panics
    /// When it was shared before, by ranks that gave this one less.
    pub fn share(&mut self, ranks: &dyn Collective) {
        let own = span(self.first.len(), ranks.rank(), ranks.world());
        self.first.hold(own.clone());
        self.second.hold(own);
    }

    /// One step of learning rate `lr` along the accumulated gradient, which a step that succeeds makes zero. Every rank
    /// has the sum of all gradients in its own span ([`crate::GradTree::over`]), and all weights afterwards.
    ///
    /// Errors: [`Error::NotFinite`] names the first tensor whose gradient is not finite (the
    /// weights are then untouched), or whose weights or moments are not after the step; those of the ranks.
    pub fn step(&mut self, params: &Params, lr: f64, ranks: &dyn Collective) -> Result<StepReport> {
        self.share(ranks);
        let report = params.step(|weights, gradient| self.step_flats(weights, gradient, lr, ranks))??;
        params.zero_grad();
        Ok(report)
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether the moments show no gradient of any step. It can be rightly so, where all scores are equal; until then
    /// no parameter can be told to be dead.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// What continues this optimizer, besides its parameters: the step counter as text, and both
    /// moments, of which each rank holds its own span. Equal states are equal in it, bit for bit.
    pub fn state(&self) -> (Text, [(&'static str, &Flat); 2]) {
        let text = [("steps", self.steps.to_string()), ("layout", layout(&self.slots))];
        (text.map(|(key, value)| (key.to_owned(), value)).into(), [("first", &self.first), ("second", &self.second)])
    }

    /// Continues from what [`AdamW::state`] returned.
    ///
    /// Errors: moments of other parameters, or none; nothing is taken over then.
    pub fn restore(&mut self, text: &Text, mut arrays: Arrays) -> Result<()> {
        expect_layout("optimizer", text, &self.slots)?;
        let steps = text.get("steps").and_then(|steps| steps.parse().ok());
        let problem = || "has no whole number of `steps`".to_owned();
        let steps = steps.ok_or_else(|| Error::Layout { what: "optimizer", problem: problem() })?;
        let mut moment = |name| take("optimizer", &mut arrays, name, self.first.len());
        let (first, second) = (moment("first")?, moment("second")?);
        self.idle = is_zero(&second);
        replace(&mut self.first, first);
        replace(&mut self.second, second);
        self.steps = steps;
        Ok(())
    }

    fn step_flats(
        &mut self,
        weights: &mut Flat,
        gradient: &Flat,
        lr: f64,
        ranks: &dyn Collective,
    ) -> Result<StepReport> {
        let mut squares = square_sums(gradient, ranks)?;
        squares.iter_mut().zip(&self.roles).filter(|(_, role)| **role == Role::Frozen).for_each(|(sum, _)| *sum = 0.0);
        let grad_norm = pairwise_sum(&squares).sqrt();
        if !grad_norm.is_finite() {
            return Err(self.not_finite("gradient", &[squares]));
        }
        let scale = clip_scale(grad_norm, self.config.clip_norm);
        let constants = Constants::new(&self.config, self.steps + 1, lr, scale);
        let AdamW { roles, first, second, .. } = self;
        let finite = Flat::map([weights, first, second], [gradient], |block, [w, m, v], [g]| {
            update_block(w, g, m, v, roles[block], constants)
        });
        if finite.contains(&false) {
            let sums = [own_square_sums(weights, ranks), own_square_sums(second, ranks)];
            return Err(self.not_finite("weight", &sums));
        }
        weights.lend(|numbers| ranks.all_gather(numbers))?;
        self.steps += 1;
        // Moments can fade away again, and a run that is continued knows nothing but these.
        let mut awake = vec![0.0; ranks.world()];
        awake[ranks.rank()] = f64::from(!is_zero(&self.second.read()));
        ranks.slots(&mut awake)?;
        self.idle = awake.iter().all(|&awake| awake == 0.0);
        Ok(StepReport { grad_norm, clipped: scale != 1.0 })
    }

    /// The error that names the first trained tensor of which a block has a sum that is not finite.
    fn not_finite(&self, what: &'static str, sums: &[Vec<f64>]) -> Error {
        // A last parameter without elements has no block at all.
        let trains = |slot: &&Slot| self.roles.get(slot.offset / BLOCK).is_some_and(|&role| role != Role::Frozen);
        let broken = |slot: &&Slot| sums.iter().any(|sums| sums[slot.blocks()].iter().any(|sum| !sum.is_finite()));
        let slot = self.slots.iter().filter(trains).find(broken);
        let tensor = slot.map_or_else(|| "padding".to_owned(), |slot| slot.name.clone());
        Error::NotFinite { tensor, step: self.steps + 1, what }
    }
}

/// Puts a whole moment in the place of one of which a run may be held.
pub(crate) fn replace(moment: &mut Flat, whole: Vec<f32>) {
    let dealt = moment.dealt().map(|_| moment.held());
    *moment = whole.into();
    if let Some(held) = dealt {
        moment.hold(held);
    }
}

fn is_zero(moment: &[f32]) -> bool {
    moment.iter().all(|&x| x == 0.0)
}

impl AdamConfig {
    /// Refuses constants with which the update is undefined or never forgets.
    ///
    /// Errors: [`Error::Hyperparameter`] with the first such field.
    pub fn validate(&self) -> Result<()> {
        match self.faults().into_iter().next() {
            Some((field, value, expected)) => Err(Error::Hyperparameter { field, value, expected }),
            None => Ok(()),
        }
    }

    /// What is wrong with the constants, each with its key of the `adam` table; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let problem = |(field, value, expected)| format!("`adam.{field}` is {value}; it must be {expected}");
        self.faults().into_iter().map(problem).collect()
    }

    /// Every constant outside its range, with its value and that range.
    fn faults(&self) -> Vec<(&'static str, f64, &'static str)> {
        let AdamConfig { form: _, beta1, beta2, eps, weight_decay, clip_norm } = *self;
        let (share, positive) = (|x: f64| (0.0..1.0).contains(&x), |x: f64| x > 0.0 && x.is_finite());
        let bounded = |x: f64| x >= 0.0 && x.is_finite();
        let constants = [
            ("beta1", beta1, share(beta1), "at least 0 and below 1"),
            ("beta2", beta2, share(beta2), "at least 0 and below 1"),
            ("eps", eps, positive(eps), "positive and finite"),
            ("weight-decay", weight_decay, bounded(weight_decay), "at least 0 and finite"),
            ("clip-norm", clip_norm, bounded(clip_norm), "at least 0 and finite"),
        ];
        constants.into_iter().filter(|fault| !fault.2).map(|(field, value, _, range)| (field, value, range)).collect()
    }
}

impl Constants {
    /// The constants of step `t` (from 1). They are computed in `f64`, so that `1 - b2^t` of an
    /// early step and a decay of `lr * weight_decay` keep their digits.
    fn new(config: &AdamConfig, t: u64, lr: f64, scale: f32) -> Constants {
        let left = |beta: f64| 1.0 - beta.powf(t as f64);
        let root = left(config.beta2).sqrt();
        let (rate, correction) = match config.form {
            AdamForm::PyTorch => (lr / left(config.beta1), 1.0 / root),
            AdamForm::TensorFlow => (lr * root / left(config.beta1), 1.0),
        };
        Constants {
            scale,
            keep_first: (1.0 - config.beta1) as f32,
            keep_second: config.beta2 as f32,
            add_second: (1.0 - config.beta2) as f32,
            rate: rate as f32,
            correction: correction as f32,
            eps: config.eps as f32,
            decay: (lr * config.weight_decay) as f32,
        }
    }
}

/// Updates one block; false when a weight or second moment is not finite.
fn update_block(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], role: Role, k: Constants) -> bool {
    let decay = match role {
        Role::Decayed => k.decay,
        Role::Plain => 0.0,
        Role::Frozen => return true,
    };
    widened(
        #[inline(always)]
        || {
            let mut finite = true;
            for ((w, g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                let grad = *g * k.scale;
                *m += k.keep_first * (grad - *m);
                *v = k.keep_second * *v + k.add_second * (grad * grad);
                *w -= k.rate * *m / (v.sqrt() * k.correction + k.eps) + decay * *w;
                finite &= w.is_finite() & v.is_finite();
            }
            finite
        },
    )
}

/// What happens to each block. A block has one owner, since parameters start on block boundaries.
fn roles(slots: &[Slot], len: usize, groups: Groups<'_>) -> Result<Vec<Role>> {
    let names = groups.frozen.iter().chain(groups.no_decay);
    let unknown = names.filter(|name| !slots.iter().any(|slot| slot.name == **name));
    let unknown: Vec<String> = unknown.map(|name| name.to_string()).collect();
    if !unknown.is_empty() {
        return Err(Error::UnknownTensor { names: unknown });
    }
    let mut roles = vec![Role::Plain; len.div_ceil(BLOCK)];
    for slot in slots {
        let name = slot.name.as_str();
        let role = if groups.frozen.contains(&name) {
            Role::Frozen
        } else if slot.shape.len() >= 2 && !groups.no_decay.contains(&name) {
            Role::Decayed
        } else {
            Role::Plain
        };
        roles[slot.blocks()].fill(role);
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Told, assert_close, params};
    use instruct_collective::{Solo, testing::threads};

    const SHAPES: [(&str, &[usize]); 3] = [("bias", &[3]), ("head", &[1, 3]), ("matrix", &[3, 2000])];

    /// One scalar by the book, in `f64`, with nothing fused.
    struct Scalar {
        weight: f64,
        m: f64,
        v: f64,
    }

    impl Scalar {
        fn step(&mut self, grad: f64, t: i32, lr: f64, decay: f64, config: &AdamConfig) {
            let AdamConfig { form, beta1, beta2, eps, .. } = *config;
            self.weight *= 1.0 - lr * decay;
            self.m = beta1 * self.m + (1.0 - beta1) * grad;
            self.v = beta2 * self.v + (1.0 - beta2) * grad * grad;
            let (left1, left2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
            self.weight -= match form {
                AdamForm::PyTorch => lr * (self.m / left1) / ((self.v / left2).sqrt() + eps),
                AdamForm::TensorFlow => lr * left2.sqrt() / left1 * self.m / (self.v.sqrt() + eps),
            };
        }
    }

    /// Any smooth, dense gradient; some elements are tiny, so that epsilon matters.
    fn gradient(i: usize, t: usize) -> f32 {
        (1.3 * t as f32 + i as f32).sin() * if i.is_multiple_of(3) { 1e-4 } else { 1.0 + (i % 5) as f32 }
    }

    fn start(i: usize) -> f32 {
        0.5 - 0.25 * (i % 7) as f32
    }

    fn run(config: AdamConfig, groups: Groups<'_>, steps: usize) -> (Params, AdamW, Vec<StepReport>) {
        let params = params(&SHAPES);
        params.update(|w, _| w.iter_mut().enumerate().for_each(|(i, w)| *w = start(i))).unwrap();
        let mut adam = AdamW::new(&params, config, groups).unwrap();
        let reports = (1..=steps).map(|t| {
            for slot in params.slots().to_vec() {
                params.with_grads(|g| slot.range().for_each(|i| g[i] = gradient(i, t))).unwrap();
            }
            adam.step(&params, 0.01 / t as f64, &Solo).unwrap()
        });
        let reports = reports.collect();
        (params, adam, reports)
    }

    #[track_caller]
    fn check_against_the_book(config: AdamConfig, groups: Groups<'_>) {
        let (params, _, reports) = run(config, groups, 20);
        let live: Vec<_> = params.slots().iter().filter(|s| !groups.frozen.contains(&s.name.as_str())).collect();
        for slot in params.slots() {
            let name = slot.name.as_str();
            let frozen = groups.frozen.contains(&name);
            let decayed = slot.shape.len() >= 2 && !groups.no_decay.contains(&name);
            let decay = if decayed { config.weight_decay } else { 0.0 };
            let want = slot.range().map(|i| {
                let mut scalar = Scalar { weight: f64::from(start(i)), m: 0.0, v: 0.0 };
                for t in 1..=if frozen { 0 } else { 20 } {
                    let square = |i| f64::from(gradient(i, t)).powi(2);
                    let norm = live.iter().flat_map(|s| s.range()).map(square).sum::<f64>().sqrt();
                    assert!((reports[t - 1].grad_norm - norm).abs() < 1e-9 * norm);
                    let clipped = config.clip_norm > 0.0 && norm > config.clip_norm;
                    assert_eq!(reports[t - 1].clipped, clipped);
                    let scale = if clipped { config.clip_norm / norm } else { 1.0 };
                    scalar.step(f64::from(gradient(i, t)) * scale, t as i32, 0.01 / t as f64, decay, &config);
                }
                scalar.weight as f32
            });
            // The book recomputes the norm at every element, so only the first ones are compared.
            let want: Vec<f32> = want.take(40).collect();
            let got = params.read(name).unwrap();
            assert_close(name, &got[..want.len()], &want, 2e-6, 2e-6);
        }
    }

    #[test]
    fn follows_the_book_for_twenty_steps() {
        for form in [AdamForm::PyTorch, AdamForm::TensorFlow] {
            for (eps, weight_decay, clip_norm) in [(1e-8, 0.0, 1.0), (1e-5, 0.1, 0.0), (1e-3, 0.01, 50.0)] {
                let config = AdamConfig { form, eps, weight_decay, clip_norm, ..AdamConfig::default() };
                check_against_the_book(config, Groups::default());
                check_against_the_book(config, Groups { frozen: &["matrix"], no_decay: &["head"] });
            }
        }
    }

    #[test]
    fn frozen_parameters_have_no_moments_and_the_gradient_is_left_at_zero() {
        let (params, adam, _) = run(AdamConfig::default(), Groups { frozen: &["matrix"], no_decay: &[] }, 3);
        let frozen = params.slots().iter().find(|slot| slot.name == "matrix").unwrap().range();
        let moments = [&adam.first, &adam.second];
        assert!(moments.iter().all(|moment| moment.read()[frozen.clone()].iter().all(|&x| x == 0.0)));
        assert!(params.with_grads(|g| g.iter().all(|&g| g == 0.0)).unwrap());
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let weights = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(AdamConfig::default(), Groups::default(), 5)).0.read("matrix").unwrap()
        };
        assert_eq!(weights(1), weights(3));
    }

    #[track_caller]
    fn check_not_finite(name: &str, in_gradient: bool, bad: f32) {
        let (params, mut adam, _) = run(AdamConfig::default(), Groups { frozen: &["head"], no_decay: &[] }, 2);
        let at = params.slots().iter().find(|slot| slot.name == name).unwrap().range().end - 1;
        params.update(|w, g| if in_gradient { g[at] = bad } else { w[at] = bad }).unwrap();
        let before = params.with_weights(<[f32]>::to_vec).unwrap();
        match adam.step(&params, 0.01, &Solo) {
            Err(Error::NotFinite { tensor, step: 3, what }) => {
                assert_eq!((tensor.as_str(), what), (name, if in_gradient { "gradient" } else { "weight" }));
            }
            other => panic!("{other:?}"),
        }
        if in_gradient {
            assert_eq!(params.with_weights(<[f32]>::to_vec).unwrap(), before, "weights are untouched");
        }
    }

    #[test]
    fn what_is_not_finite_is_named_with_the_step() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for name in ["bias", "matrix"] {
                check_not_finite(name, true, bad);
                check_not_finite(name, false, bad);
            }
        }
        // A square that overflows would freeze its weight for ever.
        let (params, mut adam, _) = run(AdamConfig { clip_norm: 0.0, ..AdamConfig::default() }, Groups::default(), 1);
        params.with_grads(|g| g[0] = 1e30).unwrap();
        assert!(matches!(adam.step(&params, 0.01, &Solo), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn parameters_without_elements_are_passed_over() {
        let params = params(&[("a", &[0, 3]), ("b", &[2]), ("c", &[0])]);
        let mut adam = AdamW::new(&params, AdamConfig::default(), Groups { frozen: &["a"], no_decay: &[] }).unwrap();
        params.with_grads(|g| g.copy_from_slice(&vec![1.0; g.len()])).unwrap();
        adam.step(&params, 0.01, &Solo).unwrap();
        assert!(params.read("b").unwrap().iter().all(|&w| w < 0.0), "the frozen one before it has no block of its own");
        // The search for what is not finite asks about every parameter, and finds none.
        let error = adam.not_finite("gradient", &[vec![0.0]]);
        assert!(matches!(error, Error::NotFinite { tensor, .. } if tensor == "padding"));
    }

    fn owned(adam: &AdamW) -> (Text, Arrays) {
        let (text, arrays) = adam.state();
        (text, arrays.map(|(name, moment)| (name.to_owned(), moment.read().into_owned())).into())
    }

    #[test]
    fn a_saved_optimizer_continues_bit_for_bit() {
        let (straight, ..) = run(AdamConfig::default(), Groups::default(), 6);
        let (params, half, _) = run(AdamConfig::default(), Groups::default(), 3);
        let (text, arrays) = owned(&half);
        let mut again = AdamW::new(&params, AdamConfig::default(), Groups::default()).unwrap();
        again.restore(&text, arrays).unwrap();
        assert_eq!(again.steps(), 3);
        for t in 4..=6 {
            for slot in params.slots().to_vec() {
                params.with_grads(|g| slot.range().for_each(|i| g[i] = gradient(i, t))).unwrap();
            }
            again.step(&params, 0.01 / t as f64, &Solo).unwrap();
        }
        for name in ["bias", "head", "matrix"] {
            assert_eq!(params.read(name).unwrap(), straight.read(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn moments_of_another_model_are_refused() {
        let (text, arrays) = owned(&run(AdamConfig::default(), Groups::default(), 1).1);
        let other = params(&[("bias", &[3]), ("head", &[3, 1]), ("matrix", &[3, 2000])]);
        let mut adam = AdamW::new(&other, AdamConfig::default(), Groups::default()).unwrap();
        assert!(matches!(adam.restore(&text, arrays.clone()), Err(Error::Layout { .. })));
        // The layout is right and the content is not.
        let mut adam = AdamW::new(&params(&SHAPES), AdamConfig::default(), Groups::default()).unwrap();
        let without = |name: &str| arrays.clone().into_iter().filter(|(key, _)| key != name).collect::<Arrays>();
        assert!(matches!(adam.restore(&text, without("second")), Err(Error::Layout { .. })));
        assert!(matches!(adam.restore(&Text::new(), arrays), Err(Error::Layout { .. })));
        assert!(adam.first.read().iter().all(|&x| x == 0.0), "nothing is taken over");
    }

    #[test]
    fn unknown_names_and_bad_constants_are_refused() {
        let params = params(&SHAPES);
        let groups = Groups { frozen: &["bias", "nose"], no_decay: &["ear"] };
        match AdamW::new(&params, AdamConfig::default(), groups).err() {
            Some(Error::UnknownTensor { names }) => assert_eq!(names, ["nose", "ear"]),
            other => panic!("{other:?}"),
        }
        for config in [
            AdamConfig { beta1: 1.0, ..AdamConfig::default() },
            AdamConfig { beta2: f64::NAN, ..AdamConfig::default() },
            AdamConfig { eps: 0.0, ..AdamConfig::default() },
            AdamConfig { weight_decay: -0.1, ..AdamConfig::default() },
            AdamConfig { clip_norm: f64::INFINITY, ..AdamConfig::default() },
        ] {
            assert!(matches!(config.validate(), Err(Error::Hyperparameter { .. })), "{config:?}");
        }
    }

    /// Weights, reports and moments after a few steps in which each rank is given its own span of the gradient.
    fn on_ranks(ranks: &dyn Collective) -> Result<(Vec<u32>, Vec<StepReport>, usize)> {
        let params = params(&SHAPES);
        params.update(|w, _| w.iter_mut().enumerate().for_each(|(i, w)| *w = start(i)))?;
        let mut adam = AdamW::new(&params, AdamConfig::default(), Groups { frozen: &["head"], no_decay: &[] })?;
        let own = span(params.len(), ranks.rank(), ranks.world());
        let mut reports = Vec::new();
        for t in 1..=4 {
            for slot in params.slots().to_vec() {
                // Elsewhere lie parts of sums that others hold.
                let at = |i| if own.contains(&i) { gradient(i, t) } else { 1e3 };
                params.with_grads(|g| slot.range().for_each(|i| g[i] = at(i)))?;
            }
            reports.push(adam.step(&params, 0.01 / t as f64, ranks)?);
            assert!(!adam.is_idle(), "on every rank, also one whose span is frozen");
        }
        assert_eq!((adam.first.held(), adam.second.held()), (own.clone(), own.clone()));
        Ok((params.with_weights(|w| w.iter().map(|x| x.to_bits()).collect())?, reports, own.len()))
    }

    #[test]
    fn ranks_hold_the_moments_of_their_own_weights_and_step_as_one() {
        let (weights, reports, whole) = on_ranks(&Solo).unwrap();
        for world in [2, 3, 5] {
            let outcomes: Vec<_> = threads(world, |ranks| on_ranks(ranks).map_err(Told::from)).into_iter().collect();
            let held = outcomes.iter().map(|outcome| outcome.as_ref().unwrap().2).sum::<usize>();
            assert_eq!(held, whole, "{world} ranks");
            for outcome in outcomes {
                let (found, said, _) = outcome.unwrap();
                assert!(found == weights && said == reports, "{world} ranks");
            }
        }
    }

    #[test]
    fn ranks_name_a_gradient_that_one_of_them_found_broken() {
        for outcome in threads(2, |ranks| {
            let params = params(&SHAPES);
            let mut adam = AdamW::new(&params, AdamConfig::default(), Groups::default()).map_err(Told::from)?;
            let slot = params.slots()[2].clone();
            params.with_grads(|g| g[slot.offset] = f32::NAN).unwrap();
            adam.step(&params, 0.01, ranks).map_err(Told::from)
        }) {
            let message = outcome.unwrap_err();
            assert!(message.contains("gradient of `matrix` is NaN"), "{message}");
        }
    }
}
