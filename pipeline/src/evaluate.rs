//! The `model eval` command: how well a model finds labelled clips by the words of their labels, in fp32
//! and as it runs on this machine.

use std::{cmp::Ordering, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use stages::{
    clips::{ClipList, Label},
    encode::{
        image::ImageTower,
        joint::{JointSpace, unit_mean},
        network::{Engine, Libraries, Opening},
        text::TextEncoder,
    },
    model::Model,
};

use crate::{engines::measure::cosines, run::cpu_seconds, samples::each_clip};

/// Frames of a clip.
const FRAMES: u32 = 8;

/// What to evaluate.
pub struct Task<'a> {
    /// The model.
    pub model: &'a Model,
    /// Folder, glob or manifest of clips; labels are of UCF101's file names, else of the manifest, else the
    /// folders' names.
    pub clips: &'a str,
    /// A file with a class a line, for more classes than the clips have.
    pub classes: Option<&'a Path>,
    /// The engines, the one to hold the others against last.
    pub engines: &'a [Engine],
}

/// Of all engines.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Clips.
    pub n_clips: usize,
    /// Classes to choose among.
    pub n_classes: usize,
    /// Classes that the clips have.
    pub n_present: usize,
    /// A row an engine.
    pub rows: Vec<Row>,
}

/// Of one engine.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which.
    pub engine: String,
    /// By CPU time, one thread.
    pub images_per_cpu_s: f64,
    /// Share of clips whose nearest class is theirs.
    pub top1: f64,
    /// Share of clips whose class is among the five nearest.
    pub top5: f64,
    /// Mean over classes of the average precision with which their words find their clips, by clip vector.
    pub map: f64,
    /// The same by each clip's best frame, as `search` ranks.
    pub map_by_frame: f64,
    /// Of the frames' joint vectors to the last engine's: mean.
    pub mean_cosine: f64,
    /// And least.
    pub least_cosine: f64,
}

/// An engine at work, and what it made.
struct Contender {
    engine: Engine,
    tower: ImageTower,
    /// Joint vectors of all frames.
    frames: Vec<f32>,
    cpu_s: f64,
}

/// Embeds all clips by every engine and scores them.
pub fn evaluate(task: &Task<'_>, libraries: &Libraries, told: &mut dyn FnMut(&str)) -> Result<Report> {
    let Task { model, engines, .. } = task;
    let space = JointSpace::open(model)?;
    let dim = space.dim();
    let open = |engine: &Engine| -> Result<Contender> {
        let tower = ImageTower::open(model, Opening { engine: *engine, threads: 1 }, libraries)?;
        Ok(Contender { engine: *engine, tower, frames: Vec::new(), cpu_s: 0.0 })
    };
    // What is wrong with clips and classes is told before the long part.
    let clips = ClipList::open(task.clips, Label::Auto)?;
    let mut listed = Vec::new();
    for entry in clips.iter()? {
        let entry = entry?;
        let label = label(&entry.path, entry.label.as_deref());
        listed.push(label.with_context(|| {
            format!("{} has no label: name it as UCF101 does, give it a folder, or a manifest", entry.path)
        })?);
    }
    let classes = classes(task.classes, listed.iter())?;
    let class_of = |label: &String| classes.iter().position(|class| class == label);
    let listed: Vec<usize> = listed
        .iter()
        .map(|label| class_of(label).with_context(|| format!("the classes lack {label:?}")))
        .collect::<Result<_>>()?;
    // Before the text tower: it takes any library, they may need theirs.
    let mut contenders: Vec<Contender> = engines.iter().map(open).collect::<Result<_>>()?;
    let mut text = TextEncoder::open(model, libraries)?;
    let words = classes.iter().map(|class| Ok(space.words(text.embed(&spoken(class))?)));
    let words: Vec<Vec<f32>> = words.collect::<Result<_>>()?;
    // Label and number of frames of each clip.
    let (mut labels, mut counts) = (Vec::new(), Vec::new());
    each_clip(&clips, model, FRAMES, &|_| true, told, &mut |clip, tensors, n| {
        labels.push(listed[clip.id.0 as usize]);
        counts.push(n);
        for contender in &mut contenders {
            let cpu = cpu_seconds();
            let encoded = contender.tower.encode(tensors, n)?;
            contender.cpu_s += cpu_seconds() - cpu;
            contender.frames.extend(space.project(&encoded, n)?);
        }
        Ok(())
    })?;
    let n_frames: usize = counts.iter().sum();
    let reference = contenders.last().map(|c| c.frames.clone()).unwrap_or_default();
    let row = |c: &Contender| -> Result<Row> {
        let scores = Scores::new(&c.frames, &counts, &words, dim);
        let near = cosines(&c.frames, &reference, n_frames).context("the engines' vectors differ in size")?;
        Ok(Row {
            engine: c.engine.to_string(),
            images_per_cpu_s: n_frames as f64 / c.cpu_s,
            top1: scores.share_in_top(1, &labels),
            top5: scores.share_in_top(5, &labels),
            map: mean_average_precision(&scores.by_clip, &labels),
            map_by_frame: mean_average_precision(&scores.by_frame, &labels),
            mean_cosine: near.0,
            least_cosine: near.1,
        })
    };
    Ok(Report {
        n_clips: labels.len(),
        n_classes: classes.len(),
        n_present: present(&labels).len(),
        rows: contenders.iter().map(row).collect::<Result<_>>()?,
    })
}

