//! Files that are there whole, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

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

/// The bytes before the values of a NumPy file, format 1.0, of little-endian f32 in row-major order. Their
/// number is the same for any shape of up to 64 digits.
pub fn npy_header(shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", dims.join(", "));
    // The values start at a multiple of 64 bytes.
    let mut bytes = [NPY_MAGIC, &118u16.to_le_bytes()].concat();
    bytes.extend(format!("{text:<117}\n").into_bytes());
    bytes
}

/// What a NumPy file of format 1.0 starts with.
pub const NPY_MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_of_one_length() {
        for shape in [&[0, 3, 224, 224][..], &[1_000_000, 3, 384, 384], &[1000, 384]] {
            let header = npy_header(shape);
            assert_eq!(header.len(), 128, "{}", String::from_utf8_lossy(&header));
        }
    }
}
