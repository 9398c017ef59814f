//! The head of a GGUF file: metadata and the list of tensors. Whatever it counts is compared with a
//! limit and with the bytes that are left before memory is taken for it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use candle_core::{
    Shape,
    quantized::{GgmlDType, gguf_file::TensorInfo},
};

use crate::{Error, Result};

pub(super) const DAMAGED: &str = "download the file again; if that does not help, it is no model file";

/// Bytes of the head. Those of published models have ten million.
const HEAD: u64 = 64 << 20;
/// Entries of the metadata; a converter writes forty.
const ENTRIES: u64 = 1 << 12;
/// Elements of all lists together: a vocabulary of a quarter million has tokens, scores, types and
/// twice as many merges.
const ELEMENTS: u64 = 1 << 21;
/// Bytes of one text.
const TEXT: u64 = 1 << 20;
/// Tensors: 16 in each of the layers that a description may have.
const TENSORS: u64 = 1 << 14;
/// Dimensions of a tensor, as in ggml.
const DIMENSIONS: u32 = 4;
/// Where tensors begin: multiples of it.
const ALIGNMENT: u64 = 32;

/// What stands before the tensors' values.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// Where values begin, in bytes from the start of the file.
    pub(super) data: u64,
}

/// A value of the metadata. Integers of every width are one kind, since converters differ in it.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

impl Value {
    /// What messages call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a fraction",
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "a text",
            Value::Numbers(_) => "a list of numbers",
            Value::Texts(_) => "a list of texts",
        }
    }
}

impl Head {
    /// Reads and checks the head of the file at `path`, opened as `file`.
    ///
    /// # Errors
    /// [`Error::Format`] with the byte, and the key or tensor, where it stops making sense.
    pub(super) fn read(path: &Path, file: File) -> Result<Head> {
        let io = |source| Error::io("read", path, super::NEXT)(source);
        let length = file.metadata().map_err(io)?.len();
        let reader = BufReader::new(file);
        let mut bytes = Bytes { reader, at: 0, length, wide: true, elements: 0, next: DAMAGED };
        let read = bytes.head();
        read.map_err(|problem| Error::format(path, format!("byte {}: {problem}", bytes.at), bytes.next))
    }
}

/// What is wrong, as the end of a sentence that begins with the byte.
type Parsed<T> = std::result::Result<T, String>;

struct Bytes {
    reader: BufReader<File>,
    /// Bytes read so far.
    at: u64,
    length: u64,
    /// Whether lengths have eight bytes, as since version 2.
    wide: bool,
    /// Elements of lists read so far.
    elements: u64,
    /// What to do about the problem that ends the reading.
    next: &'static str,
}

impl Bytes {
    fn head(&mut self) -> Parsed<Head> {
        if self.take::<4>("the magic").ok() != Some(*b"GGUF") {
            self.at = 0;
            return Err("this is no GGUF file".to_owned());
        }
        let version = self.u32("the version")?;
        if !(1..=3).contains(&version) {
            return Err(format!("version {version}; 1, 2 and 3 are read, little-endian"));
        }
        self.wide = version > 1;
        let tensors = self.count("the number of tensors", TENSORS, 8)?;
        let entries = self.count("the number of metadata entries", ENTRIES, 5)?;
        let metadata = self.metadata(entries)?;
        let alignment = alignment(&metadata)?;
        let tensors = (0..tensors).map(|_| self.tensor()).collect::<Parsed<Vec<_>>>()?;
        let data = self.at.div_ceil(alignment) * alignment;
        let tensors = self.within(tensors, data)?;
        Ok(Head { metadata, tensors, data })
    }

    fn metadata(&mut self, entries: u64) -> Parsed<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = self.text("a key")?;
            let kind = self.u32(&key)?;
            let value = self.value(&key, kind)?;
            match metadata.entry(key) {
                Entry::Vacant(place) => drop(place.insert(value)),
                Entry::Occupied(place) => return Err(format!("{} is there twice", place.key())),
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.take(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.take(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.take(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.take(key)?).into()),
            4 => Value::Integer(self.u32(key)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.take(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take(key)?).into()),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::Text(self.text(key)?),
            9 => self.list(key)?,
            10 => Value::Integer(u64::from_le_bytes(self.take(key)?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.take(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.take(key)?)),
            other => return Err(format!("{key} has the unknown value type {other}")),
        })
    }

