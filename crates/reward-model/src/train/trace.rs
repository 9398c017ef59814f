//! Ten steps, with ties and K of 2, 4 and 9, against the same steps in torch
//! (`fixtures/reference/traces.py`).

use super::*;
use instruct_golden::{Trace, recorder, scalar_start};
use instruct_model::HeadKind;

#[test]
fn steps_follow_the_reference_in_torch() {
    let trace = Trace::open("reward-model");
    let mut completions = trace.lists("completions").into_iter();
    let prompts = trace.lists("prompts").into_iter().zip(trace.lists("ranks"));
    let group = |(prompt, ranks): (Vec<u32>, Vec<u32>)| Group {
        prompt,
        completions: completions.by_ref().take(ranks.len()).collect(),
        ranks,
    };
    let groups: Vec<Group> = prompts.map(group).collect();
    for micro_tokens in [1, 4_096] {
        let plan = Plan { epochs: 5, batch: 2, lr: 2e-3, spike_z: 0.0, ..Plan::default() };
        let compute = Compute { micro_tokens, ..Compute::default() };
        let mut state = State::new(scalar_start(HeadKind::Score, &trace.floats("head")), &plan).unwrap();
        let mut seen = Vec::new();
        train(&mut state, &groups, &plan, compute, &mut recorder(&mut seen)).unwrap();
        trace.check_metrics(&seen);
        assert_eq!((seen.len(), trace.unknown(&seen)), (10, vec![]));
        trace.check_weights(&state.model, "end");
        trace.check_head(&state.model, "score.weight", "head.end");
        assert_eq!(state.model.params().read("score.bias").unwrap(), [0.0], "no difference of scores sees it");
    }
}
