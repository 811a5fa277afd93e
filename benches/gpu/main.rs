//! Kernels on a device: `gpu parity`, `gpu kernels`, `gpu cpu`, and `gpu compile FOLDER` for a machine that
//! has no NVRTC.

use std::path::PathBuf;

use anyhow::Result;
use benches::{
    gpu::{Device, Scale, kernels, parity, save},
    print,
};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    /// Number of the device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Where compiled kernels are kept.
    #[arg(long, default_value = "target/gpu-kernels")]
    kernels: PathBuf,
    /// A folder with NVRTC, if the system has none.
    #[arg(long)]
    nvrtc: Vec<PathBuf>,
    /// Keeps the results here.
    #[arg(long)]
    results: Option<PathBuf>,
    /// So little work that a CPU can play the device.
    #[arg(long)]
    small: bool,
    // `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Every kernel against the CPU, on random inputs.
    Parity,
    /// How fast every kernel is.
    Kernels,
    /// How fast their CPU forms are.
    Cpu,
    /// Compiles every kernel for devices of these compute capabilities, such as 90.
    Compile {
        /// Gets them.
        folder: PathBuf,
        /// For which.
        capabilities: Vec<u32>,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scale = if args.small { Scale::Small } else { Scale::Whole };
    let open = || Device::open(args.device, &args.kernels, &args.nvrtc);
    let results = args.results.as_deref();
    match args.command.unwrap_or(Command::Cpu) {
        Command::Parity => {
            let device = open()?;
            save(results, "gpu-parity", &device, &parity::run(&device, scale)?)
        }
        Command::Kernels => {
            let device = open()?;
            save(results, "gpu-kernels", &device, &kernels::run(&device, scale)?)
        }
        Command::Cpu => kernels::on_cpu(scale).map(drop),
        Command::Compile { folder, capabilities } => {
            use ::kernels::{
                ffi::nvrtc::Nvrtc,
                gpu::program::{SOURCES, compile_into},
            };
            let nvrtc = Nvrtc::find(&args.nvrtc, None)?;
            for source in SOURCES {
                for capability in &capabilities {
                    compile_into(&folder, &nvrtc, *source, *capability)?;
                }
            }
            print(&format!("{} kernels' sources compiled by {}", SOURCES.len(), nvrtc.path().display()));
            Ok(())
        }
    }
}
