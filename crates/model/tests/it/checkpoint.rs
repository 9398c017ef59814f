//! Folders: what is written reads back, and every kind of damage has its message.

use std::{fs, path::Path};

use instruct_model::{Checkpoint, Config, Error, HeadKind, Position, Precision, Rotary, Scaling, save};
use serde_json::{Value, json};

use crate::{CASES, copy_folder, fixtures, padded_as, tensors};

/// Opening, writing and opening again gives the same description and the same bits, and the file
/// holds the very tensors of the one that transformers wrote.
#[test]
fn folders_survive_the_round_trip() {
    for case in CASES {
        let original = Checkpoint::open(fixtures().join(case)).unwrap();
        let written = tempfile::tempdir().unwrap();
        let get = |name: &str| original.tensor(name);
        save(written.path(), original.config(), original.head(), &get, Precision::F32).unwrap();
        let again = Checkpoint::open(written.path()).unwrap();
        assert_eq!(padded_as(again.config(), original.config()), *original.config(), "{case}");
        assert_eq!(again.tensors().unwrap(), original.tensors().unwrap(), "{case}");

        let theirs: Vec<_> = fs::read_dir(fixtures().join(case)).unwrap().map(|entry| entry.unwrap().path()).collect();
        let weights = |path: &&std::path::PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("model") && name.ends_with(".safetensors")
        };
        let theirs: Vec<_> = theirs.iter().filter(weights).flat_map(|file| tensors(file)).collect();
        let ours = tensors(&written.path().join("model.safetensors"));
        assert_eq!(ours, theirs.into_iter().collect(), "{case}");
    }
}

/// Transformers 5 puts the rotation into `rope_parameters`; 4 had names of NeoX's own for it.
#[test]
fn neox_rotates_as_much_as_either_spelling_says() {
    let rotary = |changes: &[(&str, Option<Value>)]| {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures().join("neox-parallel"), folder.path());
        for (field, value) in changes {
            edit("config.json", field, value.clone())(folder.path());
        }
        match Checkpoint::open(folder.path()).unwrap().config().position {
            Position::Rotary(Rotary { theta, dim, .. }) => (theta, dim),
            Position::Learned => panic!("learned positions"),
        }
    };
    assert_eq!(rotary(&[]), (10_000.0, 4));
    let bare = ("rope_parameters", None);
    assert_eq!(rotary(std::slice::from_ref(&bare)), (10_000.0, 2), "a quarter of eight");
    let pythia = [bare, ("rotary_pct", Some(json!(0.8))), ("rotary_emb_base", Some(json!(700)))];
    assert_eq!(rotary(&pythia), (700.0, 6), "6.4, cut off");
}

/// The layers of a description that have a window and those that rotate, after some changes of `config.json`.
#[track_caller]
fn layers(case: &str, changes: &[(&str, Option<Value>)], windows: &[usize], rotations: &[usize]) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join(case), folder.path());
    for (field, value) in changes {
        edit("config.json", field, value.clone())(folder.path());
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = checkpoint.config();
    let which = |has: &dyn Fn(usize) -> bool| (0..config.layers).filter(|&layer| has(layer)).collect::<Vec<_>>();
    assert_eq!(which(&|layer| config.window(layer).is_some()), windows, "{changes:?}: windows");
    assert_eq!(which(&|layer| config.rotary(layer).is_some()), rotations, "{changes:?}: rotations");
}

