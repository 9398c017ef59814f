//! I serve: a model answers over HTTP as OpenAI's interface does, and people say on its pages what they think of the
//! answers.
//!
//! The same request gives the same text whatever the load. One thread holds the model and draws for all; connections hand it tickets ([`instruct_model::Engine`]) and write down
//! what it draws. The draws of an answer depend on its seed alone, which the response names, so that
//! `instruct generate --seed` repeats it. Another thread writes down what people say ([`People`]); nobody hears that
//! something is saved before it is on the disk. Nothing opens a file here or reads the clock: models, files, time and
//! chance are handed in.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | completions, whole or as server-sent events |
//! | `GET /v1/models`, `/healthz`, `/metrics` | what is served, whether it lives, counts |
//! | `POST /get_reward` | scores of texts |
//! | `/chat`, `/rank`, `/demonstrate`, `/guidelines`, `/people` | pages |
//! | `/api/...` | what pages ask: sessions, tasks, feedback, progress |
//!
//! [`chat`] and [`completions`] read what clients send and refuse by name what would change the text and is not supported.
//! [`Gate`] says who may come in, [`Store`] where what people say is kept. [`serve`] answers until its [`Stopper`] is told.
//!
//! ```
//! use instruct_serve::chat;
//!
//! let body = br#"{"messages": [{"role": "user", "content": "Name a colour."}], "seed": 7, "user": "somebody"}"#;
//! let asked = chat(body).unwrap();
//! assert_eq!((asked.seed, asked.n, asked.ignored), (Some(7), 1, vec!["user".to_owned()]));
//!
//! let body = br#"{"messages": [{"role": "user", "content": "Name a colour."}], "logit_bias": {"50": -100}}"#;
//! assert_eq!(chat(body).unwrap_err().param.as_deref(), Some("logit_bias"));
//! ```

mod api;
mod asked;
mod body;
mod desk;
mod fields;
mod gate;
mod http;
mod pages;
mod patient;
mod people;
mod refusal;
mod service;
mod spelling;
mod talk;
mod voice;
mod writing;
mod written;

pub use crate::{
    asked::{Asked, Input, Prompt, chat, completions},
    desk::{DeskError, File, Store},
    gate::{Gate, Labeler, digest},
    http::{Stopped, Stopper, serve, stopper},
    people::People,
    refusal::Refusal,
    service::{Handed, Reward, Service},
    voice::Voice,
};
