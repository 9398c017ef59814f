//! Trained models of others, which are not in the repository: minGPT's sorter, llama2.c's stories,
//! SmolLM2.

use std::{fs, path::Path as FilePath};

use candle_core::{DType, Device};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{
    Activation, Checkpoint, Config, Decoder, Family, HeadKind, Norm, Pass, Position, Request, Rotary, Sampling,
    Scaling, generate,
};
use instruct_random::Source;
use serde_json::Value;

use crate::{floats, shared};

fn empty(config: Config) -> Decoder {
    Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap()
}

/// Standard base64 without line breaks.
fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&c| c != b'=').map(digit).collect();
    let group = |four: &[u8]| {
        let bits = four.iter().enumerate().fold(0u32, |bits, (i, &d)| bits | u32::from(d) << (26 - 6 * i));
        bits.to_be_bytes()[..four.len() * 3 / 4].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

fn read_json(file: &FilePath) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn decoded(tensor: &Value) -> Vec<f32> {
    floats(&base64(tensor["data"].as_str().unwrap()))
}

/// minGPT keeps `nn.Linear`'s `(out, in)`, so only the names differ from ours.
fn sorter(file: &FilePath) -> Decoder {
    let model = read_json(file);
    let decoder = empty(Config { tied: false, ..Config::tiny_gpt2(3, 48, 3, 3, 11) });
    let set = |ours: &str, theirs: &str| decoder.params().set(ours, &decoded(&model[theirs])).unwrap();
    set("embed.weight", "transformer.wte.weight");
    set("position.weight", "transformer.wpe.weight");
    set("lm_head.weight", "lm_head.weight");
    for part in ["weight", "bias"] {
        set(&format!("norm.{part}"), &format!("transformer.ln_f.{part}"));
        for layer in 0..3 {
            for (ours, theirs) in [
                ("attn_norm", "ln_1"),
                ("qkv", "attn.c_attn"),
                ("attn_out", "attn.c_proj"),
                ("mlp_norm", "ln_2"),
                ("up", "mlp.c_fc"),
                ("down", "mlp.c_proj"),
            ] {
                set(&format!("layers.{layer}.{ours}.{part}"), &format!("transformer.h.{layer}.{theirs}.{part}"));
            }
        }
    }
    decoder
}

fn logits(decoder: &Decoder, sequences: &[Vec<u32>]) -> Vec<f32> {
    let mut batch = Packed::new();
    for (example, sequence) in sequences.iter().enumerate() {
        batch.push(sequence, example as u64);
    }
    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
    kernels::logits(&hidden, decoder.unembedding().unwrap()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn gpt_nano_has_its_documented_logits_and_sorts_everything() {
    let Some(model) = shared("models/gpt-nano-sort/gpt-nano-sort-model.json") else { return };
    let partials = read_json(&model.with_file_name("gpt-nano-sort-t0-partials.json"));
    let decoder = sorter(&model);
    let ids: Vec<u32> = decoded(&partials["idx"]).iter().map(|&id| id as u32).collect();
    let sequences: Vec<Vec<u32>> = ids.chunks(11).map(<[u32]>::to_vec).collect();
    let found = logits(&decoder, &sequences);
    let worst = found.iter().zip(decoded(&partials["lm_head"])).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == 99 && worst < 1e-4, "logits differ by {worst}");

    let requests: Vec<Request> = (0..729u32)
        .map(|n| Request { episode: u64::from(n), prompt: (0..6).map(|i| n / 3u32.pow(i) % 3).collect() })
        .collect();
    // Eleven positions hold the input and all of the answer but its last digit, which needs none.
    let sampling = Sampling { temperature: 0.0, ..Sampling::plain([].into(), 6) };
    for (request, completion) in
        requests.iter().zip(generate(&decoder, &requests, &sampling, Source::new(1, "greedy")).unwrap())
    {
        let mut sorted = request.prompt.clone();
        sorted.sort_unstable();
        assert_eq!(completion.ids, sorted[..completion.ids.len()], "{:?}", request.prompt);
        assert!(completion.ids.len() >= 5, "{:?}", request.prompt);
    }
}

/// llama2.c's version 0: seven counts, then tensors that hold one kind for all layers.
fn stories(file: &FilePath) -> Decoder {
    let bytes = fs::read(file).unwrap();
    let count = |i: usize| i32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()) as usize;
    let [width, inner, layers, heads, kv_heads, vocab, context] = [0, 1, 2, 3, 4, 5, 6].map(count);
    let head_dim = width / heads;
    let decoder = empty(Config {
        family: Family::Llama,
        kv_heads,
        inner,
        norm: Norm::Rms { eps: 1e-5 },
        position: Position::Rotary(Rotary { theta: 10_000.0, dim: head_dim, scaling: Scaling::None }),
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        bos: Some(1),
        eos: [2].into(),
        ..Config::tiny_gpt2(vocab, width, layers, heads, context)
    });
    let all = floats(&bytes[28..]);
    let mut rest = &all[..];
    let mut take = |len: usize| rest.split_off(..len).unwrap();
    let kv = kv_heads * head_dim;
    let embed = take(vocab * width);
    let mut each = |len: usize| take(layers * len).chunks(len).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (attn_norm, q, k, v) = (each(width), each(width * width), each(kv * width), each(kv * width));
    let (out, mlp_norm) = (each(width * width), each(width));
    let (gate, down, up) = (each(inner * width), each(width * inner), each(inner * width));
    let norm = take(width);
    let set = |name: String, values: &[f32]| decoder.params().set(&name, values).unwrap();
    set("embed.weight".to_owned(), embed);
    set("norm.weight".to_owned(), norm);
    for i in 0..layers {
        let name = |part: &str| format!("layers.{i}.{part}.weight");
        let qkv = [halves(&q[i], head_dim, width), halves(&k[i], head_dim, width), v[i].clone()].concat();
        set(name("attn_norm"), &attn_norm[i]);
        set(name("qkv"), &qkv);
        set(name("attn_out"), &out[i]);
        set(name("mlp_norm"), &mlp_norm[i]);
        set(name("gate_up"), &[&gate[i][..], &up[i]].concat());
        set(name("down"), &down[i]);
    }
    decoder
}

/// llama2.c rotates neighbours: rows `2 j`, `2 j + 1` of a head are its `j`-th pair.
fn halves(values: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let head = |rows: &[f32]| {
        let rows: Vec<&[f32]> = rows.chunks(columns).collect();
        let (even, odd) = (rows.iter().step_by(2), rows.iter().skip(1).step_by(2));
        even.chain(odd).flat_map(|row| row.to_vec()).collect::<Vec<f32>>()
    };
    values.chunks(head_dim * columns).flat_map(head).collect()
}

/// llama2.c's tokenizer file: the longest token's length, then score, length and bytes of each.
fn pieces(file: &FilePath) -> Vec<String> {
    let bytes = fs::read(file).unwrap();
    let (mut at, mut pieces) = (4, Vec::new());
    while at < bytes.len() {
        let len = i32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let text = String::from_utf8_lossy(&bytes[at + 8..at + 8 + len]).into_owned();
        pieces.push(if text == "<0x0A>" { "\n".to_owned() } else { text });
        at += 8 + len;
    }
    pieces
}

#[test]
fn stories_tells_its_documented_story() {
    let Some(model) = shared("models/stories260K/stories260K.bin") else { return };
    let pieces = pieces(&model.with_file_name("tok512.bin"));
    let sampling = Sampling { temperature: 0.0, ..Sampling::plain([1, 2].into(), 120) };
    let requests = [Request { episode: 0, prompt: vec![1] }];
    let completion = &generate(&stories(&model), &requests, &sampling, Source::new(1, "greedy")).unwrap()[0];
    let text: String = completion.ids.iter().map(|&id| pieces[id as usize].as_str()).collect();
    let documented = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
        One day, she saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \
        \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to play with \
        your ball, but";
    assert!(text.trim_start().starts_with(documented), "{text}");
}

/// The file that the script `get-smollm2.sh` fetches, where it has run.
#[test]
fn smollm2_opens() {
    let Some(file) = crate::smollm2() else { return };
    let checkpoint = Checkpoint::open(&file).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.vocab, config.width, config.layers, config.heads, config.kv_heads), (49152, 576, 30, 9, 3));
    assert_eq!(config.parameters(HeadKind::LanguageModel), 134_515_008);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.tokens.len(), config.vocab);
    assert!(tokenizer.chat_template.is_some() && !tokenizer.merges.is_empty());
    let decoder = Decoder::from_checkpoint(&checkpoint, &Device::Cpu, Path::Fused, DType::F32).unwrap();
    // "The capital of France is" continues with " Paris".
    let ids = instruct_data::Tokenizer::from_gguf(tokenizer).unwrap().encode("The capital of France is").unwrap();
    assert_eq!(ids.len(), 5);
    let logits = logits(&decoder, &[ids]);
    let last = &logits[logits.len() - config.vocab..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(tokenizer.tokens[best], "ĠParis");
}