#[test]
fn kinds_of_layers_are_read_in_every_spelling() {
    layers("qwen2-mixed", &[], &[2], &[0, 1, 2]);
    let bare = ("layer_types", None);
    layers("qwen2-mixed", std::slice::from_ref(&bare), &[2], &[0, 1, 2]);
    layers("qwen2-mixed", &[bare.clone(), ("max_window_layers", Some(json!(1)))], &[1, 2], &[0, 1, 2]);
    layers("qwen2-mixed", &[bare.clone(), ("max_window_layers", None)], &[], &[0, 1, 2]);
    layers("qwen2-mixed", &[("use_sliding_window", Some(json!(false)))], &[], &[0, 1, 2]);
    layers("smollm3", &[], &[2, 3], &[0, 1, 3]);
    layers("smollm3", std::slice::from_ref(&bare), &[2], &[0, 1, 3]);
    layers("smollm3", &[("use_sliding_window", None)], &[], &[0, 1, 3]);
    let unlisted = ("no_rope_layers", None);
    layers("smollm3", &[unlisted.clone(), ("no_rope_layer_interval", None)], &[2, 3], &[0, 1, 2]);
    layers("smollm3", &[unlisted, ("no_rope_layer_interval", Some(json!(2))), bare.clone()], &[1, 3], &[0, 2]);
    layers("gemma2", &[], &[0, 2], &[0, 1, 2]);
    layers("gemma2", std::slice::from_ref(&bare), &[0, 2], &[0, 1, 2]);
    let all: Vec<usize> = (0..7).collect();
    layers("gemma3", &[], &[0, 1, 3, 4, 6], &all);
    let pattern = |period: Option<Value>| [bare.clone(), ("sliding_window_pattern", period)];
    layers("gemma3", &pattern(Some(json!(4))), &[0, 1, 2, 4, 5, 6], &all);
    layers("gemma3", &pattern(None), &[0, 1, 2, 3, 4, 6], &all);
}

/// Transformers 5 writes an object for each kind of layer; 4 wrote three fields, of which 1B has no `rope_scaling`.
#[test]
fn gemma3_rotates_as_either_spelling_says() {
    let rotations = |changes: &[(&str, Option<Value>)]| {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures().join("gemma3"), folder.path());
        for (field, value) in changes {
            edit("config.json", field, value.clone())(folder.path());
        }
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        [0, 2].map(|layer| checkpoint.config().rotary(layer).map(|rotary| (rotary.theta, rotary.scaling)).unwrap())
    };
    let stretched = Scaling::Linear { factor: 8.0 };
    assert_eq!(rotations(&[]), [(50.0, Scaling::None), (700.0, stretched)]);
    let bare = ("rope_parameters", None);
    assert_eq!(rotations(std::slice::from_ref(&bare)), [(10_000.0, Scaling::None), (1e6, Scaling::None)]);
    let older = [
        bare,
        ("rope_theta", Some(json!(900))),
        ("rope_local_base_freq", Some(json!(90))),
        ("rope_scaling", Some(json!({"rope_type": "linear", "factor": 8.0}))),
    ];
    assert_eq!(rotations(&older), [(90.0, Scaling::None), (900.0, stretched)]);
}

/// A cap that the file does not name is the family's own, and null is none.
#[test]
fn caps_have_a_default_and_may_be_null() {
    let caps = |case: &str, value: Option<Value>| {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures().join(case), folder.path());
        for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
            edit("config.json", field, value.clone())(folder.path());
        }
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (checkpoint.config().attention_softcap, checkpoint.config().final_softcap)
    };
    assert_eq!(caps("gemma2", None), (Some(50.0), Some(30.0)));
    assert_eq!(caps("gemma3", None), (None, None));
    for case in ["gemma2", "gemma3"] {
        assert_eq!(caps(case, Some(Value::Null)), (None, None));
        assert_eq!(caps(case, Some(json!(7))), (Some(7.0), Some(7.0)));
    }
}

