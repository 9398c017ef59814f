//! The exponential moving average of a model's weights.

use crate::{
    Error, Result,
    adamw::replace,
    state::{Arrays, Text, expect_layout, layout, take},
};
use instruct_collective::{Collective, span};
use instruct_kernels::{Flat, Params, Slot, widened};

/// `average = decay * average + (1 - decay) * weights` after every optimizer step, starting at the
/// initial weights and without bias correction (InstructGPT, appendix C.4, with decay 0.992: after
/// 40 steps 73 % of the average is still the initial weights).
///
/// Where ranks train together, each averages its own span of the weights.
pub struct Ema {
    decay: f64,
    slots: Vec<Slot>,
    average: Flat,
}

impl Ema {
    /// InstructGPT's decay (appendix C.4).
    pub const DECAY: f64 = 0.992;

    /// An average that so far is the weights of `params`.
    pub fn new(params: &Params, decay: f64) -> Result<Ema> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::Hyperparameter { field: "ema", value: decay, expected: "between 0 and 1" });
        }
        Ok(Ema { decay, slots: params.slots().to_vec(), average: params.with_weights(<[f32]>::to_vec)?.into() })
    }

    /// Keeps of the average what this rank updates, as [`crate::AdamW::share`].
    pub fn share(&mut self, ranks: &dyn Collective) {
        self.average.hold(span(self.average.len(), ranks.rank(), ranks.world()));
    }

    /// Takes in the weights after a step.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        // An increment, so that an average equal to the weights stays equal to the last bit.
        let share = (1.0 - self.decay) as f32;
        let average = &mut self.average;
        params.weights(|weights| {
            Flat::map([average], [weights], |_, [a], [w]| {
                widened(
                    #[inline(always)]
                    || a.iter_mut().zip(w).for_each(|(a, w)| *a += share * (w - *a)),
                )
            });
        })?;
        Ok(())
    }

    /// The averaged weights, laid out as [`Params::weights`] lends them, as far as this rank holds them.
    pub fn average(&self) -> &Flat {
        &self.average
    }

    /// Overwrites the weights of `params` (a copy, usually) with the average, for export or
    /// evaluation, on every rank.
    ///
    /// Errors: the parameters are laid out differently; those of the ranks.
    pub fn copy_into(&self, params: &Params, ranks: &dyn Collective) -> Result<()> {
        if params.slots() != self.slots {
            let problem = "is of other parameters".to_owned();
            return Err(Error::Layout { what: "average", problem });
        }
        let (own, held) = (span(self.average.len(), ranks.rank(), ranks.world()), self.average.held());
        if own.start < held.start || held.end < own.end {
            let problem = format!("holds {held:?}, and this rank's own part is {own:?}");
            return Err(Error::Layout { what: "average", problem });
        }
        params.step(|weights, _| {
            weights.lend(|numbers| {
                numbers[held].copy_from_slice(&self.average.read());
                ranks.all_gather(numbers)
            })
        })??;
        Ok(())
    }

    /// What continues this average, besides its decay: what its parameters are as text, and itself.
    pub fn state(&self) -> (Text, [(&'static str, &Flat); 1]) {
        ([("layout".to_owned(), layout(&self.slots))].into(), [("average", &self.average)])
    }

    /// Continues from what [`Ema::state`] returned.
    ///
    /// Errors: an average of other parameters, or none; nothing is taken over then.
    pub fn restore(&mut self, text: &Text, mut arrays: Arrays) -> Result<()> {
        expect_layout("average", text, &self.slots)?;
        let saved = take("average", &mut arrays, "average", self.average.len())?;
        replace(&mut self.average, saved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Told, assert_close, params};
    use instruct_collective::{Solo, testing::threads};

    #[test]
    fn after_forty_steps_most_of_it_is_still_the_start() {
        let params = params(&[("a", &[2]), ("b", &[5000])]);
        params.set("a", &[1.0, -3.0]).unwrap();
        let mut ema = Ema::new(&params, Ema::DECAY).unwrap();
        params.set("a", &[0.0, 1.0]).unwrap();
        (0..40).for_each(|_| ema.update(&params).unwrap());
        let kept = 0.992f32.powi(40);
        assert!((kept - 0.725).abs() < 5e-4);
        assert_close("a", &ema.average().read()[..2], &[kept, 1.0 - 4.0 * kept], 1e-5, 0.0);
    }

    #[test]
    fn it_follows_the_definition_and_survives_being_saved() {
        let params = params(&[("w", &[3, 1500])]);
        let weight = |i: usize, t: usize| ((i * 31 + t * 17) % 101) as f32 / 50.0 - 1.0;
        let fill = |t| params.update(|w, _| (0..4500).for_each(|i| w[i] = weight(i, t))).unwrap();
        fill(0);
        let mut ema = Ema::new(&params, 0.9).unwrap();
        let mut want: Vec<f64> = (0..4500).map(|i| f64::from(weight(i, 0))).collect();
        for t in 1..20 {
            fill(t);
            ema.update(&params).unwrap();
            want.iter_mut().enumerate().for_each(|(i, a)| *a = 0.9 * *a + 0.1 * f64::from(weight(i, t)));
            let (text, arrays) = ema.state();
            let mut again = Ema::new(&params, 0.9).unwrap();
            again
                .restore(&text, arrays.map(|(name, flat)| (name.to_owned(), flat.read().into_owned())).into())
                .unwrap();
            assert_eq!(again.average().read(), ema.average().read());
            ema = again;
        }
        let want: Vec<f32> = want.iter().map(|&a| a as f32).collect();
        assert_close("w", &ema.average().read()[..4500], &want, 1e-6, 0.0);
        ema.copy_into(&params, &Solo).unwrap();
        assert_eq!(params.read("w").unwrap(), &ema.average().read()[..4500]);
    }

    #[test]
    fn constant_weights_are_their_own_average() {
        let params = params(&[("w", &[3])]);
        params.set("w", &[0.1, 1e-7, 3e5]).unwrap();
        let mut ema = Ema::new(&params, Ema::DECAY).unwrap();
        (0..100).for_each(|_| ema.update(&params).unwrap());
        assert_eq!(ema.average().read()[..3], [0.1, 1e-7, 3e5]);
        assert!(Ema::new(&params, 1.1).is_err());
        assert!(ema.copy_into(&crate::testing::params(&[("v", &[3])]), &Solo).is_err());
    }

    #[test]
    fn ranks_hold_the_average_of_their_own_weights() {
        let averaged = |ranks: &dyn Collective| {
            let params = params(&[("v", &[7]), ("w", &[3, 2000])]);
            let mut ema = Ema::new(&params, 0.9)?;
            ema.share(ranks);
            for t in 1..4 {
                params.update(|w, _| w.iter_mut().enumerate().for_each(|(i, w)| *w = (i * t % 13) as f32))?;
                ema.update(&params)?;
            }
            assert_eq!(ema.average().held(), span(params.len(), ranks.rank(), ranks.world()));
            assert_eq!(ema.copy_into(&params, &Solo).is_err(), ranks.world() > 1, "a part is no average");
            ema.copy_into(&params, ranks)?;
            Ok::<_, Error>(params.with_weights(<[f32]>::to_vec)?)
        };
        let alone = averaged(&Solo).unwrap();
        for outcome in threads(2, |ranks| averaged(ranks).map_err(Told::from)) {
            assert_eq!(outcome, Ok(alone.clone()));
        }
    }
}
