//! Every kernel compiled by the real NVRTC, for the devices that clipmill is made for. `make gpu-packages`
//! fetches it; no device and no driver is needed.

use std::{fs, path::Path};

use kernels::{
    ffi::nvrtc::{Nvrtc, Source, Target},
    gpu::{
        Gpu,
        program::{HEADERS, OPTIONS, Programs, SOURCES, compile_into},
    },
    l2_normalize::GpuNormalizer,
};
use stages::{lane::nvrtc_folders, model::home::Home};
use support::fake_gpu;

/// A100, H100 and H200, B200.
const CAPABILITIES: [u32; 3] = [80, 90, 100];
/// Registers of a processor on all of them.
const REGISTERS: usize = 65536;

fn nvrtc() -> Option<Nvrtc> {
    let found = Nvrtc::find(&nvrtc_folders(&Home::from_env()), None);
    found.inspect_err(|e| support::skip(&e.to_string(), "CLIPMILL_REQUIRE_GPU_PACKAGES")).ok()
}

/// What ptxas says of one kernel.
#[derive(Debug, PartialEq)]
struct Usage {
    kernel: String,
    stack_bytes: usize,
    spilled_bytes: usize,
    registers: usize,
}

/// Reads what `--ptxas-options=-v` tells.
fn usages(log: &str) -> Vec<Usage> {
    let number_before = |line: &str, what: &str| -> usize {
        let before = line.split(what).next().filter(|before| before.len() < line.len());
        before.and_then(|before| before.split_whitespace().last()?.parse().ok()).unwrap_or(0)
    };
    let mut found: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            let kernel = line.split('\'').nth(1).unwrap().to_owned();
            // Without a figure it must not pass.
            found.push(Usage { kernel, stack_bytes: 0, spilled_bytes: 0, registers: usize::MAX });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            last.stack_bytes = number_before(line, " bytes stack frame");
            last.spilled_bytes =
                number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        }
        if line.contains(" registers") {
            last.registers = number_before(line, " registers");
        }
    }
    found
}

/// Kernels of a source by name, and the threads that must find registers together: those of a block, times
/// the blocks that it asks for.
fn bounds(text: &str) -> Vec<(String, usize)> {
    let constant = |name: &str| -> usize {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name} is no number"))
    };
    let kernels = text.match_indices("__global__ void __launch_bounds__(").map(|(at, start)| {
        let rest = &text[at + start.len()..];
        let (inside, rest) = rest.split_once(')').unwrap();
        let name = rest.split('(').next().unwrap().trim().to_owned();
        (name, inside.split(',').map(|name| constant(name.trim())).product())
    });
    kernels.collect()
}

#[test]
fn every_kernel_compiles_and_spills_nothing() {
    let Some(nvrtc) = nvrtc() else { return };
    eprintln!("NVRTC {:?}: {}", nvrtc.version(), nvrtc.path().display());
    let options: Vec<&str> = OPTIONS.iter().copied().chain(["--ptxas-options=-v"]).collect();
    for capability in CAPABILITIES {
        for (name, text) in SOURCES {
            let source = Source { name, text, headers: HEADERS };
            let target = nvrtc.target(capability).unwrap();
            assert_eq!(target, Target::Machine(capability));
            let compiled = nvrtc.compile(source, target, &options).unwrap_or_else(|e| panic!("{e}"));
            assert!(compiled.code.starts_with(b"\x7FELF"), "{name}");
            let (usages, bounds) = (usages(&compiled.log), bounds(text));
            assert!(!usages.is_empty() && usages.len() == bounds.len(), "{name}: {}", compiled.log);
            for usage in usages {
                let Usage { kernel, stack_bytes, spilled_bytes, registers } = &usage;
                eprintln!(
                    "sm_{capability} {kernel:<22} {registers:>3} registers, {spilled_bytes} bytes spilled"
                );
                assert_eq!((*stack_bytes, *spilled_bytes), (0, 0), "{kernel} on sm_{capability}");
                let (_, threads) = bounds.iter().find(|(name, _)| name == kernel).unwrap();
                // A warp gets registers by the eight a thread.
                let most = REGISTERS / threads;
                assert!(registers.next_multiple_of(8) <= most, "{kernel}: {registers} of {most}");
            }
        }
    }
}

#[test]
fn spills_are_seen() {
    let Some(nvrtc) = nvrtc() else { return };
    // As many values at once as registers cannot hold, and an array that is indexed.
    let text = "extern \"C\" __global__ void __launch_bounds__(1024, 2) much(float* p, const int* at) {\n\
        float v[64];\n\
        for (int i = 0; i < 64; ++i) v[i] = p[i * 32 + threadIdx.x];\n\
        __syncthreads();\n\
        for (int i = 0; i < 64; ++i) p[i * 32 + threadIdx.x] = v[at[i] & 63] * v[63 - i];\n}\n";
    let source = Source { name: "much.cu", text, headers: &[] };
    let compiled = nvrtc.compile(source, Target::Machine(90), &["--ptxas-options=-v"]).unwrap();
    let [usage] = &usages(&compiled.log)[..] else { panic!("{}", compiled.log) };
    assert!(usage.stack_bytes > 0 && usage.registers <= 32, "{usage:?}");
}

#[test]
fn what_a_source_gets_wrong_is_told() {
    let Some(nvrtc) = nvrtc() else { return };
    let source =
        Source { name: "wrong.cu", text: "#include \"kernel.h\"\nint f() { return x; }", headers: HEADERS };
    let told = nvrtc.compile(source, Target::Machine(90), OPTIONS).unwrap_err().to_string();
    assert!(told.contains("does not compile wrong.cu") && told.contains("wrong.cu(2)"), "{told}");
}

/// Compiles here what a machine without NVRTC then takes. The fake driver takes machine code from here on.
#[test]
fn another_machine_takes_what_was_compiled_here() {
    const TEST: &str = "another_machine_takes_what_was_compiled_here";
    const FOLDER: &str = "CLIPMILL_TEST_CUBINS";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let gpu = Gpu::open(0).unwrap();
        let programs = |folder: &Path| GpuNormalizer::new(&Programs::new(&gpu, folder, &[])).map(drop);
        programs(Path::new(&folder)).unwrap();
        // It is not that it would do without.
        let missing = programs(&Path::new(&folder).join("elsewhere")).unwrap_err().to_string();
        assert!(missing.contains("there is no NVRTC"), "{missing}");
        return;
    }
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    for source in SOURCES {
        compile_into(folder.path(), &nvrtc, *source, 90).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), SOURCES.len());
    let settings = [
        (FOLDER, folder.path().to_str().unwrap()),
        ("CLIPMILL_NVRTC", "/nowhere/libnvrtc.so"),
        ("FAKE_CUDA_MACHINE_CODE", "1"),
    ];
    assert!(!fake_gpu::inside(TEST, &settings));
}
