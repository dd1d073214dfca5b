//! What the targets share: inputs of several files, a folder to read from, and mutations that keep JSON whole.
//!
//! An input holds its files one after the other, with a byte 0 between them, which JSON, TOML and Jinja never hold.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;
use ternlm::chat::ChatTemplate;
use ternlm::config::ModelConfig;
use ternlm::files::Bundle;
use ternlm::serve::Options;
use ternlm::serve::api::{Ask, Event, Frame, Piece, Reason, Served};
use ternlm::text::{Reading, ReadingOptions, Tokenizer};

/// The `N` files of an input; those it lacks are empty, and the last one may hold bytes 0.
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |&byte| byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// The files of an input under these names, without the empty ones.
pub fn bundle<const N: usize>(names: [&str; N], data: &[u8]) -> Bundle {
    let files = names.into_iter().zip(parts::<N>(data)).filter(|(_, bytes)| !bytes.is_empty());
    let held: BTreeMap<_, _> = files.map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
    Bundle::within("fuzzed", held)
}

/// A folder that goes away with the process, in memory where the machine has such a place.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
    });
    FOLDER.path()
}

/// Writes a file of [`folder`], anew: what is mapped of an older one stays as it is.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::remove_file(&path).ok();
    std::fs::write(&path, bytes).expect("room for a file");
    path
}

/// Leaves a panic inside of another crate to the library, which catches it or not; one of ours always ends the process. For
/// targets that hand bytes to a crate whose panics are known and caught.
pub fn let_caught_panics_pass() {
    let ours = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|at| at.file().contains("/registry/")) {
            ours(info)
        }
    }));
}

/// For `fuzz_mutator!`: changes the JSON of one of the files as a tree, or the bytes as libFuzzer does.
pub fn mutate_json(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(u64::from(seed) | 1 << 40);
    if random.below(4) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut parts: Vec<Vec<u8>> = data[..size].split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    let at = random.below(parts.len().min(4));
    let Ok(mut tree) = serde_json::from_slice::<Value>(&parts[at]) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(3) {
        mutate(&mut tree, &mut random);
    }
    parts[at] = serde_json::to_vec(&tree).expect("a tree has a text");
    let joined = parts.join(&0);
    if joined.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..joined.len()].copy_from_slice(&joined);
    joined.len()
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// All values of a tree, as JSON pointers.
fn places(tree: &Value, here: String, out: &mut Vec<String>) {
    match tree {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            places(value, format!("{here}/{}", key.replace('~', "~0").replace('/', "~1")), out)
        }),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| places(value, format!("{here}/{i}"), out))
        }
        _ => {}
    }
    out.push(here);
}

fn mutate(tree: &mut Value, random: &mut Random) {
    let mut all = Vec::new();
    places(tree, String::new(), &mut all);
    let other = tree.pointer(random.of::<String>(&all)).cloned().unwrap_or_default();
    let Some(value) = tree.pointer_mut(random.of::<String>(&all)) else { return };
    if random.below(3) == 0 {
        *value = if random.below(2) == 0 { other } else { odd_value(random) };
        return;
    }
    match value {
        Value::Null => *value = odd_value(random),
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(number) => {
            let near = number.as_i64().unwrap_or_default();
            let of = [
                near.wrapping_add(1),
                near.wrapping_sub(1),
                near.wrapping_mul(2),
                near / 2,
                near.wrapping_neg(),
            ];
            *value = if random.below(2) == 0 { json!(random.of(&of)) } else { odd_number(random) };
        }
        Value::String(text) => {
            let mut chars: Vec<char> = text.chars().collect();
            let at = random.below(chars.len() + 1);
            match random.below(4) {
                0 => chars.truncate(at),
                1 => chars
                    .insert(at, *random.of(&['\u{0}', ' ', '▁', 'Ġ', '\\', '(', '{', '9', '🦀', '\u{301}'])),
                2 => drop((at < chars.len()).then(|| chars.remove(at))),
                _ => chars = other.as_str().unwrap_or_default().chars().collect(),
            }
            *text = chars.into_iter().collect();
        }
        Value::Array(list) => {
            let at = random.below(list.len() + 1);
            match random.below(3) {
                0 => list.insert(at, other),
                1 => drop((at < list.len()).then(|| list.remove(at))),
                _ => list.extend(list.get(at).cloned().into_iter().cycle().take(random.below(40))),
            }
        }
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = if keys.is_empty() { String::new() } else { random.of(&keys).clone() };
            match random.below(3) {
                0 => drop(map.shift_remove(&key)),
                1 => drop(map.insert(format!("{key}x"), other)),
                _ => {
                    let held = map.shift_remove(&key).unwrap_or_default();
                    let name = other.as_str().unwrap_or("model").to_string();
                    map.insert(name, held);
                }
            }
        }
    }
}

