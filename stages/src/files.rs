//! Files that are there whole, or not at all.

use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use half::f16;
use serde::{Serialize, de::DeserializeOwned};

/// Writes a small file under another name, then gives it its own. Of two writers at once, one wins.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// Waits until the names in a file's folder are on the disk.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

const SEAL: &str = "\"seal\": \"";
const SEAL_DIGITS: usize = 64;
/// Behind the brace, the end of its line and two blanks.
const SEAL_AT: usize = 4 + SEAL.len();

/// JSON of an object, with a first key `seal` that is the blake3 of the text with zeros in its place.
pub fn sealed_json(object: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(object)?;
    let rest = text.strip_prefix("{\n").context("an object with keys")?;
    let with = |hash: &str| format!("{{\n  {SEAL}{hash}\",\n{rest}\n");
    let blank = with(&"0".repeat(SEAL_DIGITS));
    Ok(with(&blake3::hash(blank.as_bytes()).to_hex()))
}

/// Reads what [`sealed_json`] made. What was changed since is an error; what has no seal, as older versions
/// wrote it, is taken as it is.
pub fn read_sealed<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let damaged = || format!("{} is damaged", path.display());
    let text = str::from_utf8(bytes).with_context(damaged)?;
    if is_sealed(bytes) {
        let digits = SEAL_AT..SEAL_AT + SEAL_DIGITS;
        let mut blank = bytes.to_vec();
        if let Some(digits) = blank.get_mut(digits.clone()) {
            digits.fill(b'0');
        }
        if bytes.get(digits) != Some(blake3::hash(&blank).to_hex().as_bytes()) {
            bail!("{}: it was changed after it was written, and its seal does not hold", damaged());
        }
    }
    serde_json::from_str(text).with_context(damaged)
}

/// Whether a text has a seal, which need not hold: most of its digits, or what stands before them.
pub fn is_sealed(text: &[u8]) -> bool {
    let is_digit = |b: &&u8| b.is_ascii_hexdigit();
    let digits = text.get(SEAL_AT..SEAL_AT + SEAL_DIGITS);
    let n_digits = digits.map_or(0, |digits| digits.iter().filter(is_digit).count());
    n_digits > SEAL_DIGITS / 2 || text.starts_with(format!("{{\n  {SEAL}").as_bytes())
}

/// The bytes before the values of a NumPy file, format 1.0, of little-endian f32 in row-major order. Their
/// number is the same for any shape of up to 64 digits. The hashes of models depend on these bytes, so the
/// comma that NumPy itself does not write stays.
pub fn npy_header(shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    npy_header_of("<f4", &format!("({},)", dims.join(", ")))
}

/// The same as NumPy writes it, of values of the type `descr` (`<f2`, say). Readers that take it apart
/// themselves, such as embedding-reader, know no other form.
pub fn numpy_header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let tuple = if dims.len() == 1 { format!("({},)", dims[0]) } else { format!("({})", dims.join(", ")) };
    npy_header_of(descr, &tuple)
}

fn npy_header_of(descr: &str, shape: &str) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // The values start at a multiple of 64 bytes.
    let mut bytes = [NPY_MAGIC, &118u16.to_le_bytes()].concat();
    bytes.extend(format!("{text:<117}\n").into_bytes());
    bytes
}

/// What a NumPy file of format 1.0 starts with.
const NPY_MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// The rows of a NumPy file of little-endian float32 or float16, and their length. A file of one dimension
/// is one row.
pub fn read_npy(path: &Path) -> Result<(Vec<f32>, usize)> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (values, dim) = parse_npy(&bytes).with_context(|| {
        format!("{} is no NumPy file of rows of little-endian float32 or float16", path.display())
    })?;
    Ok((values, dim))
}

fn parse_npy(mut bytes: &[u8]) -> Option<(Vec<f32>, usize)> {
    let form = NpyForm::read(&mut bytes)?;
    let dim = *form.shape.last()?;
    let values = form.values(bytes)?;
    let is_whole = dim > 0 && values.len() == form.shape.iter().product::<usize>();
    is_whole.then_some((values, dim))
}

