//! Runs a test once more, in a process whose NVIDIA libraries are the fakes of `tests/fake_gpu`.

use std::{env, path::PathBuf, process::Command};

/// Where the fakes are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("FAKE_GPU"))
}

/// The environment of a process with the fakes: they come before any real ones. GStreamer remembers what plugins
/// hold, so it has a memory of its own.
pub fn environment() -> [(&'static str, String); 4] {
    let before = env::var("LD_LIBRARY_PATH").unwrap_or_default();
    [
        ("LD_LIBRARY_PATH", format!("{}:{before}", folder().display())),
        ("CLIPMILL_TENSORRT_SHIM", folder().join("libnvinfer.so.10").display().to_string()),
        ("GST_REGISTRY", folder().join("registry.bin").display().to_string()),
        ("CLIPMILL_NVRTC", folder().join("libnvrtc.so.13").display().to_string()),
    ]
}

/// Whether this process has the fakes. If not, the test of this name is run in one that has, with these
/// settings of theirs, and must pass there.
pub fn inside(test: &str, settings: &[(&str, &str)]) -> bool {
    const MARK: &str = "CLIPMILL_FAKE_GPU";
    if env::var_os(MARK).is_some() {
        return true;
    }
    let ran = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1")
        .envs(environment())
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(
        ran.status.success() && told.contains("1 passed"),
        "{test} with a fake GPU: {}\n{told}",
        ran.status
    );
    false
}
