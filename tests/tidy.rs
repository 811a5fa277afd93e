//! What a machine can check of how clipmill is written.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use pipeline::config::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files under the workspace's own folders with one of these extensions.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if path.is_dir() {
                walk(&path, extensions, found);
            } else if extensions.contains(&extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["pipeline", "stages", "kernels", "benches", "tests", "configs"] {
        walk(&root().join(folder), extensions, &mut found);
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn every_module_opens_with_its_purpose_and_none_is_long() {
    for path in files(&["rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with //!", path.display());
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines", path.display());
    }
}

#[test]
fn no_drawers_and_no_marks_left() {
    for path in files(&["rs", "py", "toml"]) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "common", "helpers", "misc"].contains(&name.as_str()),
            "{}",
            path.display()
        );
        if name == "tidy" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for mark in ["todo!(", "unimplemented!(", "FIXME", "#[ignore"] {
            assert!(!text.contains(mark), "{} has {mark}", path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_in_kernels() {
    for room in ["pipeline", "stages"] {
        let text = fs::read_to_string(root().join(room).join("src/lib.rs")).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{room}");
    }
}

/// `pipeline` → `stages` → `kernels`, and no stage names a thread or another stage's settings.
#[test]
fn rooms_depend_one_way() {
    let manifest = |room: &str| fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
    assert!(!manifest("kernels").contains("stages") && !manifest("kernels").contains("pipeline"));
    assert!(!manifest("stages").contains("pipeline.workspace"));
    let stages = ["load", "decode", "encode", "index"];
    for stage in stages {
        for path in files(&["rs"]) {
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let is_own = relative.starts_with(&format!("stages/src/{stage}/"))
                || relative == format!("stages/src/{stage}.rs");
            if !is_own {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for other in stages.iter().filter(|o| **o != stage) {
                let type_name = format!("{}{}", other[..1].to_uppercase(), &other[1..]);
                for used in [format!("crate::{other}::{type_name};"), format!("{other}::{{{type_name}")] {
                    assert!(!text.contains(&used), "{relative} uses the stage {other}");
                }
            }
        }
    }
}

/// A kernel is a `.cu`, a module, a place in the fake driver, a test there and a bench.
#[test]
fn every_kernel_has_its_module_its_test_and_its_bench() {
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let rust = files(&["rs"]);
    // Whether some file whose path begins so has the text.
    let has = |start: &str, text: &str| {
        let mut under =
            rust.iter().filter(|p| p.strip_prefix(root()).unwrap().to_string_lossy().starts_with(start));
        under.any(|path| read(path).contains(text))
    };
    let on_cpu = read(&root().join("tests/fake_gpu/kernels.cpp"));
    let mut names = Vec::new();
    for path in files(&["cu"]) {
        let (file, name) =
            (path.file_name().unwrap().to_str().unwrap(), path.file_stem().unwrap().to_str().unwrap());
        names.push(file.to_owned());
        assert!(has(&format!("kernels/src/{name}"), &format!("cu/{file}\")")), "{file} has no module {name}");
        assert!(
            on_cpu.contains(&format!("#include \"{file}\"")),
            "{file} is not in tests/fake_gpu/kernels.cpp"
        );
        for kernel in read(&path).split("__global__").skip(1) {
            // `void __launch_bounds__(…) kernel(…)`: bounds are compulsory, for they are tested.
            let (_, rest) = kernel.split_once("__launch_bounds__(").unwrap();
            let kernel = rest.split_once(") ").unwrap().1.split('(').next().unwrap();
            assert!(on_cpu.contains(&format!("{{\"{kernel}\", kernel(")), "{kernel} is not in kernels.cpp");
        }
        for (what, start) in
            [("test", "tests/gpu"), ("bench", "benches/gpu/kernels.rs"), ("parity", "benches/gpu/parity.rs")]
        {
            assert!(has(start, &format!("{name}::")), "{file} has no {what} in {start}");
        }
    }
    let listed: Vec<&str> = kernels::gpu::program::SOURCES.iter().map(|(file, _)| *file).collect();
    names.sort();
    assert_eq!(listed, names, "SOURCES names them all");
}

#[test]
fn every_config_checks_and_together_they_set_every_key() {
    let mut set = BTreeSet::new();
    let mut all = BTreeSet::new();
    for path in files(&["toml"]).into_iter().filter(|p| p.parent().unwrap().ends_with("configs")) {
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let config = Config::parse(&name, &text, &[], 2).unwrap_or_else(|e| panic!("{e}"));
        for setting in config.settings {
            if setting.from != "default" {
                set.insert(setting.key.clone());
            }
            all.insert(setting.key);
        }
        // Every key carries its comment, at least where the file sets it apart from the others.
        assert!(text.starts_with("# "), "{name} says what it is for");
    }
    assert_eq!(set, all, "some key is in no file of configs/");
}

#[test]
fn the_readme_names_what_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for file in [
        "configs/demo.toml",
        "configs/ucf101.toml",
        "configs/production.toml",
        "configs/throughput.toml",
        "configs/single-gpu.toml",
    ] {
        assert!(readme.contains(file) && root().join(file).is_file(), "{file}");
    }
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    for target in ["demo", "test", "setup", "check", "bench"] {
        assert!(
            readme.contains(&format!("make {target}")) && makefile.contains(&format!("\n{target}:")),
            "{target}"
        );
    }
}
