//! Files written by hand, or changed, where no muxer writes them as the tests need them.

use std::{fs, path::Path};

use image_webp::{ColorType, WebPEncoder};

use super::packets::Packet;

/// A RIFF chunk, padded to an even size.
fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u32).to_le_bytes();
    [name, &size[..], body, &[0][..body.len() % 2]].concat()
}

fn list(name: &[u8; 4], chunks: &[Vec<u8>]) -> Vec<u8> {
    chunk(b"LIST", &[&name[..], &chunks.concat()].concat())
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes chunks as an AVI of `fps` frames a second, one a frame; the empty ones are frames that were
/// dropped.
pub fn avi(path: &Path, fourcc: &[u8; 4], (width, height): (u32, u32), fps: u32, chunks: &[Packet]) {
    let n = chunks.len() as u32;
    let code = u32::from_le_bytes(*fourcc);
    const HAS_INDEX: u32 = 0x10;
    let main = words(&[1_000_000 / fps, 0, 0, HAS_INDEX, n, 0, 1, 1 << 20, width, height, 0, 0, 0, 0]);
    let stream = [
        b"vids".to_vec(),
        words(&[code, 0, 0, 0, 1, fps, 0, n, 1 << 20, u32::MAX, 0, 0, width | height << 16]),
    ];
    let format = words(&[40, width, height, 1 | 24 << 16, code, width * height * 3, 0, 0, 0, 0]);
    let headers = list(
        b"hdrl",
        &[chunk(b"avih", &main), list(b"strl", &[chunk(b"strh", &stream.concat()), chunk(b"strf", &format)])],
    );
    let (mut index, mut at) = (Vec::new(), 4);
    for Packet { bytes, is_key, .. } in chunks {
        index.extend(*b"00dc");
        index.extend(words(&[if *is_key { 0x10 } else { 0 }, at, bytes.len() as u32]));
        at += 8 + bytes.len().next_multiple_of(2) as u32;
    }
    let pictures: Vec<Vec<u8>> = chunks.iter().map(|c| chunk(b"00dc", &c.bytes)).collect();
    let body = [b"AVI ".to_vec(), headers, list(b"movi", &pictures), chunk(b"idx1", &index)];
    fs::write(path, chunk(b"RIFF", &body.concat())).unwrap();
}

/// A grey picture and for how many milliseconds it is shown.
pub type Grey = (u32, Vec<u8>);

/// Writes an animated WebP.
pub fn webp(path: &Path, (width, height): (u32, u32), pictures: &[Grey]) {
    let three = |value: u32| value.to_le_bytes()[..3].to_vec();
    let size = [three(width - 1), three(height - 1)].concat();
    let picture = |(ms, grey): &Grey| {
        let rgb: Vec<u8> = grey.iter().flat_map(|v| [*v; 3]).collect();
        let mut still = Vec::new();
        WebPEncoder::new(&mut still).encode(&rgb, width, height, ColorType::Rgb8).unwrap();
        // Behind RIFF, its size and WEBP.
        chunk(b"ANMF", &[vec![0; 6], size.clone(), three(*ms), vec![0], still[12..].to_vec()].concat())
    };
    const IS_ANIMATED: u8 = 2;
    let body = [
        b"WEBP".to_vec(),
        chunk(b"VP8X", &[vec![IS_ANIMATED, 0, 0, 0], size.clone()].concat()),
        chunk(b"ANIM", &[0; 6]),
        pictures.iter().flat_map(picture).collect(),
    ];
    fs::write(path, chunk(b"RIFF", &body.concat())).unwrap();
}

/// Writes an animated GIF of 128 greys; times count in hundredths of a second.
pub fn gif(path: &Path, (width, height): (u32, u32), pictures: &[Grey]) {
    let two = |value: u32| value.to_le_bytes()[..2].to_vec();
    let size = [two(width), two(height)].concat();
    const PALETTE_OF_128: u8 = 0x80 | 6;
    let mut bytes = [b"GIF89a".to_vec(), size.clone(), vec![PALETTE_OF_128, 0, 0]].concat();
    bytes.extend((0..128).flat_map(|shade: u8| [2 * shade; 3]));
    for (ms, grey) in pictures {
        bytes.extend([vec![0x21, 0xF9, 4, 0], two(ms / 10), vec![0, 0]].concat());
        bytes.extend([vec![0x2C, 0, 0, 0, 0], size.clone(), vec![0, 7]].concat());
        // Codes stay 8 bits long as long as the decoder's table is cleared in time.
        const CLEAR: u8 = 128;
        const END: u8 = 129;
        let mut codes = Vec::new();
        for shades in grey.chunks(100) {
            codes.push(CLEAR);
            codes.extend(shades.iter().map(|v| v / 2));
        }
        codes.push(END);
        for block in codes.chunks(255) {
            bytes.push(block.len() as u8);
            bytes.extend(block);
        }
        bytes.push(0);
    }
    bytes.push(0x3B);
    fs::write(path, bytes).unwrap();
}

/// Where the body of an MP4's first box of this name begins.
pub fn mp4_box(bytes: &[u8], name: &[u8; 4]) -> usize {
    bytes.windows(4).position(|w| w == name).expect("such a box") + 4
}

/// A number in an MP4.
pub fn mp4_number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}
