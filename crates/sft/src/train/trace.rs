//! Twelve steps against the same steps in torch (`fixtures/reference/traces.py`).

use super::*;
use instruct_golden::{Trace, recorder, start};

#[test]
fn steps_follow_the_reference_in_torch() {
    let trace = Trace::open("sft");
    let pairs = trace.lists("prompts").into_iter().zip(trace.lists("completions"));
    let demonstrations: Vec<Example> = pairs.map(|(prompt, completion)| Example { prompt, completion }).collect();
    let windows = trace.lists("windows");
    let data = Data { demonstrations: &demonstrations, pretraining: &windows };
    for micro_tokens in [1, 4_096] {
        let (batch, lr, pretraining_share) = (4, 3e-3, 0.25);
        let plan = Plan { epochs: 4, batch, lr, dropout: 0.0, pretraining_share, ..Plan::default() };
        let compute = Compute { micro_tokens, ..Compute::default() };
        let mut state = State::new(start(), &plan).unwrap();
        let mut seen = Vec::new();
        train(&mut state, &data, &plan, compute, &mut recorder(&mut seen)).unwrap();
        trace.check_metrics(&seen);
        assert_eq!((seen.len(), trace.unknown(&seen)), (12, vec![]));
        trace.check_weights(&state.model, "end");
    }
}
