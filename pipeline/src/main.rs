//! Arguments → command → exit code.

mod models;
mod searches;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use pipeline::{
    config::{Config, Errors, Override},
    cross_check,
    doctor::{self, State},
    engines::measure::{self, Printed, Task},
    export, gpu_check,
    progress::eprint_line,
    run::{self, Ended, Options, Unusable},
};
use stages::{
    encode::network::{Engine, Libraries, Opening},
    model::{Home, Model},
};

/// Turns folders of video into searchable embeddings.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    all clips are indexed
  1    a fault stopped the run; what is committed stays, run it again to go on
  2    the arguments, the configuration or something it names is wrong
  3    finished, with rejected clips (rejects.parquet)
  130  stopped by Ctrl-C; run it again to go on

RUST_LOG=info (or debug, or stages::decode=trace) shows what happens inside.";

#[derive(Subcommand)]
enum Command {
    /// Index the clips that a configuration names
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// Only the first N clips of the list
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Print nothing but errors and the last line
        #[arg(long)]
        quiet: bool,
    },
    /// Check a configuration and print what it means; or, with --decode, decode files both ways
    Check {
        /// The configuration, a TOML file; it is checked alone, nothing that it names is opened
        #[arg(required_unless_present_any = ["decode", "gpu"])]
        config: Option<PathBuf>,
        /// Give one key another value, such as decode.workers=4
        #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with_all = ["decode", "gpu"])]
        overrides: Vec<Override>,
        /// Decode each file by a plan and whole, by several sampling rules, and tell any difference
        #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "config")]
        decode: Vec<PathBuf>,
        /// Decode and prepare each file on the first GPU and by the cores, and compare all frames
        #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["config", "decode"])]
        gpu: Vec<PathBuf>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Find clips by words, by a picture or by another clip
    Search(searches::SearchArgs),
    /// Bring a run's vector index up to date, make it anew, or verify it
    Index(searches::IndexArgs),
    /// Write a run's vectors and rows as other tools read them
    Export(export::Request),
    /// Tell what this machine has, what is missing, and how to get it
    Doctor {
        /// Measure what runs the installed models, where that is not known yet
        #[arg(long)]
        measure: bool,
    },
    /// Measure one engine and print its rates as JSON; clipmill calls itself so
    #[command(hide = true)]
    MeasureEngine(EngineArgs),
    /// Models: which there are, adding and removing them, their derived files
    #[command(subcommand)]
    Model(models::ModelCommand),
}

#[derive(Args)]
struct EngineArgs {
    model: PathBuf,
    #[arg(long)]
    engine: Engine,
    #[arg(long, value_delimiter = ',')]
    batches: Vec<usize>,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    sessions: usize,
    #[arg(long)]
    device: usize,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    vectors: PathBuf,
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration, a TOML file
    config: PathBuf,
    /// Give one key another value, such as decode.workers=4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
}

