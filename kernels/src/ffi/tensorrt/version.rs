//! Versions as TensorRT counts them, and the names of its libraries.

use std::fmt;

/// What kind of TensorRT a library is, for each of which there is a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Whether it is TensorRT-RTX, which counts from 1 and has no data-centre kernels.
    pub is_rtx: bool,
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// From `getInferLibVersion`: 8.6.1 gives 8601, 10.16.0 gives 101600, and TensorRT-RTX 1.7.1 gives 10701.
    pub(super) fn of(number: i32) -> Self {
        let number = number.unsigned_abs();
        let unit = if number < 10_000 { 1_000 } else { 10_000 };
        let (major, minor, patch) = (number / unit, number % unit / 100, number % 100);
        Self { is_rtx: unit == 10_000 && major < 8, major, minor, patch }
    }

    /// As `build/tensorrt.rs` names its shim.
    pub(super) fn kind(self) -> String {
        format!("{}{}", if self.is_rtx { "rtx" } else { "" }, self.major)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_rtx, major, minor, patch } = self;
        write!(f, "TensorRT{} {major}.{minor}.{patch}", if *is_rtx { "-RTX" } else { "" })
    }
}

/// A library and its parser of ONNX files, newest first. Those without a parser run plans only.
pub(super) const LIBRARIES: [(&str, &str); 4] = [
    ("libnvinfer.so.11", "libnvonnxparser.so.11"),
    ("libnvinfer.so.10", "libnvonnxparser.so.10"),
    ("libnvinfer.so.8", "libnvonnxparser.so.8"),
    ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_each_product_counts() {
        for (number, text, kind) in [
            (8601, "TensorRT 8.6.1", "8"),
            (100001, "TensorRT 10.0.1", "10"),
            (101600, "TensorRT 10.16.0", "10"),
            (110400, "TensorRT 11.4.0", "11"),
            (10701, "TensorRT-RTX 1.7.1", "rtx1"),
        ] {
            let version = Version::of(number);
            assert_eq!((version.to_string().as_str(), version.kind().as_str()), (text, kind));
        }
    }
}
