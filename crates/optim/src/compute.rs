//! What a loop needs besides its recipe.

use crate::{Error, Result};
use instruct_collective::{Collective, Solo, deal};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, ops::Range};

/// How a run of a recipe is computed: it decides bits and memory, never what is learned.
#[derive(Clone, Copy)]
pub struct Compute<'a> {
    /// Keys every draw of the run.
    pub seed: u64,
    /// Tokens computed at a time, about: a micro-batch holds at least one example. Another number
    /// changes memory and, since gradients add in another order, last bits.
    pub micro_tokens: usize,
    /// Leaves of the tree that adds up a step's gradient, at least one. Another number changes memory and last bits;
    /// with the same number, the bits do not depend on who computes which leaf ([`crate::GradTree`]).
    pub leaves: usize,
    /// Completions decoded at a time, at least one. Another number changes speed and memory, and no bit.
    pub slots: usize,
    /// The ranks that share the leaves. Each calls the same loops with the same data; [`Solo`] computes all leaves.
    pub ranks: &'a dyn Collective,
}

impl Default for Compute<'_> {
    /// Seed 1, 4,096 tokens at a time, one leaf, 64 completions at a time, one rank.
    fn default() -> Self {
        Compute { seed: 1, micro_tokens: 4_096, leaves: 1, slots: 64, ranks: &Solo }
    }
}

impl fmt::Debug for Compute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compute { seed, micro_tokens, leaves, slots, ranks } = self;
        let rank = format!("{} of {}", ranks.rank(), ranks.world());
        f.debug_struct("Compute")
            .field("seed", seed)
            .field("micro_tokens", micro_tokens)
            .field("leaves", leaves)
            .field("slots", slots)
            .field("rank", &rank)
            .finish()
    }
}

impl Compute<'_> {
    /// Refuses leaves that cannot be shared so that each rank adds a whole subtree.
    ///
    /// Errors: [`Error::Leaves`] unless every rank gets the same number of leaves, a power of two of them.
    pub fn check(&self) -> Result<()> {
        let (leaves, ranks) = (self.leaves.max(1), self.ranks.world());
        let fits = ranks == 1 || leaves.is_multiple_of(ranks) && (leaves / ranks).is_power_of_two();
        if fits { Ok(()) } else { Err(Error::Leaves { leaves, ranks }) }
    }

    /// The leaves that this rank computes.
    pub fn own(&self) -> Range<usize> {
        deal(self.leaves.max(1), self.ranks.rank(), self.ranks.world())
    }

    /// Which of a step's `examples` belong to each leaf, in the order of both: runs as even as whole examples make
    /// them, leaf `i` of `L` from `i * examples / L` on. With fewer examples than leaves some have none, and add zeros,
    /// so that the tree keeps its shape.
    pub fn deal(&self, examples: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let leaves = self.leaves.max(1);
        let start = move |leaf: usize| (leaf as u128 * examples as u128 / leaves as u128) as usize;
        (0..leaves).map(move |leaf| start(leaf)..start(leaf + 1))
    }

    /// Deals `items` that can be worked on one by one to the ranks, in runs as even as whole items make them, and returns
    /// what `work` made of each run, on every rank, in the order of the runs.
    ///
    /// What comes of an item must not depend on the run that it is in; then nothing depends on the number of ranks.
    ///
    /// Errors: those of `work`; those of the ranks, one that sent what cannot be read among them.
    pub fn share<T: Serialize + DeserializeOwned, E: From<Error>>(
        &self,
        items: usize,
        work: impl FnOnce(Range<usize>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let (rank, world) = (self.ranks.rank(), self.ranks.world());
        let start = |rank: usize| (rank as u128 * items as u128 / world as u128) as usize;
        let own = work(start(rank)..start(rank + 1))?;
        if world == 1 {
            return Ok(vec![own]);
        }
        let bytes = postcard::to_stdvec(&own).map_err(Error::Shared)?;
        let all = self.ranks.all_gather_bytes(&bytes).map_err(Error::from)?;
        Ok(all.iter().map(|bytes| postcard::from_bytes(bytes)).collect::<Result<_, _>>().map_err(Error::Shared)?)
    }

    /// The most examples that [`Compute::deal`] gives to one leaf.
    pub fn dealt(&self, examples: usize) -> usize {
        examples.div_ceil(self.leaves.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Told;

    /// Leaves of so many examples, one after the other.
    #[track_caller]
    fn check(leaves: usize, examples: usize, wanted: &[usize]) {
        let compute = Compute { leaves, ..Compute::default() };
        let dealt: Vec<_> = compute.deal(examples).collect();
        assert_eq!(dealt.iter().map(Range::len).collect::<Vec<_>>(), wanted);
        assert!(dealt.iter().cloned().flatten().eq(0..examples), "{dealt:?}");
        assert_eq!(wanted.iter().max(), Some(&compute.dealt(examples)));
    }

    #[test]
    fn examples_are_dealt_in_order_and_evenly() {
        check(1, 5, &[5]);
        check(0, 5, &[5]);
        check(2, 5, &[2, 3]);
        check(4, 8, &[2; 4]);
        check(4, 7, &[1, 2, 2, 2]);
        check(3, 2, &[0, 1, 1]);
        check(2, 0, &[0, 0]);
    }

    #[test]
    fn ranks_share_whole_subtrees() {
        let fits = |leaves: usize, world: usize| {
            let outcomes = instruct_collective::testing::threads(world, |ranks| {
                let compute = Compute { leaves, ranks, ..Compute::default() };
                compute.check().map(|()| compute.own().len()).map_err(Told::from)
            });
            outcomes.into_iter().all(|own| own == Ok(leaves / world))
        };
        for (leaves, world) in [(1, 1), (3, 1), (2, 2), (4, 2), (8, 4), (3, 3), (6, 3)] {
            assert!(fits(leaves, world), "{leaves} leaves on {world} ranks");
        }
        for (leaves, world) in [(1, 2), (3, 2), (6, 2), (8, 3), (9, 3)] {
            assert!(!fits(leaves, world), "{leaves} leaves on {world} ranks");
        }
    }

    #[test]
    fn items_are_shared_in_runs_and_come_back_in_order() {
        for (items, world) in [(0, 1), (7, 1), (7, 2), (2, 3), (9, 4)] {
            let outcomes = instruct_collective::testing::threads(world, |ranks| {
                let compute = Compute { ranks, ..Compute::default() };
                let of_ranks =
                    compute.share(items, |own| Ok::<_, crate::Error>(own.map(|i| i * i).collect::<Vec<_>>()));
                of_ranks.map(|runs| (runs.len(), runs.concat())).map_err(Told::from)
            });
            for outcome in outcomes {
                assert_eq!(outcome, Ok((world, (0..items).map(|i| i * i).collect())), "{items} items, {world} ranks");
            }
        }
    }
}
