//! How a command that talks to a language model opens it.

use crate::{
    config::{DeviceName, Precision},
    prepare::{Base, Wording, device, open_base, open_decoder},
};
use anyhow::Result;
use instruct_data::Date;
use instruct_model::Decoder;
use std::path::Path;

/// What a person may say of it.
#[derive(clap::Args)]
pub(crate) struct Opening {
    /// Text around a prompt with {prompt} in it; without one, the model's chat template
    #[arg(long, default_value = "")]
    template: String,
    /// Day that the chat template is told, as 2024-07-26; without one, that of the model's folder
    #[arg(long)]
    date: Option<Date>,
    /// What the factors of matrix products are rounded to, where the processor multiplies bf16
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: Precision,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceName,
}

impl Opening {
    /// Opens the model folder or .gguf file, with the way in which prompts are put to it.
    pub(crate) fn open(&self, model: &Path) -> Result<(Base, Decoder)> {
        let device = device(self.device)?;
        let template = super::typed(&self.template);
        let wording = Wording { template: &template, option: "--template", date: self.date };
        let base = open_base(model, wording, &device)?;
        let decoder = open_decoder(model, &device, self.precision)?.1;
        Ok((base, decoder))
    }
}