/// UCF101 names its clips `v_Class_g01_c01.avi`.
fn label(path: &str, listed: Option<&str>) -> Option<String> {
    let path = Path::new(path);
    let of_ucf101 = || {
        let class = path.file_stem()?.to_str()?.strip_prefix("v_")?.split("_g").next()?;
        (!class.is_empty()).then(|| class.to_owned())
    };
    let folder = || Some(path.parent()?.file_name()?.to_str()?.to_owned());
    of_ucf101().or_else(|| listed.map(str::to_owned)).or_else(folder)
}

/// The classes of the file, or those that the clips have.
fn classes<'a>(file: Option<&Path>, present: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let mut classes: Vec<String> = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
        None => present.cloned().collect(),
    };
    classes.sort();
    classes.dedup();
    ensure!(classes.len() > 1, "there is only one class: nothing to choose among");
    Ok(classes)
}

/// `ApplyEyeMakeup` → `apply eye makeup`.
fn spoken(class: &str) -> String {
    let mut words = String::new();
    for letter in class.chars() {
        match letter {
            '_' | '-' => words.push(' '),
            _ if letter.is_uppercase() => {
                if !words.is_empty() && !words.ends_with(' ') {
                    words.push(' ');
                }
                words.extend(letter.to_lowercase());
            }
            _ => words.push(letter),
        }
    }
    words
}

/// How near each clip is to each class.
struct Scores {
    /// By the mean of its frames: a row a clip, a column a class.
    by_clip: Vec<Vec<f32>>,
    /// By its nearest frame.
    by_frame: Vec<Vec<f32>>,
}

impl Scores {
    fn new(frames: &[f32], counts: &[usize], words: &[Vec<f32>], dim: usize) -> Self {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (mut by_clip, mut by_frame) = (Vec::new(), Vec::new());
        let mut rest = frames;
        for n in counts {
            let (own, others) = rest.split_at(n * dim);
            rest = others;
            let mean = unit_mean(own.chunks(dim), dim);
            by_clip.push(words.iter().map(|word| dot(&mean, word)).collect());
            let nearest =
                |word: &Vec<f32>| own.chunks(dim).map(|f| dot(f, word)).fold(f32::NEG_INFINITY, f32::max);
            by_frame.push(words.iter().map(nearest).collect());
        }
        Self { by_clip, by_frame }
    }

