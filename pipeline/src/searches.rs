//! The `search` and `index` commands of the program.

use std::{
    fs,
    io::{BufRead as _, BufReader, stdin},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use pipeline::{
    progress::eprint_line,
    query::{CSV_COLUMNS, Choice, Found, Query, Searcher, explained, line, to_csv, to_json},
    record::Record,
    refresh::{delete, lines, refresh, settings},
    run::Unusable,
};
use stages::{
    files::read_npy,
    index::vectors::{Condition, Filter, TOGETHER, verify},
};

use crate::print;

#[derive(Args)]
pub(crate) struct SearchArgs {
    /// Folder of a run (its output.dir)
    run: PathBuf,
    /// What to look for; `-` reads words from stdin, a query a line
    #[arg(required_unless_present_any = ["image", "clip", "queries", "vectors"], conflicts_with_all = ["image", "clip", "queries", "vectors"])]
    words: Option<String>,
    /// A picture to look for
    #[arg(long, value_name = "FILE", conflicts_with_all = ["clip", "queries", "vectors"])]
    image: Option<String>,
    /// A video to look for
    #[arg(long, value_name = "FILE", conflicts_with_all = ["queries", "vectors"])]
    clip: Option<String>,
    /// A file of words to look for, a query a line
    #[arg(long, value_name = "FILE", conflicts_with = "vectors")]
    queries: Option<PathBuf>,
    /// A NumPy file of vectors to look for, float32, a row a query
    #[arg(long, value_name = "FILE.npy")]
    vectors: Option<PathBuf>,
    /// Another run of the same model to search as well
    #[arg(long, value_name = "RUN")]
    with: Vec<PathBuf>,
    /// Only what this holds for: label=NAME, path=GLOB, duration>SECONDS, time<MM:SS; != <= >= as well
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Clips that are good and unlike one another
    #[arg(long)]
    diverse: bool,
    /// How many clips to show
    #[arg(short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Print the hits as JSON
    #[arg(long)]
    json: bool,
    /// Print the hits as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Tell what was looked at, and what share of the nearest it finds
    #[arg(long)]
    explain: bool,
}

#[derive(Args)]
pub(crate) struct IndexArgs {
    /// Folder of a run (its output.dir)
    run: PathBuf,
    /// Make every file of the index anew from the Parquet files
    #[arg(long)]
    rebuild: bool,
    /// Change nothing; compare every byte of the shards and of the index with its checksum
    #[arg(long, conflicts_with_all = ["rebuild", "recall", "exact_rows", "delete"])]
    verify: bool,
    /// Share of the nearest rows that a search is to find, in place of the run's own
    #[arg(long, value_name = "SHARE", value_parser = share)]
    recall: Option<f64>,
    /// Rows up to which all are scanned, in place of the run's own
    #[arg(long, value_name = "N")]
    exact_rows: Option<usize>,
    /// Take the clips that all of these hold for out of searches; the Parquet files keep them
    #[arg(long, value_name = "CONDITION", conflicts_with_all = ["rebuild", "recall", "exact_rows"])]
    delete: Vec<Condition>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|s| (0.5..=1.0).contains(s));
    share.ok_or_else(|| "need a number from 0.5 to 1".into())
}

