//! The rotary positions of a GGUF file, with the keys and defaults of llama.cpp (`load_hparams` in its
//! `src/llama-model.cpp`, and the constructor in its `src/llama-context.cpp`).

use std::f64::consts::TAU;

use super::gguf::{Gguf, OTHER};
use crate::{Error, Result, Rotary, Scaling, decoder::rope_scaling, families::yarn_magnitude};

/// A table of what every frequency is divided by: Llama 3.1's stretch as the converter writes it.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

impl Gguf {
    /// How queries and keys are rotated. `context` stands in for the length before a stretch.
    pub(super) fn rotary(&self, architecture: &str, head_dim: usize, context: usize) -> Result<Rotary> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let dim = self.optional_count(&key("dimension_count"))?.unwrap_or(head_dim);
        if dim != head_dim {
            let problem = format!("is {dim}, not the head dimension {head_dim}");
            return Err(self.refuse(&key("dimension_count"), &problem));
        }
        let theta = self.number(&key("freq_base"))?.unwrap_or(10_000.0);
        let scaling = match (self.tabled(theta, dim)?, self.scaling(&key, context)?) {
            (Scaling::None, named) => named,
            (tabled, Scaling::None) => tabled,
            _ => return Err(self.refuse(ROPE_FREQS, &format!("stands beside a stretch by {}", key("scaling")))),
        };
        Ok(Rotary { theta, dim, scaling })
    }

    /// The scaling that the metadata names.
    fn scaling(&self, key: &dyn Fn(&str) -> String, context: usize) -> Result<Scaling> {
        let number = |name: &str| self.number(&key(name));
        // A file of 2023 has the older key. In both, 0 stands for no stretch.
        let factor = match number("scaling.factor")? {
            Some(factor) => Some(factor),
            None => number("scale_linear")?,
        };
        let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
        let magnified = number("scaling.attn_factor")?.unwrap_or(1.0);
        let kind = self.text(&key("scaling.type"))?;
        match kind.as_deref().unwrap_or("linear") {
            "none" | "linear" if magnified != 1.0 => {
                let problem = format!("is {magnified}; it is known beside the type yarn alone");
                Err(self.refuse(&key("scaling.attn_factor"), &problem))
            }
            "none" => Ok(Scaling::None),
            "linear" if factor == 1.0 => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor }),
            "yarn" => self.yarn(key, (factor, magnified), context),
            other => Err(self.refuse(&key("scaling.type"), &format!("is {other:?}; known are none, linear and yarn"))),
        }
    }

    /// YaRN, where llama.cpp computes what transformers does. What it multiplies cosines and sines by is
    /// `magnified` times the usual magnitude.
    fn yarn(&self, key: &dyn Fn(&str) -> String, (factor, magnified): (f64, f64), context: usize) -> Result<Scaling> {
        let key = |name: &str| key(&format!("scaling.{name}"));
        // Negative numbers stand for keys that are not set.
        let number = |name: &str| Ok::<_, Error>(self.number(&key(name))?.filter(|&x| x >= 0.0));
        let usual = match number("yarn_log_multiplier")?.filter(|&all| all != 0.0) {
            Some(all) => yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, all),
            None => yarn_magnitude(factor, 1.0),
        };
        // Transformers has no such factor for what is kept, and converters, who write its attention factor here,
        // do not mean what llama.cpp makes of the key.
        for (name, only) in [("yarn_ext_factor", 1.0), ("yarn_attn_factor", usual)] {
            if let Some(found) = number(name)?.filter(|found| (found - only).abs() > 1e-4 * only) {
                return Err(self.refuse(&key(name), &format!("is {found}; only the usual {only} is computed")));
            }
        }
        Ok(Scaling::Yarn {
            factor,
            beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
            truncate: true,
            original_context: self.optional_count(&key("original_context_length"))?.unwrap_or(context) as f64,
            attention_factor: usual * magnified,
        })
    }

    /// The scaling that the table of factors amounts to.
    fn tabled(&self, theta: f64, dim: usize) -> Result<Scaling> {
        let Some(info) = self.tensor(ROPE_FREQS) else { return Ok(Scaling::None) };
        let found = info.shape.dims();
        if found != [dim / 2] {
            return Err(self.refuse(ROPE_FREQS, &format!("is {found:?}, not [{}]", dim / 2)));
        }
        let factors: Vec<f64> = super::Store::read(self, ROPE_FREQS)?.into_iter().map(f64::from).collect();
        scaling_of(&factors, theta, dim).ok_or_else(|| {
            self.refuse(ROPE_FREQS, "holds factors of another stretch than Llama 3.1's, which nothing else can express")
        })
    }

    fn refuse(&self, key: &str, problem: &str) -> Error {
        Error::format(&self.path, format!("{key} {problem}"), OTHER)
    }
}

