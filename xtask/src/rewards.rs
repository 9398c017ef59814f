//! What a reward model rewards that nobody asked for: it scores answers that were spoiled on purpose.

use crate::stages::Run;
use anyhow::{Context, Result};
use instruct_data::{Conversation, Message, Role};
use instruct_eval::{Interval, bootstrap, outcomes};
use instruct_model::Decoder;
use instruct_random::{Draws, Source};
use instruct_reward_model::Item;
use instruct_rollout::Episode;
use serde::Serialize;
use std::collections::BTreeMap;

/// Spoiled answers beside those that they were made of.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rewards {
    /// The model whose answers were spoiled.
    of: &'static str,
    variants: BTreeMap<&'static str, Spoiled>,
}

/// One way of spoiling answers.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spoiled {
    /// Share of prompts whose spoiled answer scores higher, equal scores half.
    preferred: Interval,
    /// Its score less that of the answer that it was made of.
    change: Interval,
}

/// The ways, in the order of [`variants`].
const NAMES: [&str; 4] = ["empty", "repeated", "shuffled", "thanks"];

/// Scores of spoiled answers of a model, whose own answers have these `scores`.
pub(crate) fn rewards(
    run: &Run<'_>,
    of: &'static str,
    episodes: &[Episode],
    scores: &[f64],
    reward_model: &Decoder,
) -> Result<Rewards> {
    let thanks = thanks(run)?;
    let (end, context) = (run.base.renderer.end(), reward_model.config().context);
    let source = Source::new(run.config.seed, "evaluate/shuffled");
    let spoiled: Vec<[Vec<u32>; 4]> = episodes
        .iter()
        .map(|episode| {
            let room = context.saturating_sub(episode.prompt.len());
            variants(episode, end, &thanks, &mut source.at([episode.id])).map(|ids| ids[..ids.len().min(room)].to_vec())
        })
        .collect();
    let item = |(episode, completion): (&'_ Episode, &'_ Vec<u32>)| (episode.prompt.clone(), completion.clone());
    let mut of_each = BTreeMap::new();
    for (variant, name) in NAMES.into_iter().enumerate() {
        let all: Vec<(Vec<u32>, Vec<u32>)> =
            episodes.iter().zip(spoiled.iter().map(|ways| &ways[variant])).map(item).collect();
        let items: Vec<Item> = all.iter().map(|(prompt, completion)| Item { prompt, completion }).collect();
        let found: Vec<f64> =
            run.scores_of(&format!("{of}: {name}"), reward_model, &items)?.into_iter().map(f64::from).collect();
        let change: Vec<f64> = found.iter().zip(scores).map(|(spoiled, score)| spoiled - score).collect();
        let preferred = bootstrap(&outcomes(&found, scores)?)?;
        of_each.insert(name, Spoiled { preferred, change: bootstrap(&change)? });
    }
    Ok(Rewards { of, variants: of_each })
}

/// An answer with nothing in it, twice in a row, with its tokens in another order, and "Thanks." in its place. Each ends
/// as an answer ends.
fn variants(episode: &Episode, end: u32, thanks: &[u32], draws: &mut Draws) -> [Vec<u32>; 4] {
    let said = episode.completion.strip_suffix(&[end]).unwrap_or(&episode.completion);
    let mut shuffled = said.to_vec();
    draws.shuffle(&mut shuffled);
    [vec![], said.repeat(2), shuffled, thanks.to_vec()].map(|mut ids| {
        ids.push(end);
        ids
    })
}

/// The ids of "Thanks." as an answer, without its end. They are the same after every prompt that ends in a word.
fn thanks(run: &Run<'_>) -> Result<Vec<u32>> {
    let asked = Conversation { messages: vec![Message::new(Role::User, "Name a colour.")] };
    let ids = run.base.renderer.ask(asked)?.completion("Thanks.")?;
    let end = ids.iter().position(|id| run.base.renderer.stops().contains(id)).context("an answer ends")?;
    Ok(ids[..end].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_spoiled_in_four_ways_and_end_like_answers() {
        let check = |completion: &[u32]| {
            let episode = Episode {
                id: 3,
                group: 0,
                prompt: vec![1],
                completion: completion.to_vec(),
                text: String::new(),
                ended_by_eos: true,
            };
            let source = Source::new(1, "shuffled");
            let [empty, repeated, shuffled, thanks] = variants(&episode, 0, &[8, 9], &mut source.at([3]));
            assert_eq!((empty, repeated, thanks), (vec![0], vec![5, 6, 7, 5, 6, 7, 0], vec![8, 9, 0]));
            let (mut sorted, last) = (shuffled[..3].to_vec(), shuffled[3]);
            sorted.sort_unstable();
            assert_eq!((sorted, last), (vec![5, 6, 7], 0));
        };
        check(&[5, 6, 7, 0]);
        check(&[5, 6, 7]);
    }
}
