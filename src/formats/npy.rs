//! NumPy's .npy, versions 1 and 2: little-endian f32 in C order.

use std::io::Read;
use std::path::Path;

use super::quoted;
use crate::error::{Error, Result};
use crate::files::open_regular;

/// Far above what NumPy writes for any shape it allows.
const MAX_HEADER: u64 = 64 << 10;

/// Reads a whole array: its shape (outermost dimension first, empty for a scalar) and its elements, row-major.
///
/// # Errors
/// Anything but `<f4` in C order, and a file whose length is not the one its header implies.
pub fn read(path: impl AsRef<Path>) -> Result<(Vec<usize>, Vec<f32>)> {
    let path = path.as_ref();
    let (mut file, size) = open_regular(path)?;
    let mut read = |what: &'static str, length: u64, left: u64| {
        if length > left {
            return Err(Error::input(path, what, format!("{left} bytes left"), format!("{length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
        Ok(bytes)
    };

    let start = read("magic", 8, size)?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err(Error::input(path, "magic", quoted(&String::from_utf8_lossy(&start[..6])), "\\x93NUMPY"));
    }
    let version = start[6];
    if !matches!(version, 1 | 2) {
        return Err(Error::input(path, "version", version, "1 or 2"));
    }
    let width = if version == 1 { 2 } else { 4 };
    let mut length = [0; 8];
    length[..width].copy_from_slice(&read("header length", width as u64, size - 8)?);
    let (length, body) = (u64::from_le_bytes(length), size - 8 - width as u64);
    if length > MAX_HEADER {
        return Err(Error::input(path, "header length", length, format!("at most {MAX_HEADER}")));
    }
    let header = read("header", length, body)?;
    let shape = parse_header(path, &header)?;

    let bytes = shape.iter().try_fold(4_u64, |bytes, &n| bytes.checked_mul(n as u64));
    let found = body - length;
    if bytes != Some(found) {
        return Err(Error::input(path, "data", format!("{found} bytes"), format!("f32 of shape {shape:?}")));
    }
    let data = read("data", found, found)?;
    let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok((shape, values))
}

/// The shape in a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse_header(path: &Path, header: &[u8]) -> Result<Vec<usize>> {
    let bad = |field: &str, found: &str, wanted: &str| Err(Error::input(path, field, quoted(found), wanted));
    let dictionary = "a dictionary of descr, fortran_order and shape";
    let Ok(text) = std::str::from_utf8(header) else {
        return bad("header", &String::from_utf8_lossy(header), dictionary);
    };
    let Some(mut rest) = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).map(str::trim)
    else {
        return bad("header", text, dictionary);
    };
    let (mut descr, mut order, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once(':') else { return bad("header", rest, "key: value") };
        let (key, after) = (key.trim().trim_matches(['\'', '"']), after.trim_start());
        // A shape is the only value with commas inside.
        let end = match after.starts_with('(') {
            true => after.find(')').map(|i| i + 1),
            false => Some(after.find(',').unwrap_or(after.len())),
        };
        let Some(end) = end else { return bad("header", after, "a closing parenthesis") };
        let (value, tail) = after.split_at(end);
        let slot = match key {
            "descr" => &mut descr,
            "fortran_order" => &mut order,
            "shape" => &mut shape,
            _ => return bad("header", key, "descr, fortran_order or shape"),
        };
        if slot.replace(value.trim()).is_some() {
            return bad("header", key, "each key once");
        }
        let tail = tail.trim_start();
        rest = match tail.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if tail.is_empty() => tail,
            None => return bad("header", tail, "a comma"),
        };
    }
    match descr.map(|d| d.trim_matches(['\'', '"'])) {
        Some("<f4") => {}
        other => return bad("descr", other.unwrap_or("nothing"), "<f4 (little-endian f32)"),
    }
    if order != Some("False") {
        return bad("fortran_order", order.unwrap_or("nothing"), "False");
    }
    let shape = shape.unwrap_or("nothing");
    let Some(inner) = shape.strip_prefix('(').and_then(|s| s.strip_suffix(')')) else {
        return bad("shape", shape, "a tuple of sizes");
    };
    let inner = inner.trim();
    let inner = inner.strip_suffix(',').unwrap_or(inner);
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    match inner.split(',').map(|n| n.trim().parse::<usize>()).collect() {
        Ok(sizes) => Ok(sizes),
        Err(_) => bad("shape", shape, "a tuple of sizes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[f32]) -> tempfile::NamedTempFile {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        data.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn both_versions_and_every_rank() {
        let data = [1.0, -2.5, f32::MIN_POSITIVE, 3e38, 0.0, -0.0];
        for version in [1, 2] {
            for (text, shape) in [("(2, 3)", vec![2, 3]), ("(6,)", vec![6]), ("(1,2,3,)", vec![1, 2, 3])] {
                let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}   \n");
                let (found, values) = read(file(version, &header, &data).path()).unwrap();
                assert_eq!((found, values), (shape, data.to_vec()));
            }
        }
        let scalar = "{'shape': (), 'fortran_order': False, 'descr': '<f4'}";
        assert_eq!(read(file(1, scalar, &[7.0]).path()).unwrap(), (vec![], vec![7.0]));
    }

    #[test]
    fn refuses_other_arrays() {
        for (header, field) in [
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }", "descr"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (6,), }", "descr"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (6,), }", "fortran_order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }", "data"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }", "shape"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", "data"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (6", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (6}", "header"),
            ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", "header"),
            ("{'descr': '<f4', 'fortran_order': False}", "shape"),
            ("", "header"),
        ] {
            let file = file(1, header, &[0.0; 6]);
            let message = read(file.path()).unwrap_err().to_string();
            assert!(message.contains(&format!(": {field}: found ")), "{header}: {message}");
        }
    }
}
