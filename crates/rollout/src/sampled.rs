//! The first two states of a rollout: completions, and what they are worth.

use crate::{Compared, Decode, Episode, Error, Prompted, Result, Score, reading};
use instruct_kernels::Path;
use instruct_model::{Decoder, Request, Sampling, generate_reporting};
use instruct_random::Source;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Completions that have no score yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sampled {
    /// The episodes, `(E,)`.
    pub episodes: Vec<Episode>,
    /// What was noted of their tokens while they were drawn; `None` of episodes that were drawn
    /// elsewhere.
    pub recorded: Option<Recorded>,
}

/// What sampling knows of its tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recorded {
    /// Log-probability of each token, `(M,)`.
    pub logprobs: Vec<f32>,
    /// Entropy before each token, `(M,)`.
    pub entropy: Vec<f32>,
}

impl Sampled {
    /// Draws one completion per request, `slots` at a time. `decode` gives each its text; `finished` hears how many more
    /// have ended, again and again.
    ///
    /// Errors: those of [`generate_reporting`]; those of `decode`.
    pub fn draw(
        policy: &Decoder,
        requests: &[Prompted],
        sampling: &Sampling,
        slots: usize,
        source: Source,
        decode: Decode<'_>,
        finished: &mut dyn FnMut(usize),
    ) -> Result<Sampled> {
        let plain: Vec<Request> = requests.iter().map(|prompted| prompted.request.clone()).collect();
        let mut recorded = Recorded::default();
        let mut episodes = Vec::with_capacity(requests.len());
        for (completion, prompted) in
            generate_reporting(policy, &plain, sampling, slots, source, finished)?.into_iter().zip(requests)
        {
            let episode = prompted.request.episode;
            let text = decode(&completion.ids).map_err(|source| Error::Decode { episode, source })?;
            recorded.logprobs.extend(completion.logprobs);
            recorded.entropy.extend(completion.entropies);
            episodes.push(Episode {
                id: episode,
                group: prompted.group,
                prompt: prompted.request.prompt.clone(),
                text,
                completion: completion.ids,
                ended_by_eos: completion.ended_by_eos,
            });
        }
        Ok(Sampled { episodes, recorded: Some(recorded) })
    }

    /// Episodes that were drawn elsewhere, without what sampling recorded.
    pub fn of(episodes: Vec<Episode>) -> Sampled {
        Sampled { episodes, recorded: None }
    }

    /// Episodes that were drawn in parts, in the order of the parts. What was recorded is lost where a part has none.
    pub fn join(parts: impl IntoIterator<Item = Sampled>) -> Sampled {
        let (mut episodes, mut recorded) = (Vec::new(), Some(Recorded::default()));
        for part in parts {
            episodes.extend(part.episodes);
            recorded = recorded.zip(part.recorded).map(|(mut all, part)| {
                all.logprobs.extend(part.logprobs);
                all.entropy.extend(part.entropy);
                all
            });
        }
        Sampled { episodes, recorded }
    }

    /// Asks the scorer, once for all episodes.
    ///
    /// Errors: the scorer's own; a wrong number of scores; a score that is not finite.
    pub fn score(self, score: Score<'_>) -> Result<Scored> {
        let scores = score(&self.episodes).map_err(Error::Score)?;
        if scores.len() != self.episodes.len() {
            return Err(Error::ScoreCount { got: scores.len(), wanted: self.episodes.len() });
        }
        match scores.iter().position(|score| !score.is_finite()) {
            Some(at) => Err(Error::ScoreNotFinite { episode: self.episodes[at].id, score: scores[at] }),
            None => Ok(Scored { episodes: self.episodes, recorded: self.recorded, scores }),
        }
    }
}

/// Completions with their scores.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// The episodes, `(E,)`.
    pub episodes: Vec<Episode>,
    /// As in [`Sampled`].
    pub recorded: Option<Recorded>,
    /// Their raw scores, `(E,)`.
    pub scores: Vec<f32>,
}

impl Scored {
    /// A run of the episodes, with what is known of them.
    pub fn part(&self, episodes: Range<usize>) -> Scored {
        let spans = &spans(&self.episodes)[episodes.clone()];
        let tokens = spans.first().map_or(0, |span| span.start)..spans.last().map_or(0, |span| span.end);
        let recorded = self.recorded.as_ref().map(|Recorded { logprobs, entropy }| Recorded {
            logprobs: logprobs[tokens.clone()].to_vec(),
            entropy: entropy[tokens].to_vec(),
        });
        let scores = self.scores[episodes.clone()].to_vec();
        Scored { episodes: self.episodes[episodes].to_vec(), recorded, scores }
    }

    /// Reads every completion token in the training forward, under the policy that drew the episodes and
    /// under a reference, at the temperature of sampling.
    ///
    /// On the fused path what was recorded while sampling has the bits of the training forward, and is
    /// not computed a second time; the first minibatch of an update checks that it is.
    ///
    /// Errors: as [`crate::logprobs`].
    pub fn compare(
        self,
        policy: &Decoder,
        reference: &Decoder,
        temperature: f32,
        micro_tokens: usize,
    ) -> Result<Compared> {
        let readings = self.read(policy, reference, temperature, micro_tokens)?;
        Ok(self.compared(readings))
    }

