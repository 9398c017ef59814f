//! The alignment tax: what alignment costs on text that nobody asked for.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `exp(nll / tokens)` for a summed negative log-likelihood in nats.
///
/// # Errors
/// Without tokens, and when the sum is not finite.
pub fn perplexity(nll: f64, tokens: usize) -> Result<f64, Error> {
    if tokens == 0 {
        return Err(Error::Empty { what: "tokens" });
    }
    if !nll.is_finite() {
        return Err(Error::NotFinite { what: "nll", index: 0, value: nll });
    }
    Ok((nll / tokens as f64).exp())
}

/// Perplexity on held-out pretraining text by artefact (`base`, `sft`, `ppo`, `ppo_ptx`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AlignmentTax(pub BTreeMap<String, f64>);

impl AlignmentTax {
    /// Notes one artefact's summed negative log-likelihood (nats) over `tokens` tokens.
    ///
    /// # Errors
    /// As [`perplexity`].
    pub fn record(&mut self, artefact: &str, nll: f64, tokens: usize) -> Result<f64, Error> {
        let perplexity = perplexity(nll, tokens)?;
        self.0.insert(artefact.to_owned(), perplexity);
        Ok(perplexity)
    }

    /// How much higher the perplexity of `artefact` is than that of `reference`, as a share of it:
    /// 0.02 is 2 % worse, negative is better. `None` unless both were recorded.
    pub fn relative(&self, artefact: &str, reference: &str) -> Option<f64> {
        Some(self.0.get(artefact)? / self.0.get(reference)? - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_model_has_the_perplexity_of_its_vocabulary() {
        assert!((perplexity(10.0 * 2000f64.ln(), 10).unwrap() - 2000.0).abs() < 1e-9);
        assert_eq!(perplexity(0.0, 3), Ok(1.0));
        assert!(perplexity(0.0, 0).is_err() && perplexity(f64::NAN, 1).is_err());
    }

    #[test]
    fn the_tax_is_relative_and_serialises_as_a_plain_table() {
        let mut tax = AlignmentTax::default();
        tax.record("sft", 2.0 * 10f64.ln(), 2).unwrap();
        tax.record("ppo", 11f64.ln(), 1).unwrap();
        assert!((tax.relative("ppo", "sft").unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(tax.relative("ppo", "base"), None);
        assert!(serde_json::to_value(&tax).unwrap()["ppo"].is_number());
    }
}
