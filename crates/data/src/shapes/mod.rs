//! How each kind of record is taken out of each shape in which others publish human data; one file
//! for each family of shapes.

mod conversation;
mod hh;
pub(crate) mod house;
mod oasst;
mod tasks;

use crate::{
    entry::{Entry, Extract, Shape},
    record::{Demonstration, PretrainText, Prompt, Ranking},
};

impl Extract for Prompt {
    const KIND: &'static str = "prompts";

    fn extract(entry: &mut Entry<'_>) -> Option<Vec<Prompt>> {
        let one = |prompt| vec![prompt];
        match entry.shape {
            Shape::House => house::prompt(&mut entry.fields()?).map(one),
            Shape::Preference => house::preference(&mut entry.fields()?).map(|r| one(r.prompt)),
            Shape::Transcript => hh::ranking(&mut entry.fields()?).map(|r| one(r.prompt)),
            Shape::Tree => oasst::prompts(&mut entry.fields()?),
            Shape::PandaLm => tasks::pandalm_prompt(&mut entry.fields()?).map(one),
            Shape::SeedTask => tasks::seeds(&mut entry.fields()?)
                .map(|demonstrations| demonstrations.into_iter().map(|d| d.prompt).collect()),
            Shape::Questions => tasks::question(&mut entry.fields()?).map(one),
            Shape::Line => tasks::line(entry).map(one),
            Shape::Text => entry.wrong_kind(),
        }
    }
}

impl Extract for Demonstration {
    const KIND: &'static str = "demonstrations";

    fn extract(entry: &mut Entry<'_>) -> Option<Vec<Demonstration>> {
        match entry.shape {
            Shape::House => house::demonstration(&mut entry.fields()?).map(|d| vec![d]),
            Shape::Tree => oasst::demonstrations(&mut entry.fields()?),
            Shape::SeedTask => tasks::seeds(&mut entry.fields()?),
            _ => entry.wrong_kind(),
        }
    }
}

impl Extract for Ranking {
    const KIND: &'static str = "rankings";

    fn extract(entry: &mut Entry<'_>) -> Option<Vec<Ranking>> {
        let one = |ranking| vec![ranking];
        match entry.shape {
            Shape::House => house::ranking(&mut entry.fields()?).map(one),
            Shape::Preference => house::preference(&mut entry.fields()?).map(one),
            Shape::Transcript => hh::ranking(&mut entry.fields()?).map(one),
            Shape::Tree => oasst::rankings(&mut entry.fields()?),
            Shape::PandaLm => tasks::pandalm(&mut entry.fields()?),
            _ => entry.wrong_kind(),
        }
    }
}

impl Extract for PretrainText {
    const KIND: &'static str = "pretraining text";

    fn extract(entry: &mut Entry<'_>) -> Option<Vec<PretrainText>> {
        match entry.shape {
            Shape::Text => {
                let mut fields = entry.fields()?;
                let text = fields.text("text")?;
                Some(vec![PretrainText { text, origin: fields.origin() }])
            }
            _ => entry.wrong_kind(),
        }
    }
}
