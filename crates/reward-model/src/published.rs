//! The ranking loss against autograd (`fixtures/reference/pieces.py`), and the head as published.

use crate::ranking_loss;
use candle_core::{DType, Device, Tensor, safetensors};
use instruct_claims::{holds, worst};
use instruct_kernels::Path as KernelPath;
use instruct_model::{Config, Decoder, HeadKind};
use std::path::Path;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn losses_and_gradients_are_those_of_autograd() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/pieces/golden.safetensors");
    let golden = safetensors::load(file, &Device::Cpu).unwrap();
    let of = |name: &str| values(&golden[name]);
    let (ranks, scores, wanted) = (of("rank.ranks"), of("rank.scores"), of("rank.gradient"));
    let mut start = 0;
    for (&n, &loss) in of("rank.lengths").iter().zip(&of("rank.loss")) {
        let group = start..start + n as usize;
        start = group.end;
        let ranks: Vec<u32> = ranks[group.clone()].iter().map(|&rank| rank as u32).collect();
        let scores: Vec<f32> = scores[group.clone()].iter().map(|&score| score as f32).collect();
        let found = ranking_loss(&scores, &instruct_data::pairs(&ranks));
        let case = format!("ranks {ranks:?}");
        holds("pieces/ranking-loss", &case, (found.loss - loss).abs(), 1e-6);
        holds("pieces/ranking-gradient", &case, worst(&found.gradient, &wanted[group]), 1e-6);
    }
}

/// Ziegler et al. 2019: weights N(0, 1/(C + 1)), bias 0. Five standard errors of the estimates.
#[test]
fn a_new_head_has_the_published_statistics() {
    let config = Config::tiny_gpt2(11, 255, 1, 5, 4);
    let trunk = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, KernelPath::Fused, DType::F32).unwrap();
    let mut weights = Vec::new();
    for seed in 0..40 {
        let model = trunk.with_head(HeadKind::Score, seed).unwrap();
        weights.extend(model.params().read("score.weight").unwrap().into_iter().map(f64::from));
        assert_eq!(model.params().read("score.bias").unwrap(), [0.0]);
    }
    let n = weights.len() as f64;
    let mean = weights.iter().sum::<f64>() / n;
    let deviation = (weights.iter().map(|w| w * w).sum::<f64>() / n).sqrt();
    let wanted = 1.0 / 256f64.sqrt();
    holds("pieces/head-initialisation", "mean", mean.abs() / wanted, 5.0 / n.sqrt());
    holds("pieces/head-initialisation", "deviation", (deviation / wanted - 1.0).abs(), 5.0 / n.sqrt());
}
