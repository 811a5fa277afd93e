//! Picture → normalized planar tensor: colour conversion, antialiased resize, crop and
//! normalization, fused.
//!
//! Resizing and the colour matrix are both linear, so each plane is resized at its own resolution
//! and the matrix meets only the samples of the result. There are two ways to the same numbers:
//!
//! - by blocks: sixteen output rows at a time, their source rows are weighed down, the block is
//!   transposed, weighed across, converted, and transposed into place. For every format and size.
//! - by rows ([`crate::lanes::rows`]): across first, then down. For YUV that hardly shrinks, such as small
//!   clips.

pub mod on_gpu;

use crate::lanes::rows::{GroupedWeights, Rows, TOGETHER};
use crate::{
    aligned::AlignedFloats,
    colour::ToRgb,
    lanes::{Byte, Coefficients, Lanes, Normalize, ROWS, Weights, Word},
    picture::{Layout, Look, Orientation, Picture, PixelFormat, Plane},
    resample::{Axis, Filter, Taps},
};

/// How the picture is brought to size before the centre crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side to this many samples, the longer in proportion (rounded down).
    ShorterSide(usize),
    /// Both sides to the tensor's, whatever the proportion.
    Stretch,
}

/// What a model wants of its pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Samples across of the tensor.
    pub width: usize,
    /// Samples down of the tensor.
    pub height: usize,
    /// Resize before the centre crop. A shorter side must be at least `width` and `height`.
    pub resize: Resize,
    /// Kernel of the resize; always antialiased.
    pub filter: Filter,
    /// Subtracted from colours in 0..1.
    pub mean: [f32; 3],
    /// Divides what is left.
    pub std: [f32; 3],
}

impl Recipe {
    /// Floats of one tensor: 3 × height × width.
    pub fn tensor_len(&self) -> usize {
        3 * self.height * self.width
    }

    /// Size of the resized picture, from its size as shown.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        match self.resize {
            Resize::Stretch => (self.width, self.height),
            Resize::ShorterSide(side) if width <= height => (side, (side * height / width).max(side)),
            Resize::ShorterSide(side) => ((side * width / height).max(side), side),
        }
    }

    pub(crate) fn normalize(&self) -> Normalize {
        Normalize {
            scale: self.std.map(|s| 1.0 / (255.0 * s)),
            bias: std::array::from_fn(|c| -self.mean[c] / self.std[c]),
        }
    }
}

/// A picture whose planes do not hold what its format and size say.
#[derive(Debug, thiserror::Error)]
#[error("plane {plane} of a {width}x{height} picture has {found} bytes, needs {needed}")]
pub struct Malformed {
    plane: usize,
    width: usize,
    height: usize,
    found: usize,
    needed: usize,
}

/// Runs one [`Recipe`], keeping the weights of the picture kinds seen last.
pub struct Preprocessor {
    recipe: Recipe,
    lanes: Lanes,
    plans: Vec<Prepared>,
    scratch: Scratch,
}

/// Plans kept: clips of a run mostly share one size, and workers see one clip at a time.
const PLANS_KEPT: usize = 4;

/// A [`Plan`] in the form that the loops read.
struct Prepared {
    plan: Plan,
    across: [Weights; 2],
    down: [Weights; 2],
    /// First and end of the source samples that `across` draws on.
    span: [(usize, usize); 2],
    coefficients: Coefficients,
    /// `across` for the way by rows, where that can be gone.
    by_rows: Option<[GroupedWeights; 2]>,
}

impl Prepared {
    fn new(plan: Plan, lanes: Lanes) -> Self {
        let across = plan.across.clone().map(Weights::from);
        Self {
            span: plan.across.each_ref().map(|t| (t.span().start, t.span().end)),
            down: plan.down.clone().map(Weights::from),
            coefficients: Coefficients::from(plan.to_rgb),
            by_rows: match plan.look.format.layout {
                Layout::Planar | Layout::SemiPlanar => {
                    let luma = GroupedWeights::new(&across[0], plan.to_rgb.luma as f32, lanes);
                    let chroma = GroupedWeights::new(&across[1], 1.0, lanes);
                    luma.zip(chroma).map(|(luma, chroma)| [luma, chroma])
                }
                _ => None,
            },
            across,
            plan,
        }
    }
}

#[derive(Default)]
struct Scratch {
    unpacked: [Vec<u8>; 3],
    rows: AlignedFloats,
    columns: AlignedFloats,
    blocks: [AlignedFloats; 3],
    turned: AlignedFloats,
    floats: AlignedFloats,
    across: [AlignedFloats; 3],
}

