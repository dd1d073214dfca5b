//! Headers and lengths of safetensors and .npy files.

use std::fs;
use ternlm::formats::tensors::TensorFiles;

use super::{GOOD, NPY, npy_file, refused, safetensors};

#[test]
fn safetensors_headers() {
    let file = "model.safetensors";
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 100_000_001, GOOD.len() as u64 + 17] {
        let mut bytes = safetensors(GOOD, 16);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused(file, &bytes, "header length: found");
    }
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let f32s = |shape, offsets| entry("a", "F32", shape, offsets);
    let two =
        |first, second| format!("{},{}", entry("a", "U8", "[8]", first), entry("b", "U8", "[8]", second));
    // Nine tensors that together span 2^64 bytes: sums of offsets overflow.
    let step = (1_u128 << 61) - 8;
    let overflowing: Vec<String> = (0..8_u128)
        .map(|i| {
            entry(&i.to_string(), "U8", &format!("[{step}]"), &format!("[{},{}]", i * step, (i + 1) * step))
        })
        .collect();
    for (tensors, field) in [
        (f32s("[4]", "[0,17]"), "tensor \"a\" data_offsets: found 0..17"),
        (f32s("[4]", "[0,18446744073709551615]"), "tensor \"a\" data_offsets"),
        (f32s("[4]", "[8,0]"), "tensor \"a\" data_offsets: found 8..0"),
        (f32s("[2]", "[8,16]"), "tensor \"a\" data_offsets: found 8..16, wanted a range from 0"),
        (f32s("[2]", "[0,8]"), "data: found 16 bytes, wanted 8 bytes"),
        (f32s("[3]", "[0,16]"), "tensor \"a\" shape: found [3] of F32, wanted 16 bytes"),
        (f32s("[0]", "[0,16]"), "tensor \"a\" shape"),
        (f32s("[4294967296,4294967296,4294967296]", "[0,16]"), "tensor \"a\" shape"),
        (f32s("[4611686018427387904,2]", "[0,0]"), "tensor \"a\" shape"),
        (two("[0,8]", "[4,12]"), "tensor \"b\" data_offsets: found 4..12"),
        (two("[0,8]", "[0,8]"), "tensor \"b\" data_offsets: found 0..8"),
        (overflowing.join(","), "tensor \"0\" data_offsets"),
        (f32s("[-4]", "[0,16]"), "header: found \"a\": invalid value: integer `-4`"),
        (f32s("[4.0]", "[0,16]"), "header: found \"a\""),
        (f32s("[NaN]", "[0,16]"), "header: found \"a\""),
        (f32s("[1e400]", "[0,16]"), "header: found \"a\""),
        (f32s("[99999999999999999999]", "[0,16]"), "header: found \"a\""),
        (f32s("4", "[0,16]"), "header: found \"a\""),
        (f32s("[4]", "[0]"), "header: found \"a\""),
        (f32s("[4]", "[0,8,16]"), "header: found"),
        (entry("a", "F33", "[4]", "[0,16]"), "header: found \"a\": unknown variant `F33`"),
        (r#""a":{"dtype":"F32","data_offsets":[0,16]}"#.into(), "header: found \"a\": missing field `shape`"),
        (
            r#""a":{"dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16]}"#.into(),
            "header: found \"a\": duplicate",
        ),
        (format!("{},{}", f32s("[4]", "[0,16]"), f32s("[4]", "[0,16]")), "header: found \"a\" twice"),
        (format!(r#"{},"__metadata__":{{"x":1}}"#, f32s("[4]", "[0,16]")), "header: found \"__metadata__\""),
        (format!(r#""x":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000)), "header: found \"x\""),
        (
            format!(r#""a":{{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":{}}}"#, "[".repeat(100_000)),
            "header: found \"a\"",
        ),
        (format!("{},", entry(&"x".repeat(1 << 20), "F32", "[1]", "[0,4]")), "header: found"),
        (entry(&"x".repeat(1 << 20), "F32", "[1]", "[0,4]"), "data: found"),
        (entry(&"x".repeat(1 << 20), "F32", "[2]", "[0,4]"), "tensor \"xxx"),
    ] {
        refused(file, &safetensors(&format!("{{{tensors}}}"), 16), field);
    }
    for header in ["[]", "null", "7", "", "\u{feff}{}"] {
        refused(file, &safetensors(header, 0), "header: found");
    }
    refused(file, &[b"\x02\0\0\0\0\0\0\0".as_slice(), b"\xff\xfe"].concat(), "header: found");
}

#[test]
fn tensors_of_another_type_or_shape() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    for dtype in ["I32", "U32"] {
        let header = format!(r#"{{"a\u001b[2J":{{"dtype":"{dtype}","shape":[2,2],"data_offsets":[0,16]}}}}"#);
        fs::write(&path, safetensors(&header, 16)).unwrap();
        let file = TensorFiles::open_file(&path).unwrap();
        let name = "a\u{1b}[2J";
        let mut out = [0.0; 4];
        let shape = file.read_f32_into(name, &[4], &mut out).unwrap_err().to_string();
        assert!(
            shape.contains(r#"t.safetensors: tensor "a\u{1b}[2J": found shape [2, 2], wanted [4]"#),
            "{shape}"
        );
        let kind = file.read_f32_into(name, &[2, 2], &mut out).unwrap_err().to_string();
        assert!(kind.contains(&format!("found dtype {dtype}, wanted F32, F16 or BF16")), "{kind}");
        let absent = file.read_f32_into("b", &[4], &mut out).unwrap_err().to_string();
        assert!(absent.contains("t.safetensors: tensor \"b\": found nothing"), "{absent}");
    }
    let message = TensorFiles::open(dir.path().join("absent")).unwrap_err().to_string();
    assert!(message.contains("absent: weights: found neither file, wanted model.safetensors"), "{message}");
}

#[test]
fn npy_headers() {
    let shape =
        |text: &str| npy_file(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({text}), }}"));
    for (text, field) in [
        ("18446744073709551615, 18446744073709551615", "data: found 8 bytes"),
        ("4611686018427387905,", "data: found 8 bytes"),
        ("99999999999999999999,", "shape: found"),
        ("-2,", "shape: found"),
        ("2.0,", "shape: found"),
        (",", "data: found"),
        (",,", "shape: found"),
        ("2, (1", "shape: found"),
    ] {
        refused("x.npy", &shape(text), field);
    }
    let mut far = npy_file(NPY);
    far[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    refused("x.npy", &far, "header: found");
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    refused("x.npy", &long, "header length: found 4294967295");
    let mut version = npy_file(NPY);
    version[6] = 9;
    refused("x.npy", &version, "version: found 9");
    refused("x.npy", &[0; 100], "magic: found");
}
