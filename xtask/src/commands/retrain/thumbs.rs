//! How well old and new reward model tell answers with a thumb up from those with one down. Nothing is trained on thumbs,
//! so both models are asked something that neither has seen.

use super::{Retrained, model_of};
use crate::{desk, stages::Run, terminal::print};
use anyhow::Result;
use instruct_eval::auc;
use instruct_feedback::{Options, Rated, Settings, State, records};
use instruct_model::Decoder;
use instruct_reward_model::Item;
use serde::Serialize;

/// Areas under the ROC curve of both reward models.
#[derive(Serialize)]
struct Thumbs {
    up: usize,
    down: usize,
    /// None where all thumbs point one way.
    new: Option<f64>,
    old: Option<f64>,
}

const FILE: &str = "eval/thumbs.json";

/// An answer in token ids.
struct Answer {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    up: bool,
}

/// Measures and says it, once for a run, if anybody gave a thumb. It decides nothing.
pub(super) fn tell(run: &Run<'_>, retrained: &Retrained) -> Result<()> {
    if run.dir.path().join(FILE).is_file() {
        return Ok(());
    }
    let mut answers = Vec::new();
    for folder in retrained.folders() {
        let state = State::of(Settings::default(), desk::collected(&folder)?)?;
        for rated in records(&state, &Options::default()).thumbs {
            answers.extend(encoded(run, &rated)?);
        }
    }
    let up = answers.iter().filter(|answer| answer.up).count();
    let down = answers.len() - up;
    if answers.is_empty() {
        return Ok(());
    }
    let area = |model: &Decoder| -> Result<Option<f64>> {
        let item = |answer| -> Item<'_> { item(answer) };
        let scores = run.scores_of("thumbs", model, &answers.iter().map(item).collect::<Vec<_>>())?;
        let of = |up: bool| -> Vec<f64> {
            let scored = answers.iter().zip(&scores).filter(|(answer, _)| answer.up == up);
            scored.map(|(_, score)| f64::from(*score)).collect()
        };
        Ok(auc(&of(true), &of(false))?)
    };
    let new = area(&run.open_reward_model()?)?;
    let old = area(&run.open(&model_of(retrained.from(), "reward-model"))?)?;
    let shown = |area: Option<f64>| area.map_or("-".to_owned(), |area| format!("{:.1} %", 100.0 * area));
    print(&format!(
        "thumbs, {up} up and {down} down: up scores above down in {} of pairs by the new reward model, {} by the old one",
        shown(new),
        shown(old)
    ));
    run.dir.write_json(FILE, &Thumbs { up, down, new, old })?;
    Ok(())
}

fn item(answer: &Answer) -> Item<'_> {
    Item { prompt: &answer.prompt, completion: &answer.completion }
}

/// An answer as the reward model reads it; none where it is longer than what such a model is trained on.
fn encoded(run: &Run<'_>, rated: &Rated) -> Result<Option<Answer>> {
    let asked = run.base.renderer.ask(rated.content.conversation())?;
    let (prompt, completion) = (asked.ids().to_vec(), asked.completion(&rated.completion)?);
    let fits = prompt.len() <= run.config.model.max_prompt && completion.len() <= run.config.model.max_completion;
    Ok((fits && !prompt.is_empty()).then_some(Answer { prompt, completion, up: rated.up }))
}
