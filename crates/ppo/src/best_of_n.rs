//! Best-of-n: the baseline that needs no training, only samples and a scorer.

use crate::{
    Result,
    rollout::{Episode, Rollout, Score},
};
use instruct_model::{Decoder, Request, Sampling, generate};
use instruct_random::Source;

/// Draws `n` completions per prompt and returns, for each prompt, the one that scores highest
/// (the first among equals).
///
/// Completion `j` of prompt `i` is episode `i * n + j` of `source`.
///
/// Errors: those of generation, and those of [`Rollout::score`].
pub fn best_of_n(
    policy: &Decoder,
    prompts: &[Vec<u32>],
    n: usize,
    sampling: &Sampling,
    source: Source,
    score: Score<'_>,
    decode: &dyn Fn(&[u32]) -> String,
) -> Result<Vec<Episode>> {
    let request = |(id, prompt): (u64, &Vec<u32>)| Request { episode: id, prompt: prompt.clone() };
    let repeated = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, n));
    let requests: Vec<Request> = (0..).zip(repeated).map(request).collect();
    let completions = generate(policy, &requests, sampling, source)?;
    let episodes: Vec<Episode> = completions
        .into_iter()
        .zip(requests)
        .map(|(completion, request)| Episode {
            id: request.episode,
            group: request.episode as usize / n.max(1),
            prompt: request.prompt,
            text: decode(&completion.ids),
            completion: completion.ids,
            ended_by_eos: completion.ended_by_eos,
        })
        .collect();
    let mut all = Rollout::of(episodes);
    all.score(score)?;
    let mut best: Vec<(f32, Episode)> = Vec::with_capacity(prompts.len());
    for (episode, score) in all.episodes.into_iter().zip(all.scores) {
        match best.last_mut() {
            Some((highest, winner)) if winner.group == episode.group => {
                if score > *highest {
                    (*highest, *winner) = (score, episode);
                }
            }
            _ => best.push((score, episode)),
        }
    }
    Ok(best.into_iter().map(|(_, episode)| episode).collect())
}
