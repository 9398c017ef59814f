//! People's words become packed batches.

mod bpe;
mod bytes;
mod error;
mod gguf;
mod hygiene;
mod json;
mod packed;
mod personal;
mod read;
mod record;
mod shapes;
mod template;
mod tokenize;
mod tokenizer;

pub use crate::{
    bpe::train_bpe,
    bytes::Limits,
    error::{Error, Origin, Problem, Problems, RecordError},
    gguf::GgufTokenizer,
    hygiene::{CapReport, DedupReport, Leak, LeakCheck, Shared, Side, Split, SplitPlan, cap_per_user, dedup},
    packed::{Packed, Prediction, Segment},
    personal::{PersonalKind, PersonalReport, find_personal, remove_personal},
    read::{Read, read},
    record::{Content, Conversation, Demonstration, Message, PretrainText, Prompt, Ranking, Record, Role},
    template::Template,
    tokenize::{Caps, DemonstrationTokens, EncodeReport, Encoder, Overlong, PromptTokens, RankingTokens, text_windows},
    tokenizer::Tokenizer,
};
