//! Checkpoints: a folder as transformers writes it, or a GGUF file, opened once and read tensor by
//! tensor in our names.

mod fold;
mod gguf;
mod gguf_head;
mod gguf_rope;
mod hf;
mod safetensors;

use std::{collections::BTreeMap, fs::File, path::Path};

use candle_core::{DType, Device};
use instruct_data::GgufTokenizer;

pub use self::hf::{Precision, save};
use crate::{Config, Decoder, Error, HeadKind, Result, families::Piece};

/// A checkpoint whose description holds together and whose tensors are all there in the right
/// shapes. Values are read on demand, so that opening is cheap and a load holds one copy.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    head: HeadKind,
    tokenizer: Option<GgufTokenizer>,
    pieces: Vec<Piece>,
    store: Box<dyn Store>,
    /// Parameters that the tensors do not hold as they are: see [`fold`].
    given: BTreeMap<String, Vec<f32>>,
}

/// Tensors on disk, by their names there.
trait Store: std::fmt::Debug + Send + Sync {
    /// Where they are, for messages.
    fn path(&self) -> &Path;

    /// Every tensor with its shape; the error says why it cannot be read.
    fn listing(&self) -> BTreeMap<&str, std::result::Result<&[usize], String>>;

    /// The values of a listed tensor, row by row.
    fn read(&self, name: &str) -> Result<Vec<f32>>;
}

impl Checkpoint {
    /// Opens a folder with `config.json` and safetensors (single or sharded), or a `.gguf` file.
    ///
    /// A hostile file takes no more memory than its kind allows: `config.json`, `generation_config.json`
    /// and the index of shards are read up to 4 MiB each, the header of a safetensors file up to
    /// 8 MiB, the head of a GGUF file up to 64 MiB with 4,096 entries, 2,097,152 list elements and
    /// 16,384 tensors. Counts of the description are bounded by [`Config::validate`], and no tensor
    /// may lie beyond its file or on another, so weights take what the file holds.
    ///
    /// # Errors
    /// Each names the path and what to do next: an absent folder or file, a truncated or foreign
    /// one, a description with missing, mistyped or unsupported fields (all of them), tensors that
    /// are missing, unexpected or misshaped ([`Error::Tensors`], all of them).
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(Error::io("read", path, NEXT))?;
        if kind.is_dir() { hf::open(path) } else { gguf::open(path) }
    }

    /// What the decoder is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What reads its hidden states.
    pub fn head(&self) -> HeadKind {
        self.head
    }

    /// The tokenizer inside a GGUF file; a folder keeps its own beside the weights.
    pub fn tokenizer(&self) -> Option<&GgufTokenizer> {
        self.tokenizer.as_ref()
    }

    /// The values of one of our parameters ([`Config::specs`]), row by row, as `f32`.
    ///
    /// # Errors
    /// The decoder has no such parameter; the file can no longer be read.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        if let Some(values) = self.given.get(name) {
            return Ok(values.clone());
        }
        self.stored(name)
    }

    /// All parameters by name. Twice the memory of loading them one by one.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensors(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let specs = self.config.specs(self.head);
        specs.into_iter().map(|(name, _)| self.tensor(&name).map(|values| (name, values))).collect()
    }

    fn stored(&self, name: &str) -> Result<Vec<f32>> {
        let shape = shape_of(&self.config, self.head, name).ok_or_else(|| {
            Error::format(
                self.store.path(),
                format!("the decoder has no parameter {name:?}"),
                "use a name of its specs",
            )
        })?;
        let columns = shape[1..].iter().product();
        let mut values = vec![0.0; shape.iter().product()];
        for piece in self.pieces.iter().filter(|piece| piece.canonical == name) {
            piece.place(&self.store.read(&piece.disk)?, &mut values, columns);
        }
        Ok(values)
    }
}

impl Decoder {
    /// A decoder with a checkpoint's description, head and weights.
    ///
    /// # Errors
    /// Those of [`Decoder::zeros`] and [`Checkpoint::tensor`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        device: &Device,
        path: instruct_kernels::Path,
        compute: DType,
    ) -> Result<Decoder> {
        let decoder = Decoder::zeros(checkpoint.config.clone(), checkpoint.head, device, path, compute)?;
        for slot in decoder.params().slots() {
            decoder.params().set(&slot.name, &checkpoint.tensor(&slot.name)?)?;
        }
        Ok(decoder)
    }

    /// Writes the decoder as a folder that transformers loads, see [`save`].
    ///
    /// # Errors
    /// Those of [`save`].
    pub fn save(&self, folder: impl AsRef<Path>, precision: Precision) -> Result<()> {
        save(folder, self.config(), self.head(), &|name| Ok(self.params().read(name)?), precision)
    }
}