pub(crate) fn search(args: SearchArgs) -> Result<()> {
    let choice =
        Choice { k: args.k as usize, filter: Filter(args.conditions.clone()), diverse: args.diverse };
    let mut folders = vec![args.run.clone()];
    folders.extend(args.with.iter().cloned());
    let mut searcher = Searcher::open(&folders, &mut eprint_line)?;
    if args.csv {
        print_csv(&[CSV_COLUMNS.map(str::to_owned)])?;
    }
    let single = match (&args.words, &args.image, &args.clip) {
        (Some(words), ..) if words != "-" => Some(Query::Words(words.clone())),
        (_, Some(file), _) => Some(Query::Image(file.clone())),
        (.., Some(file)) => Some(Query::Clip(file.clone())),
        _ => None,
    };
    if let Some(query) = single {
        let name = name(&query, 0);
        return show(&args, &[(name, query)], true, &mut searcher, &choice);
    }
    let mut ask = |queries: Vec<Query>, first: usize| {
        let named: Vec<_> = queries.into_iter().enumerate().map(|(i, q)| (name(&q, first + i), q)).collect();
        show(&args, &named, false, &mut searcher, &choice)
    };
    if let Some(file) = &args.vectors {
        let (values, dim) = read_npy(file)?;
        let queries: Vec<Query> = values.chunks(dim).map(|row| Query::Vector(row.to_vec())).collect();
        for (i, queries) in queries.chunks(TOGETHER).enumerate() {
            ask(queries.to_vec(), i * TOGETHER)?;
        }
        return Ok(());
    }
    if let Some(file) = &args.queries {
        let failed = || format!("cannot read {}", file.display());
        let lines = BufReader::new(fs::File::open(file).with_context(failed)?).lines();
        let mut waiting = Vec::new();
        for words in lines {
            waiting.extend(words_of(words.with_context(failed)?));
            if waiting.len() == TOGETHER {
                ask(std::mem::take(&mut waiting), 0)?;
            }
        }
        return ask(waiting, 0);
    }
    // Who types sees each answer before the next question.
    for words in stdin().lines() {
        if let Some(query) = words_of(words.context("cannot read stdin")?) {
            ask(vec![query], 0)?;
        }
    }
    Ok(())
}

fn words_of(line: String) -> Option<Query> {
    (!line.trim().is_empty()).then_some(Query::Words(line))
}

/// As the output calls a query.
fn name(query: &Query, number: usize) -> String {
    match query {
        Query::Words(text) | Query::Image(text) | Query::Clip(text) => text.clone(),
        Query::Vector(_) => number.to_string(),
    }
}

fn show(
    args: &SearchArgs,
    named: &[(String, Query)],
    is_single: bool,
    searcher: &mut Searcher,
    choice: &Choice,
) -> Result<()> {
    let queries: Vec<Query> = named.iter().map(|(_, query)| query.clone()).collect();
    for ((name, _), Found { hits, how }) in named.iter().zip(searcher.find(&queries, choice)?) {
        if args.csv {
            print_csv(&to_csv(name, &hits))?;
        } else if args.json && is_single {
            print(&serde_json::to_string_pretty(&to_json(&hits))?);
        } else if args.json {
            print(&serde_json::json!({"query": name, "hits": to_json(&hits)}).to_string());
        } else {
            if !is_single {
                print(name);
            }
            hits.iter().enumerate().for_each(|(i, (_, hit))| print(&line(i + 1, hit)));
        }
        if hits.is_empty() {
            eprint_line("no clip matches");
        }
        if args.explain {
            how.iter().for_each(|(folder, how)| eprint_line(&explained(folder, how)));
        }
    }
    Ok(())
}

fn print_csv<T: AsRef<[u8]>, const N: usize>(rows: &[[T; N]]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    let text = String::from_utf8(writer.into_inner()?)?;
    text.lines().for_each(print);
    Ok(())
}

pub(crate) fn index(args: &IndexArgs) -> Result<ExitCode> {
    let run = &args.run;
    let mut record = Record::read(run).map_err(Unusable)?;
    if args.verify {
        return verified(run);
    }
    if !args.delete.is_empty() {
        let paths = delete(run, &record, &Filter(args.delete.clone())).map_err(Unusable)?;
        paths.iter().for_each(|path| print(path));
        eprint_line(&format!("{} clips are out of searches; the Parquet files keep them", paths.len()));
        return Ok(ExitCode::SUCCESS);
    }
    let mut settings = settings(&record);
    settings.recall = args.recall.unwrap_or(settings.recall);
    settings.exact_rows = args.exact_rows.unwrap_or(settings.exact_rows);
    let index = refresh(run, &mut record, &settings, args.rebuild, &mut eprint_line)?;
    lines(&index).iter().for_each(|line| print(line));
    Ok(ExitCode::SUCCESS)
}

fn verified(run: &Path) -> Result<ExitCode> {
    let wrong = verify(run)?;
    if wrong.is_empty() {
        print(&format!("{}: every file is as it was written", run.display()));
        return Ok(ExitCode::SUCCESS);
    }
    wrong.iter().for_each(|line| print(line));
    bail!(anyhow!("{}: {} files are not as they were written", run.display(), wrong.len()))
}
