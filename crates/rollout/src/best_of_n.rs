//! Best-of-n: the baseline that needs no training, only samples and a scorer.

use crate::{Decode, Episode, Prompted, Result, Sampled, Score};
use instruct_model::{Decoder, Sampling};
use instruct_random::Source;

/// Draws `n` completions per prompt, `slots` at a time, each with its number, and returns, for each prompt, the one that scores highest
/// (the first among equals).
///
/// `finished` hears how many more completions have ended, again and again. Completion `j` of prompt number `i` is
/// episode `i * n + j` of `source`, so that prompts can be asked in parts.
///
/// Errors: those of [`Sampled::draw`] and [`Sampled::score`].
pub fn best_of_n(
    policy: &Decoder,
    prompts: &[(usize, &[u32])],
    n: usize,
    sampling: &Sampling,
    slots: usize,
    source: Source,
    score: Score<'_>,
    decode: Decode<'_>,
    finished: &mut dyn FnMut(usize),
) -> Result<Vec<Episode>> {
    let asked = |&(number, prompt): &(usize, &[u32])| {
        let first = (number * n) as u64;
        (first..first + n as u64).map(|id| Prompted::new(id, number, prompt)).collect::<Vec<_>>()
    };
    let requests: Vec<Prompted> = prompts.iter().flat_map(asked).collect();
    let all = Sampled::draw(policy, &requests, sampling, slots, source, decode, finished)?.score(score)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use instruct_kernels::Path;
    use instruct_model::{Config, HeadKind};
    use std::cell::RefCell;

    fn drawn(n: usize, scores: &dyn Fn(&Episode) -> f32) -> (Vec<Episode>, Result<Vec<Episode>>) {
        let config = Config::tiny_gpt2(12, 16, 1, 2, 16);
        let policy = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        policy.initialise(1).unwrap();
        let seen = RefCell::new(Vec::new());
        let score = |episodes: &[Episode]| {
            seen.borrow_mut().extend_from_slice(episodes);
            Ok(episodes.iter().map(scores).collect())
        };
        let prompts: [&[u32]; 3] = [&[1], &[2, 3], &[1]];
        let prompts: Vec<(usize, &[u32])> = prompts.into_iter().enumerate().collect();
        let (sampling, source) = (Sampling::plain([0].into(), 6), Source::new(1, "best-of-n"));
        let decode = |ids: &[u32]| Ok(format!("{ids:?}"));
        let best = best_of_n(&policy, &prompts, n, &sampling, 4, source, &score, &decode, &mut |_| ());
        (seen.into_inner(), best)
    }

    #[test]
    fn the_best_of_each_prompt_wins_and_the_first_of_equals() {
        let fours = |episode: &Episode| episode.completion.iter().filter(|&&id| id == 4).count() as f32;
        for n in [1, 2, 16] {
            let (all, best) = drawn(n, &fours);
            let best = best.unwrap();
            assert_eq!((all.len(), best.len()), (3 * n, 3));
            for (group, winner) in best.iter().enumerate() {
                let rivals = &all[group * n..(group + 1) * n];
                let most = rivals.iter().map(fours).fold(0.0, f32::max);
                assert_eq!(Some(winner), rivals.iter().find(|e| fours(e) == most), "{group} of {n}");
                assert_eq!((winner.group, &winner.prompt), (group, &rivals[0].prompt));
            }
        }
        let (all, _) = drawn(16, &fours);
        assert_ne!(all[0].completion, all[32].completion, "one prompt asked twice is answered twice");
    }

    #[test]
    fn a_score_that_is_no_number_is_refused() {
        let (_, best) = drawn(2, &|episode| if episode.id == 3 { f32::NAN } else { 0.0 });
        assert!(best.unwrap_err().to_string().contains("episode 3 scored NaN"));
    }
}