const NEXT: &str = "give a folder that holds config.json and model.safetensors, or a .gguf file";

/// Opens a file. Anything else is refused: a pipe would wait for ever, and is empty when it is read
/// a second time.
fn open_file(path: &Path, next: &'static str) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(Error::io("read", path, next))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::format(path, format!("this is {found}, not a file"), next));
    }
    File::open(path).map_err(Error::io("read", path, next))
}

/// The values as they are, once none of them is infinite or not a number: with such a weight every output is one too,
/// and nothing after this could say which it was.
///
/// # Errors
/// [`Error::Format`] that names file and tensor.
fn finite(path: &Path, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
    // Without an early end a chunk is compared in a few instructions.
    let broken = |chunk: &[f32]| chunk.iter().fold(false, |broken, x| broken | !x.is_finite());
    let Some(at) = values.chunks(4096).position(broken) else { return Ok(values) };
    let (at, value) = (at * 4096..).zip(&values[at * 4096..]).find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
    Err(Error::format(path, format!("{name} holds {value} at element {at}, which is no finite number"), BROKEN))
}

const BROKEN: &str = "make the file again from the model before it overflowed or was merged, or use another model";

fn shape_of(config: &Config, head: HeadKind, name: &str) -> Option<Vec<usize>> {
    config.specs(head).into_iter().find(|(known, _)| known == name).map(|(_, shape)| shape)
}

/// What a store's tensors are compared with.
struct Expected<'a> {
    config: &'a Config,
    head: HeadKind,
    /// Every tensor that must be there, in the store's names.
    pieces: Vec<Piece>,
    /// A prefix that all of the trunk's names may lack.
    prefix: &'a str,
    /// Whether a name holds no parameter.
    harmless: &'a dyn Fn(&str) -> bool,
    /// Name of the language head, which a tied checkpoint may repeat.
    unembedding: &'a str,
}

impl Expected<'_> {
    /// The pieces under the names they have in `store`, or every disagreement.
    fn resolve(mut self, store: &dyn Store) -> Result<Vec<Piece>> {
        let listing = store.listing();
        let shapes: BTreeMap<String, Vec<usize>> = self.config.specs(self.head).into_iter().collect();
        let mut problems = Vec::new();
        let mut unexpected = listing.clone();
        for piece in &mut self.pieces {
            let bare = piece.disk.strip_prefix(self.prefix).unwrap_or(&piece.disk);
            if !listing.contains_key(piece.disk.as_str()) && listing.contains_key(bare) {
                piece.disk = bare.to_owned();
            }
            unexpected.remove(piece.disk.as_str());
            let wanted = piece.disk_shape(&shapes[&piece.canonical]);
            match listing.get(piece.disk.as_str()) {
                None => problems.push(format!("missing: {} {wanted:?}", piece.disk)),
                Some(Err(why)) => problems.push(format!("unreadable: {}: {why}", piece.disk)),
                Some(Ok(found)) if *found != wanted => {
                    problems.push(format!("misshaped: {} is {found:?}, not {wanted:?}", piece.disk));
                }
                Some(Ok(_)) => {}
            }
        }
        if problems.is_empty() && unexpected.contains_key(self.unembedding) && self.repeats_embedding(store)? {
            unexpected.remove(self.unembedding);
        }
        let strangers = unexpected.keys().filter(|name| !(self.harmless)(name));
        problems.extend(strangers.map(|name| format!("unexpected: {name}")));
        if problems.is_empty() {
            return Ok(self.pieces);
        }
        Err(Error::Tensors { path: store.path().to_owned(), problems })
    }

    /// Some writers store a tied head a second time; the same values bit for bit are no problem.
    fn repeats_embedding(&self, store: &dyn Store) -> Result<bool> {
        let tied = self.head.is_language() && self.config.tied;
        let embedding = self.pieces.iter().find(|piece| piece.canonical == "embed.weight");
        let (true, Some(embedding)) = (tied, embedding) else { return Ok(false) };
        let (head, embedding) = (store.read(self.unembedding)?, store.read(&embedding.disk)?);
        Ok(head.len() == embedding.len() && head.iter().zip(&embedding).all(|(a, b)| a.to_bits() == b.to_bits()))
    }
}
