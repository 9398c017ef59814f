//! Folders as transformers reads and writes them: `config.json`, `generation_config.json`,
//! `model.safetensors` or shards with an index.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use half::bf16;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{
    Checkpoint, Expected,
    fold::{self, Recorded},
    safetensors::{Outgoing, Shards, write},
    shape_of,
};
use crate::{
    Config, Error, HeadKind, Result,
    families::{self, Fields, Table, VALUE_BESIDE},
};

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Bit for bit.
    F32,
    /// Rounded to bfloat16, half the size.
    Bf16,
}

/// Writes a model folder that transformers loads: `config.json`, `generation_config.json` (language
/// models) and `model.safetensors`, the same bytes for the same weights. `get` gives the values of
/// one of our parameters ([`Config::specs`]) and is asked for one at a time.
///
/// A reward model becomes `...ForSequenceClassification`, whose head has no bias: it is folded into
/// the final norm's bias where there is one, and recorded in `config.json` in any case, so that
/// [`Checkpoint::open`] returns the very parameters. A value model becomes
/// `...ForTokenClassification` (a class that transformers lacks for Gemma 3); a value head beside a language
/// head adds two tensors that transformers ignores. The tokenizer is not written here.
///
/// # Errors
/// The description does not hold together, or its padding begins or ends texts; a parameter is not available or
/// has the wrong length; the folder cannot be written.
pub fn save(
    folder: impl AsRef<Path>,
    config: &Config,
    head: HeadKind,
    get: &dyn Fn(&str) -> Result<Vec<f32>>,
    precision: Precision,
) -> Result<()> {
    let folder = folder.as_ref();
    config.validate()?;
    let config = &Config { pad: padding(config)?, ..config.clone() };
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder, "check permissions"))?;
    let bias = if head == HeadKind::Score { Some(Bias::of(config, get, precision)?) } else { None };
    let recorded = bias.as_ref().map(|bias| bias.recorded.to_json());
    write_json(&folder.join(CONFIG), &description(config, head, precision, recorded)?)?;
    if head.is_language() {
        write_json(&folder.join(GENERATION), &special_tokens(config))?;
    }
    let folded = bias.as_ref().and_then(|bias| bias.folded.as_ref());
    let pieces = families::table(config.family).pieces(config, head);
    let outgoing = pieces.iter().map(|piece| {
        let shape = shape_of(config, head, &piece.canonical).unwrap_or_default();
        let columns = shape.iter().skip(1).product();
        let whole = shape.iter().product::<usize>();
        let values = move || {
            let values = match folded {
                Some(folded) if piece.canonical == "norm.bias" => folded.clone(),
                _ => get(&piece.canonical)?,
            };
            if values.len() == whole { Ok(piece.take(&values, columns)) } else { Ok(values) }
        };
        Outgoing { name: piece.disk.clone(), shape: piece.disk_shape(&shape), values: Box::new(values) }
    });
    write(&folder.join(WEIGHTS), outgoing.collect(), precision.dtype())
}

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of `config.json` and of the index. The largest among published models have 200,000; a JSON
/// value takes up to thirty times its text.
const JSON_BYTES: usize = 4 << 20;
const EXPORT: &str = "export the model again with save_pretrained";

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::BF16,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Precision::F32 => "float32",
            Precision::Bf16 => "bfloat16",
        }
    }
}

