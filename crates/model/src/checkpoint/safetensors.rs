//! The safetensors format, one tensor at a time: candle's reader and the crate's writer both hold
//! the whole file, which doubles the memory of a load.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, json};

use super::Store;
use crate::{Error, Result};

/// The tensors of one file or of all shards.
#[derive(Debug)]
pub(crate) struct Shards {
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    file: PathBuf,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

const COPY_AGAIN: &str = "copy or download the file again";
/// Bytes of a header: fifty times those of a model of a thousand tensors. The format allows 100 MB, which
/// would take a gigabyte of memory once parsed.
const LONGEST_HEADER: u64 = 8 << 20;

impl Shards {
    /// One file that holds everything.
    pub(crate) fn single(file: &Path) -> Result<Shards> {
        Ok(Shards { path: file.to_owned(), tensors: header(file)? })
    }

    /// The shards that the index beside them names.
    pub(crate) fn indexed(index: &Path, weight_map: &BTreeMap<String, String>) -> Result<Shards> {
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut shards: BTreeMap<&str, BTreeMap<String, Stored>> = BTreeMap::new();
        let mut problems = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, shard) in weight_map {
            if !is_file_name(shard) {
                let problem = format!("weight_map.{name} is {shard:?}, which leaves the folder");
                return Err(Error::format(index, problem, "shards stand beside their index: give plain file names"));
            }
            if !shards.contains_key(shard.as_str()) {
                shards.insert(shard, header(&folder.join(shard))?);
            }
            match shards.get_mut(shard.as_str()).and_then(|held| held.remove_entry(name)) {
                Some((name, stored)) => drop(tensors.insert(name, stored)),
                None => problems.push(format!("missing: {name}, which the index places in {shard}")),
            }
        }
        for (shard, rest) in &shards {
            problems.extend(rest.keys().map(|name| format!("unexpected: {name} in {shard}, absent from the index")));
        }
        if problems.is_empty() {
            return Ok(Shards { path: index.to_owned(), tensors });
        }
        Err(Error::Tensors { path: index.to_owned(), problems })
    }

    /// How the tensor is encoded.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|stored| stored.dtype)
    }
}

impl Store for Shards {
    fn path(&self) -> &Path {
        &self.path
    }

    fn listing(&self) -> BTreeMap<&str, std::result::Result<&[usize], String>> {
        let describe = |stored: &'_ Stored| match stored.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(format!("{other:?} values; F32, F16 and BF16 are read")),
        };
        self.tensors.iter().map(|(name, s)| (name.as_str(), describe(s).map(|()| s.shape.as_slice()))).collect()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::Tensors { path: self.path.clone(), problems: vec![format!("missing: {name}")] })?;
        let mut bytes = vec![0; stored.bytes];
        let fill = |bytes: &mut [u8]| -> std::io::Result<()> {
            let mut file = File::open(&stored.file)?;
            file.seek(SeekFrom::Start(stored.start))?;
            file.read_exact(bytes)
        };
        fill(&mut bytes).map_err(Error::io("read", &stored.file, COPY_AGAIN))?;
        let values = match stored.dtype {
            Dtype::F16 => chunks(&bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => chunks(&bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            _ => chunks(&bytes).map(f32::from_le_bytes).collect(),
        };
        super::finite(&stored.file, name, values)
    }
}

fn chunks<const B: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; B]> + '_ {
    bytes.as_chunks().0.iter().copied()
}

fn is_file_name(shard: &str) -> bool {
    let mut parts = Path::new(shard).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(name)), None) if name == shard)
}

