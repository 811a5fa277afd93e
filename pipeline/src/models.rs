//! The `model` commands of the program.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Subcommand;
use pipeline::{
    engines::{
        Wanted, choose,
        measure::{self, Task},
        pictures::N_PICTURES,
    },
    evaluate,
    progress::eprint_line,
    quantize,
    store::{self, Request, meter::megabytes},
};
use serde_json::json;
use stages::{
    encode::{
        joint::build_bank,
        network::{Engine, Libraries, Opening, check, reference},
    },
    model::{self, Card, Home, JointKind, Model},
};

use crate::print;

#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// List the installed models, then those that can be added
    List {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the folder of a model
    Path {
        /// Its name
        name: String,
    },
    /// Install a model: a known one from its hub, one by a card of your own, or a folder
    #[command(
        after_help = "HF_ENDPOINT names another hub, HF_TOKEN logs in. What is stopped goes on with the same command."
    )]
    Add {
        /// A name that `list` shows, a card's path (CARD.toml), or a folder with a model.toml
        #[arg(value_name = "NAME|CARD.toml|FOLDER")]
        what: String,
        /// Another hub's address, or a folder that holds the repository's files
        #[arg(long, value_name = "URL|DIR")]
        from: Option<String>,
        /// Replace an installed model of that name
        #[arg(long)]
        force: bool,
        /// Refuse files whose sha256 the card does not give
        #[arg(long)]
        require_pins: bool,
    },
    /// Delete an installed model
    Remove {
        /// Its name
        name: String,
    },
    /// Compare a model's files with what was installed
    Check {
        /// Its name or folder
        name: String,
    },
    /// Make a model's int8 form, with scales from your own frames; installed if it is near enough to fp32
    Quantize {
        /// Its name or folder
        name: String,
        /// The numbers of the new form
        #[arg(long, value_parser = ["int8"], default_value = "int8")]
        to: String,
        /// Folder, glob or manifest; every other clip calibrates, the rest is held out to measure with
        #[arg(long, value_name = "CLIPS")]
        calibrate: String,
        /// Least mean cosine to fp32
        #[arg(long, default_value_t = Wanted::MIN_COSINE)]
        min_cosine: f64,
        /// Least share of each frame's ten nearest that stay the same
        #[arg(long, default_value_t = 0.98)]
        min_overlap: f64,
        /// Install it however near it comes
        #[arg(long)]
        force: bool,
        /// A Python with numpy, onnx and onnxruntime, instead of the one that `make quantizer` sets up
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// Score a model on labelled clips: how well words find them, in fp32 and as it runs here
    Eval {
        /// Its name or folder
        name: String,
        /// Folder, glob or manifest; labels by UCF101's file names, the manifest, or the folders
        clips: String,
        /// A file with a class a line, for more classes than the clips have
        #[arg(long)]
        classes: Option<PathBuf>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold a model's engine on this machine's GPU against fp32 on the cores, on built-in pictures
    Compare {
        /// Its name or folder
        name: String,
        /// The engine's numbers
        #[arg(long, value_parser = ["fp16", "fp32", "int8"], default_value = "fp16")]
        precision: String,
        /// Least cosine of any picture's vector
        #[arg(long, default_value_t = 0.999)]
        min_cosine: f64,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a model's derived files: the concept bank
    Build {
        /// Its name or folder
        name: String,
    },
}

pub(crate) fn execute(command: ModelCommand) -> Result<()> {
    let home = Home::from_env();
    match command {
        ModelCommand::List { json } => list(&home, json)?,
        ModelCommand::Path { name } => print(&Model::find(&name, &home)?.folder.display().to_string()),
        ModelCommand::Add { what, from, force, require_pins } => {
            ctrlc::set_handler(|| {
                eprint_line("\nstopped; the same command goes on from here");
                std::process::exit(130);
            })
            .map_err(|e| anyhow!("cannot listen for Ctrl-C: {e}"))?;
            let request = Request { what, from, force, require_pins, ..Request::default() };
            let model = store::add(&home, &request)?;
            print(&line(&model.card, [0; 2], &model.folder.display().to_string()));
            let joint = &model.card.joint;
            if joint.kind == JointKind::Concepts && joint.bank.iter().any(|bank| !model.file(bank).is_file())
            {
                eprint_line(&format!(
                    "hint: `clipmill model build {}` makes its concept bank",
                    model.card.name
                ));
            }
        }
        ModelCommand::Remove { name } => {
            let told = store::remove(&home, &name)?;
            eprint_line(&format!("model {name}: {told}"));
        }
        ModelCommand::Check { name } => {
            let model = Model::find(&name, &home)?;
            let n = store::check(&model)?;
            print(&format!("{}: {n} files are as they were installed", model.card.name));
        }
        ModelCommand::Quantize { name, to: _, calibrate, min_cosine, min_overlap, force, python } => {
            let model = Model::find(&name, &home)?;
            let python = python.unwrap_or_else(|| home.folder().join("setup-venv/bin/python"));
            let clips = calibrate.as_str();
            let task = quantize::Task { model: &model, clips, min_cosine, min_overlap, force, python };
            quantize::quantize(&task, &home, &mut eprint_line)?;
            print(&format!("{}: int8 installed; `auto` takes it where it is faster and near enough", name));
        }
        ModelCommand::Eval { name, clips, classes, json } => {
            let model = Model::find(&name, &home)?;
            let report = eval(&model, &home, &clips, classes.as_deref())?;
            print(&if json { serde_json::to_string_pretty(&report)? } else { evaluate::table(&report) });
        }
        ModelCommand::Compare { name, precision, min_cosine, json } => {
            compare(&Model::find(&name, &home)?, &home, &precision, min_cosine, json)?;
        }
        ModelCommand::Build { name } => {
            let model = Model::find(&name, &home)?;
            let n = build_bank(&model, &Libraries::find(&home))?;
            print(&format!("{}: {n} concepts embedded", model.card.name));
        }
    }
    Ok(())
}

/// Fails where a vector is farther from fp32's than `min_cosine`.
fn compare(model: &Model, home: &Home, precision: &str, min_cosine: f64, json: bool) -> Result<()> {
    let libraries = Libraries::find(home);
    let engine: Engine = format!("tensorrt {precision}").parse()?;
    check(engine, &libraries)?;
    let on_cores = reference(&libraries);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let opening = |engine| Opening { engine, threads };
    let [own, own_joint] = measure::vectors(model, opening(engine), &libraries)?;
    let [cores, cores_joint] = measure::vectors(model, opening(on_cores), &libraries)?;
    let near = |a: &[f32], b: &[f32]| {
        measure::cosines(a, b, N_PICTURES).ok_or_else(|| anyhow!("{engine} gives vectors of another size"))
    };
    let ((mean, least), (joint_mean, joint_least)) = (near(&own, &cores)?, near(&own_joint, &cores_joint)?);
    let task = Task { model, opening: opening(engine), sessions: 1, batches: &[1, 16, 64], seconds: 2.0 };
    let rates = measure::rates(&task, &libraries)?;
    if json {
        let [image, joint] = [(mean, least), (joint_mean, joint_least)]
            .map(|(mean, least)| json!({"mean_cosine": mean, "least_cosine": least}));
        print(
            &json!({"engine": engine.to_string(), "against": on_cores.to_string(), "image": image,
            "joint": joint, "rates": rates})
            .to_string(),
        );
    } else {
        print(&format!(
            "{engine} against {on_cores} on {N_PICTURES} pictures: cosine {mean:.5} in the mean, {least:.5} at least; of stored vectors {joint_mean:.5}, {joint_least:.5}"
        ));
        let told = rates.iter().map(|r| format!("{:.0} by {}", r.per_wall_s, r.batch));
        print(&format!("images a second from host memory: {}", told.collect::<Vec<_>>().join(", ")));
    }
    // NaN is not near.
    if !(least >= min_cosine && joint_least >= min_cosine) {
        bail!("{engine} is farther from {on_cores} than {min_cosine}");
    }
    Ok(())
}

/// By what a run would choose here, and by fp32.
fn eval(model: &Model, home: &Home, clips: &str, classes: Option<&Path>) -> Result<evaluate::Report> {
    let libraries = Libraries::find(home);
    let wanted = Wanted { min_cosine: Wanted::MIN_COSINE, ..Wanted::default() };
    let program = std::env::current_exe().ok();
    let chosen = choose(&wanted, None, model, home, program.as_deref(), &mut eprint_line)?;
    let mut engines = vec![chosen.engine, reference(&libraries)];
    engines.dedup();
    let task = evaluate::Task { model, clips, classes, engines: &engines };
    evaluate::evaluate(&task, &libraries, &mut eprint_line)
}

fn list(home: &Home, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    let installed = home.list();
    for Model { card, folder } in &installed {
        let folder = folder.display().to_string();
        rows.push((card.clone(), Some(folder.clone()), folder));
    }
    for (card, _) in model::known() {
        if installed.iter().any(|m| m.card.name == card.name) {
            continue;
        }
        let how = match &card.hub {
            Some(hub) => {
                let size = hub.files.iter().map(|f| f.size).sum::<Option<u64>>().map(megabytes);
                let size = size.map(|size| format!(", {size}")).unwrap_or_default();
                let partly = if store::is_partly_here(home, &card.name) { ", partly fetched" } else { "" };
                format!("not installed{partly}{size}: clipmill model add {}", card.name)
            }
            None => "not installed: make setup".to_owned(),
        };
        rows.push((card, None, how));
    }
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(card, folder, _)| {
                let bytes =
                    card.hub.as_ref().and_then(|h| h.files.iter().map(|f| f.size).sum::<Option<u64>>());
                json!({
                    "name": card.name, "dim": card.joint.dim, "licence": card.licence, "source": card.source,
                    "installed": folder.is_some(), "folder": folder, "download_bytes": bytes,
                })
            })
            .collect();
        print(&serde_json::to_string_pretty(&rows)?);
    } else {
        let widest = |text: fn(&Card) -> &str| rows.iter().map(|row| text(&row.0).len()).max().unwrap_or(0);
        let widths = [widest(|card| &card.name), widest(|card| &card.licence)];
        rows.iter().for_each(|(card, _, what)| print(&line(card, widths, what)));
    }
    for (folder, model) in home.opened() {
        if let Err(e) = model {
            eprint_line(&format!("{}: not usable: {e:#}", folder.display()));
        }
    }
    Ok(())
}

fn line(card: &Card, [name, licence]: [usize; 2], what: &str) -> String {
    format!("{:<name$}  {:>4} values  {:<licence$}  {what}", card.name, card.joint.dim, card.licence)
}
