//! Animated WebP, by the `image-webp` crate: FFmpeg decodes still ones only before its release 8.

use std::io::Cursor;

use image_webp::WebPDecoder;
use kernels::mapped_file::MappedFile;

use super::{
    FrameSink, StreamEnd,
    choose::Chooser,
    sample::{PacketTimes, Sampling},
    surface::{Canvas, Surface},
};
use crate::{item::Pts, stage::Reason};

const MILLISECOND_NS: i64 = 1_000_000;
/// As browsers do: a shorter duration means that none was chosen, and 100 ms is.
const LEAST_MS: u32 = 11;
const USUAL_MS: u32 = 100;
/// A canvas of more samples than this is an attack, not a picture: a file of 80 bytes can ask for it.
const MOST_SAMPLES: u64 = 1 << 27;

/// Decodes; the sink hears the end, whatever it is. Only the first picture decodes alone.
pub(super) fn decode(file: &MappedFile, sampling: Sampling, sink: Box<dyn FrameSink>) {
    let spans = spans(file.bytes());
    let ends = spans.last().map(|(start, ms)| pts(*start + i64::from(*ms)));
    let times = PacketTimes::new(spans.iter().map(|(start, _)| pts(*start)).collect(), ends);
    let mut chooser = Chooser::new(sampling, times, sink);
    let mut stream = StreamEnd {
        codec: "webp".into(),
        container: "webp".into(),
        decoder: "image-webp".into(),
        ..StreamEnd::default()
    };
    match pictures(file.bytes(), &spans, &mut chooser, &mut stream) {
        // Nobody takes pictures any more, so nobody hears the end either.
        Err(Stopped::Closed) => (),
        Err(Stopped::Reason(reason)) => chooser.end(stream, Err(reason)),
        Ok(()) => chooser.end(stream, Ok(())),
    }
}

enum Stopped {
    Closed,
    Reason(Reason),
}

fn pts(ms: i64) -> Pts {
    Pts { nanos: ms * MILLISECOND_NS }
}

fn pictures(
    bytes: &[u8],
    spans: &[(i64, u32)],
    chooser: &mut Chooser,
    stream: &mut StreamEnd,
) -> Result<(), Stopped> {
    let corrupt = |e: image_webp::DecodingError, last_good| {
        Stopped::Reason(Reason::Corrupt { last_good, detail: e.to_string() })
    };
    let mut reader = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| corrupt(e, None))?;
    let (width, height) = reader.dimensions();
    (stream.width, stream.height) = (width, height);
    if u64::from(width) * u64::from(height) > MOST_SAMPLES {
        return Err(Stopped::Reason(Reason::Unsupported(format!("a WebP of {width}x{height}"))));
    }
    let has_alpha = reader.has_alpha();
    let size = reader.output_buffer_size();
    let mut coded = vec![0; size.unwrap_or((width * height) as usize * if has_alpha { 4 } else { 3 })];
    let mut last_good = None;
    for (start, ms) in spans {
        reader.read_frame(&mut coded).map_err(|e| corrupt(e, last_good))?;
        let rgba = if has_alpha { over_white(&coded) } else { opaque(&coded) };
        let canvas = Canvas { width: width as usize, height: height as usize, rgba };
        let is_first = last_good.is_none();
        last_good = Some(pts(*start));
        stream.end = pts(*start + i64::from(*ms));
        chooser.picture(pts(*start), is_first, Surface::rgba(canvas)).map_err(|_| Stopped::Closed)?;
    }
    if spans.is_empty() {
        return Err(Stopped::Reason(Reason::Empty("the WebP has no frames".into())));
    }
    Ok(())
}

/// What a browser shows on an empty page.
fn over_white(rgba: &[u8]) -> Vec<u8> {
    let blend = |pixel: &[u8]| {
        let alpha = u16::from(pixel[3]);
        let over = |c: u8| ((u16::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        [over(pixel[0]), over(pixel[1]), over(pixel[2]), 255]
    };
    rgba.chunks_exact(4).flat_map(blend).collect()
}

fn opaque(rgb: &[u8]) -> Vec<u8> {
    rgb.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect()
}

/// Start and duration of every picture, in milliseconds: from the `ANMF` chunks.
fn spans(bytes: &[u8]) -> Vec<(i64, u32)> {
    const DURATION_AT: usize = 12;
    let (mut at, mut start, mut spans) = (12usize, 0, Vec::new());
    while let Some(header) = bytes.get(at..).and_then(|rest| rest.get(..8)) {
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let body = at + 8;
        if let (b"ANMF", Some(d)) = (&header[..4], bytes.get(body + DURATION_AT..body + DURATION_AT + 3)) {
            let stated = u32::from_le_bytes([d[0], d[1], d[2], 0]);
            let ms = if stated < LEAST_MS { USUAL_MS } else { stated };
            spans.push((start, ms));
            start += i64::from(ms);
        }
        // Chunks are padded to an even size.
        at = body.saturating_add(size).saturating_add(size & 1);
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_from_the_chunks() {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        let mut chunk = |name: &[u8; 4], body: &[u8]| {
            file.extend(name);
            file.extend((body.len() as u32).to_le_bytes());
            file.extend(body);
            file.extend(&[0; 1][..body.len() % 2]);
        };
        let frame = |ms: u32, extra: usize| {
            let mut body = vec![0; 16 + extra];
            body[12..15].copy_from_slice(&ms.to_le_bytes()[..3]);
            body
        };
        chunk(b"VP8X", &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chunk(b"ANMF", &frame(40, 3));
        chunk(b"ANMF", &frame(0, 0));
        chunk(b"ANMF", &frame(70_000, 0));
        assert_eq!(spans(&file), [(0, 40), (40, 100), (140, 70_000)]);
        assert_eq!(spans(&file[..file.len() - 1]).len(), 3);
        assert!(spans(b"RIFF").is_empty());
    }
}
