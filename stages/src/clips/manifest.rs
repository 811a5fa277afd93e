//! Manifests: `.txt`, `.csv`, `.jsonl` and `.parquet` files that list clips.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use arrow::{
    array::{Array as _, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Entry, Label};

/// The form of a manifest, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManifestKind {
    /// A path a line; `#` starts a comment line.
    Text,
    /// With a header line.
    Csv,
    /// A JSON object a line.
    JsonLines,
    /// One row a clip.
    Parquet,
}

impl ManifestKind {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "txt" => Self::Text,
            "csv" => Self::Csv,
            "jsonl" | "ndjson" => Self::JsonLines,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }
}

/// A manifest whose columns and rows were checked once.
pub(crate) struct Manifest {
    path: PathBuf,
    kind: ManifestKind,
    /// Column of the label, if one is asked for.
    label: Option<String>,
    extra_columns: Vec<String>,
    n_rows: u64,
}

type Rows<'a> = Box<dyn Iterator<Item = Result<Entry>> + Send + 'a>;

impl Manifest {
    pub(crate) fn open(path: &Path, kind: ManifestKind, label: &Label) -> Result<Self> {
        let mut manifest =
            Self { path: path.to_owned(), kind, label: None, extra_columns: Vec::new(), n_rows: 0 };
        let columns = manifest.columns()?;
        manifest.label = match label {
            Label::Column(name) => Some(name.clone()),
            Label::Auto => columns.iter().find(|c| *c == "label").cloned(),
            Label::None | Label::Parent => None,
        };
        let wanted = ["path"].into_iter().chain(manifest.label.as_deref());
        for name in wanted {
            if !columns.iter().any(|c| c == name) {
                bail!("{}: has no column {name:?}; it has {}", path.display(), columns.join(", "));
            }
        }
        manifest.extra_columns =
            columns.into_iter().filter(|c| c != "path" && Some(c) != manifest.label.as_ref()).collect();
        let taken = crate::index::schema::CLIP_COLUMNS;
        if let Some(clash) =
            manifest.extra_columns.iter().find(|c| taken.contains(&c.as_str()) && *c != "label")
        {
            bail!("{}: column {clash:?} has the name of one of clipmill's own; rename it", path.display());
        }
        // A column named `label` that is not asked for would shadow ours.
        manifest.extra_columns.retain(|c| c != "label");
        let mut n_rows = 0;
        for row in manifest.iter()? {
            row?;
            n_rows += 1;
        }
        manifest.n_rows = n_rows;
        Ok(manifest)
    }

    pub(crate) fn extra_columns(&self) -> &[String] {
        &self.extra_columns
    }

    pub(crate) fn n_rows(&self) -> u64 {
        self.n_rows
    }

    pub(crate) fn iter(&self) -> Result<Rows<'_>> {
        Ok(match self.kind {
            ManifestKind::Text => {
                let lines = self.lines()?.filter(|line| {
                    line.as_ref()
                        .map_or(true, |(_, l)| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
                });
                Box::new(lines.map(|line| {
                    let (n, line) = line?;
                    self.entry(|_| Some(line.trim().to_owned()), || format!(":{n}"))
                }))
            }
            ManifestKind::JsonLines => Box::new(
                self.lines()?.filter(|line| line.as_ref().map_or(true, |(_, l)| !l.trim().is_empty())).map(
                    |line| {
                        let (n, line) = line?;
                        let row = self.json_object(n, &line)?;
                        self.entry(|c| row.get(c).and_then(json_text), || format!(":{n}"))
                    },
                ),
            ),
            ManifestKind::Csv => {
                let mut reader = self.csv()?;
                let header = reader.headers()?.clone();
                Box::new(reader.into_records().map(move |record| {
                    let record = record.with_context(|| self.path.display().to_string())?;
                    let at = |c: &str| header.iter().position(|h| h.trim() == c);
                    let get = |c: &str| record.get(at(c)?).map(str::to_owned).filter(|v| !v.is_empty());
                    self.entry(get, || format!(":{}", record.position().map_or(0, |p| p.line())))
                }))
            }
            ManifestKind::Parquet => {
                let reader = self.parquet()?.with_batch_size(1024).build()?;
                Box::new(reader.flat_map(|batch| match batch {
                    Ok(batch) => self.rows_of(&batch),
                    Err(e) => vec![Err(anyhow!(e).context(self.path.display().to_string()))],
                }))
            }
        })
    }

    /// Names of all columns. JSON lines have those of any row.
    fn columns(&self) -> Result<Vec<String>> {
        Ok(match self.kind {
            ManifestKind::Text => vec!["path".into()],
            ManifestKind::Csv => self.csv()?.headers()?.iter().map(|c| c.trim().to_owned()).collect(),
            ManifestKind::Parquet => {
                self.parquet()?.schema().fields().iter().map(|f| f.name().clone()).collect()
            }
            ManifestKind::JsonLines => {
                let mut columns: Vec<String> = Vec::new();
                for line in self.lines()? {
                    let (n, line) = line?;
                    if line.trim().is_empty() {
                        continue;
                    }
                    for (key, _) in self.json_object(n, &line)? {
                        if !columns.contains(&key) {
                            columns.push(key);
                        }
                    }
                }
                columns
            }
        })
    }

    /// The entry whose columns `get` gives; relative paths start at the manifest's folder.
    fn entry(&self, get: impl Fn(&str) -> Option<String>, place: impl Fn() -> String) -> Result<Entry> {
        let path = get("path").filter(|p| !p.is_empty());
        let path =
            path.with_context(|| format!("{}{}: the row has no path", self.path.display(), place()))?;
        let folder = self.path.parent().unwrap_or(Path::new(""));
        Ok(Entry {
            path: folder.join(path).to_string_lossy().into_owned(),
            label: self.label.as_deref().and_then(&get),
            extra: self.extra_columns.iter().map(|c| get(c)).collect(),
        })
    }

    fn file(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open manifest {}", self.path.display()))
    }

    /// Lines with their numbers from 1.
    fn lines(&self) -> Result<impl Iterator<Item = Result<(usize, String)>> + Send + use<>> {
        let name = self.path.display().to_string();
        Ok(BufReader::new(self.file()?)
            .lines()
            .enumerate()
            .map(move |(i, line)| Ok((i + 1, line.with_context(|| format!("{name}:{}", i + 1))?))))
    }

    fn csv(&self) -> Result<csv::Reader<File>> {
        Ok(csv::ReaderBuilder::new().from_reader(self.file()?))
    }

    fn parquet(&self) -> Result<ParquetRecordBatchReaderBuilder<File>> {
        ParquetRecordBatchReaderBuilder::try_new(self.file()?)
            .with_context(|| self.path.display().to_string())
    }

    fn json_object(&self, n: usize, line: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_str(line).with_context(|| format!("{}:{n}: not a JSON object", self.path.display()))
    }

    fn rows_of(&self, batch: &RecordBatch) -> Vec<Result<Entry>> {
        let options = FormatOptions::default();
        let schema = batch.schema();
        let row = |i: usize| {
            let get = |name: &str| {
                let column = batch.column(schema.index_of(name).ok()?);
                if column.is_null(i) {
                    return None;
                }
                Some(ArrayFormatter::try_new(column, &options).ok()?.value(i).to_string())
            };
            self.entry(get, || format!(" row {}", i + 1))
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

/// A value as a column holds it: strings bare, anything else as JSON, null as absent.
fn json_text(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    }
}
