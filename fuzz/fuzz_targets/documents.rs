//! A text, and the same bytes as records, read some bytes at a time: the text is what the file says as a whole, or what others
//! read of the records, and the same where a vocabulary is made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use ternlm::text::{documents, sources};
use ternlm_fuzz::{BOM, file, plain_text};

/// The documents of a file; `None` where it is refused.
fn texts_of(name: &str, data: &[u8]) -> Option<Vec<String>> {
    let list = sources::list(&[file(name, data)]).expect("a file that is there");
    let [source] = &list[..] else { panic!("one file is one source") };
    let mut texts: Vec<String> = Vec::new();
    let read = source.read("text", &mut |part| {
        assert!(part.begins || !texts.is_empty(), "a document begins with its first part");
        assert!(part.read <= data.len() as u64);
        match texts.last_mut() {
            Some(text) if !part.begins => text.push_str(&part.text),
            _ => texts.push(part.text),
        }
        Ok(())
    });
    let pieces: ternlm::Result<Vec<String>> = documents::training_texts(list.clone(), "text").collect();
    assert_eq!(pieces.is_ok(), read.is_ok());
    // An escape in JSON is longer than its text.
    if let Ok(pieces) = pieces {
        let whole = texts.concat();
        assert!(whole.len() <= data.len(), "{name}: {} bytes of {}", whole.len(), data.len());
        assert_eq!(pieces.concat(), whole);
    }
    read.is_ok().then_some(texts)
}

/// The texts of records as serde_json reads them, and whether all have one or null; `None` where a line is no JSON to it.
fn records(data: &[u8]) -> Option<(Vec<String>, bool)> {
    let (mut texts, mut all) = (Vec::new(), true);
    for line in data.strip_prefix(BOM).unwrap_or(data).split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
        // A name that means something to serde_json itself.
        if line.windows(11).any(|part| part == b"$serde_json") {
            return None;
        }
        if line.is_empty() {
            continue;
        }
        let record: Value = serde_json::from_slice(line).ok()?;
        match record.get("text") {
            Some(Value::String(text)) if !text.is_empty() => texts.push(text.clone()),
            Some(Value::String(_) | Value::Null) => {}
            _ => all = false,
        }
    }
    Some((texts, all))
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(texts_of("a.txt", data).map(|texts| texts.concat()), plain_text(data));
    let read = texts_of("a.jsonl", data);
    let Some((texts, all)) = records(data) else { return };
    assert!(read.is_some() || !all, "every record has a text or null");
    assert!(read.is_none_or(|read| read == texts));
});
