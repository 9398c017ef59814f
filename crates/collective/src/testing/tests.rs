//! Properties of what all engines share, over threads.

use super::threads;
use crate::{BLOCK, Collective, Error, NOTHING, Result, deal, span};
use proptest::prelude::*;

/// The gradient of a leaf: numbers of many sizes, zeros of both signs among them.
fn leaf(number: usize, len: usize, seed: u32) -> Vec<f32> {
    let value = |i: usize| match (i + number) % 7 {
        0 => -0.0,
        1 => 0.0,
        size => (seed as f32 * 0.37 + (i * 31 + number) as f32).sin() * 10f32.powi(size as i32 - 3),
    };
    (0..len).map(value).collect()
}

/// The tree over leaves, by its definition.
fn naive(leaves: &[Vec<f32>]) -> Vec<f32> {
    match leaves {
        [] => Vec::new(),
        [leaf] => leaf.clone(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            naive(left).iter().zip(naive(right)).map(|(l, r)| l + r).collect()
        }
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// The sum of all leaves as a rank of `world` gets it.
fn summed(ranks: &dyn Collective, leaves: &[Vec<f32>]) -> Result<Vec<u32>> {
    let len = leaves[0].len();
    let own = &leaves[deal(leaves.len(), ranks.rank(), ranks.world())];
    let mut flat = if own.is_empty() { vec![NOTHING; len] } else { naive(own) };
    ranks.reduce_scatter(&mut flat)?;
    let span = span(len, ranks.rank(), ranks.world());
    // Only the own span may be used now.
    flat[..span.start].fill(f32::NAN);
    flat[span.end..].fill(f32::NAN);
    ranks.all_gather(&mut flat)?;
    Ok(bits(&flat))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_number_of_ranks_gets_the_bits_of_one(
        leaves in 1usize..12, len in prop_oneof![0usize..10, 1usize..40_000], world in 1usize..9, seed in 0u32..1000
    ) {
        let leaves: Vec<_> = (0..leaves).map(|number| leaf(number, len, seed)).collect();
        let alone = bits(&naive(&leaves));
        for outcome in threads(world, |ranks| summed(ranks, &leaves)) {
            prop_assert!(outcome == Ok(alone.clone()));
        }
    }

    #[test]
    fn bytes_and_slots_arrive_as_they_were(
        world in 1usize..6, lengths in prop::collection::vec(0usize..50_000, 6), slots in 0usize..3000, root in 0usize..6
    ) {
        let text = |rank: usize| (0..lengths[rank]).map(|i| (i * 7 + rank) as u8).collect::<Vec<u8>>();
        // Minus zero is the hard one: a sum would lose its sign.
        let value = |slot: usize| if slot.is_multiple_of(3) { -0.0 } else { 1.0 / slot as f64 };
        let outcomes = threads(world, |ranks| {
            let mut bytes = text(ranks.rank());
            let gathered = ranks.all_gather_bytes(&bytes)?;
            ranks.broadcast_bytes(root % world, &mut bytes)?;
            let mut all = vec![0.0; slots];
            let own = all.iter_mut().enumerate().filter(|(slot, _)| slot % world == ranks.rank());
            own.for_each(|(slot, x)| *x = value(slot));
            ranks.slots(&mut all)?;
            Ok::<_, Error>((gathered, bytes, all))
        });
        for outcome in outcomes {
            let (gathered, bytes, all) = outcome.unwrap();
            prop_assert_eq!(gathered, (0..world).map(text).collect::<Vec<_>>());
            prop_assert_eq!(bytes, text(root % world));
            prop_assert!(all.iter().enumerate().all(|(slot, x)| x.to_bits() == value(slot).to_bits()));
        }
    }
}

#[test]
fn a_block_is_never_cut() {
    let world = 3;
    for outcome in threads(world, |ranks| Ok::<_, Error>(span(10 * BLOCK + 5, ranks.rank(), ranks.world()))) {
        assert_eq!(outcome.unwrap().start % BLOCK, 0);
    }
}

#[test]
fn ranks_that_differ_are_told_on_every_rank() {
    for outcome in threads(3, |ranks| ranks.agree("the weights", if ranks.rank() == 1 { 7 } else { 5 })) {
        let error = outcome.unwrap_err();
        let values = "0000000000000005 on ranks 0, 2; 0000000000000007 on rank 1";
        assert!(error.contains(&format!("disagree about the weights: {values}")), "{error}");
    }
}

#[test]
fn ranks_at_different_places_do_not_wait_for_each_other() {
    let place = |ranks: &dyn Collective| match ranks.rank() {
        0 => ranks.reduce_scatter(&mut [0.0; 9]),
        1 => ranks.reduce_scatter(&mut [0.0; 8]),
        2 => ranks.agree("a", 0),
        3 => ranks.agree("b", 0),
        _ => Ok(()), // meets the others at the end of `run`
    };
    for outcome in threads(5, place) {
        let error = outcome.unwrap_err();
        assert!(
            error.contains("reduce_scatter of 9 numbers on rank 0; reduce_scatter of 8 numbers on rank 1"),
            "{error}"
        );
        assert!(error.contains("barrier on rank 4"), "{error}");
    }
}

#[test]
fn a_slot_has_one_owner() {
    for outcome in threads(3, |ranks| ranks.slots(&mut [0.0, (ranks.rank() % 2) as f64, ranks.rank() as f64])) {
        assert!(outcome.unwrap_err().contains("slot 2 was set by rank 1 and by rank 2"));
    }
}

#[test]
fn a_root_that_does_not_exist_is_an_error_everywhere() {
    for outcome in threads(2, |ranks| ranks.broadcast_bytes(2, &mut Vec::new())) {
        assert!(outcome.unwrap_err().contains("no rank 2 to broadcast from: ranks are 0 to 1"));
    }
}

#[test]
fn a_dying_rank_does_not_leave_the_others_waiting() {
    let work = |ranks: &dyn Collective| {
        ranks.barrier()?;
        match ranks.rank() {
            1 => panic!("out of luck"),
            2 => Err(Error::Started),
            _ => ranks.barrier(),
        }
    };
    let outcomes: Vec<_> = threads(4, work).into_iter().map(Result::unwrap_err).collect();
    assert_eq!(outcomes[1], "rank 1 of 4: panicked: out of luck");
    assert!(outcomes[2].starts_with("rank 2 of 4: MPI was started in this process before"));
    for survivor in [0, 3] {
        assert!(outcomes[survivor].contains("has left, and rank"), "{}", outcomes[survivor]);
    }
}
