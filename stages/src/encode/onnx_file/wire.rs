//! Protocol buffers, as far as ONNX files need them: messages as lists of fields, read and written.

use anyhow::{Context as _, Result, bail};

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    /// Bytes that were made here.
    Made(Vec<u8>),
    Fixed32([u8; 4]),
}

/// A message: its fields in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message<'a> {
    pub(super) fields: Vec<(u64, Value<'a>)>,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => {
            let (value, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Value::Fixed64(*value)
        }
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Value::Bytes(value)
        }
        5 => {
            let (value, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Value::Fixed32(*value)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

impl<'a> Message<'a> {
    pub(super) fn read(mut bytes: &'a [u8]) -> Result<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            fields.push(field(&mut bytes).context("it is no ONNX file, or damaged")?);
        }
        Ok(Self { fields })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, value) in &self.fields {
            let kind = match value {
                Value::Varint(_) => 0,
                Value::Fixed64(_) => 1,
                Value::Bytes(_) | Value::Made(_) => 2,
                Value::Fixed32(_) => 5,
            };
            put_varint(&mut out, number << 3 | kind);
            match value {
                Value::Varint(value) => put_varint(&mut out, *value),
                Value::Fixed64(value) => out.extend(value),
                Value::Fixed32(value) => out.extend(value),
                Value::Bytes(bytes) => put_bytes(&mut out, bytes),
                Value::Made(bytes) => put_bytes(&mut out, bytes),
            }
        }
        out
    }

    /// The last value of a field that is a number.
    pub(super) fn int(&self, number: u64) -> Option<i64> {
        self.fields.iter().rev().find_map(|(n, value)| match value {
            Value::Varint(value) if *n == number => Some(*value as i64),
            _ => None,
        })
    }

    /// All values of a field that are numbers, packed or not.
    pub(super) fn ints(&self, number: u64) -> Result<Vec<i64>> {
        let mut all = Vec::new();
        for (_, value) in self.fields.iter().filter(|(n, _)| *n == number) {
            match value {
                Value::Varint(value) => all.push(*value as i64),
                Value::Bytes(bytes) => {
                    let mut bytes = *bytes;
                    while !bytes.is_empty() {
                        all.push(varint(&mut bytes).context("it is no ONNX file, or damaged")? as i64);
                    }
                }
                _ => bail!("it is no ONNX file, or damaged"),
            }
        }
        Ok(all)
    }

    /// All values of a field that are bytes.
    pub(super) fn all(&self, number: u64) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(n, _)| *n == number).filter_map(|(_, value)| match value {
            Value::Bytes(bytes) => Some(*bytes),
            Value::Made(bytes) => Some(bytes.as_slice()),
            _ => None,
        })
    }

    pub(super) fn bytes(&self, number: u64) -> Option<&[u8]> {
        self.all(number).last()
    }

    pub(super) fn text(&self, number: u64) -> String {
        String::from_utf8_lossy(self.bytes(number).unwrap_or_default()).into_owned()
    }

    pub(super) fn texts(&self, number: u64) -> Vec<String> {
        self.all(number).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Takes a field away.
    pub(super) fn without(mut self, number: u64) -> Self {
        self.fields.retain(|(n, _)| *n != number);
        self
    }

    pub(super) fn with_int(mut self, number: u64, value: i64) -> Self {
        self.fields.push((number, Value::Varint(value as u64)));
        self
    }

    pub(super) fn with(mut self, number: u64, bytes: impl Into<Vec<u8>>) -> Self {
        self.fields.push((number, Value::Made(bytes.into())));
        self
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_alike() {
        let bytes = Message::default().with_int(1, -1).with(7, "text").with_int(300, 5).write();
        let message = Message::read(&bytes).unwrap();
        assert_eq!(message.write(), bytes);
        assert_eq!((message.int(1), message.text(7).as_str(), message.int(300)), (Some(-1), "text", Some(5)));
        for cut in 1..bytes.len() {
            // Any end within a field is found; one between fields is a shorter message.
            if let Ok(message) = Message::read(&bytes[..cut]) {
                assert!(message.fields.len() < 3);
            }
        }
    }
}