#[test]
fn the_same_weights_give_the_same_bytes() {
    let original = Checkpoint::open(fixtures().join("qwen3")).unwrap();
    let files = [(); 2].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        let get = |name: &str| original.tensor(name);
        save(folder.path(), original.config(), original.head(), &get, Precision::F32).unwrap();
        ["config.json", "generation_config.json", "model.safetensors"].map(|f| fs::read(folder.path().join(f)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn bfloat16_rounds_and_nothing_else() {
    let original = Checkpoint::open(fixtures().join("gpt2-tied")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), original.config(), original.head(), &|n| original.tensor(n), Precision::Bf16).unwrap();
    let again = Checkpoint::open(folder.path()).unwrap();
    for (name, values) in original.tensors().unwrap() {
        let rounded: Vec<f32> = values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(again.tensor(&name).unwrap(), rounded, "{name}");
    }
}

/// The trunk of a case under a scalar head of weight 0.5, -0.25, ... and this bias.
fn scalar(case: &str, bias: f32) -> (Config, impl Fn(&str) -> instruct_model::Result<Vec<f32>>) {
    let trunk = Checkpoint::open(fixtures().join(case)).unwrap();
    let config = trunk.config().clone();
    let width = config.width;
    let get = move |name: &str| match name {
        "score.weight" => Ok((0..width).map(|i| if i % 2 == 0 { 0.5 } else { -0.25 }).collect()),
        "score.bias" => Ok(vec![bias]),
        _ => trunk.tensor(name),
    };
    (config, get)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Reloading gives the exact parameters; what transformers sees has the bias in its final norm.
#[track_caller]
fn check_reward_model(case: &str, bias: f32, precision: Precision, folds: bool) {
    let (config, get) = scalar(case, bias);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &config, HeadKind::Score, &get, precision).unwrap();
    let again = Checkpoint::open(folder.path()).unwrap();
    assert_eq!((again.head(), padded_as(again.config(), &config)), (HeadKind::Score, config.clone()));
    assert_eq!(again.tensor("score.bias").unwrap(), [bias]);

    let disk = tensors(&folder.path().join("model.safetensors"));
    assert!(!disk.contains_key("score.bias"));
    if folds {
        assert_eq!(again.tensor("norm.bias").unwrap(), get("norm.bias").unwrap());
        let weight = get("score.weight").unwrap();
        let shift = dot(&disk["transformer.ln_f.bias"].1, &weight) - dot(&get("norm.bias").unwrap(), &weight);
        let tolerance = if precision == Precision::F32 { 1e-5 } else { 0.02 };
        assert!((shift - f64::from(bias)).abs() < tolerance, "the folded bias is {shift}, not {bias}");
    }
    if precision == Precision::F32 {
        for (name, _) in config.specs(HeadKind::Score) {
            assert_eq!(again.tensor(&name).unwrap(), get(&name).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_reward_models_bias_is_folded_for_others_and_exact_for_us() {
    check_reward_model("gpt2-tied", 1.7, Precision::F32, true);
    check_reward_model("gpt2-untied", -0.3, Precision::F32, true);
    check_reward_model("gpt2-tied", 1.7, Precision::Bf16, true);
    check_reward_model("gpt2-tied", 0.0, Precision::F32, true);
    check_reward_model("llama-untied", 1.7, Precision::F32, false);
    check_reward_model("qwen2-tied", -2.5, Precision::Bf16, false);
}

/// Somebody trained on what we wrote: the norm's bias on disk counts, and holds our bias already.
#[test]
fn a_reward_model_changed_by_others_is_taken_as_it_is() {
    let (config, get) = scalar("gpt2-tied", 1.7);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &config, HeadKind::Score, &get, Precision::F32).unwrap();
    let moved = |name: &str| match name {
        "norm.bias" => Ok(vec![0.125; config.width]),
        "score.bias" => Ok(vec![0.0]),
        _ => get(name),
    };
    let other = tempfile::tempdir().unwrap();
    save(other.path(), &config, HeadKind::Score, &moved, Precision::F32).unwrap();
    fs::copy(other.path().join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let again = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(again.tensor("score.bias").unwrap(), [0.0]);
    assert_eq!(again.tensor("norm.bias").unwrap(), vec![0.125; config.width]);
}

#[test]
fn a_value_model_keeps_its_bias() {
    for case in ["gpt2-tied", "mistral", "gemma3"] {
        for head in [HeadKind::Value, HeadKind::LanguageModelWithValue] {
            let (config, get) = scalar(case, -0.7);
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), &config, head, &get, Precision::F32).unwrap();
            let again = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(again.head(), head);
            for (name, _) in config.specs(head) {
                assert_eq!(again.tensor(&name).unwrap(), get(&name).unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn a_description_that_a_family_cannot_express_is_not_written() {
    let mut config = Config::tiny_gpt2(5, 4, 1, 2, 8);
    config.sliding_window = Some(3);
    let folder = tempfile::tempdir().unwrap();
    let zeros = |_: &str| unreachable!("no weight is asked for");
    let error = save(folder.path(), &config, HeadKind::LanguageModel, &zeros, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("gpt2 cannot express"), "{error}");

    // Transformers would rotate all of each head.
    let mut config = Checkpoint::open(fixtures().join("llama-1-to-1")).unwrap().config().clone();
    config.position = Position::Rotary(Rotary { theta: 1e4, dim: 2, scaling: Scaling::None });
    let error = save(folder.path(), &config, HeadKind::LanguageModel, &zeros, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("llama cannot express"), "{error}");
}

/// Damages a copy of `case` and expects a message with all of `expected`.
#[track_caller]
fn refuses(case: &str, damage: impl FnOnce(&Path), expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join(case), folder.path());
    damage(folder.path());
    let message = match Checkpoint::open(folder.path()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(folder.path().to_str().unwrap()), "no path in: {message}");
    for part in expected {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// Sets one field of a JSON file, or removes it.
fn edit(file: &str, field: &str, value: Option<Value>) -> impl FnOnce(&Path) {
    let (file, field) = (file.to_owned(), field.to_owned());
    move |folder| {
        let path = folder.join(file);
        let mut object: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match value {
            Some(value) => object[field] = value,
            None => drop(object.as_object_mut().unwrap().remove(&field)),
        }
        fs::write(path, object.to_string()).unwrap();
    }
}

/// Rewrites the weights after a change to the map of tensors.
fn retensor(
    change: impl FnOnce(&mut std::collections::BTreeMap<String, (Vec<usize>, Vec<f32>)>),
) -> impl FnOnce(&Path) {
    move |folder| {
        let path = folder.join("model.safetensors");
        let mut map = tensors(&path);
        change(&mut map);
        let bytes: Vec<Vec<u8>> = map.values().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = map.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The ids that end a text according to the description, and according to the tokenizer of the same folder,
/// whose EOS is 2.
#[track_caller]
fn check_ends(config: Value, generation: Option<Value>, want: &[u32]) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join("gpt2-tied"), folder.path());
    edit("config.json", "eos_token_id", Some(config))(folder.path());
    match generation {
        Some(eos) => edit("generation_config.json", "eos_token_id", Some(eos))(folder.path()),
        None => fs::remove_file(folder.path().join("generation_config.json")).unwrap(),
    }
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<|endoftext|>": 2}, "merges": []},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut ends = Checkpoint::open(folder.path()).unwrap().config().eos.clone();
    assert_eq!(ends.iter().copied().collect::<Vec<_>>(), want);
    ends.insert(2);
    assert_eq!(*instruct_data::Tokenizer::from_folder(folder.path()).unwrap().stops(), ends);
}

#[test]
fn texts_end_at_the_ids_of_the_file_that_transformers_hears() {
    check_ends(json!([7, 5]), None, &[5, 7]);
    check_ends(json!([7, 5]), Some(Value::Null), &[5, 7]);
    check_ends(json!([7, 5]), Some(json!([])), &[5, 7]);
    check_ends(json!([7, 5]), Some(json!(9)), &[9]);
    check_ends(Value::Null, Some(json!([9, 8])), &[8, 9]);
    refuses("gpt2-tied", edit("generation_config.json", "eos_token_id", Some(json!(51))), &["special token 51"]);
}

#[test]
fn descriptions_are_refused_by_field() {
    let config = |field, value| edit("config.json", field, value);
    refuses(
        "gpt2-tied",
        |f| fs::remove_file(f.join("config.json")).unwrap(),
        &["config.json", "cannot read", "give a folder"],
    );
    refuses("gpt2-tied", |f| fs::write(f.join("config.json"), "{").unwrap(), &["no JSON object", "line 1"]);
    refuses(
        "gpt2-tied",
        config("model_type", Some(json!("bert"))),
        &["model_type is \"bert\"", "gpt2, gpt_neox, llama"],
    );
    refuses("gpt2-tied", config("model_type", None), &["model_type is missing"]);
    refuses("gpt2-tied", config("n_embd", None), &["n_embd is missing"]);
    refuses("gpt2-tied", config("n_layer", Some(json!("three"))), &["n_layer is \"three\", not a whole number"]);
    refuses("gpt2-tied", config("n_head", Some(json!(3))), &["n_head (3) does not divide n_embd (20)"]);
    refuses("gpt2-tied", config("n_layer", Some(json!(1u64 << 40))), &["layers is 1099511627776"]);
    refuses("gpt2-tied", config("activation_function", Some(json!("relu"))), &["activation_function is \"relu\""]);
    refuses("gpt2-tied", config("scale_attn_weights", Some(json!(false))), &["scale_attn_weights is false"]);
    refuses("gpt2-tied", config("eos_token_id", Some(json!(51))), &["special token 51", "vocabulary of 51"]);
    refuses("qwen3", config("num_key_value_heads", Some(json!(4))), &["kv_heads (4) does not divide heads (6)"]);
    refuses("qwen3", config("quantization_config", Some(json!({}))), &["quantization_config is set"]);
    refuses(
        "llama3-tied",
        config("rope_parameters", Some(json!({"rope_type": "longrope"}))),
        &["rope_parameters.rope_type is \"longrope\"", "default, linear, dynamic, yarn, llama3"],
    );
    refuses(
        "llama3-tied",
        config("rope_parameters", Some(json!({"rope_type": "yarn"}))),
        &["rope_parameters.factor is missing"],
    );
    refuses(
        "llama3-tied",
        config("rope_parameters", Some(json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}))),
        &["rotary scaling Yarn", "slow below fast"],
    );
    refuses(
        "llama-1-to-1",
        config("rope_parameters", Some(json!({"partial_rotary_factor": 0.5}))),
        &["partial_rotary_factor is not 1"],
    );
    refuses("neox-parallel", config("hidden_act", Some(json!("relu"))), &["hidden_act is \"relu\""]);
    refuses("neox-parallel", config("num_attention_heads", Some(json!(5))), &["(5) does not divide hidden_size (24)"]);
    refuses(
        "neox-parallel",
        config("rope_parameters", Some(json!({"partial_rotary_factor": 0.4}))),
        &["rotary dim 3 must be even"],
    );
    refuses("gemma2", config("hidden_activation", Some(json!("silu"))), &["hidden_activation is not gelu_pytorch"]);
    refuses("gemma2", config("attn_logit_softcapping", Some(json!(0.0))), &["attention_softcap is 0"]);
    refuses("gemma3", config("use_bidirectional_attention", Some(json!(true))), &["use_bidirectional_attention is"]);
    refuses("gemma3", config("sliding_window", Some(Value::Null)), &["sliding_window is null"]);
    let types = |types: Value| move |folder: &Path| config("layer_types", Some(types))(folder);
    refuses("qwen2-mixed", types(json!(["full_attention"])), &["layer_types lists 1 layers of 3"]);
    let chunked = json!(["full_attention", "chunked_attention", "sliding_attention"]);
    refuses("qwen2-mixed", types(chunked), &["layer_types lists \"chunked_attention\"; known are full_attention"]);
    refuses("smollm3", config("no_rope_layers", Some(json!([1, 0]))), &["no_rope_layers lists 2 layers of 4"]);
    refuses("smollm3", config("no_rope_layers", Some(json!([1, 0, 2, 1]))), &["no_rope_layers lists 2; known are"]);
    let two = |folder: &Path| {
        config("n_embd", None)(folder);
        config("vocab_size", Some(json!(-1)))(folder);
    };
    refuses("gpt2-tied", two, &["n_embd is missing", "vocab_size is -1"]);
}

#[test]
fn tensors_are_refused_together_and_by_name() {
    let three = retensor(|map| {
        let moved = map.remove("transformer.h.0.ln_1.weight").unwrap();
        map.insert("transformer.h.0.ln_9.weight".to_owned(), moved);
        map.get_mut("transformer.h.1.attn.c_attn.weight").unwrap().0.reverse();
    });
    refuses(
        "gpt2-tied",
        three,
        &[
            "missing: transformer.h.0.ln_1.weight [20]",
            "unexpected: transformer.h.0.ln_9.weight",
            "misshaped: transformer.h.1.attn.c_attn.weight is [60, 20], not [20, 60]",
        ],
    );
    // A token classifier of transformers has a bias, and a reward model one score.
    let headless = retensor(|map| drop(map.remove("classifier.bias")));
    refuses("incoming/neox-values", headless, &["missing: classifier.bias [1]"]);
    let classes = retensor(|map| drop(map.insert("score.weight".to_owned(), (vec![2, 12], vec![0.5; 24]))));
    refuses("incoming/llama-scores", classes, &["misshaped: score.weight is [2, 12], not [1, 12]"]);
    let other = retensor(|map| drop(map.insert("lm_head.weight".to_owned(), (vec![51, 20], vec![0.5; 51 * 20]))));
    refuses("gpt2-tied", other, &["unexpected: lm_head.weight"]);
    refuses("gpt2-tied", edit("config.json", "tie_word_embeddings", Some(json!(false))), &["missing: lm_head.weight"]);
    refuses(
        "gpt2-tied",
        edit("config.json", "vocab_size", Some(json!(52))),
        &["misshaped: transformer.wte.weight is [51, 20], not [52, 20]"],
    );
}

/// A folder with more than its parameters, and without the trunk's prefix, opens as the original.
#[track_caller]
fn opens(case: &str, prefix: &str, head: Option<(&str, &str)>, extras: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join(case), folder.path());
    let original = Checkpoint::open(folder.path()).unwrap().tensors().unwrap();
    let change = retensor(|map| {
        if let Some((head, embedding)) = head {
            map.insert(head.to_owned(), map[embedding].clone());
        }
        map.extend(extras.iter().map(|&extra| (extra.to_owned(), (vec![1], vec![1.0]))));
        *map = map.iter().map(|(name, t)| (name.trim_start_matches(prefix).to_owned(), t.clone())).collect();
    });
    change(folder.path());
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors().unwrap(), original, "{case}");
}

#[test]
fn harmless_extras_and_bare_trunks_open() {
    let tied = Some(("lm_head.weight", "transformer.wte.weight"));
    opens("gpt2-tied", "transformer.", tied, &["transformer.h.0.attn.bias"]);
    let tied = Some(("embed_out.weight", "gpt_neox.embed_in.weight"));
    let masks = ["bias", "masked_bias", "rotary_emb.inv_freq"].map(|m| format!("gpt_neox.layers.1.attention.{m}"));
    opens("neox-sequential", "gpt_neox.", tied, &masks.each_ref().map(String::as_str));
    opens("neox-parallel", "-", None, &masks.each_ref().map(String::as_str));
    opens("llama-1-to-1", "model.", None, &["model.layers.0.self_attn.rotary_emb.inv_freq"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    for (broken, says) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixtures().join("gpt2-tied"), folder.path());
        let name = "transformer.h.1.mlp.c_fc.weight";
        retensor(|map| map.get_mut(name).unwrap().1[7] = broken)(folder.path());
        let message = Checkpoint::open(folder.path()).unwrap().tensors().unwrap_err().to_string();
        for part in [WEIGHTS, &format!("{name} holds {says} at element 7"), "make the file again"] {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
    }
}

#[test]
fn damaged_files_are_refused() {
    let cut = |at: usize| {
        move |f: &Path| {
            let bytes = fs::read(f.join(WEIGHTS)).unwrap();
            fs::write(f.join(WEIGHTS), &bytes[..at]).unwrap();
        }
    };
    refuses("gpt2-tied", cut(0), &["0 bytes are no safetensors file", "copy or download"]);
    refuses("gpt2-tied", cut(500), &["truncated"]);
    refuses("gpt2-tied", cut(50_000), &["truncated or damaged"]);
    refuses(
        "gpt2-tied",
        |f| fs::write(f.join(WEIGHTS), "version https://git-lfs.github.com/spec/v1").unwrap(),
        &["git lfs pull"],
    );
    refuses(
        "gpt2-tied",
        |f| fs::write(f.join(WEIGHTS), [b"\x10\0\0\0\0\0\0\0", &[b'x'; 64][..]].concat()).unwrap(),
        &["the header is not safetensors'"],
    );
    refuses("gpt2-tied", |f| fs::write(f.join(WEIGHTS), [0xff; 64]).unwrap(), &["no safetensors file"]);
    refuses("gpt2-tied", |f| fs::remove_file(f.join(WEIGHTS)).unwrap(), &["neither model.safetensors nor"]);
    let absent = Checkpoint::open("no/such/folder").unwrap_err();
    assert!(matches!(absent, Error::Io { .. }) && absent.to_string().contains("no/such/folder"), "{absent}");
}

#[test]
fn shards_are_refused_by_what_the_index_says() {
    let first = "model.norm.weight";
    let map = |change: fn(&mut Value)| {
        move |f: &Path| {
            let mut object: Value = serde_json::from_slice(&fs::read(f.join(INDEX)).unwrap()).unwrap();
            change(&mut object["weight_map"]);
            fs::write(f.join(INDEX), object.to_string()).unwrap();
        }
    };
    refuses(
        "llama-untied",
        map(|m| m["model.norm.weight"] = json!("../secret.safetensors")),
        &[first, "leaves the folder"],
    );
    refuses("llama-untied", map(|m| m["model.norm.weight"] = json!("/etc/passwd")), &["leaves the folder"]);
    refuses("llama-untied", map(|m| m["model.norm.weight"] = json!("..")), &["leaves the folder"]);
    refuses(
        "llama-untied",
        map(|m| m["model.norm.weight"] = json!("absent.safetensors")),
        &["cannot read", "absent.safetensors"],
    );
    refuses("llama-untied", map(|m| m["model.norm.weight"] = json!(7)), &["weight_map does not map names to files"]);
    refuses("llama-untied", map(|m| m["nonsense"] = json!("model-00001-of-00003.safetensors")), &["missing: nonsense"]);
    refuses(
        "llama-untied",
        map(|m| drop(m.as_object_mut().unwrap().remove("model.norm.weight"))),
        &["unexpected: model.norm.weight", "absent from the index"],
    );
    refuses(
        "llama-untied",
        |f| fs::remove_file(f.join("model-00002-of-00003.safetensors")).unwrap(),
        &["model-00002-of-00003"],
    );
}

#[test]
fn any_flipped_header_byte_is_an_error_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join("qwen2-tied"), folder.path());
    let original = fs::read(folder.path().join(WEIGHTS)).unwrap();
    for at in (0..2000).step_by(7) {
        let mut bytes = original.clone();
        bytes[at] ^= 0x15;
        fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
        // No panic and no endless allocation is the claim.
        let _ = Checkpoint::open(folder.path()).and_then(|checkpoint| checkpoint.tensors());
    }
}
