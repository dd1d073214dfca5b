//! Named tensors in safetensors files: one file, or the shards of a Hugging Face index.
//!
//! A file is 8 bytes of header length (little-endian), a JSON header, and the data, which the header's tensors cover
//! exactly, without gaps. Reading maps the file into memory; writing streams, so neither needs a second copy.

mod beside;
mod file;
mod files;
mod write;

pub use files::{TensorFiles, TensorView};
pub use safetensors::Dtype;
pub use write::{Data, Progress, Tensor, by_width, write_in_order, write_safetensors};

/// The single weights file of a directory.
pub const FILE_NAME: &str = "model.safetensors";
/// The list of shards, where there is more than one file.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn tensor<'a>(name: &str, shape: &[usize], data: Data<'a>) -> Tensor<'a> {
        Tensor { name: name.into(), shape: shape.to_vec(), data }
    }

    fn write(path: &Path, tensors: &[Tensor<'_>]) {
        write_safetensors(path, tensors, &BTreeMap::new()).unwrap();
    }

    fn read(file: &TensorFiles, name: &str) -> Vec<f32> {
        let shape = file.shape(name).unwrap().to_vec();
        let mut out = vec![f32::NAN; shape.iter().product()];
        file.read_f32_into(name, &shape, &mut out).unwrap();
        out
    }

    /// Enough for several blocks, with every exponent of f16 among them.
    fn numbers(n: usize) -> Vec<f32> {
        let scale = |i: usize| f32::powi(2.0, i as i32 % 40 - 25);
        (0..n).map(|i| (i as f32 * 0.37).sin() * scale(i)).collect()
    }

    #[test]
    fn every_kind_of_data_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all");
        let (rows, cols) = (700, 401);
        let x = numbers(rows * cols);
        let [h, b]: [Vec<f32>; 2] = [
            x.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
            x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        ];
        let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
        let fill = |rows: std::ops::Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&x[rows.start * cols..rows.end * cols]);
        };
        let by_rows = |dtype| Data::Rows { dtype, fill: Box::new(fill) };
        let stream = Data::Stream {
            dtype: Dtype::I16,
            write: Box::new(|out| {
                (0..6_i16).for_each(|i| out.write_all(&(-i).to_le_bytes()).unwrap());
                Ok(())
            }),
        };
        let shape = [rows, cols];
        let tensors = [
            tensor("i8", &[3], Data::I8(&[1, -2, 127])),
            tensor("u8", &[3], Data::U8(&[1, 2, 255])),
            tensor("f32", &shape, Data::F32(&x)),
            tensor("f32 as f16", &shape, Data::F32AsF16(&x)),
            tensor("f32 as bf16", &shape, Data::F32AsBf16(&x)),
            tensor("f16", &shape, Data::F16(&halves)),
            tensor("rows f32", &shape, by_rows(Dtype::F32)),
            tensor("rows f16", &[rows, 1, cols], by_rows(Dtype::F16)),
            tensor("rows bf16", &shape, by_rows(Dtype::BF16)),
            tensor("i16", &[2, 3], stream),
            tensor("u16", &[2], Data::U16(&[1, 0x8001])),
            tensor("u32", &[], Data::U32(&[0x8000_0001])),
            tensor("empty", &[0, 7], Data::F32(&[])),
        ];
        let metadata: BTreeMap<_, _> =
            [("format".to_string(), "pt".to_string()), ("a".into(), "\"".into())].into();
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let first = std::fs::read(&path).unwrap();
        write_safetensors(&path, &tensors, &metadata).unwrap();
        assert!(first == std::fs::read(&path).unwrap(), "the same input must give the same bytes");
        // The reference implementation agrees that the file is valid.
        assert_eq!(safetensors::SafeTensors::deserialize(&first).unwrap().len(), tensors.len());

        let file = TensorFiles::open_file(&path).unwrap();
        for (name, wanted) in [
            ("f32", &x),
            ("rows f32", &x),
            ("f16", &h),
            ("f32 as f16", &h),
            ("rows f16", &h),
            ("f32 as bf16", &b),
            ("rows bf16", &b),
        ] {
            assert!(&read(&file, name) == wanted, "{name}");
        }
        assert!(read(&file, "empty").is_empty());
        assert_eq!(file.bytes("i8").unwrap(), [1, 254, 127]);
        assert_eq!(file.bytes("u8").unwrap(), [1, 2, 255]);
        assert_eq!(file.tensor("u8").unwrap().bytes_of(Dtype::U8, &[3]).unwrap(), [1, 2, 255]);
        for (dtype, shape, wanted) in
            [(Dtype::I8, [3], "found dtype U8"), (Dtype::U8, [2], "found shape [3]")]
        {
            let error = file.tensor("u8").unwrap().bytes_of(dtype, &shape).unwrap_err().to_string();
            assert!(error.contains("tensor \"u8\"") && error.contains(wanted), "{error}");
        }
        assert_eq!(file.bytes("u16").unwrap(), [1, 0, 1, 0x80]);
        assert_eq!(file.bytes("u32").unwrap(), [1, 0, 0, 0x80]);
        assert_eq!(file.bytes("i16").unwrap()[..4], [0, 0, 255, 255]);
        assert_eq!(file.shape("u32").unwrap(), [] as [usize; 0]);
        assert_eq!(file.dtype("rows bf16").unwrap(), Dtype::BF16);
        assert_eq!((file.metadata("format"), file.metadata("b")), (Some("pt"), None));
        let aligned = |t: &Tensor<'_>| {
            let width = t.data.dtype().bitsize() / 8;
            file.bytes(&t.name).unwrap().as_ptr().addr().is_multiple_of(width)
        };
        assert!(tensors.iter().all(aligned), "every tensor is aligned to its element");
    }

    #[test]
    fn every_half_is_read_exactly_even_unaligned() {
        let dir = tempfile::tempdir().unwrap();
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (dtype, convert) in [
            ("F16", (|b| f16::from_bits(b).to_f32()) as fn(u16) -> f32),
            ("BF16", |b| bf16::from_bits(b).to_f32()),
        ] {
            for pad in ["", " "] {
                let header = format!(
                    "{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":[65536],\"data_offsets\":[0,131072]}}}}{pad}"
                );
                let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
                bytes.extend(header.as_bytes());
                bytes.extend(&bits);
                let path = dir.path().join("x");
                std::fs::write(&path, bytes).unwrap();
                for (b, x) in (0..=u16::MAX).zip(read(&TensorFiles::open_file(&path).unwrap(), "x")) {
                    let wanted = convert(b);
                    let same = x.to_bits() == wanted.to_bits() || x.is_nan() && wanted.is_nan();
                    assert!(same, "{dtype} {b:#x}: {x} != {wanted}");
                }
            }
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_named_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut x = vec![1.0; 300_000];
        x[299_999] = 70_000.0;
        let failed =
            write_safetensors(&path, &[tensor("w", &[300_000], Data::F32AsF16(&x))], &BTreeMap::new());
        assert_eq!(failed.unwrap_err().to_string(), "w is not finite: 70000 rounds to infinity in F16");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        x[299_999] = f32::NEG_INFINITY;
        write(&path, &[tensor("w", &[300_000], Data::F32AsF16(&x))]);
        assert_eq!(read(&TensorFiles::open_file(&path).unwrap(), "w")[299_999], f32::NEG_INFINITY);
    }

    #[test]
    fn shards_are_one_checkpoint_and_every_disagreement_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("1.safetensors"), &[tensor("a", &[2], Data::F32(&[1.0, 2.0]))]);
        write(
            &at("2.safetensors"),
            &[tensor("b", &[1], Data::F32(&[3.0])), tensor("extra", &[0], Data::F32(&[]))],
        );
        write(&at("twin.safetensors"), &[tensor("a", &[2], Data::F32(&[1.0, 2.0]))]);
        let open = |map: &str| {
            std::fs::write(at(INDEX_NAME), format!("{{\"metadata\":{{}},\"weight_map\":{{{map}}}}}"))
                .unwrap();
            TensorFiles::open(dir.path())
        };
        let good = open(r#""b":"2.safetensors","a":"1.safetensors""#).unwrap();
        assert_eq!(good.names().collect::<Vec<_>>(), ["a", "b", "extra"]);
        assert_eq!((read(&good, "a"), read(&good, "b")), (vec![1.0, 2.0], vec![3.0]));
        assert!(good.contains("extra") && !good.contains("c"));

        let absolute = format!("\"a\":{:?}", at("1.safetensors"));
        for (map, wanted) in [
            (r#""a":"3.safetensors""#, "weight_map.a: found \"3.safetensors\", wanted a file that is there"),
            (
                r#""a":"2.safetensors""#,
                "weight_map.a: found \"2.safetensors\", wanted a file that holds this tensor",
            ),
            (r#""a":"1.safetensors","b":"1.safetensors""#, "weight_map.b: found"),
            (
                r#""b":"1.safetensors","extra":"2.safetensors""#,
                "weight_map.b: found \"1.safetensors\", wanted a file that",
            ),
            (r#""a":"1.safetensors","c":"twin.safetensors""#, "found the tensor in"),
            (
                r#""a":"../1.safetensors""#,
                "weight_map.a: found \"../1.safetensors\", wanted the name of a file",
            ),
            (r#""a":"./1.safetensors""#, "wanted the name of a file in the same folder"),
            (r#""a":"x/1.safetensors""#, "wanted the name of a file in the same folder"),
            (r#""a":"1.safetensors/""#, "wanted the name of a file in the same folder"),
            (r#""a":"..""#, "wanted the name of a file in the same folder"),
            (r#""a":"""#, "wanted the name of a file in the same folder"),
            (r#""a":7"#, "weight_map.a: found 7"),
            (r#""a":null"#, "weight_map.a: found nothing"),
            (&absolute, "wanted the name of a file in the same folder"),
            (r#""a":"1.safetensors","a":"1.safetensors""#, "duplicate key \"a\""),
        ] {
            let message = open(map).err().unwrap_or_else(|| panic!("{map} was accepted")).to_string();
            assert!(message.contains(wanted), "{map}: {message}");
        }
    }
}
