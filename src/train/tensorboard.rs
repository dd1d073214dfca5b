//! TensorBoard event files with scalars: TFRecord frames around protocol buffers, written by hand.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// An open event file. TensorBoard shows all of a folder's event files as one run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new event file in `dir`, which is made if need be. Points of earlier files at `first_step` and later are
    /// those of a training that was interrupted and went back: TensorBoard forgets them.
    pub fn create(dir: &Path, first_step: u64) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let base = format!("events.out.tfevents.{:010}.ternlm", now() as u64);
        let mut path = dir.join(&base);
        let mut number = 1;
        let file = loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    path = dir.join(format!("{base}.{number}"));
                    number += 1;
                }
                other => break other.map_err(Error::io("create", &path))?,
            }
        };
        let mut writer = Self { path, out: BufWriter::new(file) };
        let mut event = Message::default();
        event.double(1, now());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event)?;
        // SessionLog { status: START } at that step.
        let mut session = Message::default();
        session.varint_field(1, 1);
        let mut event = Message::default();
        event.double(1, now());
        event.varint_field(2, first_step);
        event.bytes(7, &session.0);
        writer.record(&event)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Adds the point (`step`, `value`) to the curve `tag`.
    pub fn scalar(&mut self, tag: &str, value: f32, step: u64) -> Result<()> {
        let mut point = Message::default();
        point.bytes(1, tag.as_bytes());
        point.float(2, value);
        let mut summary = Message::default();
        summary.bytes(1, &point.0);
        let mut event = Message::default();
        event.double(1, now());
        event.varint_field(2, step);
        event.bytes(5, &summary.0);
        self.record(&event)
    }

    /// Brings everything into the file, where TensorBoard sees it.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::io("write", &self.path))
    }

    /// Length, its checksum, data, its checksum.
    fn record(&mut self, event: &Message) -> Result<()> {
        let data = &event.0;
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.out.write_all(&frame).map_err(Error::io("write", &self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// TFRecord rotates the CRC-32C and adds a constant, so that a checksum of checksums is no fixed point.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The wire format of a protocol buffer message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint_field(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, masked: no code shared with the writer.
    fn reference_crc(data: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        let crc = !crc;
        let rotated = ((u64::from(crc) << 32 | u64::from(crc)) >> 15) as u32;
        rotated.wrapping_add(0xa282_ead8)
    }

    fn records(file: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = file;
        let mut found = Vec::new();
        let word = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(word(&rest[8..]), reference_crc(&rest[..8]));
            let data = &rest[12..12 + length];
            assert_eq!(word(&rest[12 + length..]), reference_crc(data));
            found.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        found
    }

    #[test]
    fn frames_and_messages_are_as_specified() {
        assert_eq!(reference_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 301).unwrap();
        writer.scalar("train/loss", 2.5, 301).unwrap();
        writer.scalar("long".repeat(60).as_str(), -1.0, u64::from(u32::MAX) + 1).unwrap();
        writer.flush().unwrap();
        let found = records(&fs::read(&writer.path).unwrap());
        assert_eq!(found.len(), 4);
        assert_eq!(found[0][9..], *b"\x1a\x0dbrain.Event:2");
        // wall_time is a double of field 1; then step 301, then session_log { status: START }, upon which TensorBoard
        // 2.21 (EventAccumulator) forgets steps 301 and later of the files before.
        assert_eq!(found[1][0], 0x09);
        let wall = f64::from_le_bytes(found[1][1..9].try_into().unwrap());
        assert!((wall - now()).abs() < 60.0);
        assert_eq!(found[1][9..], *b"\x10\xad\x02\x3a\x02\x08\x01");
        // Step 301, summary { value { tag, simple_value } }.
        let found = &found[1..];
        assert_eq!(found[1][9..], *b"\x10\xad\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x20\x40");
        // A tag of 240 bytes needs a length of two bytes.
        assert_eq!(found[2][9..15], [0x10, 0x80, 0x80, 0x80, 0x80, 0x10]);
        assert_eq!(found[2][15..24], [0x2a, 0xfb, 0x01, 0x0a, 0xf8, 0x01, 0x0a, 0xf0, 0x01]);
    }

    #[test]
    fn a_second_file_in_the_same_second_gets_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..3).map(|_| EventWriter::create(dir.path(), 301).unwrap()).collect();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(writers.iter().all(|w| w.path.to_str().unwrap().contains("events.out.tfevents.")));
    }

    /// Leaves a file for TensorBoard itself: `TERNLM_EVENTS=DIR cargo test for_tensorboard`.
    #[test]
    fn for_tensorboard() {
        let Some(dir) = std::env::var_os("TERNLM_EVENTS") else {
            println!("skipped: no TERNLM_EVENTS");
            return;
        };
        let mut writer = EventWriter::create(Path::new(&dir), 0).unwrap();
        for step in 0..1000u64 {
            writer.scalar("train/loss", 10.0 / (step + 1) as f32, step).unwrap();
            writer.scalar("val/ppl", step as f32, step).unwrap();
        }
    }
}
