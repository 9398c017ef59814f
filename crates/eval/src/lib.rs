//! Judging from numbers alone: values in, values out.
//!
//! Nothing here knows a model, a tensor or a file. Scores, ranks and log-probabilities come in as
//! slices, what is still to be computed comes in as a closure, and what goes out is small enough to
//! print. Every estimate carries its uncertainty: a bootstrap interval over prompts, because the
//! prompts are the sample (none where they are few), or a spread over seeds, because training is one too.
//!
//! ```
//! use instruct_eval::{agreement, best_of_n_kl, expected_best_of_n, win_rate};
//!
//! // Points of two models on the same five prompts, from any judge.
//! let ppo = [3.0, 2.0, 5.0, 4.0, 1.0];
//! let sft = [1.0, 2.0, 4.0, 1.0, 2.0];
//! let wins = win_rate(&ppo, &sft, None)?;
//! assert_eq!((wins.mean, wins.n), (0.7, 5)); // three wins, a tie, a loss
//! assert_eq!(wins.low, None); // five prompts are too few for an interval
//!
//! // What would the best of two samples be worth, and how far from the policy is it?
//! assert_eq!(expected_best_of_n(&sft, &sft, 2)?, 2.7);
//! assert_eq!(best_of_n_kl(1), 0.0);
//!
//! // Do two people agree on the three answers to one prompt?
//! let item = vec![("ann".to_owned(), vec![1, 2, 3]), ("bob".to_owned(), vec![1, 3, 2])];
//! let agreed = agreement(&[item])?;
//! assert_eq!(agreed.all.pairwise.map(|share| share.mean), Some(2.0 / 3.0)); // two pairs of three
//! # Ok::<(), instruct_eval::Error>(())
//! ```

mod agreement;
mod auc;
mod best_of_n;
mod correlation;
mod error;
mod folds;
mod interval;
mod over_optimisation;
mod report_card;
mod select;
mod spread;
mod tax;
mod win_rate;

pub use crate::{
    agreement::{Against, Agreement, Judged, PAPER_AGREEMENT, Place, agreement, position_bias},
    auc::auc,
    best_of_n::{best_of_n_kl, expected_best_of_n, pick},
    correlation::{Correlation, correlation},
    error::Error,
    folds::{Fold, labeler_folds},
    interval::{FEWEST, Interval, RESAMPLES, bootstrap},
    over_optimisation::{Fit, Point, fit_best_of_n, fit_reinforcement, frontier, over_optimisation, turning_point},
    report_card::{Bin, Ranked, ReportCard, accuracy_gain, report_card},
    select::{Selection, select, select_within_kl},
    spread::Spread,
    tax::{AlignmentTax, perplexity},
    win_rate::{Verdict, WinRate, outcomes, win_rate, win_rate_of},
};