/// Weights for pictures of one kind. Sizes are those of the stored picture, before it is turned.
pub(crate) struct Plan {
    pub(crate) look: Look,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) across: [Taps; 2],
    pub(crate) down: [Taps; 2],
    pub(crate) to_rgb: ToRgb,
}

impl Plan {
    pub(crate) fn new(recipe: &Recipe, look: &Look) -> Self {
        let Look { width, height, format, colour, orientation, sample_aspect } = *look;
        let turn = orientation.transpose;
        let swap = |pair: (usize, usize)| if turn { (pair.1, pair.0) } else { pair };
        let (shown_width, shown_height) = swap(sample_aspect.square(width, height));
        let (resized_width, resized_height) = recipe.resized(shown_width, shown_height);
        // torchvision's centre crop, placed on the shown picture, then followed back to the stored one.
        let crop = |resized: usize, kept: usize, flipped: bool| {
            let start = ((resized - kept) as f64 / 2.0).round_ties_even() as usize;
            if flipped { resized - kept - start } else { start }
        };
        let left = crop(resized_width, recipe.width, orientation.flip_across);
        let top = crop(resized_height, recipe.height, orientation.flip_down);
        let (resized_width, resized_height) = swap((resized_width, resized_height));
        let (left, top) = swap((left, top));
        let (kept_width, kept_height) = swap((recipe.width, recipe.height));
        let across =
            Axis { luma_len: width, resized_len: resized_width, crop_start: left, crop_len: kept_width };
        let down =
            Axis { luma_len: height, resized_len: resized_height, crop_start: top, crop_len: kept_height };
        let (sx, sy) = format.subsampling;
        let (chroma_width, chroma_height) = look.chroma_size();
        let siting = colour.siting;
        let (across, down) = (Taps::new(across, recipe.filter), Taps::new(down, recipe.filter));
        let chroma_across = across.over_chroma(chroma_width, sx, siting.cosited_across);
        let chroma_down = down.over_chroma(chroma_height, sy, siting.cosited_down);
        Plan {
            look: *look,
            width: kept_width,
            height: kept_height,
            across: [across, chroma_across],
            down: [down, chroma_down],
            to_rgb: ToRgb::new(format, colour),
        }
    }
}

impl Preprocessor {
    /// With the widest instructions of this CPU.
    pub fn new(recipe: Recipe) -> Self {
        Self::with_lanes(recipe, Lanes::detect())
    }

    /// With the given instructions, for comparing them.
    pub fn with_lanes(recipe: Recipe, lanes: Lanes) -> Self {
        Self { recipe, lanes, plans: Vec::new(), scratch: Scratch::default() }
    }

    /// The recipe it runs.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Writes the picture's tensor, planes of red, green and blue, to `out`.
    ///
    /// # Panics
    /// If `out` is not [`Recipe::tensor_len`] long.
    pub fn run(&mut self, picture: &Picture<'_>, out: &mut [f32]) -> Result<(), Malformed> {
        assert_eq!(out.len(), self.recipe.tensor_len(), "out holds one tensor");
        check(picture)?;
        let plan = self.plan_for(picture);
        let prepared = &self.plans[plan];
        let (width, height) = (prepared.plan.width, prepared.plan.height);
        let planes = unpack(picture, &mut self.scratch.unpacked);
        let upright = picture.orientation == Orientation::default();
        let mut turned = std::mem::take(&mut self.scratch.turned);
        let target = if upright { &mut *out } else { turned.sized(3 * width * height) };
        if let Some(across) = &prepared.by_rows {
            let words = picture.format.sample_bytes() == 2;
            let run = if words { by_rows::<Word> } else { by_rows::<Byte> };
            let scratch = (&mut self.scratch.floats, &mut self.scratch.across);
            run(self.lanes, prepared, across, &planes, scratch, self.recipe.normalize(), target);
            if !upright {
                turn(turned.floats(), picture.orientation, (self.recipe.width, self.recipe.height), out);
            }
            self.scratch.turned = turned;
            return Ok(());
        }
        let mut blocks = self.scratch.blocks.each_mut().map(|b| b.sized(width.next_multiple_of(8) * ROWS));
        let normalize = self.recipe.normalize();
        for top in (0..height).step_by(ROWS) {
            for (component, plane) in planes.iter().enumerate() {
                let chroma = usize::from(component > 0 && !picture.format.is_rgb());
                let weights = (&prepared.across[chroma], &prepared.down[chroma], prepared.span[chroma]);
                let (rows, columns) = (&mut self.scratch.rows, &mut self.scratch.columns);
                let block = &mut *blocks[component];
                let words = picture.format.sample_bytes() == 2;
                let resize = if words { resize_block::<Word> } else { resize_block::<Byte> };
                resize(self.lanes, plane, weights, top, rows, columns, block);
            }
            finish_block(self.lanes, picture.format, prepared.coefficients, normalize, &mut blocks);
            let n_rows = ROWS.min(height - top);
            for (colour, block) in blocks.iter().enumerate() {
                let from = colour * width * height + top * width;
                let rows = &mut target[from..from + n_rows * width];
                self.lanes.transpose(block, ROWS, (width, n_rows), rows, width);
            }
        }
        if !upright {
            turn(turned.floats(), picture.orientation, (self.recipe.width, self.recipe.height), out);
        }
        self.scratch.turned = turned;
        Ok(())
    }