/// What a NumPy file says of its values.
#[derive(Clone, Debug)]
pub struct NpyForm {
    /// Their type, such as `<f4`.
    pub descr: String,
    /// One size or two.
    pub shape: Vec<usize>,
}

impl NpyForm {
    /// Reads what stands before the values; none where that is no array of rows in NumPy's format 1.0.
    pub fn read(from: &mut impl Read) -> Option<Self> {
        let mut start = [0; NPY_MAGIC.len() + 2];
        from.read_exact(&mut start).ok()?;
        let len: [u8; 2] = start.strip_prefix(NPY_MAGIC)?.try_into().ok()?;
        let mut header = vec![0; usize::from(u16::from_le_bytes(len))];
        from.read_exact(&mut header).ok()?;
        let header = str::from_utf8(&header).ok()?;
        let after = |key: &str| header.split_once(key).map(|(_, rest)| rest);
        let shape = after("'shape': (")?.split_once(')')?.0;
        let sizes = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
        let shape: Vec<usize> = sizes.map(|d| d.parse().ok()).collect::<Option<_>>()?;
        let is_rows = after("'fortran_order': ")?.starts_with("False") && (1..=2).contains(&shape.len());
        let descr = after("'descr': '")?.split_once('\'')?.0.to_owned();
        is_rows.then_some(Self { descr, shape })
    }

    /// Bytes of a value; none where it is neither float32 nor float16.
    pub fn value_bytes(&self) -> Option<usize> {
        match self.descr.as_str() {
            "<f4" => Some(4),
            "<f2" => Some(2),
            _ => None,
        }
    }

    /// Values from their bytes, as float32.
    pub fn values(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self.value_bytes()? {
            4 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let values: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let file = |shape: &[usize]| [npy_header(shape), values.clone()].concat();
        assert_eq!(parse_npy(&file(&[2, 3])), Some((vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 3)));
        assert_eq!(parse_npy(&file(&[6])).map(|(_, dim)| dim), Some(6));
        for bad in [&file(&[3, 3])[..], &file(&[1, 2, 3]), &file(&[2, 3])[..150], b"\x93NUMPY", b""] {
            assert_eq!(parse_npy(bad), None);
        }
        let mut half = npy_header(&[2, 1]);
        let kind = half.windows(3).position(|w| w == b"<f4").unwrap();
        half[kind + 2] = b'2';
        half.extend([1.5, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        assert_eq!(parse_npy(&half), Some((vec![1.5, -2.0], 1)));
    }

    #[test]
    fn a_sealed_text_that_changed_is_refused() {
        let text = sealed_json(&serde_json::json!({"a": 0.1 + 0.2, "b": ["c"]})).unwrap();
        let read = |bytes: &[u8]| read_sealed::<serde_json::Value>(Path::new("a.json"), bytes);
        assert_eq!(read(text.as_bytes()).unwrap()["b"][0], "c");
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes).is_err(), "{at}: {}", String::from_utf8_lossy(&bytes));
        }
        assert_eq!(read(b"{\"a\": 1}").unwrap()["a"], 1, "of an older version");
    }

    #[test]
    fn headers_are_of_one_length() {
        for shape in [&[0, 3, 224, 224][..], &[1_000_000, 3, 384, 384], &[1000, 384]] {
            let header = npy_header(shape);
            assert_eq!(header.len(), 128, "{}", String::from_utf8_lossy(&header));
        }
    }

    #[test]
    fn the_form_of_numpy_is_numpys() {
        let wanted = "{'descr': '<f2', 'fortran_order': False, 'shape': (7, 384), }";
        assert!(String::from_utf8_lossy(&numpy_header("<f2", &[7, 384])).contains(wanted));
        assert!(String::from_utf8_lossy(&numpy_header("<i8", &[7])).contains("'shape': (7,), }"));
        // What models' hashes rest on.
        let kept = "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 384,), }";
        assert!(String::from_utf8_lossy(&npy_header(&[7, 384])).contains(kept));
    }
}