fn odd_number(random: &mut Random) -> Value {
    let whole =
        [0, 1, 2, 3, 127, 128, 255, 65_536, (1 << 24) - 1, 1 << 24, u32::MAX.into(), 1 << 32, 1 << 40];
    match random.below(4) {
        0 => json!(random.of(&[u64::MAX, i64::MAX as u64, 1 << 63, u64::MAX / 2 - 7, 1 << 61])),
        1 => json!(random.of(&[-1.0, 0.5, -0.0, 1e-40, 1e39, 1e300, -1e300])),
        _ => json!(random.of::<u64>(&whole)),
    }
}

fn odd_value(random: &mut Random) -> Value {
    match random.below(7) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(""),
        3 => json!([]),
        4 => Value::Object(Map::new()),
        5 => json!("\u{0}\u{feff}a b"),
        _ => odd_number(random),
    }
}

/// What a text file says as a whole; `None` where it is no text.
pub fn plain_text(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data.strip_prefix(BOM).unwrap_or(data)).ok()?;
    Some(text.replace("\r\n", "\n"))
}

/// What a file may begin with, of which nothing is read.
pub const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Holds half of the tokens of a file, read as far as is needed, against those of all of it.
pub fn begins_alike(path: &Path, tokenizer: &Tokenizer, options: &ReadingOptions, mut whole: Reading) {
    let most = whole.ids.len() / 2;
    whole.truncate(most);
    match Reading::to_measure(path, tokenizer, options, most, usize::MAX) {
        Ok(begun) => {
            assert_eq!(begun.ids, whole.ids);
            for first in [0, 1] {
                assert_eq!(begun.extent_from(first), whole.extent_from(first));
            }
        }
        Err(why) => assert!(most < 2, "{why}"),
    }
}

/// A small model whose tokens are bytes, with this chat template, as requests see it; `None` where it is no template.
pub fn served(template: &[u8]) -> Option<Served> {
    let tokenizer = Tokenizer::bytes();
    let template = ChatTemplate::from_file(&file("chat.jinja", template), &tokenizer).ok()?;
    let config = ModelConfig {
        vocab_size: 256,
        hidden_size: 16,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        intermediate_size: 16,
        tie_embeddings: true,
        max_positions: 512,
        ..ModelConfig::default()
    };
    Some(Served::new("tiny".into(), &config, tokenizer, Some(template), &Options::default()))
}

/// What a stream has shown of an answer.
#[derive(Clone, Default)]
struct Shown {
    text: String,
    calls: Vec<Value>,
}

fn show(frames: Vec<Frame>, shown: &mut [Shown]) {
    for Frame { event, data } in frames {
        if event == Some("response.output_text.delta") {
            shown[0].text += data["delta"].as_str().unwrap_or_default();
        }
        for choice in data["choices"].as_array().into_iter().flatten() {
            let shown = &mut shown[choice["index"].as_u64().expect("the number of an answer") as usize];
            let delta = &choice["delta"];
            shown.text += choice["text"].as_str().or(delta["content"].as_str()).unwrap_or_default();
            shown.calls.extend(delta["tool_calls"].as_array().cloned().unwrap_or_default());
        }
    }
}