/// The tensors that one file's header declares, checked against the file's length.
fn header(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let io = |source| Error::io("read", path, COPY_AGAIN)(source);
    let file = super::open_file(path, COPY_AGAIN)?;
    let length = file.metadata().map_err(io)?.len();
    let mut reader = BufReader::new(file);
    let mut prefix = [0; 8];
    if length < 8 {
        return Err(Error::format(path, format!("{length} bytes are no safetensors file"), COPY_AGAIN));
    }
    reader.read_exact(&mut prefix).map_err(io)?;
    if &prefix == b"version " {
        let next = "fetch the weights themselves, for instance with git lfs pull";
        return Err(Error::format(path, "this is a pointer of Git LFS, not the file it points to", next));
    }
    let json_bytes = u64::from_le_bytes(prefix);
    if json_bytes > length - 8 {
        let problem =
            format!("a header of {json_bytes} bytes in a file of {length}: truncated, or no safetensors file");
        return Err(Error::format(path, problem, COPY_AGAIN));
    }
    if json_bytes > LONGEST_HEADER {
        let problem = format!("a header of {json_bytes} bytes, more than the {LONGEST_HEADER} that are read");
        return Err(Error::format(path, problem, "divide the weights into shards"));
    }
    let mut json = vec![0; json_bytes as usize];
    reader.read_exact(&mut json).map_err(io)?;
    let Header(declared) = serde_json::from_slice(&json)
        .map_err(|why| Error::format(path, format!("the header is not safetensors': {why}"), COPY_AGAIN))?;
    let data = 8 + json_bytes;
    let held = cover(&declared).map_err(|problem| Error::format(path, problem, COPY_AGAIN))?;
    if data.checked_add(held as u64) != Some(length) {
        let problem = format!(
            "the header declares {held} bytes of values, the file holds {}: truncated or damaged",
            length - data
        );
        return Err(Error::format(path, problem, COPY_AGAIN));
    }
    let stored = |tensor: Declared| Stored {
        file: path.to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape,
        start: data + tensor.data_offsets.0 as u64,
        bytes: tensor.data_offsets.1 - tensor.data_offsets.0,
    };
    Ok(declared.into_iter().map(|(name, tensor)| (name, stored(tensor))).collect())
}

/// What a header says of one tensor.
#[derive(serde::Deserialize)]
struct Declared {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// How many bytes the tensors cover. The error is about a tensor that does not begin where the one before it ends, or
/// is not as long as its shape says.
fn cover(declared: &BTreeMap<String, Declared>) -> std::result::Result<usize, String> {
    let mut by_start: Vec<(&String, &Declared)> = declared.iter().collect();
    by_start.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut end = 0;
    for (name, Declared { dtype, shape, data_offsets: (from, to) }) in by_start {
        if *from != end || to < from {
            return Err(format!("{name} has data_offsets [{from}, {to}]; the one before it ends at {end}"));
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        if bits != (to - from).checked_mul(8) {
            let bytes = to - from;
            return Err(format!("{name} has data_offsets of {bytes} bytes for {dtype:?} values of shape {shape:?}"));
        }
        end = *to;
    }
    Ok(end)
}

/// The tensors of a header by name. The `safetensors` crate's own reader keeps the last of two tensors
/// with one name, and does not say which tensor is at fault.
struct Header(BTreeMap<String, Declared>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Header, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = access.next_key::<String>()? {
                    if name == "__metadata__" {
                        access.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let tensor = access.next_value().map_err(|why| A::Error::custom(format!("{name}: {why}")))?;
                    if tensors.insert(name.clone(), tensor).is_some() {
                        return Err(A::Error::custom(format!("{name} is there twice")));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// A tensor to write: name, shape, and how to get its values when its turn comes.
pub(crate) struct Outgoing<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

/// Writes tensors as `F32` or `BF16`, sorted by name, so that the same weights give the same bytes.
pub(crate) fn write(path: &Path, mut tensors: Vec<Outgoing>, dtype: Dtype) -> Result<()> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in &tensors {
        let start = end;
        end += tensor.shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let entry = json!({ "data_offsets": [start, end], "dtype": dtype, "shape": tensor.shape });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = |source| Error::io("write", path, "check free space and permissions")(source);
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for tensor in &tensors {
        let values = (tensor.values)()?;
        let expected: usize = tensor.shape.iter().product();
        if values.len() != expected {
            let problem =
                format!("{} has {} values, not the {expected} of {:?}", tensor.name, values.len(), tensor.shape);
            return Err(Error::Tensors { path: path.to_owned(), problems: vec![problem] });
        }
        let bytes: Vec<u8> = match dtype {
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        file.write_all(&bytes).map_err(io)?;
    }
    file.flush().map_err(io)
}
