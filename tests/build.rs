//! Builds the fakes of NVIDIA's libraries that tests run against: see `fake_gpu/`.

use std::{env, path::PathBuf};

/// Libraries by the names that they are loaded by, with their sources.
const FAKES: &[(&str, &[&str])] = &[
    ("libcuda.so.1", &["cuda.cpp", "kernels.cpp"]),
    ("libnvrtc.so.13", &["nvrtc.cpp"]),
    ("libnvcuvid.so.1", &["nvcuvid.cpp"]),
    ("libnvinfer.so.10", &["tensorrt.cpp"]),
];

fn main() {
    println!("cargo::rerun-if-changed=fake_gpu");
    println!("cargo::rerun-if-changed=../kernels/cu");
    println!("cargo::rerun-if-changed=../kernels/src/ffi/tensorrt.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("fake_gpu");
    std::fs::create_dir_all(&out).unwrap();
    for (library, sources) in FAKES {
        let mut build = cc::Build::new();
        // Both builds of a kernel must round alike: nothing is fused that is not written so.
        build.cpp(true).std("c++17").opt_level(2).flag("-ffp-contract=off").cargo_metadata(false);
        let mut compiler = build.get_compiler().to_command();
        // A device takes wide loads at multiples of their size only; a CPU would not mind.
        compiler.args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]);
        compiler
            .args([
                "-shared",
                "-fPIC",
                "-Wall",
                "-Wno-unknown-pragmas",
                "-I../kernels/cu",
                "-I../kernels/src/ffi",
                "-Ifake_gpu",
                "-o",
            ])
            .arg(out.join(library));
        compiler.args(sources.iter().map(|source| format!("fake_gpu/{source}")));
        // What the fake NVDEC decodes with.
        compiler.args(["-lavcodec", "-lavutil"].iter().filter(|_| library.starts_with("libnvcuvid")));
        assert!(compiler.status().unwrap().success(), "{library} does not compile");
    }
    println!("cargo::rustc-env=FAKE_GPU={}", out.display());
}