/// The scaling that divides the frequency of pair i, `theta^(-2i / dim)`, by `factors[i]`, `(dim / 2,)`. It is none,
/// one factor for all pairs, or Llama 3.1's rule with its low and high factors of 1 and 4; other tables have none.
///
/// The rule is found from what it makes of a pair between the two bounds, and otherwise by trying powers of two for
/// the context that it stretches.
fn scaling_of(factors: &[f64], theta: f64, dim: usize) -> Option<Scaling> {
    let factor = factors.iter().copied().fold(0.0, f64::max);
    if factor <= 0.0 || !factor.is_finite() {
        return None;
    }
    let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
    let frequency = |i: usize| theta.powf(-2.0 * i as f64 / dim as f64);
    let between = factors.iter().enumerate().filter(|&(_, &f)| f > 1.0 && f < factor);
    let solved = between.map(|(i, f)| {
        let kept = (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor);
        let turns = low_freq_factor + kept * (high_freq_factor - low_freq_factor);
        (turns * TAU / frequency(i)).round()
    });
    let rule = |original_context| Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
    let contexts = solved.chain((6..=20).map(|power| f64::from(1 << power)));
    // The converter's frequencies are `f32`: a factor of 32 makes of their rounding up to 4e-5.
    let near = |found: f64, wanted: f64| (found - wanted).abs() <= 1e-4 * wanted.abs();
    let divides = |scaling: &Scaling| {
        let divisor = |i| rope_scaling(*scaling).map_or(1.0, |rule| frequency(i) / rule.frequency(i, dim, theta));
        factors.iter().enumerate().all(|(i, &found)| near(found, divisor(i)))
    };
    [Scaling::None, Scaling::Linear { factor }].into_iter().chain(contexts.map(rule)).find(divides)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The factors that llama.cpp's converter writes for Llama 3.1's rule, in `f32` as there.
    fn table(theta: f32, dim: usize, factor: f32, (low, high): (f32, f32), context: f32) -> Vec<f64> {
        let factor = |i: usize| {
            let wavelength = std::f32::consts::TAU * theta.powf(2.0 * i as f32 / dim as f32);
            if wavelength < context / high {
                return 1.0;
            }
            if wavelength > context / low {
                return factor;
            }
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (0..dim / 2).map(|i| f64::from(factor(i))).collect()
    }

    #[track_caller]
    fn check(factors: &[f64], theta: f64, wanted: Option<Scaling>) {
        assert_eq!(scaling_of(factors, theta, 2 * factors.len()), wanted);
    }

    #[test]
    fn a_table_of_factors_is_the_rule_that_made_it() {
        let rule = |factor, original_context| {
            Some(Scaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context })
        };
        // Llama 3.1 and 3.3, Llama 3.2 (heads of 64 and of 128), and others.
        for (dim, factor, context) in [
            (128, 8.0, 8192.0),
            (64, 32.0, 8192.0),
            (128, 32.0, 8192.0),
            (128, 16.0, 8192.0),
            (128, 4.0, 32768.0),
            (16, 8.0, 64.0),
        ] {
            let factors = table(5e5, dim, factor, (1.0, 4.0), context);
            check(&factors, 5e5, rule(f64::from(factor), f64::from(context)));
        }
        // No pair lies between the bounds, and any context that tells the two pairs apart makes the same factors.
        check(&[1.0, 8.0], 5e5, rule(8.0, 64.0));
        check(&[1.0, 1.0, 1.0], 1e4, Some(Scaling::None));
        check(&[4.0, 4.0, 4.0], 1e4, Some(Scaling::Linear { factor: 4.0 }));
        check(&table(5e5, 128, 8.0, (1.0, 8.0), 8192.0), 5e5, None);
        check(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1e4, None);
        check(&[8.0, 4.0, 2.0, 1.0], 1e4, None);
        check(&[0.0, 0.0], 1e4, None);
        check(&[f64::INFINITY, 1.0], 1e4, None);
    }
}