impl ConfigArgs {
    fn read(&self) -> Result<Config> {
        let name = self.config.display().to_string();
        let text = std::fs::read_to_string(&self.config)
            .with_context(|| format!("cannot read {name}"))
            .map_err(Unusable)?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Ok(Config::parse(&name, &text, &self.overrides, cores)?)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_open_files();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,ort=error".into()))
        .with_writer(std::io::stderr)
        .init();
    match execute(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprint_line(&format!("error: {e:#}"));
            let is_usage = e.is::<Errors>() || e.is::<Unusable>();
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

/// A run of many shards has a file open for each while it is searched; the usual limit of 1,024 is there for
/// programs that use `select`.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening says what is missing.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { config, limit, quiet } => {
            return Ok(
                match run::run(
                    config.read()?,
                    Options { limit, quiet, program: std::env::current_exe().ok() },
                )? {
                    Ended::Indexed => ExitCode::SUCCESS,
                    Ended::WithRejects => ExitCode::from(3),
                    Ended::Drained => ExitCode::from(130),
                },
            );
        }
        Command::Check { config: Some(config), overrides, json, .. } => {
            check(&ConfigArgs { config, overrides }.read()?, json)?;
        }
        Command::Check { gpu, json, .. } if !gpu.is_empty() => return check_gpu(&gpu, json),
        Command::Check { decode, json, .. } => return check_decode(&decode, json),
        Command::Search(args) => searches::search(args).map_err(Unusable)?,
        Command::Index(args) => return searches::index(&args),
        Command::Export(request) => export::export(&request)?,
        Command::MeasureEngine(args) => measure_engine(&args)?,
        Command::Doctor { measure } => {
            let program = std::env::current_exe().ok().filter(|_| measure);
            let findings = doctor::examine(&Home::from_env(), program.as_deref());
            for f in &findings {
                let mark = match f.state {
                    State::Here => "ok     ",
                    State::Optional => "-      ",
                    State::Needed => "MISSING",
                };
                print(&format!("{mark}  {}: {}", f.what, f.told));
            }
            if findings.iter().any(|f| f.state == State::Needed) {
                return Ok(ExitCode::from(1));
            }
        }
        Command::Model(command) => models::execute(command).map_err(Unusable)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn measure_engine(args: &EngineArgs) -> Result<()> {
    // Whoever asked has gone when it is stopped: nobody reads the answer, or ends what hangs.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let libraries = Libraries { device: args.device, ..Libraries::find(&Home::from_env()) };
    let model = Model::open(&args.model)?;
    let opening = Opening { engine: args.engine, threads: args.threads };
    measure::write_vectors(&args.vectors, &measure::vectors(&model, opening, &libraries)?)?;
    let (sessions, batches, seconds) = (args.sessions, &args.batches[..], args.seconds);
    let rates = measure::rates(&Task { model: &model, opening, sessions, batches, seconds }, &libraries)?;
    let peak_mib = measure::kernel_mib("/proc/self/status", "VmHWM");
    print(&serde_json::to_string(&Printed { rates, peak_mib })?);
    Ok(())
}

/// Exit code 1 if any file differs, 3 if some cannot be decoded.
fn check_decode(files: &[PathBuf], json: bool) -> Result<ExitCode> {
    let (mut n_different, mut n_rejected) = (0, 0);
    for file in files {
        let name = file.display();
        let compared = match cross_check::compare(file) {
            Ok(compared) => compared,
            Err(reason) => {
                eprint_line(&format!("{name}: {reason}"));
                n_rejected += 1;
                continue;
            }
        };
        n_different += usize::from(compared.iter().any(|c| !c.differences.is_empty()));
        n_rejected += usize::from(compared.iter().any(|c| c.whole.is_err()));
        if json {
            let compared: Vec<_> = compared.iter().map(cross_check::Compared::to_json).collect();
            print(&serde_json::json!({"file": file, "rules": compared}).to_string());
            continue;
        }
        print(&format!("{name}"));
        for c in &compared {
            print(&format!("  {}", c.line()));
            c.differences.iter().for_each(|d| print(&format!("    {d}")));
        }
    }
    if n_different > 0 {
        bail!("{n_different} of {} files differ between planned and whole decoding", files.len());
    }
    Ok(ExitCode::from(if n_rejected > 0 { 3 } else { 0 }))
}

/// Exit code 1 if any file differs, 3 if some cannot be decoded.
fn check_gpu(files: &[PathBuf], json: bool) -> Result<ExitCode> {
    let checker = gpu_check::Checker::open(0, &Home::from_env()).map_err(Unusable)?;
    let (mut n_different, mut n_rejected, mut n_by_nvdec) = (0, 0, 0);
    for file in files {
        let name = file.display();
        match checker.check(file)? {
            Ok(checked) => {
                n_different += usize::from(!checked.is_good());
                n_by_nvdec += usize::from(checked.is_by_nvdec());
                if json {
                    print(&serde_json::json!({"file": file, "checked": checked.to_json()}).to_string());
                } else {
                    print(&format!("{name}: {}", checked.line()));
                }
            }
            Err(reason) => {
                eprint_line(&format!("{name}: {reason}"));
                n_rejected += 1;
            }
        }
    }
    if n_different > 0 {
        bail!("{n_different} of {} files differ between the GPU and the cores", files.len());
    }
    eprint_line(&format!("NVDEC decoded {n_by_nvdec} of {} files", files.len()));
    if n_by_nvdec == 0 {
        bail!("NVDEC decoded none of them\nhint: RUST_LOG=stages::decode=debug tells why");
    }
    Ok(ExitCode::from(if n_rejected > 0 { 3 } else { 0 }))
}

fn check(config: &Config, json: bool) -> Result<()> {
    if json {
        let settings: serde_json::Map<_, _> =
            config.settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
        print(&serde_json::to_string_pretty(&settings)?);
        return Ok(());
    }
    let (decode, encode) = (&config.decode, &config.encode.engine);
    let count = |n: Option<usize>| n.map_or("measured".to_owned(), |n| n.to_string());
    print(&format!("{}: no errors", config.file));
    print(&format!(
        "clips of {} → load ×{} → decode ×{} → encode ×{} (threads {}, batch {}) → index → {}",
        config.input.clips,
        config.load.workers,
        decode.workers,
        count(encode.workers),
        count(encode.threads),
        count(encode.batch),
        config.output_dir.display()
    ));
    for s in &config.settings {
        print(&format!("  {:<30} {:<34} {}", s.key, s.value.to_string(), s.from));
    }
    Ok(())
}

/// Data goes to stdout. A reader that has seen enough (`| head`) ends the program quietly; a disk that
/// is full does not.
fn print(text: &str) {
    if let Err(e) = writeln!(std::io::stdout(), "{text}") {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprint_line(&format!("error: cannot write to stdout: {e}"));
        std::process::exit(1);
    }
}
