//! Reads keys out of a TOML text, remembering lines, and collects every error.

use std::{fmt, ops::Range};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::Setting;

/// All that is wrong with a configuration, a line each.
#[derive(Debug)]
pub struct Errors(pub Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Errors {}

/// `--set key=value` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Such as `decode.workers`.
    pub key: String,
    /// As TOML; bare words are strings.
    pub value: String,
}

impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not key=value"))?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

/// Bounds and default of a whole number.
pub(super) struct Whole {
    pub(super) default: u64,
    pub(super) least: u64,
    pub(super) most: u64,
}

struct Given {
    key: String,
    value: Value,
    place: Place,
    is_read: bool,
}

#[derive(Clone)]
enum Place {
    Line(usize),
    CommandLine,
}

pub(super) struct Reader<'a> {
    file: &'a str,
    given: Vec<Given>,
    known: Vec<String>,
    settings: Vec<Setting>,
    /// With their lines, for the order.
    errors: Vec<(usize, String)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str, text: &str, overrides: &[Override]) -> Result<Self, Errors> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let (table, broken) = DeTable::parse_recoverable(text);
        if !broken.is_empty() {
            let told = broken.iter().map(|e| {
                let at = e.span().map_or(1, |s| line(s.start));
                format!("{file}:{at}: {}", e.message().trim().replace('\n', ", "))
            });
            return Err(Errors(told.collect()));
        }
        let mut reader =
            Self { file, given: Vec::new(), known: Vec::new(), settings: Vec::new(), errors: Vec::new() };
        reader.collect("", table.get_ref(), &line);
        for Override { key, value } in overrides {
            let parsed = DeValue::parse(value).ok().and_then(|v| json(v.get_ref()));
            let value = parsed.unwrap_or_else(|| Value::String(value.clone()));
            reader.given.retain(|g| g.key != *key);
            reader.given.push(Given { key: key.clone(), value, place: Place::CommandLine, is_read: false });
        }
        Ok(reader)
    }

    fn collect(&mut self, prefix: &str, table: &DeTable<'_>, line: &dyn Fn(usize) -> usize) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let place = Place::Line(line(span(name).start));
            match value.get_ref() {
                DeValue::Table(inner) if prefix.is_empty() => self.collect(&format!("{key}."), inner, line),
                other => {
                    let value = json(other).unwrap_or(Value::Null);
                    self.given.push(Given { key, value, place, is_read: false });
                }
            }
        }
    }

    /// If a key under `prefix` is on the command line, those in the file do not count.
    pub(super) fn overrides_replace(&mut self, prefix: &str) {
        let ours = |g: &Given| g.key.starts_with(prefix);
        let is_overridden = self.given.iter().any(|g| ours(g) && matches!(g.place, Place::CommandLine));
        if is_overridden {
            self.given.retain(|g| !ours(g) || matches!(g.place, Place::CommandLine));
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        let given = self.given.iter_mut().find(|g| g.key == key)?;
        given.is_read = true;
        let from = match given.place {
            Place::Line(n) => format!("line {n}"),
            Place::CommandLine => "--set".into(),
        };
        self.settings.push(Setting { key: key.to_owned(), value: given.value.clone(), from });
        Some(given.value.clone())
    }

    /// Records the value of a key that nobody gave.
    pub(super) fn note_default(&mut self, key: &str, value: Value) {
        self.settings.push(Setting { key: key.to_owned(), value, from: "default".into() });
    }

    /// Adds an error about `key`, at its line.
    pub(super) fn error(&mut self, key: &str, what: &str) {
        let place = self.given.iter().find(|g| g.key == key).map(|g| g.place.clone());
        let (line, at) = match place {
            Some(Place::Line(n)) => (n, format!("{}:{n}", self.file)),
            Some(Place::CommandLine) => (usize::MAX, "--set".into()),
            None => (0, self.file.to_owned()),
        };
        self.errors.push((line, format!("{at}: {what}")));
    }

    fn wrong(&mut self, key: &str, found: &Value, needed: &str) {
        self.error(key, &format!("{key} is {found}, needs {needed}"));
    }

    pub(super) fn text(&mut self, key: &str, default: Option<&str>) -> String {
        match (self.take(key), default) {
            (Some(Value::String(text)), _) if !text.is_empty() => text,
            (Some(found), _) => {
                self.wrong(key, &found, "a text in quotes");
                String::new()
            }
            (None, Some(default)) => {
                self.note_default(key, default.into());
                default.to_owned()
            }
            (None, None) => {
                self.error(key, &format!("{key} is missing"));
                String::new()
            }
        }
    }

    /// Index of the chosen word.
    pub(super) fn choice(&mut self, key: &str, default: &str, words: &[&str]) -> usize {
        let text = match self.take(key) {
            Some(Value::String(text)) => text,
            Some(found) => found.to_string(),
            None => {
                self.note_default(key, default.into());
                default.to_owned()
            }
        };
        words.iter().position(|w| *w == text).unwrap_or_else(|| {
            let hint = nearest(&text, words.iter().copied()).map(|w| format!("; did you mean {w:?}?"));
            let needed = format!("one of {}{}", words.join(", "), hint.unwrap_or_default());
            self.wrong(key, &text.into(), &needed);
            0
        })
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        self.optional_flag(key).unwrap_or_else(|| {
            self.note_default(key, default.into());
            default
        })
    }

    pub(super) fn optional_flag(&mut self, key: &str) -> Option<bool> {
        let found = self.take(key)?;
        if !found.is_boolean() {
            self.wrong(key, &found, "true or false");
        }
        found.as_bool()
    }

    pub(super) fn whole(&mut self, key: &str, bounds: Whole) -> u64 {
        self.optional_whole(key, bounds.least, bounds.most).unwrap_or_else(|| {
            if !self.settings.iter().any(|s| s.key == key) {
                self.note_default(key, bounds.default.into());
            }
            bounds.default
        })
    }

    pub(super) fn optional_whole(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        let found = self.take(key)?;
        let inside = found.as_u64().filter(|n| (least..=most).contains(n));
        if inside.is_none() {
            self.wrong(key, &found, &format!("a whole number from {least} to {most}"));
        }
        inside
    }

    pub(super) fn number(&mut self, key: &str, default: f64, least: f64, most: f64) -> f64 {
        self.optional_number(key, least, most).unwrap_or_else(|| {
            if !self.settings.iter().any(|s| s.key == key) {
                self.note_default(key, default.into());
            }
            default
        })
    }

    pub(super) fn optional_number(&mut self, key: &str, least: f64, most: f64) -> Option<f64> {
        let found = self.take(key)?;
        let inside = found.as_f64().filter(|n| (least..=most).contains(n));
        match (inside, self.settings.last_mut()) {
            // 1 and 1.0 are the same setting.
            (Some(number), Some(setting)) => setting.value = number.into(),
            _ => self.wrong(key, &found, &format!("a number from {least} to {most}")),
        }
        inside
    }

    /// Different whole numbers, such as `[0, 1]`; `None` for the word that leaves them open, the default.
    pub(super) fn numbers_or(&mut self, key: &str, word: &str, most: u64) -> Option<Vec<usize>> {
        let Some(found) = self.take(key) else {
            self.note_default(key, word.into());
            return None;
        };
        if found == word {
            return None;
        }
        let read = |v: &Value| v.as_u64().filter(|n| *n <= most).map(|n| n as usize);
        let mut numbers: Vec<usize> =
            found.as_array().and_then(|list| list.iter().map(read).collect()).unwrap_or_default();
        let n = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() || numbers.len() < n {
            self.wrong(
                key,
                &found,
                &format!("{word:?} or a list of different numbers up to {most}, such as [0]"),
            );
        }
        Some(numbers)
    }

    /// The settings in the order they were read, unless anything was wrong. What nobody asked for is
    /// an error that names the nearest known key.
    pub(super) fn finish(mut self) -> Result<Vec<Setting>, Errors> {
        let unknown: Vec<String> = self.given.iter().filter(|g| !g.is_read).map(|g| g.key.clone()).collect();
        for key in unknown {
            let near = nearest(&key, self.known.iter().map(String::as_str));
            let hint = near.map(|k| format!("; did you mean {k}?")).unwrap_or_default();
            self.error(&key, &format!("unknown key {key}{hint}"));
        }
        if self.errors.is_empty() {
            return Ok(self.settings);
        }
        self.errors.sort_by_key(|(line, _)| *line);
        Err(Errors(self.errors.into_iter().map(|(_, told)| told).collect()))
    }
}

fn span<T>(spanned: &Spanned<T>) -> Range<usize> {
    spanned.span()
}

/// A scalar, or a list of them, as JSON; tables and dates are nobody's value here.
fn json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Integer(i) => {
            let digits = i.as_str().replace('_', "");
            Value::from(i64::from_str_radix(&digits, i.radix()).ok()?)
        }
        DeValue::Float(f) => Value::from(f.as_str().replace('_', "").parse::<f64>().ok()?),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Array(values) => {
            values.iter().map(|v| json(v.get_ref())).collect::<Option<Vec<_>>>()?.into()
        }
        _ => return None,
    })
}

/// The known word nearest to `word`, if it is near at all.
fn nearest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let score = |k: &str| strsim::normalized_damerau_levenshtein(word, k).max(last_part_score(word, k));
    known.map(|k| (score(k), k)).filter(|(s, _)| *s > 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

/// A key in the wrong section is near to its namesake.
fn last_part_score(word: &str, known: &str) -> f64 {
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    0.95 * strsim::normalized_damerau_levenshtein(&last(word), &last(known))
}