/// The value as it reads back from disk.
fn rounded(value: f32, dtype: Option<Dtype>) -> f32 {
    match dtype {
        Some(Dtype::BF16) => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// A reward model's bias on its way to disk.
struct Bias {
    recorded: Recorded,
    folded: Option<Vec<f32>>,
}

impl Bias {
    fn of(config: &Config, get: &dyn Fn(&str) -> Result<Vec<f32>>, precision: Precision) -> Result<Bias> {
        let score_bias = get("score.bias")?.first().copied().unwrap_or(0.0);
        if shape_of(config, HeadKind::Score, "norm.bias").is_none() {
            return Ok(Bias { recorded: Recorded { score_bias, norm_bias: None }, folded: None });
        }
        // The reader folds again to recognise its own file, and it sees the rounded weights.
        let weight: Vec<f32> = get("score.weight")?.into_iter().map(|w| rounded(w, Some(precision.dtype()))).collect();
        let norm_bias = get("norm.bias")?;
        let folded = fold::folded(&norm_bias, score_bias, &weight);
        let norm_bias = folded.is_some().then_some(norm_bias);
        Ok(Bias { recorded: Recorded { score_bias, norm_bias }, folded })
    }
}

fn description(
    config: &Config,
    head: HeadKind,
    precision: Precision,
    recorded: Option<Value>,
) -> Result<Map<String, Value>> {
    let table = families::table(config.family);
    let mut fields = table.fields(config);
    fields.extend(special_tokens(config));
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("architectures", json!([table.architecture(head)]));
    set("model_type", json!(table.model_type));
    set("vocab_size", json!(config.vocab));
    set("tie_word_embeddings", json!(config.tied));
    set("torch_dtype", json!(precision.name()));
    if !head.is_language() {
        set("num_labels", json!(1));
    }
    if let Some(recorded) = recorded {
        set("instruct", recorded);
    }
    let problems = RefCell::default();
    let understood = table.config(&Fields::new(&fields, &problems));
    if understood == *config && problems.borrow().is_empty() {
        return Ok(fields);
    }
    let problem =
        format!("the family {} cannot express it: {config:?} would be read as {understood:?}", table.model_type);
    Err(Error::Config { problems: vec![problem] })
}

/// The padding id: transformers finds a batch's last tokens by it, so it must not be one that can begin or end a
/// text. Where the description names one, the tokenizer's files name the same, and another would contradict them.
fn padding(config: &Config) -> Result<Option<u32>> {
    let free = |id: &u32| (*id as usize) < config.vocab && !config.eos.contains(id) && config.bos != Some(*id);
    match config.pad {
        Some(pad) if !free(&pad) => {
            let problem = format!("the padding id {pad} begins or ends texts, or has no row; name another");
            Err(Error::Config { problems: vec![problem] })
        }
        Some(pad) => Ok(Some(pad)),
        None => Ok((0..config.vocab as u32).find(free)),
    }
}

/// The ids that begin, end and pad.
fn special_tokens(config: &Config) -> Map<String, Value> {
    let eos: Vec<u32> = config.eos.iter().copied().collect();
    let eos = match eos[..] {
        [] => Value::Null,
        [one] => json!(one),
        _ => json!(eos),
    };
    [("bos_token_id", json!(config.bos)), ("eos_token_id", eos), ("pad_token_id", json!(config.pad))]
        .map(|(field, id)| (field.to_owned(), id))
        .into_iter()
        .collect()
}

fn write_json(path: &Path, fields: &Map<String, Value>) -> Result<()> {
    // Sorted, whatever order serde_json was built to keep.
    let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
    let text = format!("{:#}\n", json!(sorted));
    std::fs::write(path, text).map_err(Error::io("write", path, "check free space and permissions"))
}

/// Opens a folder.
pub(crate) fn open(folder: &Path) -> Result<Checkpoint> {
    let path = folder.join(CONFIG);
    let fields = read_object(&path)?;
    let (config, head, table) = describe(folder, &path, &fields)?;
    let store = weights(folder)?;
    let head = match head {
        HeadKind::LanguageModel if store.dtype(&format!("{VALUE_BESIDE}.weight")).is_some() => {
            HeadKind::LanguageModelWithValue
        }
        head => head,
    };
    let pieces = Expected {
        config: &config,
        head,
        pieces: table.pieces(&config, head),
        prefix: table.prefix,
        harmless: &|name| table.harmless.iter().any(|ending| name.ends_with(ending)),
        unembedding: table.unembedding,
    }
    .resolve(&store)?;
    let norm_dtype = pieces.iter().find(|piece| piece.canonical == "norm.bias").and_then(|p| store.dtype(&p.disk));
    let mut checkpoint =
        Checkpoint { config, head, tokenizer: None, pieces, store: Box::new(store), given: BTreeMap::new() };
    if head == HeadKind::Score {
        let recorded = fields.get("instruct").and_then(Recorded::from_json);
        checkpoint.given = unfold(&checkpoint, recorded, norm_dtype)?;
    }
    Ok(checkpoint)
}

/// The parameters of a reward model that `config.json` gives: see [`fold`].
fn unfold(
    checkpoint: &Checkpoint,
    recorded: Option<Recorded>,
    dtype: Option<Dtype>,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let bias = |value: f32| ("score.bias".to_owned(), vec![value]);
    let Some(Recorded { score_bias, norm_bias }) = recorded else { return Ok([bias(0.0)].into()) };
    let Some(norm_bias) = norm_bias else { return Ok([bias(score_bias)].into()) };
    let again = fold::folded(&norm_bias, score_bias, &checkpoint.stored("score.weight")?).unwrap_or_default();
    let again = again.into_iter().map(|value| rounded(value, dtype).to_bits());
    let stored = checkpoint.stored("norm.bias")?;
    if again.eq(stored.iter().map(|value| value.to_bits())) {
        return Ok([bias(score_bias), ("norm.bias".to_owned(), norm_bias)].into());
    }
    Ok([bias(0.0)].into())
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = instruct_data::read_text(path, JSON_BYTES).map_err(|why| match why {
        instruct_data::Error::Io { source, .. } => Error::io("read", path, super::NEXT)(source),
        other => Error::File(other),
    })?;
    serde_json::from_str(&text).map_err(|why| Error::format(path, format!("this is no JSON object: {why}"), EXPORT))
}

/// What `config.json` and `generation_config.json` say. Where the latter lists the ids that end a text,
/// they are those at which transformers' `generate` stops, and the former's are not.
fn describe(folder: &Path, path: &Path, object: &Map<String, Value>) -> Result<(Config, HeadKind, &'static Table)> {
    let problems = RefCell::new(Vec::new());
    let fields = Fields::new(object, &problems);
    let Some(table) = families::by_model_type(fields.text("model_type").unwrap_or_default()) else {
        let found = object.get("model_type").map_or("missing".to_owned(), |value| format!("{value}"));
        let problem = format!("model_type is {found}; known are {}", families::model_types());
        return Err(Error::format(path, problem, "use a model of a known family"));
    };
    if fields.get("quantization_config").is_some() {
        fields.refuse("quantization_config", "is set; only plain F32, F16 and BF16 weights are read from folders");
    }
    let mut config = table.config(&fields);
    let head = head(&fields);
    let generation = folder.join(GENERATION);
    let mut stops = BTreeSet::new();
    if generation.exists() {
        let object = read_object(&generation)?;
        stops = Fields::new(&object, &problems).ids("eos_token_id");
        // Both files must name ids of the vocabulary, whichever is heard.
        config.eos.extend(&stops);
    }
    let mut problems = problems.into_inner();
    if problems.is_empty() {
        // Stand-ins for missing fields would only add nonsense here.
        match config.validate() {
            Ok(()) if stops.is_empty() => return Ok((config, head, table)),
            Ok(()) => return Ok((Config { eos: stops, ..config }, head, table)),
            Err(Error::Config { problems: more }) => problems = more,
            Err(other) => return Err(other),
        }
    }
    Err(Error::format(path, problems.join("; "), "correct these fields, or use another model"))
}

fn head(fields: &Fields) -> HeadKind {
    let class = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str).unwrap_or_default();
    match class {
        _ if class.ends_with("ForSequenceClassification") => HeadKind::Score,
        _ if class.ends_with("ForTokenClassification") => HeadKind::Value,
        _ => HeadKind::LanguageModel,
    }
}

fn weights(folder: &Path) -> Result<Shards> {
    let index = folder.join(INDEX);
    if index.exists() {
        return Shards::indexed(&index, &weight_map(&index)?);
    }
    let single = folder.join(WEIGHTS);
    if single.exists() {
        return Shards::single(&single);
    }
    let problem = format!("it holds neither {WEIGHTS} nor {INDEX}");
    let next =
        if folder.join("pytorch_model.bin").exists() { "convert pytorch_model.bin to safetensors" } else { EXPORT };
    Err(Error::format(folder, problem, next))
}

fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let object = read_object(index)?;
    let map = object.get("weight_map").cloned().unwrap_or_default();
    serde_json::from_value(map)
        .map_err(|why| Error::format(index, format!("weight_map does not map names to files: {why}"), EXPORT))
}