/// Lets every answer to a request be `said`, some characters at a time, and holds the stream against the whole. `cut`: it ends
/// at its limit.
pub fn streamed_as_whole(ask: Ask, said: &str, cut: bool) {
    let Ask { generate: Some(_), mut answer, mut form, .. } = ask else { return };
    let mut shown = vec![Shown::default(); answer.choices.len()];
    // There may be hundreds of answers.
    let chars: Vec<char> = said.chars().take(8192 / shown.len().max(1)).collect();
    let pieces: Vec<String> = chars.chunks(1 + said.len() % 5).map(|some| some.iter().collect()).collect();
    show(form.begin(&answer), &mut shown);
    for choice in 0..shown.len() {
        for text in &pieces {
            let piece = Piece { choice, text: text.clone(), ..Piece::default() };
            let piece = answer.take(Event::Piece(piece)).expect("a piece");
            show(form.piece(&answer, &piece), &mut shown);
        }
        let reason = if cut { Reason::Length } else { Reason::Stop };
        answer.take(Event::Ended { choice, reason, made: pieces.len() });
        show(form.ended(&answer, choice), &mut shown);
    }
    assert!(answer.is_done());
    show(form.finish(&answer), &mut shown);
    let whole = form.whole(&answer);
    for (i, shown) in shown.iter().enumerate() {
        let choice = &whole["choices"][i];
        let texts =
            [&choice["text"], &choice["message"]["content"], &whole["output"][i]["content"][0]["text"]];
        let text = texts.into_iter().find_map(Value::as_str).unwrap_or_default();
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        // Space beside calls is left out of the whole.
        let streamed = if calls.is_empty() { shown.text.as_str() } else { shown.text.trim() };
        assert_eq!(streamed, text, "streamed, and whole");
        let of = |calls: &[Value]| -> Vec<[Value; 2]> {
            calls.iter().map(|call| [call["id"].clone(), call["function"].clone()]).collect()
        };
        assert_eq!(of(&shown.calls), of(&calls), "streamed, and whole");
    }
}

/// A file of this header and these data.
pub fn safetensors_bytes(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The most bytes that data are stretched to.
const FITTED: usize = 1 << 18;

/// Header and data of which the offsets fit the shapes: data are repeated or cut for that. Objects in the metadata become
/// texts, and a tensor that `ternlm.packed` lists gets the size that a packed matrix has. Of a header with a key `as_is`,
/// which goes, nothing is made to fit. `None` where the header is no object or asks for too much, or has that key and small
/// files among its tensors.
pub fn fitted(header: &[u8], data: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut header: Map<String, Value> = serde_json::from_slice(header).ok()?;
    if header.shift_remove("as_is").is_some() {
        // `packed` makes as many bytes as the offsets say.
        let makes_bytes = header.keys().any(|name| name.starts_with("file/"));
        return (!makes_bytes).then_some((serde_json::to_vec(&header).ok()?, data.to_vec()));
    }
    let packed = header.get("__metadata__").and_then(|m| m.get("ternlm.packed")).cloned().unwrap_or_default();
    let mut end = 0;
    for (name, tensor) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let tensor = tensor.as_object_mut()?;
        if let Some(size) = packed_size(&packed, name) {
            tensor.insert("shape".into(), json!([size]));
        }
        let shape = tensor.get("shape")?.as_array()?.iter().map(|n| n.as_u64().unwrap_or(0) as usize);
        let elements = shape.into_iter().try_fold(1usize, usize::checked_mul)?;
        let dtype: safetensors::Dtype = serde_json::from_value(tensor.get("dtype")?.clone()).ok()?;
        let begin = end;
        end += elements.checked_mul(dtype.bitsize())? / 8;
        if end > FITTED {
            return None;
        }
        tensor.insert("data_offsets".into(), json!([begin, end]));
    }
    if let Some(Value::Object(metadata)) = header.get_mut("__metadata__") {
        let objects = metadata.values_mut().filter(|value| value.is_object());
        objects.for_each(|value| *value = value.to_string().into());
    }
    let data = data.iter().copied().chain(std::iter::once(0)).cycle().take(end).collect();
    Some((serde_json::to_vec(&header).ok()?, data))
}

/// Bytes of a matrix that the description of a packed file lists.
fn packed_size(packed: &Value, name: &str) -> Option<usize> {
    let shape: [usize; 2] = serde_json::from_value(packed["matrices"].get(name)?.clone()).ok()?;
    let grouping = serde_json::from_value(packed["group"].clone()).ok()?;
    let density = serde_json::from_value(packed["density"].clone()).ok()?;
    let [rows, cols] = shape;
    if rows.checked_mul(cols)? > FITTED {
        return None;
    }
    ternlm::ternary::Layout::new(rows, cols, grouping, density).bytes()
}
