//! Runs the program and reads what it wrote.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use arrow::{
    array::{AsArray as _, RecordBatch},
    compute::{SortColumn, cast, concat_batches, lexsort_to_indices, take_record_batch},
    datatypes::{DataType, Field, Float32Type, Float64Type, Int64Type, Schema},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::TempDir;

/// Longest time that one run of the program may take.
pub const LIMIT: Duration = Duration::from_secs(150);

/// The built program: `$CLIPMILL_BIN`, else the one beside the tests.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("CLIPMILL_BIN").map_or_else(
        || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("clipmill"),
        PathBuf::from,
    );
    assert!(path.is_file(), "there is no {}: `make test` builds it first, or `cargo build`", path.display());
    path
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it told.
    pub stderr: String,
}

impl Outcome {
    /// The last line for people.
    pub fn last_line(&self) -> &str {
        self.stderr.trim_end().lines().last().unwrap_or_default()
    }

    /// Fails, with all that was told, unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "exit code\n--- stderr\n{}--- stdout\n{}",
            self.stderr,
            self.stdout
        );
        self
    }

    /// Fails unless stderr says each of these.
    #[track_caller]
    pub fn says(self, wanted: &[&str]) -> Self {
        for text in wanted {
            assert!(self.stderr.contains(text), "no {text:?} in\n{}", self.stderr);
        }
        self
    }
}

/// Runs the program with these arguments.
pub fn clipmill<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Outcome {
    let mut command = Command::new(binary());
    command.args(args);
    outcome(command)
}

/// Runs a command; one that takes longer than [`LIMIT`] is killed, and the test fails.
pub fn outcome(mut command: Command) -> Outcome {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    wait(child.unwrap_or_else(|e| panic!("{command:?}: {e}")), LIMIT)
}

/// Waits for a child with piped output; past `limit` it is killed, and the test fails.
pub fn wait(mut child: Child, limit: Duration) -> Outcome {
    fn text_of(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came before an error is worth more than the error.
            let _ = from.read_to_end(&mut bytes);
            let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        receive
    }
    let stdout = text_of(child.stdout.take().unwrap());
    let stderr = text_of(child.stderr.take().unwrap());
    // Its stderr ends when it does.
    let Ok(stderr) = stderr.recv_timeout(limit) else {
        child.kill().unwrap();
        let told = stderr.recv_timeout(Duration::from_secs(10)).unwrap_or_default();
        child.wait().unwrap();
        panic!("no end within {limit:?}; it told\n{told}");
    };
    Outcome { code: child.wait().unwrap().code(), stdout: stdout.recv().unwrap(), stderr }
}

/// Fails unless each unit vector has a greater cosine than `least` to its counterpart.
#[track_caller]
pub fn assert_near(ours: &[Vec<f32>], theirs: &[Vec<f32>], least: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        assert!(dot > least, "{dot}");
    }
}

/// A folder for one test, with a model in it.
pub struct Site {
    folder: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// With the tiny image model in `model/`.
    pub fn new() -> Self {
        let site = Self { folder: TempDir::new().unwrap() };
        super::onnx::write_image_model(&site.path("model"));
        site
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A configuration that reads `clips/`, writes `out/` and embeds with `model/`, but for these
    /// settings: TOML values by their keys.
    pub fn config(&self, settings: &[(&str, &str)]) -> PathBuf {
        let quoted = |name: &str| format!("{:?}", self.path(name));
        let mut keys = BTreeMap::from([
            ("input.clips".to_owned(), quoted("clips")),
            ("output.dir".to_owned(), quoted("out")),
            ("encode.model".to_owned(), quoted("model")),
            // Nothing is left to be measured: most tests are of other things.
            ("encode.backend".to_owned(), "\"onnx\"".to_owned()),
            ("encode.batch".to_owned(), "4".to_owned()),
            ("encode.workers".to_owned(), "2".to_owned()),
            ("encode.threads".to_owned(), "1".to_owned()),
        ]);
        keys.extend(settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let mut text = String::new();
        let mut section = "";
        for (key, value) in &keys {
            let (of, name) = key.split_once('.').unwrap();
            if of != section {
                text += &format!("\n[{of}]\n");
                section = of;
            }
            text += &format!("{name} = {value}\n");
        }
        let path = self.path("config.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs with these settings and further arguments.
    pub fn run_with(&self, settings: &[(&str, &str)], args: &[&str]) -> Outcome {
        let config = self.config(settings);
        let mut all = vec!["run", config.to_str().unwrap()];
        all.extend(args);
        clipmill(&all)
    }

    /// Runs with these settings.
    pub fn run(&self, settings: &[(&str, &str)]) -> Outcome {
        self.run_with(settings, &[])
    }

    /// `run.json`.
    pub fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("out/run.json")).unwrap()).unwrap()
    }

    /// All rows of `frames` or `clips`, or those of `rejects`.
    pub fn table(&self, name: &str) -> Table {
        Table::read(&self.path("out"), name)
    }

    /// Every file below `out/` with its bytes, but for `run.json` and `lock`, which tell of the run.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn add(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    add(&path, files);
                } else if !["run.json", "lock"].contains(&path.file_name().unwrap().to_str().unwrap()) {
                    files.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        add(&self.path("out"), &mut files);
        files
    }
}

