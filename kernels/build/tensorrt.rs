//! Compiles `src/ffi/tensorrt.cpp` once for each major release of TensorRT whose headers are found, into
//! shared objects that the crate carries as bytes.
//!
//! Nothing is required: without headers, or where they do not compile, clipmill does without TensorRT and
//! says so.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const SOURCE: &str = "src/ffi/tensorrt.cpp";
/// Where distributions' own packages put them.
const SYSTEM: [&str; 4] = [
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
];

/// Compiles them and writes `tensorrt_shims.rs`, the list of what there is.
pub(crate) fn compile() {
    for file in [SOURCE, "src/ffi/tensorrt.h", "src/ffi/tensorrt_headers/cuda_runtime_api.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // Not `CLIPMILL_HOME`: who sets it for one command would have all built again for the next.
    println!("cargo::rerun-if-env-changed=TENSORRT_INCLUDE");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    // The first of a kind counts.
    let mut kinds = BTreeMap::new();
    for folder in folders() {
        if let Some(kind) = kind(&folder) {
            kinds.entry(kind).or_insert(folder);
        }
    }
    let started = kinds.into_iter().map(|(kind, folder)| {
        let object = out.join(format!("tensorrt_{kind}.so"));
        (start(&folder, &object), kind, folder, object)
    });
    // All at once: each takes a second or two.
    let started: Vec<_> = started.collect();
    let mut list = String::new();
    for (child, kind, folder, object) in started {
        match child.and_then(Child::wait_with_output) {
            Ok(output) if output.status.success() => {
                list += &format!("    ({kind:?}, include_bytes!({:?})),\n", object.display().to_string());
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let first = text.lines().find(|line| line.contains("error")).unwrap_or("the compiler failed");
                println!("cargo::warning=TensorRT's headers in {} do not serve: {first}", folder.display());
            }
            Err(e) => println!("cargo::warning=no C++ compiler, so no TensorRT: {e}"),
        }
    }
    let list = format!("pub(super) const SHIMS: &[(&str, &[u8])] = &[\n{list}];\n");
    if let Err(e) = fs::write(out.join("tensorrt_shims.rs"), list) {
        println!("cargo::error=cannot write tensorrt_shims.rs: {e}");
    }
}

/// Folders that may have headers, in the order of precedence.
fn folders() -> Vec<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let named = var("TENSORRT_INCLUDE").map(|list| env::split_paths(&list).collect::<Vec<_>>());
    for folder in named.iter().flatten().filter(|folder| kind(folder).is_none()) {
        println!("cargo::warning=TENSORRT_INCLUDE: {} has no NvInferVersion.h", folder.display());
    }
    // As `Home` in stages finds it, which this crate does not know.
    let home = var("CLIPMILL_HOME")
        .or_else(|| var("XDG_DATA_HOME").map(|d| d.join("clipmill")))
        .or_else(|| var("HOME").map(|d| d.join(".local/share/clipmill")));
    let include = home.map(|home| home.join("include")).filter(|folder| folder.is_dir());
    let mut fetched = Vec::new();
    if let Some(include) = include {
        // A folder that is missing would have cargo run this each time; `make setup` touches build.rs.
        println!("cargo::rerun-if-changed={}", include.display());
        let entries = fs::read_dir(include).into_iter().flatten().flatten();
        let is_ours = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("tensorrt-");
        fetched.extend(entries.filter(is_ours).map(|e| e.path()));
        fetched.sort();
    }
    named.into_iter().flatten().chain(fetched).chain(SYSTEM.map(PathBuf::from)).collect()
}

/// Which TensorRT a folder's headers are of: `8`, `10`, `11` or `rtx1`.
fn kind(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("NvInferVersion.h")).ok()?;
    let value = |name: &str| -> Option<String> {
        let defined = text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("#define") && words.next() == Some(name)).then(|| words.next())?
        });
        defined.map(str::to_owned)
    };
    if let Some(major) = value("TRT_MAJOR_RTX") {
        return Some(format!("rtx{major}"));
    }
    let major = value("NV_TENSORRT_MAJOR")?;
    let major = if major.parse::<u32>().is_ok() { major } else { value(&major)? };
    major.parse::<u32>().is_ok().then_some(major)
}

fn start(include: &Path, object: &Path) -> std::io::Result<Child> {
    let compiler = cc::Build::new().cpp(true).try_get_compiler().map_err(std::io::Error::other)?;
    Command::new(compiler.path())
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"])
        // What TensorRT 10 deprecates is the only way that all of 10 has.
        .arg("-Wno-deprecated-declarations")
        .args(["-I", "src/ffi/tensorrt_headers", "-isystem"])
        .arg(include)
        .arg("-o")
        .arg(object)
        .args([SOURCE, "-ldl"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}
