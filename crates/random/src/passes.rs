//! Endless passes over a set of things, each pass in an order of its own.

use crate::Source;
use std::ops::Range;

/// Endless passes over `0..n`, each newly shuffled. Every order is a function of the source and of the
/// number of the pass, so nothing of this is saved.
///
/// The order of the pass that was asked for last is kept: a loop that walks on through a pass draws its
/// order once, and a step of it costs what the step takes, however large `n` is.
///
/// ```
/// use instruct_random::{Passes, Source};
///
/// let mut passes = Passes::new(Source::new(42, "order"), 3);
/// let six = passes.places(0..6);
/// assert_eq!(six[3..], *passes.pass(1));
/// ```
#[derive(Clone, Debug)]
pub struct Passes {
    source: Source,
    n: usize,
    kept: Option<(u64, Vec<usize>)>,
    /// Orders drawn so far.
    #[cfg(test)]
    drawn: usize,
}

impl Passes {
    /// Passes over `0..n`, ordered by the draws of `source`.
    pub fn new(source: Source, n: usize) -> Passes {
        Passes {
            source,
            n,
            kept: None,
            #[cfg(test)]
            drawn: 0,
        }
    }

    /// The order of one pass: all of `0..n`, each once.
    pub fn pass(&mut self, number: u64) -> &[usize] {
        let kept = self.kept.take().filter(|(kept, _)| *kept == number);
        let order = kept.unwrap_or_else(|| (number, self.drawn(number)));
        &self.kept.insert(order).1
    }

    fn drawn(&mut self, number: u64) -> Vec<usize> {
        #[cfg(test)]
        {
            self.drawn += 1;
        }
        self.source.at([number]).permutation(self.n)
    }

    /// What stands at places `range` of the passes laid end to end; nothing of an empty set.
    pub fn places(&mut self, range: Range<u64>) -> Vec<usize> {
        let n = self.n as u64;
        if n == 0 {
            return Vec::new();
        }
        range.map(|place| self.pass(place / n)[(place % n) as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition, which draws the order of the pass anew for every place.
    #[track_caller]
    fn check(n: usize, ranges: &[Range<u64>]) {
        let source = Source::new(1, "test");
        let mut passes = Passes::new(source, n);
        for range in ranges {
            let drawn = |place: u64| source.at([place / n as u64]).permutation(n)[(place % n as u64) as usize];
            let want: Vec<usize> = if n == 0 { Vec::new() } else { range.clone().map(drawn).collect() };
            assert_eq!(passes.places(range.clone()), want, "{n}: {range:?}");
        }
    }

    #[test]
    fn places_are_those_of_newly_shuffled_passes() {
        check(5, &[0..20, 0..0]);
        check(5, &[0..3, 3..4, 4..11, 11..20]);
        check(5, &[17..18, 2..9, 0..0, 9..30]);
        check(1, &[0..3, 1..2]);
        check(0, &[0..3, 1..2]);
    }

    #[test]
    fn every_pass_holds_everything_in_an_order_of_its_own() {
        let mut passes = Passes::new(Source::new(1, "test"), 5);
        let orders: Vec<Vec<usize>> = (0..8).map(|number| passes.pass(number).to_vec()).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert!(orders.iter().any(|order| order != &orders[0]));
    }

    #[test]
    fn a_pass_is_drawn_once_while_it_is_walked() {
        let mut passes = Passes::new(Source::new(1, "test"), 1_000);
        for first in (3_000..5_000).step_by(20) {
            passes.places(first..first + 20);
            passes.pass(first / 1_000);
        }
        assert_eq!(passes.drawn, 2);
    }
}