/// Rows of a table of a run, all shards together.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    rows: RecordBatch,
}

impl Table {
    /// Reads `frames`, `clips` or `rejects` of the run in `out`.
    pub fn read(out: &Path, name: &str) -> Self {
        let folder = out.join(name);
        let mut files = vec![out.join(format!("{name}.parquet"))];
        if folder.is_dir() {
            files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "parquet"));
            files.sort();
        }
        let batches: Vec<RecordBatch> = files.iter().flat_map(|f| read_file(f)).collect();
        assert!(!batches.is_empty(), "{} holds no rows of {name}", out.display());
        // The last one has the metadata as well.
        let schema = batches[batches.len() - 1].schema();
        Self { rows: concat_batches(&schema, &batches).unwrap() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Columns and their types.
    pub fn schema(&self) -> &Schema {
        self.rows.schema_ref()
    }

    fn column(&self, name: &str) -> &dyn arrow::array::Array {
        self.rows.column_by_name(name).unwrap_or_else(|| panic!("no column {name}")).as_ref()
    }

    /// An integer column.
    pub fn numbers(&self, name: &str) -> Vec<i64> {
        let column = cast(self.column(name), &DataType::Int64).unwrap();
        column.as_primitive::<Int64Type>().values().to_vec()
    }

    /// A floating-point column.
    pub fn floats(&self, name: &str) -> Vec<f64> {
        self.column(name).as_primitive::<Float64Type>().values().to_vec()
    }

    /// A column of truth values.
    pub fn flags(&self, name: &str) -> Vec<bool> {
        self.column(name).as_boolean().values().iter().collect()
    }

    /// A text column that may have gaps.
    pub fn texts(&self, name: &str) -> Vec<Option<String>> {
        self.column(name).as_string::<i32>().iter().map(|t| t.map(str::to_owned)).collect()
    }

    /// A text column without gaps.
    pub fn words(&self, name: &str) -> Vec<String> {
        self.texts(name).into_iter().map(|t| t.unwrap_or_else(|| panic!("a gap in {name}"))).collect()
    }

    /// A column of vectors.
    pub fn vectors(&self, name: &str) -> Vec<Vec<f32>> {
        let list = self.column(name).as_fixed_size_list();
        let wide = cast(list.values(), &DataType::Float32).unwrap();
        let values = wide.as_primitive::<Float32Type>().values();
        values.chunks(list.value_length() as usize).map(<[f32]>::to_vec).collect()
    }

    /// Last parts of the column `path`.
    pub fn names(&self) -> Vec<String> {
        self.words("path").iter().map(|p| p.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    }

    /// The rows for which `wanted` holds.
    pub fn only(&self, wanted: impl Fn(usize) -> bool) -> Self {
        let keep: arrow::array::BooleanArray = (0..self.len()).map(|row| Some(wanted(row))).collect();
        Self { rows: arrow::compute::filter_record_batch(&self.rows, &keep).unwrap() }
    }

    /// The rows by clip and frame.
    pub fn sorted(&self) -> Self {
        let column = |name: &str| SortColumn {
            values: self.rows.column_by_name(name).unwrap().clone(),
            options: None,
        };
        let keys: Vec<SortColumn> = ["clip_id", "frame_index"]
            .into_iter()
            .filter(|name| self.rows.column_by_name(name).is_some())
            .map(column)
            .collect();
        let order = lexsort_to_indices(&keys, None).unwrap();
        Self { rows: take_record_batch(&self.rows, &order).unwrap() }
    }

    /// The rows whose file has this name.
    pub fn of(&self, file: &str) -> Self {
        let names = self.names();
        self.only(|row| names[row] == file)
    }
}

fn read_file(path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let schema = reader.schema().clone();
    let mut batches: Vec<RecordBatch> = reader.build().unwrap().map(|b| b.unwrap()).collect();
    // A table without rows has columns all the same.
    batches.push(RecordBatch::new_empty(schema));
    batches
}

/// Whether a column is a vector of `dim` 16-bit floats.
pub fn vector_type(dim: usize) -> DataType {
    DataType::FixedSizeList(Field::new("element", DataType::Float16, false).into(), dim as i32)
}
