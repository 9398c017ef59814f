//! How cost grows with one size at a time.

use super::{Job, ModelSettings, Sizes, Stage, Turn, own_turn, shapes};
use anyhow::Result;
use std::fmt;
use xtask::terminal::say;

/// One measurement of a sweep.
#[derive(serde::Serialize)]
pub(super) struct Point {
    /// What was varied.
    sweep: &'static str,
    /// Its size.
    size: usize,
    turn: Turn,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point { sweep, size, turn } = self;
        write!(f, "{sweep:>24} {size:>8}: {:>9.0} tokens/s, {:>6.0} MB", turn.rate(), turn.peak_mb)
    }
}

/// A stage at these sizes, on the tiny shape or on one of another vocabulary.
type Row = (&'static str, usize, Stage, Sizes, usize);

/// Every sweep, each point in a process of its own.
pub(super) fn measure(settings: ModelSettings, steps: usize) -> Result<Vec<Point>> {
    rows().into_iter().map(|row| point(row, settings, steps)).collect()
}

fn point((sweep, size, stage, sizes, vocabulary): Row, settings: ModelSettings, steps: usize) -> Result<Point> {
    say(&format!("{sweep}: {size}"));
    let shape = shapes::parse(&format!("4,256,4,{vocabulary}")).map_err(anyhow::Error::msg)?;
    Ok(Point { sweep, size, turn: own_turn(Job { stage, shape: &shape, sizes, settings, steps })? })
}

fn rows() -> Vec<Row> {
    let sft = |prompts, tokens: usize| Sizes { prompts, k: 1, prompt: 1, completion: tokens - 1 };
    let ranking = |prompts, k, prompt: usize, completion: usize| Sizes { prompts, k, prompt, completion };
    let mut rows: Vec<Row> = Vec::new();
    rows.extend([1, 2, 4, 8, 16, 32, 64].map(|n| ("tokens per batch", n * 128, Stage::Sft, sft(n, 128), 4_096)));
    rows.extend([64, 128, 256, 512, 1_024].map(|n| ("context", n, Stage::Sft, sft(2_048 / n, n), 4_096)));
    rows.extend([2, 4, 9, 16].map(|k| ("K, prompt 64", k, Stage::RewardModel, ranking(16, k, 64, 64), 4_096)));
    // Sequences of 256 tokens, of which so many are prompt.
    rows.extend(
        [0, 64, 128, 192]
            .map(|n| ("prompt of 256, K = 4", n, Stage::RewardModel, ranking(8, 4, n.max(1), 256 - n.max(1)), 4_096)),
    );
    rows.extend([1_024, 4_096, 16_384, 50_257].map(|v| ("vocabulary", v, Stage::Sft, sft(16, 128), v)));
    rows.extend([64, 128, 256, 512, 960].map(|n| ("decoding after", n, Stage::Generate, ranking(16, 1, n, 64), 4_096)));
    rows
}
