//! Sums over blocks, so that results do not depend on how many threads share the work.

use crate::Result;
use instruct_collective::{Collective, span};
use instruct_kernels::{BLOCK, Flat};

/// The sum of `values`, added as a balanced binary tree over their positions.
///
/// The order of additions is a function of the length alone. Whoever computed the parts, and in
/// whatever order they arrived, the sum has the same bits.
pub fn pairwise_sum(values: &[f64]) -> f64 {
    match values {
        [] => 0.0,
        [one] => *one,
        many => {
            let (left, right) = many.split_at(many.len().div_ceil(2));
            pairwise_sum(left) + pairwise_sum(right)
        }
    }
}

/// The sum of squares of every block of a line, of which each rank knows those of its own span.
pub(crate) fn square_sums(flat: &Flat, ranks: &dyn Collective) -> Result<Vec<f64>> {
    let mut sums = own_square_sums(flat, ranks);
    ranks.slots(&mut sums)?;
    Ok(sums)
}

/// The sum of squares of every block in this rank's own span, and 0 for the others.
pub(crate) fn own_square_sums(flat: &Flat, ranks: &dyn Collective) -> Vec<f64> {
    let own = span(flat.len(), ranks.rank(), ranks.world());
    let mut sums = vec![0.0; flat.len().div_ceil(BLOCK)];
    sums[own.start.div_ceil(BLOCK)..own.end.div_ceil(BLOCK)].copy_from_slice(&flat.square_sums_of(own));
    sums
}

/// The Euclidean norm of a flat gradient: `f64` sums per block, then [`pairwise_sum`] over blocks.
///
/// Infinite or NaN exactly when an element is.
pub fn grad_norm(gradient: &Flat) -> f64 {
    pairwise_sum(&gradient.square_sums()).sqrt()
}

/// Scales `gradient` so that its norm is at most `max_norm`, and returns the norm from before.
///
/// A `max_norm` of 0 turns clipping off. Of a gradient that is not finite nothing can be rescued: it
/// stays so, and the norm that is returned says it. [`crate::AdamW`] clips inside its own pass; this function
/// is for loops that bring another optimizer.
pub fn clip_grad_norm(gradient: &mut Flat, max_norm: f64) -> f64 {
    let norm = grad_norm(gradient);
    let scale = clip_scale(norm, max_norm);
    if scale != 1.0 {
        Flat::map([gradient], [], |_, [block], []| block.iter_mut().for_each(|g| *g *= scale));
    }
    norm
}

/// The factor that brings `norm` down to `max_norm`: exactly 1 when it is already there.
pub(crate) fn clip_scale(norm: f64, max_norm: f64) -> f32 {
    if max_norm > 0.0 && norm > max_norm { (max_norm / norm) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    fn norm(grads: &[f32]) -> f64 {
        grad_norm(&Flat::from(grads.to_vec()))
    }

    #[track_caller]
    fn check_norm(len: usize) {
        let grads = gradient(len);
        let naive = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let got = norm(&grads);
        assert!((got - naive).abs() <= 1e-12 * naive.max(1.0), "{len}: {got} against {naive}");
    }

    #[test]
    fn norm_is_the_plain_sum() {
        for len in [0, 1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17] {
            check_norm(len);
        }
    }

    #[test]
    fn norm_does_not_depend_on_the_number_of_threads() {
        let grads = gradient(37 * BLOCK + 5);
        let want = norm(&grads).to_bits();
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| norm(&grads)).to_bits(), want, "{threads} threads");
        }
    }

    #[track_caller]
    fn check_clip(max_norm: f64, want: f64) {
        let mut gradient = Flat::from(vec![3.0, 4.0]);
        assert_eq!(clip_grad_norm(&mut gradient, max_norm), 5.0, "the norm from before clipping");
        let grads = gradient.read();
        assert!((norm(&grads) - want).abs() < 1e-6, "{grads:?}");
        assert!((grads[0] / grads[1] - 0.75).abs() < 1e-6, "clipping keeps the direction: {grads:?}");
    }

    #[test]
    fn clip_limits_the_norm_and_keeps_the_direction() {
        check_clip(1.0, 1.0);
        check_clip(0.01, 0.01);
        check_clip(5.0, 5.0);
        check_clip(6.0, 5.0);
        check_clip(0.0, 5.0);
    }

    #[test]
    fn clipping_never_hides_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut gradient = Flat::from(vec![3.0, bad]);
            assert!(!clip_grad_norm(&mut gradient, 1.0).is_finite());
            assert!(!grad_norm(&gradient).is_finite(), "{bad}");
        }
    }

    #[test]
    fn norm_shows_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut grads = gradient(2 * BLOCK);
            grads[BLOCK + 1] = bad;
            assert!(!norm(&grads).is_finite());
        }
        assert!(norm(&[f32::MAX; 100]).is_finite());
    }
}