    /// Index of the plan for pictures like this one.
    fn plan_for(&mut self, picture: &Picture<'_>) -> usize {
        let look = picture.look();
        if let Some(found) = self.plans.iter().position(|p| p.plan.look == look) {
            return found;
        }
        if self.plans.len() == PLANS_KEPT {
            self.plans.remove(0);
        }
        self.plans.push(Prepared::new(Plan::new(&self.recipe, &look), self.lanes));
        self.plans.len() - 1
    }
}

impl From<ToRgb> for Coefficients {
    fn from(m: ToRgb) -> Self {
        Self {
            black: m.black as f32,
            luma: m.luma as f32,
            centre: m.centre as f32,
            rv: m.rv as f32,
            gu: m.gu as f32,
            gv: m.gv as f32,
            bu: m.bu as f32,
        }
    }
}

/// Every plane holds its rows.
fn check(picture: &Picture<'_>) -> Result<(), Malformed> {
    let Picture { width, height, .. } = *picture;
    for (plane, (row_bytes, rows)) in picture.plane_sizes().into_iter().enumerate() {
        let Plane { data, stride } = picture.planes[plane];
        let needed = rows.saturating_sub(1) * stride + row_bytes;
        if data.len() < needed || (rows > 1 && stride < row_bytes) || width == 0 || height == 0 {
            return Err(Malformed { plane, width, height, found: data.len(), needed });
        }
    }
    Ok(())
}

/// The components as planes of their own: Y, U, V or R, G, B, or luma alone.
fn unpack<'a>(picture: &Picture<'a>, scratch: &'a mut [Vec<u8>; 3]) -> Vec<Plane<'a>> {
    let planes = picture.planes;
    let bytes = picture.format.sample_bytes();
    let mut take = |component: usize, plane: Plane<'_>, offset: usize, step: usize, size: (usize, usize)| {
        let to = &mut scratch[component];
        to.clear();
        for row in 0..size.1 {
            let row = &plane.data[row * plane.stride..];
            for sample in row[..(size.0 - 1) * step + offset + bytes].chunks(step) {
                to.extend_from_slice(&sample[offset..offset + bytes]);
            }
        }
    };
    match picture.format.layout {
        Layout::Planar => planes.to_vec(),
        Layout::Gray => vec![planes[0]],
        Layout::PlanarGbr => vec![planes[2], planes[0], planes[1]],
        Layout::SemiPlanar => {
            let size = picture.chroma_size();
            take(1, planes[1], 0, 2 * bytes, size);
            take(2, planes[1], bytes, 2 * bytes, size);
            let [_, u, v] = scratch;
            vec![
                planes[0],
                Plane { data: u, stride: size.0 * bytes },
                Plane { data: v, stride: size.0 * bytes },
            ]
        }
        Layout::PackedRgb { offsets, step } => {
            let size = (picture.width, picture.height);
            for (component, offset) in offsets.into_iter().enumerate() {
                take(component, planes[0], usize::from(offset), usize::from(step), size);
            }
            scratch.iter().map(|data| Plane { data, stride: picture.width }).collect()
        }
    }
}

