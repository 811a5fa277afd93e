//! A clip's packets by number, read as often as needed.

use std::{
    ffi::CStr,
    sync::{Arc, atomic::AtomicBool},
};

use kernels::{
    ffi::libav::{Error, Input, Packet, Stream},
    mapped_file::MappedFile,
};

use crate::decode::container::Container;

/// Packets of a short clip are kept between the two passes, instead of read twice.
const KEPT_BYTES: usize = 4 << 20;
/// What a packet takes besides its bytes.
const PACKET_BYTES: usize = 768;
/// A demuxer seldom looks further back than this: mapped pages behind it are released.
const MAPPED_BYTES: usize = 2 << 20;

pub(in crate::decode) struct Packets {
    file: Arc<MappedFile>,
    stop: Arc<AtomicBool>,
    input: Input,
    /// Number of the packet that `input` gives next.
    next: u32,
    current: Packet,
    /// All packets, if they were surveyed and are few.
    kept: Vec<Packet>,
    /// What ended them before their end.
    broken: Option<Error>,
    /// Where the pages begin that were read and not released.
    mapped_from: usize,
}

impl Packets {
    pub(in crate::decode) fn open(file: &Arc<MappedFile>, stop: &Arc<AtomicBool>) -> Result<Self, Error> {
        Ok(Self {
            file: file.clone(),
            stop: stop.clone(),
            input: open(file, stop)?,
            next: 0,
            current: Packet::new()?,
            kept: Vec::new(),
            broken: None,
            mapped_from: 0,
        })
    }

    pub(in crate::decode) fn input(&self) -> &Input {
        &self.input
    }

    pub(in crate::decode) fn stream(&self) -> Stream {
        self.input.stream()
    }

    /// Reads the next packet.
    pub(in crate::decode) fn read(&mut self) -> Result<Option<&Packet>, Error> {
        if !self.input.read(&mut self.current)? {
            return Ok(None);
        }
        self.next += 1;
        let position = self.input.position();
        // Demuxers jump: to an index at the end, then back to the start.
        self.mapped_from = self.mapped_from.min(position);
        if position > self.mapped_from + 2 * MAPPED_BYTES {
            self.file.release(self.mapped_from..position - MAPPED_BYTES);
            self.mapped_from = position - MAPPED_BYTES;
        }
        Ok(Some(&self.current))
    }

    /// Shows every packet to `see`, then starts again. Returns whether it came to the end.
    pub(in crate::decode) fn survey(&mut self, mut see: impl FnMut(u32, &Packet)) -> Result<bool, Error> {
        let mut kept_bytes = Some(0);
        loop {
            match self.read() {
                Ok(Some(_)) => (),
                Ok(None) => break,
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
            see(self.next - 1, &self.current);
            kept_bytes = kept_bytes
                .map(|n| n + self.current.bytes().len() + PACKET_BYTES)
                .filter(|n| *n <= KEPT_BYTES);
            if kept_bytes.is_some() {
                let read = std::mem::replace(&mut self.current, Packet::new()?);
                self.kept.push(read);
            } else {
                self.kept = Vec::new();
            }
        }
        let is_whole = self.broken.is_none();
        if self.kept.is_empty() {
            // Read again, it will break again.
            self.broken = None;
            self.restart()?;
        }
        Ok(is_whole)
    }

    /// The packet of this number. Cheap for the last one, or one after it, or where packets are kept.
    pub(in crate::decode) fn get(&mut self, number: u32) -> Result<Option<&Packet>, Error> {
        if !self.kept.is_empty() {
            return match (self.kept.get(number as usize), &self.broken) {
                (None, Some(error)) => Err(error.clone()),
                (packet, _) => Ok(packet),
            };
        }
        if number + 1 == self.next {
            return Ok(Some(&self.current));
        }
        if number < self.next {
            self.restart()?;
        }
        while self.next < number {
            if self.read()?.is_none() {
                return Ok(None);
            }
        }
        self.read()
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.input = open(&self.file, &self.stop)?;
        (self.next, self.mapped_from) = (0, 0);
        Ok(())
    }
}

fn open(file: &Arc<MappedFile>, stop: &Arc<AtomicBool>) -> Result<Input, Error> {
    Input::open(file, demuxer(Container::of(file.bytes())), stop)
}

/// FFmpeg's name, which spares it trying all it knows.
fn demuxer(container: Container) -> Option<&'static CStr> {
    match container {
        Container::Avi => Some(c"avi"),
        Container::Mp4 => Some(c"mov"),
        Container::Matroska => Some(c"matroska"),
        _ => None,
    }
}
