//! `fixtures/gguf`, made by `fixtures/make_gguf.py` with the Python package `gguf`.

use std::path::Path;
use ternlm::formats::gguf::{BlockType, GgufFile, Kind, Value, View};
use ternlm::formats::npy;
use ternlm::ternary::{Grouping, TernaryMatrix};

use super::common::fixture;

const TYPES: [&str; 13] =
    ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"];
const SHAPE: [usize; 2] = [2, 256];

fn view<'a>(kind: &str, bytes: &'a [u8]) -> View<'a> {
    let kind = BlockType::by_name(kind).unwrap();
    View { file: Path::new("x.gguf"), name: "t", kind, shape: &SHAPE, bytes, paired_heads: None }
}

fn values(view: &View<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; 512];
    view.read_f32_into(&SHAPE, &mut out).unwrap();
    out
}

#[track_caller]
fn same_bits(got: &[f32], wanted: &[f32], what: &str) {
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        // -0 of a trit 0 is 0.
        assert!(got == wanted, "{what}[{i}]: {got:e}, wanted {wanted:e}");
    }
}

#[test]
fn every_type_has_the_numbers_of_the_reference() {
    let file = GgufFile::open(&fixture("gguf/blocks.gguf")).unwrap();
    let (shape, wanted) = npy::read(fixture("gguf/blocks.npy")).unwrap();
    assert_eq!((shape, file.tensors().len()), (vec![TYPES.len(), 2, 256], TYPES.len()));
    for (name, wanted) in TYPES.iter().zip(wanted.chunks(512)) {
        let info = &file.tensors()[*name];
        assert_eq!((&info.shape[..], info.kind.name), (&SHAPE[..], *name));
        same_bits(&values(&view(name, file.bytes(info))), wanted, name);
    }
    // A large tensor is read in parts, by several threads.
    let info = &file.tensors()["Q4_K"];
    let kind = info.kind;
    let (bytes, shape) = (file.bytes(info).repeat(400), [800, 256]);
    let large = View { shape: &shape, bytes: &bytes, ..view("Q4_K", &bytes) };
    let mut out = vec![0.0; 800 * 256];
    large.read_f32_into(&shape, &mut out).unwrap();
    let at = TYPES.iter().position(|name| *name == kind.name).unwrap();
    out.chunks(512).for_each(|part| same_bits(part, &wanted[512 * at..][..512], "in parts"));
}

#[test]
fn metadata_are_those_that_were_written() {
    let file = GgufFile::open(&fixture("gguf/blocks.gguf")).unwrap();
    assert_eq!(file.version, 3);
    assert_eq!(file.get("general.architecture"), Some(Value::String("llama")));
    assert_eq!(file.get("test.text"), Some(Value::String("a\"bé")));
    assert_eq!(file.get("test.float"), Some(Value::F32(0.5)));
    assert_eq!(file.get("test.flag"), Some(Value::Bool(true)));
    assert_eq!(file.get("test.large"), Some(Value::U64(1 << 40)));
    assert_eq!(file.get("test"), None);
    let list = |key: &str| file.get(key).unwrap().as_array().unwrap();
    assert_eq!((list("test.texts").kind, list("test.texts").len), (Kind::String, 3));
    let texts: Vec<_> = list("test.texts").values().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(texts, ["", "x", "▁the"]);
    let numbers: Vec<_> = list("test.numbers").values().collect();
    assert_eq!(numbers, [Value::I32(1), Value::I32(-2), Value::I32(3)]);
    assert_eq!(file.metadata().count(), 7);
}

/// Trits and scales as they are, by the block's own groups and by smaller ones.
#[test]
fn ternary_types_are_taken_over_as_trits() {
    let (_, plain) = npy::read(fixture("gguf/ternary.npy")).unwrap();
    let (_, quantised) = npy::read(fixture("gguf/blocks.npy")).unwrap();
    let file = GgufFile::open(&fixture("gguf/blocks.gguf")).unwrap();
    let alone = |name: &str| std::fs::read(fixture(&format!("gguf/{name}.bin"))).unwrap();
    let within = |name: &str| file.bytes(&file.tensors()[name]).to_vec();
    for (name, bytes, wanted, block) in [
        ("Q2_0", alone("Q2_0"), &plain[..512], 64),
        ("PQ2_0", alone("PQ2_0"), &plain[512..1024], 128),
        ("Q2_0 of 128", alone("PQ2_0"), &plain[512..1024], 128),
        ("PTQ1_0", alone("PTQ1_0"), &plain[1024..], 128),
        ("TQ1_0", within("TQ1_0"), &quantised[11 * 512..12 * 512], 256),
        ("TQ2_0", within("TQ2_0"), &quantised[12 * 512..], 256),
    ] {
        let view = view(name, &bytes);
        assert!(view.kind.is_ternary() && view.kind.block == block);
        same_bits(&values(&view), wanted, name);
        for group in [block, 64] {
            let grouping = Grouping::Size(group);
            let matrix = TernaryMatrix::from_values(wanted, 2, 256, grouping).unwrap();
            assert_eq!(view.matrix(2, 256, grouping).unwrap(), matrix, "{name} by {group}");
        }
        let larger = view.matrix(2, 256, Grouping::Size(2 * block));
        assert_eq!(larger.is_err(), block < 256, "{name}: scales differ in every pair of blocks");
    }
    // Code 3 is no trit, a negative scale no scale.
    for (at, byte, wanted) in [(2, 0x03, "code 3"), (1, 0xb8, "scale -0.5")] {
        let mut bytes = alone("Q2_0");
        bytes[at] = byte;
        let error = view("Q2_0", &bytes).matrix(2, 256, Grouping::Size(64)).unwrap_err().to_string();
        assert!(error.contains("x.gguf: tensor \"t\" weights") && error.contains(wanted), "{error}");
    }
}
