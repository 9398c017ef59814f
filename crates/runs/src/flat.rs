//! Flat `f32` buffers as files: the safetensors layout, written as a stream and byte for byte the
//! same for the same content.

use crate::{BoxError, Error, Result, disk, ranks::Take};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read, Write},
    path::Path,
};

/// Writes one-dimensional `f32` arrays and text metadata to a file that any safetensors reader
/// opens: eight bytes of header length, a JSON header, then the arrays in the order of their names
/// as little-endian numbers.
///
/// The header's keys are sorted, so equal content gives equal bytes. Only a block is converted at
/// a time, so writing needs no second copy of the arrays.
pub fn write_flat(path: &Path, metadata: &BTreeMap<String, String>, arrays: &[(&str, &[f32])]) -> Result<()> {
    let arrays: BTreeMap<&str, &[f32]> = arrays.iter().copied().collect();
    let lens = arrays.iter().map(|(&name, values)| (name, values.len())).collect();
    write_streamed(path, metadata, &lens, &mut |name, write| write(arrays[name]))
}

/// As [`write_flat`], of arrays of these lengths; `numbers(name, write)` hands those of one to `write`, piece by piece.
pub(crate) fn write_streamed(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    lens: &BTreeMap<&str, usize>,
    numbers: &mut dyn FnMut(&str, &mut Take<'_>) -> Result<(), BoxError>,
) -> Result<()> {
    let failed = disk::failed("write", path);
    let header = header(metadata, lens).map_err(|problem| malformed(path, problem.to_string()))?;
    let mut file = BufWriter::new(File::create(path).map_err(&failed)?);
    let head = file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header));
    head.map_err(&failed)?;
    let mut bytes = Vec::new();
    for (&name, &len) in lens {
        let mut written = 0;
        let write = &mut |piece: &[f32]| -> Result<(), BoxError> {
            written += piece.len();
            for block in piece.chunks(1 << 16) {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|x| x.to_le_bytes()));
                file.write_all(&bytes).map_err(&failed)?;
            }
            Ok(())
        };
        numbers(name, write).map_err(|source| match source.downcast::<Error>() {
            Ok(of_disk) => *of_disk,
            Err(source) => Error::Ranks(source),
        })?;
        if written != len {
            return Err(malformed(path, format!("array `{name}` has {written} numbers where {len} are announced")));
        }
    }
    file.flush().map_err(failed)
}

/// Reads what [`write_flat`] wrote.
///
/// Errors: a header that is not JSON or lies about its size, an array that is not one-dimensional
/// `f32`, gaps or overlaps, a file that is shorter or longer than its header says. Nothing is
/// allocated for what the file does not hold.
pub fn read_flat(path: &Path) -> Result<Flat> {
    let failed = disk::failed("read", path);
    let mut file = File::open(path).map_err(&failed)?;
    let len = file.metadata().map_err(&failed)?.len();
    let mut prefix = [0; 8];
    if len < 8 {
        return Err(malformed(path, format!("{len} bytes cannot hold a header")));
    }
    file.read_exact(&mut prefix).map_err(&failed)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > (len - 8).min(MAX_HEADER) {
        return Err(malformed(path, format!("a header of {header_len} bytes does not fit into {len}")));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(&failed)?;
    let (metadata, entries) = parse(&header).map_err(|problem| malformed(path, problem))?;
    check_extents(&entries, len - 8 - header_len).map_err(|problem| malformed(path, problem))?;
    let mut arrays = BTreeMap::new();
    for (name, begin, end) in entries {
        arrays.insert(name, read_array(&mut file, ((end - begin) / 4) as usize).map_err(&failed)?);
    }
    Ok(Flat { text: metadata, arrays })
}

/// The content of a file of [`write_flat`].
#[derive(Debug, PartialEq)]
pub struct Flat {
    /// The text metadata.
    pub text: BTreeMap<String, String>,
    /// The arrays by name.
    pub arrays: BTreeMap<String, Vec<f32>>,
}

impl Flat {
    /// The text and the arrays.
    pub fn into_parts(self) -> (BTreeMap<String, String>, BTreeMap<String, Vec<f32>>) {
        (self.text, self.arrays)
    }

    /// Removes and returns the array `name`.
    ///
    /// Errors: there is none.
    pub fn take(&mut self, name: &str) -> Result<Vec<f32>, BoxError> {
        self.arrays.remove(name).ok_or_else(|| format!("array `{name}` is missing").into())
    }
}

/// More than any header here needs; the safetensors library has the same limit.
const MAX_HEADER: u64 = 100_000_000;

/// One array's line in the header.
#[derive(Serialize)]
struct Entry {
    dtype: &'static str,
    shape: [usize; 1],
    data_offsets: [usize; 2],
}

fn header(metadata: &BTreeMap<String, String>, lens: &BTreeMap<&str, usize>) -> serde_json::Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    let mut offset = 0;
    for (&name, &len) in lens {
        let end = offset + 4 * len;
        entries.insert(name, Entry { dtype: "F32", shape: [len], data_offsets: [offset, end] });
        offset = end;
    }
    #[derive(Serialize)]
    struct Header<'a> {
        __metadata__: &'a BTreeMap<String, String>,
        #[serde(flatten)]
        entries: BTreeMap<&'a str, Entry>,
    }
    let mut header = serde_json::to_vec(&Header { __metadata__: metadata, entries })?;
    // Safetensors wants the numbers on a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

