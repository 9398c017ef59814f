//! People's words become packed batches.
//!
//! Labelers write prompts, demonstrations and rankings, in the formats of many projects. This crate
//! reads them ([`read`]) and refuses what is unusable, all of it at once, by path, line and field;
//! cleans and splits them so that no person is on two sides ([`dedup`], [`cap_per_user`],
//! [`SplitPlan`], [`LeakCheck`]); writes them out for a model and encodes them as it was made for
//! ([`Renderer`], [`Encoder`]); cuts them into micro-batches ([`micro_batches`]); and lays those end
//! to end ([`Packed`]), with no padding, no mask and no position to fix up.
//!
//! Modules import each other in one direction, which a test checks. From the bottom they are `origin`,
//! `leak` and `error`; `bytes` and `json`, with `documents` and `array` above them; then `entry`, `record`,
//! `shapes` and `read`; beside these `hygiene`, `personal` and `jinja` on `record`, and `tokenizer` on `bytes`
//! with `bpe`, `gguf`, `template`, `renderer` and `tokenize` above it.
//!
//! The crate names no device and no tensor. Sources: \[IG\] Ouyang et al. 2022, \[SF\] Stiennon et al. 2020,
//! \[N\] the "N implementation details" replications.
//!
//! # Example
//!
//! ```
//! use instruct_data::*;
//!
//! let folder = std::env::temp_dir().join(format!("instruct-data-example-{}", std::process::id()));
//! std::fs::create_dir_all(&folder)?;
//! let path = folder.join("rankings.jsonl");
//! std::fs::write(&path, r#"{"prompt":"Say yes.","completions":["yes","no","yes!"],"ranks":[1,3,2]}"#)?;
//!
//! let rankings = read::<Ranking>(&[&path], &Limits::default())?.records;
//! let tokenizer = train_bpe(["yes no yes no"], 260, &["<|endoftext|>"])?;
//! let renderer = Renderer::new(tokenizer, Template::plain("User: {prompt}\nAssistant:")?)?;
//! let encoder = Encoder { renderer: &renderer, caps: Caps::halves(128), overlong: Overlong::Drop, loss: Loss::Last };
//! let (groups, report) = encoder.rankings(&rankings)?;
//! assert_eq!(report.kept, 1);
//!
//! // Three completions share one prompt, whose tokens stand in the batch once.
//! let mut batch = Packed::new();
//! let prompt = batch.push(&groups[0].prompt, 0);
//! for completion in &groups[0].completions {
//!     batch.push_completion(prompt, completion, 0, 1.0);
//! }
//! assert_eq!(batch.segments().len(), 4);
//! let last = batch.predictions().last().map(|prediction| prediction.target);
//! assert_eq!(last, Some(renderer.end()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod array;
mod bpe;
mod bytes;
mod date;
mod documents;
mod entry;
mod error;
mod gguf;
mod hygiene;
mod jinja;
mod json;
mod leak;
mod micro;
mod origin;
mod packed;
mod personal;
mod read;
mod record;
mod renderer;
mod shapes;
mod template;
mod tokenize;
mod tokenizer;

pub use crate::{
    bpe::train_bpe,
    bytes::{Limits, read_text},
    date::{Date, DateError},
    error::{Error, Problem, Problems, RecordError},
    gguf::GgufTokenizer,
    hygiene::{CapReport, DedupReport, LeakCheck, Split, SplitPlan, cap_per_user, dedup, sample},
    json::{Remarks, strict_json},
    leak::{Leak, Shared, Side},
    micro::micro_batches,
    origin::Origin,
    packed::{Packed, Prediction, Segment},
    personal::{PersonalKind, PersonalReport, find_personal, remove_personal},
    read::{Read, read, read_reporting},
    record::{
        Content, Conversation, Demonstration, Message, PretrainText, Prompt, Ranking, Record, Role, distinct_pairs,
        pairs,
    },
    renderer::{Asked, Renderer},
    template::Template,
    tokenize::{
        Caps, DemonstrationTokens, EncodeReport, Encoder, Loss, Overlong, PromptTokens, RankingTokens, text_windows,
    },
    tokenizer::Tokenizer,
};