    fn share_in_top(&self, k: usize, labels: &[usize]) -> f64 {
        // Ties, and what is no number, count against the model.
        let is_in = |(scores, label): (&Vec<f32>, &usize)| {
            let is_worse = |score: &&f32| score.partial_cmp(&&scores[*label]) == Some(Ordering::Less);
            scores.iter().filter(|score| !is_worse(score)).count() <= k
        };
        let n = self.by_clip.iter().zip(labels).filter(|pair| is_in(*pair)).count();
        n as f64 / labels.len() as f64
    }
}

/// Mean, over the classes that clips have, of the precision at each of their clips in the ranking.
fn mean_average_precision(scores: &[Vec<f32>], labels: &[usize]) -> f64 {
    let average = |class: &usize| -> f64 {
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by(|a, b| scores[*b][*class].total_cmp(&scores[*a][*class]).then(a.cmp(b)));
        let (mut n_found, mut sum) = (0, 0.0);
        for (rank, clip) in order.iter().enumerate() {
            if labels[*clip] == *class {
                n_found += 1;
                sum += f64::from(n_found) / (rank + 1) as f64;
            }
        }
        sum / f64::from(n_found)
    };
    let present = present(labels);
    present.iter().map(average).sum::<f64>() / present.len() as f64
}

/// Each class that clips have, once.
fn present(labels: &[usize]) -> Vec<usize> {
    let mut present = labels.to_vec();
    present.sort_unstable();
    present.dedup();
    present
}

/// The report as a table.
pub fn table(report: &Report) -> String {
    let mut text = format!(
        "{} clips of {} classes, told apart from {} by words; {FRAMES} frames a clip\n\n{:<14} {:>7} {:>7} {:>7} {:>9} {:>11}   {}\n",
        report.n_clips,
        report.n_present,
        report.n_classes,
        "engine",
        "top-1",
        "top-5",
        "mAP",
        "by frame",
        "images/CPU s",
        "cosine to the last: mean, least"
    );
    for row in &report.rows {
        text += &format!(
            "{:<14} {:>6.1}% {:>6.1}% {:>7.3} {:>9.3} {:>12.1}   {:.5}, {:.5}\n",
            row.engine,
            100.0 * row.top1,
            100.0 * row.top5,
            row.map,
            row.map_by_frame,
            row.images_per_cpu_s,
            row.mean_cosine,
            row.least_cosine
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_spoken() {
        assert_eq!(label("a/b/v_ApplyEyeMakeup_g08_c01.avi", Some("x")).as_deref(), Some("ApplyEyeMakeup"));
        assert_eq!(label("a/running/1.mp4", Some("walk")).as_deref(), Some("walk"));
        assert_eq!(label("a/running/1.mp4", None).as_deref(), Some("running"));
        assert_eq!(spoken("ApplyEyeMakeup"), "apply eye makeup");
        assert_eq!(spoken("ride_a-Bike"), "ride a bike");
    }

    #[test]
    fn figures_are_those_worked_out_by_hand() {
        // Three clips of a frame each, two classes on the axes; the second clip lies nearer to the other.
        let frames = [1.0, 0.0, 0.8, 0.6, 0.0, 1.0];
        let words = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let labels = [0, 1, 1];
        let scores = Scores::new(&frames, &[1, 1, 1], &words, 2);
        assert_eq!(scores.share_in_top(1, &labels), 2.0 / 3.0);
        assert_eq!(scores.share_in_top(2, &labels), 1.0);
        // Both classes rank their clips first.
        assert_eq!(mean_average_precision(&scores.by_clip, &labels), 1.0);
        // Of a clip that comes second, one half; with the first class alone at the top, (1 + 1/2) / 2.
        let turned = [vec![0.0, 0.0], vec![1.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(mean_average_precision(&turned, &labels), (0.5 + (1.0 + 2.0 / 3.0) / 2.0) / 2.0);
    }
}