type Parsed = (BTreeMap<String, String>, Vec<(String, u64, u64)>);

/// Metadata and `(name, begin, end)` of every array, in the order of the data.
fn parse(header: &[u8]) -> Result<Parsed, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        dtype: String,
        shape: Vec<u64>,
        data_offsets: [u64; 2],
    }
    let mut lines: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| format!("the header is not JSON: {error}"))?;
    let metadata = match lines.remove("__metadata__") {
        Some(value) => serde_json::from_value(value).map_err(|error| format!("metadata: {error}"))?,
        None => BTreeMap::new(),
    };
    let mut entries = Vec::new();
    for (name, line) in lines {
        let line: Line = serde_json::from_value(line).map_err(|error| format!("array `{name}`: {error}"))?;
        let [begin, end] = line.data_offsets;
        let fits = |&len: &u64| end.checked_sub(begin).is_some_and(|bytes| len.checked_mul(4) == Some(bytes));
        if line.dtype != "F32" || line.shape.len() != 1 || !line.shape.iter().all(fits) {
            let (dtype, shape) = (line.dtype, line.shape);
            return Err(format!("array `{name}`: {dtype} {shape:?} at bytes {begin}..{end} is not a flat f32 array"));
        }
        entries.push((name, begin, end));
    }
    entries.sort_by_key(|&(_, begin, end)| (begin, end));
    Ok((metadata, entries))
}

/// Refuses gaps, overlaps and a wrong total.
fn check_extents(entries: &[(String, u64, u64)], data_len: u64) -> Result<(), String> {
    let mut expected = 0;
    for (name, begin, end) in entries {
        if *begin != expected {
            return Err(format!("array `{name}` begins at byte {begin}, not {expected}"));
        }
        expected = *end;
    }
    if expected == data_len { Ok(()) } else { Err(format!("{data_len} bytes of data where {expected} are announced")) }
}

fn read_array(file: &mut File, len: usize) -> std::io::Result<Vec<f32>> {
    let mut values = Vec::with_capacity(len);
    let mut bytes = vec![0; 4 * len.min(1 << 16)];
    while values.len() < len {
        let part = &mut bytes[..4 * (len - values.len()).min(1 << 16)];
        file.read_exact(part)?;
        values.extend(part.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)));
    }
    Ok(values)
}

fn malformed(path: &Path, problem: String) -> Error {
    Error::Malformed { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn content() -> (BTreeMap<String, String>, Vec<f32>, Vec<f32>) {
        let metadata = BTreeMap::from([("steps".into(), "7".into()), ("a \"b\"".into(), "é".into())]);
        let values = (0..70_000).map(|i| i as f32 * 0.1).chain([f32::MIN_POSITIVE / 2.0, -0.0, f32::MAX]).collect();
        (metadata, values, vec![])
    }

    #[test]
    fn round_trip_is_exact_and_bytes_are_stable() {
        let folder = tempfile::tempdir().unwrap();
        let (metadata, values, empty) = content();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        write_flat(&one, &metadata, &[("z", &values), ("empty", &empty), ("a", &values[..3])]).unwrap();
        write_flat(&two, &metadata, &[("a", &values[..3]), ("z", &values), ("empty", &empty)]).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let flat = read_flat(&one).unwrap();
        assert_eq!(flat.text, metadata);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&flat.arrays["z"]), bits(&values));
        assert_eq!((flat.arrays["a"].len(), flat.arrays["empty"].len()), (3, 0));
    }

    #[test]
    fn the_safetensors_library_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let (metadata, values, empty) = content();
        let path = folder.path().join("file");
        write_flat(&path, &metadata, &[("z", &values), ("empty", &empty)]).unwrap();
        let bytes = fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let z = tensors.tensor("z").unwrap();
        assert_eq!((z.dtype(), z.shape()), (safetensors::Dtype::F32, &[values.len()][..]));
        let want: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(z.data(), want);
        let (_, read) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(read.metadata().as_ref().unwrap()["a \"b\""], "é");
    }

    #[track_caller]
    fn check_refused(header: &str, data_len: usize, part: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes().chain(std::iter::repeat_n(0, data_len)));
        fs::write(&path, bytes).unwrap();
        let message = read_flat(&path).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains(path.to_str().unwrap()), "{message}");
    }

    #[test]
    fn lies_are_refused() {
        check_refused("nonsense", 0, "not JSON");
        check_refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7, "7 bytes of data");
        check_refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 12, "12 bytes of data");
        check_refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "begins at byte 4");
        check_refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "not a flat f32 array");
        check_refused(r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#, 8, "not a flat f32 array");
        check_refused(r#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#, 8, "not a flat f32 array");
        check_refused(r#"{"a":{"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]}}"#, 8, "not a flat");
        check_refused(r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#, 0, "not a flat");
        check_refused(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            "begins at byte 4",
        );
        check_refused(r#"{"__metadata__":{"a":1}}"#, 0, "metadata");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for bytes in [&[][..], &[1, 2, 3], &[255; 8], &[16, 0, 0, 0, 0, 0, 0, 0, b'{']] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(read_flat(&path), Err(Error::Malformed { .. })), "{bytes:?}");
        }
        assert!(matches!(read_flat(&folder.path().join("absent")), Err(Error::Io { .. })));
    }
}
