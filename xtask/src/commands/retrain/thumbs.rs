//! How well old and new reward model tell answers with a thumb up from those with one down. Thumbs of answers that are in
//! a pair too are left out, so neither model was trained on one of these.

use super::{Retrained, model_of};
use crate::{
    stages::Run,
    terminal::{print, say},
};
use anyhow::Result;
use instruct_eval::auc;
use instruct_feedback::Rated;
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

/// An answer in token ids.
struct Answer {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    up: bool,
}

/// Measures and says it, if there were thumbs when the run began. It decides nothing, so it ends no run.
pub(super) fn tell(run: &Run<'_>, retrained: &Retrained) -> Result<()> {
    let rated = retrained.thumbs().unwrap_or_else(|why| {
        say(&format!("warning: thumbs are not measured: {why:#}"));
        Vec::new()
    });
    let answers: Vec<Answer> = rated.iter().filter_map(|rated| encoded(run, rated)).collect();
    if answers.is_empty() {
        return Ok(());
    }
    let up = answers.iter().filter(|answer| answer.up).count();
    let down = answers.len() - up;
    let new = area(run, &run.open_reward_model()?, &answers)?;
    let old = area(run, &run.open(&model_of(retrained.from(), "reward-model"))?, &answers)?;
    print(&match new.zip(old) {
        Some((new, old)) => format!(
            "thumbs, {up} up and {down} down: up scores above down in {:.1} % of pairs by the new reward model, {:.1} % \
             by the old one",
            100.0 * new,
            100.0 * old
        ),
        None => format!("thumbs, {up} up and {down} down: they measure a reward model once there are some of either"),
    });
    run.dir.write_json("eval/thumbs.json", &Thumbs { up, down, new, old })?;
    Ok(())
}

fn area(run: &Run<'_>, reward_model: &Decoder, answers: &[Answer]) -> Result<Option<f64>> {
    let scores = run.scores_of("thumbs", reward_model, &answers.iter().map(item).collect::<Vec<_>>())?;
    let of = |up: bool| -> Vec<f64> {
        let scored = answers.iter().zip(&scores).filter(|(answer, _)| answer.up == up);
        scored.map(|(_, score)| f64::from(*score)).collect()
    };
    Ok(auc(&of(true), &of(false))?)
}

fn item(answer: &Answer) -> Item<'_> {
    Item { prompt: &answer.prompt, completion: &answer.completion }
}

/// An answer as the reward model reads it; none where it is longer than what such a model is trained on, or cannot be
/// written with the template of the run.
fn encoded(run: &Run<'_>, rated: &Rated) -> Option<Answer> {
    let asked = run.base.renderer.ask(rated.content.conversation()).ok()?;
    let (prompt, completion) = (asked.ids().to_vec(), asked.completion(&rated.completion).ok()?);
    let fits = prompt.len() <= run.config.model.max_prompt && completion.len() <= run.config.model.max_completion;
    (fits && !prompt.is_empty()).then_some(Answer { prompt, completion, up: rated.up })
}