/// One plane's share of the output rows from `top`, as columns of [`ROWS`] values.
fn resize_block<S: crate::lanes::Sample>(
    lanes: Lanes,
    plane: &Plane<'_>,
    (across, down, (first, end)): (&Weights, &Weights, (usize, usize)),
    top: usize,
    rows: &mut AlignedFloats,
    columns: &mut AlignedFloats,
    block: &mut [f32],
) {
    let n_columns = end - first;
    let pitch = n_columns.next_multiple_of(16);
    let rows = rows.sized(pitch * ROWS);
    let columns = columns.sized(pitch * ROWS);
    for row in 0..ROWS {
        // The last block repeats the last row; the surplus is not stored.
        let output = (top + row).min(down.start.len() - 1);
        let source = &plane.data[down.start[output] * plane.stride + first * S::BYTES..];
        let row = &mut rows[row * pitch..][..n_columns];
        lanes.weigh_rows::<S>(source, plane.stride, down.of(output), row);
    }
    lanes.transpose(rows, pitch, (ROWS, n_columns), columns, ROWS);
    lanes.weigh_columns(columns, first, across, block);
}

/// The way by rows, for Y, U and V.
fn by_rows<S: crate::lanes::Sample>(
    lanes: Lanes,
    prepared: &Prepared,
    across: &[GroupedWeights; 2],
    planes: &[Plane<'_>],
    (floats, rows): (&mut AlignedFloats, &mut [AlignedFloats; 3]),
    normalize: Normalize,
    out: &mut [f32],
) {
    let (width, height) = (prepared.plan.width, prepared.plan.height);
    let pitch = across[0].padded_len();
    let needed: [_; 3] = std::array::from_fn(|c| prepared.plan.down[usize::from(c > 0)].span());
    let mut made = needed.each_ref().map(|rows| rows.start);
    for (rows, needed) in rows.iter_mut().zip(&needed) {
        rows.sized(needed.end * pitch);
    }
    let (red, rest) = out.split_at_mut(width * height);
    let (green, blue) = rest.split_at_mut(width * height);
    for y in 0..height {
        // Rows are made shortly before they are used, and are still in the nearest cache.
        for (c, plane) in planes.iter().enumerate() {
            let down = &prepared.down[usize::from(c > 0)];
            while made[c] < down.start[y] + down.width {
                let together = TOGETHER.min(needed[c].end - made[c]);
                let source = &plane.data[made[c] * plane.stride..];
                let to = &mut rows[c].floats_mut()[made[c] * pitch..][..together * pitch];
                let across = &across[usize::from(c > 0)];
                lanes.weigh_across::<S>(source, plane.stride, floats, across, to);
                made[c] += together;
            }
        }
        let component = |c: usize| {
            let down = &prepared.down[usize::from(c > 0)];
            Rows { floats: &rows[c].floats()[down.start[y] * pitch..], pitch, weights: down.of(y) }
        };
        let row = y * width..(y + 1) * width;
        let rgb = [&mut red[row.clone()], &mut green[row.clone()], &mut blue[row]];
        lanes.rgb_row([component(0), component(1), component(2)], prepared.coefficients, normalize, rgb);
    }
}

/// Resized samples to the model's numbers, in place.
fn finish_block(
    lanes: Lanes,
    format: PixelFormat,
    m: Coefficients,
    n: Normalize,
    blocks: &mut [&mut [f32]; 3],
) {
    let [a, b, c] = blocks;
    match format.layout {
        Layout::Planar | Layout::SemiPlanar => lanes.yuv_to_rgb(a, b, c, m, n),
        Layout::PlanarGbr | Layout::PackedRgb { .. } | Layout::Gray => {
            if format.layout == Layout::Gray {
                b.copy_from_slice(a);
                c.copy_from_slice(a);
            }
            for (colour, values) in [a, b, c].into_iter().enumerate() {
                lanes.level(values, m.black, m.luma, n.scale[colour], n.bias[colour]);
            }
        }
    }
}

/// Turns a tensor of the stored picture as a viewer would.
pub(crate) fn turn(
    stored: &[f32],
    orientation: Orientation,
    (width, height): (usize, usize),
    shown: &mut [f32],
) {
    let plane_len = width * height;
    for (stored, shown) in stored.chunks_exact(plane_len).zip(shown.chunks_exact_mut(plane_len)) {
        for y in 0..height {
            for x in 0..width {
                let tx = if orientation.flip_across { width - 1 - x } else { x };
                let ty = if orientation.flip_down { height - 1 - y } else { y };
                let from = if orientation.transpose { tx * height + ty } else { ty * width + tx };
                shown[y * width + x] = stored[from];
            }
        }
    }
}