    fn bool(&mut self, key: &str) -> Parsed<bool> {
        match self.take(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("{key} is {other}, not true (1) or false (0)")),
        }
    }

    fn list(&mut self, key: &str) -> Parsed<Value> {
        let kind = self.u32(key)?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 if self.wide => 8,
            8 => 4,
            9 => return Err(format!("{key} is a list of lists, which no model needs")),
            other => return Err(format!("{key} lists the unknown value type {other}")),
        };
        let count = self.count(key, ELEMENTS - self.elements, smallest)?;
        self.elements += count;
        if kind == 8 {
            return (0..count).map(|_| self.text(key)).collect::<Parsed<_>>().map(Value::Texts);
        }
        let number = |value| match value {
            Value::Integer(n) => n as f64,
            Value::Float(x) => x,
            other => f64::from(u8::from(other == Value::Bool(true))),
        };
        (0..count).map(|_| self.value(key, kind).map(number)).collect::<Parsed<_>>().map(Value::Numbers)
    }

    fn tensor(&mut self) -> Parsed<(String, TensorInfo)> {
        let name = self.text("the name of a tensor")?;
        let dimensions = self.u32(&name)?;
        if dimensions > DIMENSIONS {
            return Err(format!("{name} has {dimensions} dimensions; {DIMENSIONS} are the most"));
        }
        let mut shape = (0..dimensions).map(|_| self.length_of(&name)).collect::<Parsed<Vec<u64>>>()?;
        shape.reverse();
        let kind = self.u32(&name)?;
        let Some(dtype) = dtype(kind) else {
            self.next = "use a file of these kinds, or the model's Hugging Face folder";
            let kind = unread(kind).map_or(format!("of the unknown kind {kind}"), |kind| format!("of the kind {kind}"));
            return Err(format!("{name} is {kind}; read are {READ}"));
        };
        let offset = u64::from_le_bytes(self.take(&name)?);
        // Candle counts elements without looking for overflow.
        let countable = shape.iter().try_fold(1u32, |n, &d| u32::try_from(d).ok()?.checked_mul(n));
        if countable.is_none_or(|n| n == 0) {
            return Err(format!("{name} has the shape {shape:?}, which no model has"));
        }
        let block = dtype.block_size() as u64;
        if !shape.last().is_some_and(|last| last.is_multiple_of(block)) {
            return Err(format!("{name} has the shape {shape:?}, whose rows are no whole blocks of {block}"));
        }
        let shape: Vec<usize> = shape.into_iter().map(|d| d as usize).collect();
        Ok((name, TensorInfo { ggml_dtype: dtype, shape: Shape::from(shape), offset }))
    }

    /// Refuses tensors that lie beyond the file, or on each other: then a description can ask for no
    /// more than the file holds.
    fn within(&self, tensors: Vec<(String, TensorInfo)>, data: u64) -> Parsed<BTreeMap<String, TensorInfo>> {
        let mut by_offset: Vec<&(String, TensorInfo)> = tensors.iter().collect();
        by_offset.sort_by_key(|(_, info)| info.offset);
        let mut free = 0;
        for (name, info) in by_offset {
            let bytes = info.shape.elem_count() / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
            if info.offset < free {
                return Err(format!("{name} lies on another tensor at offset {}", info.offset));
            }
            let end = info.offset.checked_add(bytes as u64);
            let there = end.and_then(|end| end.checked_add(data)).is_some_and(|end| end <= self.length);
            let Some(end) = end.filter(|_| there) else {
                let Bytes { length, .. } = self;
                return Err(format!(
                    "{name} of {bytes} bytes at offset {} ends beyond the file of {length}: truncated or damaged",
                    info.offset
                ));
            };
            free = end;
        }
        let count = tensors.len();
        let named: BTreeMap<String, TensorInfo> = tensors.into_iter().collect();
        if named.len() < count { Err("two tensors have one name".to_owned()) } else { Ok(named) }
    }

    /// A number of things of at least `smallest` bytes each.
    fn count(&mut self, what: &str, most: u64, smallest: u64) -> Parsed<u64> {
        let count = self.length_of(what)?;
        if count > most {
            return Err(format!("{what} counts {count}, more than the {most} that are read"));
        }
        let left = self.length - self.at;
        if count.saturating_mul(smallest) > left {
            return Err(format!("{what} counts {count}, and {left} bytes are left: truncated or damaged"));
        }
        Ok(count)
    }

    fn text(&mut self, what: &str) -> Parsed<String> {
        let count = self.count(what, TEXT, 1)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes, what)?;
        // Some writers end texts as C does, and some cut a character in two.
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn u32(&mut self, what: &str) -> Parsed<u32> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn length_of(&mut self, what: &str) -> Parsed<u64> {
        if self.wide { self.take(what).map(u64::from_le_bytes) } else { self.u32(what).map(u64::from) }
    }

    fn take<const N: usize>(&mut self, what: &str) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what).map(|()| bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Parsed<()> {
        if self.at + bytes.len() as u64 > HEAD {
            return Err(format!("{what} lies beyond the {HEAD} bytes that a head may have"));
        }
        match self.reader.read_exact(bytes) {
            Ok(()) => self.at += bytes.len() as u64,
            Err(why) => return Err(format!("{what} cannot be read ({why}): truncated or damaged")),
        }
        Ok(())
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Parsed<u64> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(&Value::Integer(n @ 8..=65_536)) if (n as u64).is_power_of_two() => Ok(n as u64),
        Some(Value::Integer(n)) => {
            Err(format!("general.alignment is {n}; it must be a power of two between 8 and 65536"))
        }
        Some(other) => Err(format!("general.alignment is {}, not an integer", other.kind())),
    }
}

/// The kinds of values that are read, for messages.
const READ: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K";

/// ggml's name of a kind of values that is not read.
fn unread(number: u32) -> Option<&'static str> {
    Some(match number {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => return None,
    })
}

/// ggml's numbers of the kinds that candle widens.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