    /// The part of [`Scored::compare`] that asks models.
    ///
    /// Errors: as [`crate::logprobs`].
    pub fn read(
        &self,
        policy: &Decoder,
        reference: &Decoder,
        temperature: f32,
        micro_tokens: usize,
    ) -> Result<Readings> {
        let (old, entropy) = match &self.recorded {
            Some(Recorded { logprobs, entropy }) if policy.params().path() == Path::Fused => {
                (logprobs.clone(), entropy.clone())
            }
            _ => reading::logprobs(policy, &self.episodes, temperature, micro_tokens)?,
        };
        let (reference, _) = reading::logprobs(reference, &self.episodes, temperature, micro_tokens)?;
        Ok(Readings { old, entropy, reference })
    }

    /// The rest of [`Scored::compare`]: `readings` are those of these episodes, in their order.
    pub fn compared(self, readings: Readings) -> Compared {
        let (Scored { episodes, recorded, scores }, Readings { old, entropy, reference }) = (self, readings);
        let sampled = recorded.map_or_else(|| old.clone(), |recorded| recorded.logprobs);
        Compared { tokens: spans(&episodes), episodes, scores, sampled, old, reference, entropy }
    }
}

/// What two models say of every completion token, `(M,)` each.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Readings {
    /// Log-probabilities under the policy.
    pub old: Vec<f32>,
    /// Entropy of the policy before each token.
    pub entropy: Vec<f32>,
    /// Log-probabilities under the reference.
    pub reference: Vec<f32>,
}

impl Readings {
    /// Those of episodes that were read in parts, in the order of the parts.
    pub fn join(parts: impl IntoIterator<Item = Readings>) -> Readings {
        let mut all = Readings::default();
        for Readings { old, entropy, reference } in parts {
            all.old.extend(old);
            all.entropy.extend(entropy);
            all.reference.extend(reference);
        }
        all
    }
}

/// Where each episode's tokens lie in vectors per token, `(E,)`.
fn spans(episodes: &[Episode]) -> Vec<Range<usize>> {
    let mut end = 0;
    let mut span = |episode: &Episode| {
        let start = end;
        end += episode.completion.len();
        start..end
    };
    episodes.iter().map(&mut span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use instruct_model::{Config, HeadKind};

    /// A text that could not be spelled is no empty text, which a rule might like.
    #[test]
    fn a_completion_without_a_text_is_an_error() {
        let config = Config::tiny_gpt2(12, 16, 1, 2, 16);
        let policy = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        policy.initialise(1).unwrap();
        let requests = [Prompted::new(4, 0, &[1]), Prompted::new(5, 1, &[2])];
        let (sampling, source) = (Sampling::plain([0].into(), 3), Source::new(1, "spelling"));
        let draw = |decode: Decode<'_>| Sampled::draw(&policy, &requests, &sampling, 2, source, decode, &mut |_| ());
        let wrong = draw(&|_| Err("no such id".into())).unwrap_err();
        assert_eq!(wrong.to_string(), "episode 4 cannot be spelled: no such id");
        let sampled = draw(&|ids| Ok(format!("{ids:?}"))).unwrap();
        assert!(sampled.episodes.iter().all(|episode| episode.text == format!("{:?}", episode.completion)));
    }

    /// What is known of an episode does not depend on the part that it was drawn and read in.
    #[test]
    fn parts_make_the_whole() {
        let config = Config::tiny_gpt2(12, 16, 1, 2, 16);
        let policy = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        policy.initialise(1).unwrap();
        let reference = policy.deep_copy().unwrap();
        reference.params().set("norm.bias", &[0.5; 16]).unwrap();
        let requests: Vec<Prompted> =
            (0..7).map(|i| Prompted::new(i, i as usize, &[1, 2 + (i % 3) as u32][..1 + i as usize % 2])).collect();
        let sampling = Sampling::plain([0].into(), 9);
        let draw = |requests: &[Prompted]| {
            let decode = |ids: &[u32]| Ok(format!("{ids:?}"));
            Sampled::draw(&policy, requests, &sampling, 2, Source::new(1, "parts"), &decode, &mut |_| ()).unwrap()
        };
        let scored = |sampled: Sampled| {
            sampled.score(&|episodes| Ok(episodes.iter().map(|e| e.completion.len() as f32).collect())).unwrap()
        };
        let read = |scored: Scored| scored.read(&policy, &reference, 1.0, 20).unwrap();
        let whole = scored(draw(&requests));
        for cut in [0, 3, 7] {
            let joined = scored(Sampled::join([draw(&requests[..cut]), draw(&requests[cut..])]));
            assert_eq!(format!("{joined:?}"), format!("{whole:?}"), "cut at {cut}");
            let parts = [whole.part(0..cut), whole.part(cut..7)].map(read);
            assert_eq!(format!("{:?}", Readings::join(parts)), format!("{:?}", read(whole.clone())), "cut at {cut}");
        }
        let elsewhere = Sampled::join([draw(&requests[..2]), Sampled::of(whole.episodes[2..].to_vec())]);
        assert!(elsewhere.recorded.is_none() && elsewhere.episodes == whole.episodes);
    }
}
