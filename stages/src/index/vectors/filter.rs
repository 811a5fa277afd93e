//! Which clips and frames a search may answer with.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use glob::Pattern;

use super::rows::Clip;

/// One condition, such as `label=PlayingGuitar`, `path=*/cam3/*`, `duration>=10` or `time<1:30`.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// The clip's label is, or is not, this one.
    Label {
        /// The label; none means without one.
        label: Option<String>,
        /// Whether it is to be this one.
        is: bool,
    },
    /// The clip's path matches, or does not match, a glob.
    Path {
        /// The glob; `*` passes over `/` as well.
        glob: Pattern,
        /// Whether it is to match.
        is: bool,
    },
    /// The clip's duration.
    Duration(Bound),
    /// The frame's presentation time.
    Time(Bound),
}

/// A number of nanoseconds is to lie in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    least: i64,
    most: i64,
}

impl Bound {
    fn holds(&self, ns: i64) -> bool {
        (self.least..=self.most).contains(&ns)
    }
}

/// Conditions that all must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter(pub Vec<Condition>);

impl Filter {
    /// Whether it lets everything pass.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some frames of a clip may pass and others not.
    pub fn is_by_frame(&self) -> bool {
        self.0.iter().any(|c| matches!(c, Condition::Time(_)))
    }

    pub(crate) fn admits_clip(&self, clip: &Clip<'_>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Label { label, is } => (clip.label == label.as_deref()) == *is,
            Condition::Path { glob, is } => glob.matches(clip.path) == *is,
            Condition::Duration(bound) => bound.holds(clip.duration_ns),
            Condition::Time(_) => true,
        })
    }

    pub(crate) fn admits_time(&self, pts_ns: i64) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Time(bound) => bound.holds(pts_ns),
            _ => true,
        })
    }
}

impl FromStr for Condition {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        const FORM: &str = "label=NAME, path=GLOB, duration>SECONDS or time<SECONDS";
        let at = text
            .find(['=', '!', '<', '>'])
            .with_context(|| format!("{text:?} is no condition; need {FORM}"))?;
        let (field, rest) = text.split_at(at);
        let operators = ["!=", "<=", ">=", "=", "<", ">"];
        let operator = operators.into_iter().find(|o| rest.starts_with(o));
        let operator = operator.with_context(|| format!("{text:?} has no operator; need {FORM}"))?;
        let value = rest[operator.len()..].trim();
        let (field, is) = (field.trim(), operator == "=");
        let is_equality = matches!(operator, "=" | "!=");
        match field {
            "label" if is_equality => {
                Ok(Self::Label { label: (!value.is_empty()).then(|| value.to_owned()), is })
            }
            "path" if is_equality => {
                let glob = Pattern::new(value).with_context(|| format!("{value:?} is no glob"))?;
                Ok(Self::Path { glob, is })
            }
            "label" | "path" => bail!("{text:?}: {field} takes = and != only"),
            "duration" | "time" => {
                let ns = nanoseconds(value)
                    .with_context(|| format!("{text:?}: {value:?} is no time; need seconds, or mm:ss"))?;
                let (least, most) = match operator {
                    "=" => (ns, ns),
                    "<" => (i64::MIN, ns - 1),
                    "<=" => (i64::MIN, ns),
                    ">" => (ns + 1, i64::MAX),
                    ">=" => (ns, i64::MAX),
                    _ => bail!("{text:?}: {field} takes =, <, <=, > and >= only"),
                };
                let bound = Bound { least, most };
                Ok(if field == "time" { Self::Time(bound) } else { Self::Duration(bound) })
            }
            _ => bail!("{text:?}: there is no field {field:?}; need {FORM}"),
        }
    }
}

/// Of seconds, mm:ss or h:mm:ss.
fn nanoseconds(text: &str) -> Option<i64> {
    let mut seconds = 0.0;
    for part in text.split(':') {
        let part: f64 =
            part.trim_end_matches('s').parse().ok().filter(|p: &f64| p.is_finite() && *p >= 0.0)?;
        seconds = seconds * 60.0 + part;
    }
    (seconds < 9e9).then_some((seconds * 1e9).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(conditions: &[&str]) -> bool {
        let filter = Filter(conditions.iter().map(|c| c.parse().unwrap()).collect());
        let clip =
            Clip { id: 1, path: "data/cam3/a b.mp4", label: Some("goal=yes"), duration_ns: 90_500_000_000 };
        filter.admits_clip(&clip) && filter.admits_time(10_000_000_000)
    }

    #[test]
    fn conditions_mean_what_they_say() {
        for yes in [
            "label=goal=yes",
            "label!=goal",
            "label!=",
            "path=*cam3*",
            "path=data/*/a b.mp4",
            "path!=*.avi",
            "duration>90",
            "duration<1:31",
            "duration>=1:30.5",
            "duration=90.5s",
            "time=10",
            "time<=0:10",
            " time > 9.9 ",
        ] {
            assert!(admits(&[yes]), "{yes}");
        }
        for no in
            ["label=goal", "label=", "path=cam3", "duration<90.5", "duration>1:30.5", "time<10", "time>10"]
        {
            assert!(!admits(&[no]), "{no}");
        }
        assert!(admits(&[]) && admits(&["time>1", "time<11"]) && !admits(&["time>1", "time<2"]));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (text, told) in [
            ("goal", "is no condition"),
            ("label<a", "takes = and != only"),
            ("labels=a", "no field \"labels\""),
            ("time!=3", "takes =, <, <=, > and >= only"),
            ("time!3", "has no operator"),
            ("duration>long", "is no time"),
            ("duration>-1", "is no time"),
            ("path=[", "is no glob"),
        ] {
            let error = format!("{:#}", text.parse::<Condition>().unwrap_err());
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
