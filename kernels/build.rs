//! Compiles `src/ffi/libav.c` against the machine's FFmpeg, and the shims for TensorRT.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "so a build script speaks to cargo")]

#[path = "build/tensorrt.rs"]
mod tensorrt;

/// Releases before FFmpeg 5.1 lack what the shim asks for.
const LIBRARIES: [(&str, &str); 4] =
    [("libavformat", "59.27"), ("libavcodec", "59.37"), ("libavutil", "57.28"), ("libswscale", "6.7")];

fn main() {
    tensorrt::compile();
    println!("cargo::rerun-if-changed=src/ffi/libav.c");
    println!("cargo::rerun-if-changed=src/ffi/libav.h");
    let mut shim = cc::Build::new();
    shim.file("src/ffi/libav.c").warnings(true).extra_warnings(true).opt_level(2);
    let mut found = Vec::new();
    for (library, version) in LIBRARIES {
        match pkg_config::Config::new().atleast_version(version).cargo_metadata(false).probe(library) {
            Ok(library) => found.push(library),
            Err(e) => {
                eprintln!("{e}\nhint: `make setup` installs Debian's packages, {library}-dev among them");
                std::process::exit(1);
            }
        }
    }
    found.iter().for_each(|library| {
        shim.includes(&library.include_paths);
    });
    shim.compile("clipmill_libav");
    // After the shim, which needs them.
    for library in &found {
        library
            .link_paths
            .iter()
            .for_each(|path| println!("cargo::rustc-link-search=native={}", path.display()));
        library.libs.iter().for_each(|name| println!("cargo::rustc-link-lib={name}"));
    }
}
