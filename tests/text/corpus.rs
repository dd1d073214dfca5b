//! Tokenised corpora and their cache.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use ternlm::config::{DataConfig, Join};
use ternlm::files::{DirectoryWriter, IfExists};
use ternlm::text::{BpeTrainer, Corpus, PassedOver, Reading, ReadingOptions, Tokenizer};

use super::shared;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let this = Files(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| this.write(name, text));
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn data(&self, train: &[&str]) -> DataConfig {
        DataConfig { train: train.iter().map(|n| self.path(n)).collect(), ..DataConfig::default() }
    }

    fn cache(&self) -> PathBuf {
        self.path(".cache")
    }

    fn open(&self, data: &DataConfig) -> ternlm::Result<Corpus> {
        Corpus::open(data, &Tokenizer::bytes(), &self.cache(), &|_, _| {})
    }

    /// Opens, and tells whether anything was tokenised.
    fn open_telling(&self, data: &DataConfig) -> (Corpus, bool) {
        let called = Cell::new(false);
        let corpus = Corpus::open(data, &Tokenizer::bytes(), &self.cache(), &|done, total| {
            assert!(done <= total);
            called.set(true);
        });
        (corpus.unwrap(), called.get())
    }
}

fn text(tokens: &ternlm::text::Tokens) -> String {
    Tokenizer::bytes().decode(&tokens.to_vec())
}

#[test]
fn a_text_file_is_one_document_as_it_is() {
    // Right values by hand: only the byte order mark and CR before LF go.
    let wanted = "one\n two\n\n\n  \nthree\rx\n\nfour\n\n";
    let files = Files::new(&[
        ("lf.txt", wanted),
        ("crlf.txt", "\u{feff}one\r\n two\r\n\r\n\r\n  \r\nthree\rx\r\n\r\nfour\r\n\r\n"),
    ]);
    for name in ["lf.txt", "crlf.txt"] {
        let corpus = files.open(&DataConfig { val_fraction: 0.0, ..files.data(&[name]) }).unwrap();
        assert_eq!(text(&corpus.train), wanted, "{name}");
        assert_eq!((corpus.train.documents(), corpus.train.text_bytes()), (1, wanted.len() as u64));
        let mut ids = [0; 4];
        corpus.train.read(1, &mut ids);
        assert_eq!(ids, *b"ne\n ".map(u32::from).as_slice());
    }
}

/// Chunks of a megabyte end anywhere: inside a character, between CR and LF, after a CR that stands alone.
#[test]
fn chunks_of_a_file_leave_no_mark() {
    for ending in ["\r\nb", "\rb", "猫", "🙂", "\u{e9}\r"] {
        for before in (1 << 20) - 5..(1 << 20) + 2 {
            let raw = "a".repeat(before) + ending;
            let files = Files::new(&[("a.txt", &raw)]);
            let corpus = files.open(&DataConfig { val_fraction: 0.0, ..files.data(&["a.txt"]) }).unwrap();
            let ids = corpus.train.to_vec();
            let tail: Vec<u8> = ids[before..].iter().map(|&id| id as u8).collect();
            assert_eq!(String::from_utf8(tail).unwrap(), ending.replace("\r\n", "\n"), "{before}");
        }
    }
    let mut raw = vec![b'a'; (1 << 20) - 1];
    raw.extend(b"\xe7\x8cx");
    let files = Files::new(&[]);
    fs::write(files.path("a.txt"), &raw).unwrap();
    let error = files.open(&files.data(&["a.txt"])).unwrap_err().to_string();
    assert!(error.contains("byte 1048575") && error.contains("0xe7"), "{error}");
}

#[test]
fn the_same_file_gives_the_same_tokens_everywhere() {
    let body = "def f():\n    pass\n\n\ndef g():\n    pass\n".repeat(30_000);
    let crlf = format!("\u{feff}{}", body.replace('\n', "\r\n"));
    let records: String = ["é\r\n", "", "b\n\n"]
        .iter()
        .map(|t| format!("{}\n", serde_json::json!({"text": t, "n": 1})))
        .collect();
    let files = Files::new(&[("a.txt", &body), ("b.txt", &crlf), ("c.jsonl", &records)]);
    assert!(body.len() > 1 << 20);
    for tokenizer in [Tokenizer::bytes(), Tokenizer::gpt2()] {
        let mut seen = Vec::new();
        for name in ["a.txt", "b.txt", "c.jsonl"] {
            let data = DataConfig { val_fraction: 0.0, ..files.data(&[name]) };
            let corpus = Corpus::open(&data, &tokenizer, &files.cache(), &|_, _| {}).unwrap();
            let read = Reading::open(&files.path(name), &tokenizer, &ReadingOptions::default()).unwrap();
            assert_eq!(corpus.train.to_vec(), read.ids, "{name}");
            assert_eq!(read.extent_from(0).bytes, corpus.train.text_bytes(), "{name}");
            seen.push(read.ids);
        }
        assert_eq!(seen[0], seen[1], "BOM and CRLF");
        assert_eq!(seen[0], tokenizer.encode(&body).unwrap(), "and they are those of the text");
        // Text of records is as it is.
        let wanted = match tokenizer.eos() {
            Some(_) => "é\r\n<|endoftext|>b\n\n<|endoftext|>",
            None => "é\r\n\nb\n\n",
        };
        assert_eq!(tokenizer.decode(&seen[2]), wanted);
    }
}

#[test]
fn a_share_of_the_text_is_held_out() {
    let body = "a line of text\n".repeat(1000);
    let titled = format!("A title\n\n{body}");
    let records: String =
        (0..100).map(|i| format!("{{\"text\": \"record {i:03} of the file\"}}\n")).collect();
    let uneven = format!("{{\"text\": \"short\"}}\n{{\"text\": {body:?}}}\n");
    let files =
        Files::new(&[("a.txt", &body), ("b.txt", &titled), ("c.jsonl", &records), ("d.jsonl", &uneven)]);
    for (name, fraction) in
        [("a.txt", 0.1), ("b.txt", 0.1), ("b.txt", 0.5), ("c.jsonl", 0.1), ("d.jsonl", 0.2)]
    {
        let corpus = files.open(&DataConfig { val_fraction: fraction, ..files.data(&[name]) }).unwrap();
        let share = corpus.val.len() as f64 / (corpus.val.len() + corpus.train.len()) as f64;
        assert!((share - fraction).abs() < 0.01, "{name}: {share}");
        assert!(corpus.train.documents() > 0 && corpus.val.documents() > 0);
        let bytes = corpus.val.text_bytes_of(0..corpus.val.len());
        assert_eq!(bytes, Some(corpus.val.text_bytes()));
    }
    // Where a document ends nearby it is not cut.
    let corpus = files.open(&DataConfig { val_fraction: 0.1, ..files.data(&["c.jsonl"]) }).unwrap();
    assert!(text(&corpus.val).starts_with("record 090"), "{}", text(&corpus.val));
    assert_eq!((corpus.train.documents(), corpus.val.documents()), (90, 10));
    let corpus = files.open(&DataConfig { val_fraction: 0.2, ..files.data(&["d.jsonl"]) }).unwrap();
    assert_eq!((corpus.train.documents(), corpus.val.documents()), (2, 1));
}

/// More held-out tokens than are looked at together, some of more bytes than one byte counts.
#[test]
fn every_held_out_token_knows_its_bytes() {
    let long = format!(" {}", "abcdefghijklmnopqrstuvwxyz".repeat(12));
    let trainer = BpeTrainer { vocab_size: 700, special: vec![] };
    let tokenizer = trainer.train([Ok(format!("{long} x\n").repeat(50))].into_iter(), |_, _| {}).unwrap();
    assert_eq!(tokenizer.encode(&long).unwrap().len(), 1);
    let text: String = (0..150_000).map(|i| if i % 997 == 0 { &long[..] } else { " x" }).collect();
    let files = Files::new(&[("a.txt", &text)]);
    let data = DataConfig { val_fraction: 0.9, ..files.data(&["a.txt"]) };
    let corpus = Corpus::open(&data, &tokenizer, &files.cache(), &|_, _| {}).unwrap();
    let (ids, val) = (corpus.val.to_vec(), &corpus.val);
    assert!(ids.len() > 2 << 16 && corpus.train.text_bytes() + val.text_bytes() == text.len() as u64);
    for (at, id) in ids.iter().enumerate() {
        let bytes = tokenizer.token_bytes(*id).len() as u64;
        assert_eq!(val.text_bytes_of(at..at + 1), Some(bytes), "token {at}");
    }
}

#[test]
fn records_that_cannot_be_used_are_counted() {
    let good = "{\"text\": \"abc\", \"score\": NaN}\n";
    let bad = ["{\"text\": 3}\n", "{\"text\": \"\\ud800\"}\n", "{\"txt\": \"a\"}\n", "{\"text\"\n", "[1]\n"];
    let empty = "{\"text\": null}\n{\"text\": \"\"}\n\n";
    let few = good.repeat(100) + &bad.concat() + empty;
    let many = good.repeat(80) + &bad.concat();
    let late = good.repeat(1000) + &bad.concat().repeat(20) + &good.repeat(100_000);
    let files = Files::new(&[
        ("few.jsonl", &few),
        ("many.jsonl", &many),
        ("late.jsonl", &late),
        ("null.jsonl", empty),
    ]);
    let corpus = files.open(&files.data(&["few.jsonl"])).unwrap();
    assert_eq!(corpus.passed_over, PassedOver { empty: 2, unusable: 5 });
    assert_eq!(corpus.train.documents() + corpus.val.documents(), 100);
    // The cache knows it too.
    assert_eq!(files.open(&files.data(&["few.jsonl"])).unwrap().passed_over, corpus.passed_over);
    for (name, parts) in [
        ("many.jsonl", &["5 of 85", "line 81", "1 in 20"][..]),
        // Judged while reading, not after a hundred thousand records.
        ("late.jsonl", &["of 10", "line 1001", "1 in 20"]),
        ("null.jsonl", &["no text"]),
    ] {
        let error = files.open(&files.data(&[name])).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
}

#[test]
fn records_join_by_the_end_token_where_there_is_one() {
    let files =
        Files::new(&[("a.jsonl", "{\"text\": \"é\"}\n\n{\"id\": 1, \"text\": \"\"}\r\n{\"text\": \"b\"}")]);
    let open = |tokenizer: &Tokenizer, join: Join| {
        let data = DataConfig { join, val_fraction: 0.0, ..files.data(&["a.jsonl"]) };
        Corpus::open(&data, tokenizer, &files.cache(), &|_, _| {}).map(|c| c.train)
    };
    let gpt2 = Tokenizer::gpt2();
    let eos = open(&gpt2, Join::Auto).unwrap();
    assert_eq!(gpt2.decode(&eos.to_vec()), "é<|endoftext|>b<|endoftext|>");
    assert_eq!((eos.documents(), eos.text_bytes()), (2, 3));
    assert_eq!(eos.len() as u64, gpt2.encode("é").unwrap().len() as u64 + 3);
    assert_eq!(open(&gpt2, Join::Eos).unwrap().to_vec(), eos.to_vec());
    let blank = open(&gpt2, Join::Newline).unwrap();
    assert_eq!((gpt2.decode(&blank.to_vec()).as_str(), blank.text_bytes()), ("é\n\nb", 3));
    assert_eq!(text(&open(&Tokenizer::bytes(), Join::Auto).unwrap()), "é\n\nb");
    let error = open(&Tokenizer::bytes(), Join::Eos).unwrap_err().to_string();
    assert!(error.contains("end-of-text") && error.contains("bytes"), "{error}");
}

#[test]
fn folders_are_read_in_order() {
    let files = Files::new(&[
        ("d/b.txt", "2"),
        ("d/a/z.txt", "1"),
        ("d/c.jsonl", "{\"text\": \"3\"}"),
        ("d/.hidden.txt", "no"),
        ("d/README.md", "no"),
        // What programs wrote there: a run of ours, a model with its vocabulary.
        ("d/runs/x/recipe.toml", ""),
        ("d/runs/x/metrics.jsonl", "{\"step\": 1}"),
        ("d/model/config.json", "{}"),
        ("d/model/model.safetensors", ""),
        ("d/model/merges.txt", "no"),
        ("e.txt", "4\n"),
        ("f.txt", "5"),
    ]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.path("d"), files.path("d/a/loop")).unwrap();
    let data = DataConfig { val: vec![files.path("e.txt"), files.path("f.txt")], ..files.data(&["d"]) };
    let corpus = files.open(&data).unwrap();
    assert_eq!(text(&corpus.train), "1\n\n2\n\n3");
    assert_eq!((text(&corpus.val).as_str(), corpus.val.documents()), ("4\n\n5", 2));
}

#[test]
fn unusable_files_are_clear_errors() {
    let files = Files::new(&[
        ("empty.txt", "\n \n"),
        ("good.txt", "good"),
        ("a.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}"),
        ("b.jsonl", "{\"txt\": \"a\"}"),
        ("c.jsonl", "{\"text\": \"a\"}\n{\"text\""),
        ("d.jsonl", "[1]"),
        ("x.csv", "a,b"),
        ("folder/x.csv", "a,b"),
    ]);
    fs::write(files.path("bad.txt"), b"fine\n\nab\xffcd").unwrap();
    for (name, parts) in [
        ("empty.txt", &["no text", "empty.txt"][..]),
        ("none.txt", &["none.txt"]),
        ("a.jsonl", &["a.jsonl", "line 2", "text"]),
        ("b.jsonl", &["b.jsonl", "line 1", "no such field"]),
        ("c.jsonl", &["c.jsonl", "line 2"]),
        ("d.jsonl", &["d.jsonl", "line 1"]),
        ("x.csv", &["x.csv", ".jsonl"]),
        ("folder", &["folder", "no text files"]),
        ("bad.txt", &["bad.txt", "byte 8", "0xff"]),
    ] {
        let error = files.open(&files.data(&[name])).unwrap_err().to_string();
        assert!(parts.iter().all(|p| error.contains(p)), "{name}: {error}");
    }
    let no_val = DataConfig { val: vec![files.path("empty.txt")], ..files.data(&["good.txt"]) };
    assert!(files.open(&no_val).unwrap_err().to_string().contains("data.val"));
    assert!(files.open(&files.data(&[])).unwrap_err().to_string().contains("data.train"));
    // Failures leave nothing behind.
    assert_eq!(fs::read_dir(files.cache()).unwrap().count(), 0);
    let error = Reading::open(&files.path("bad.txt"), &Tokenizer::bytes(), &ReadingOptions::default());
    assert!(error.unwrap_err().to_string().contains("byte 8"));
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_needs_the_feature() {
    let files = Files::new(&[("a.parquet", "PAR1")]);
    let error = files.open(&files.data(&["a.parquet"])).unwrap_err().to_string();
    assert!(error.contains("--features parquet"), "{error}");
}

#[test]
fn a_corpus_is_tokenised_once() {
    let files = Files::new(&[("a.txt", "one\n\ntwo\n\nthree")]);
    let data = files.data(&["a.txt"]);
    let (first, made) = files.open_telling(&data);
    assert!(made);
    let (second, made) = files.open_telling(&data);
    assert!(!made);
    assert_eq!(first.train.to_vec(), second.train.to_vec());
    assert_eq!(first.val.to_vec(), second.val.to_vec());
    assert_eq!(second.val.text_bytes(), first.val.text_bytes());

    // Another time of change, another content, another setting: each is made anew.
    let file = fs::File::options().append(true).open(files.path("a.txt")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    assert!(files.open_telling(&data).1);
    files.write("a.txt", "one\n\ntwo\n\nthree!");
    let (changed, made) = files.open_telling(&data);
    assert!(made);
    assert_eq!(text(&changed.val), "e!");
    // The same size and time of change, as an archive restores them: the content is another.
    let time = fs::metadata(files.path("a.txt")).unwrap().modified().unwrap();
    files.write("a.txt", "one\n\ntwo\n\nTHREE!");
    fs::File::options().append(true).open(files.path("a.txt")).unwrap().set_modified(time).unwrap();
    let (changed, made) = files.open_telling(&data);
    assert!(made);
    assert_eq!(text(&changed.val), "E!");
    assert!(files.open_telling(&DataConfig { val_fraction: 0.0, ..data.clone() }).1);
    assert!(files.open_telling(&DataConfig { join: Join::Newline, ..data.clone() }).1);
    assert!(!files.open_telling(&data).1);
    // The mapping of a corpus survives all that.
    assert_eq!(text(&first.train), "one\n\ntwo\n\nthr");
}

fn cached(cache: &Path) -> PathBuf {
    let dirs: Vec<PathBuf> = fs::read_dir(cache).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs[0].clone()
}

#[test]
fn a_damaged_cache_is_rebuilt() {
    let files = Files::new(&[("a.txt", "one\n\ntwo\n\nthree")]);
    let data = files.data(&["a.txt"]);
    let (good, _) = files.open_telling(&data);
    let dir = cached(&files.cache());
    let damage: [&dyn Fn(); 8] = [
        &|| fs::write(dir.join("meta.json"), "{").unwrap(),
        &|| {
            fs::write(
                dir.join("meta.json"),
                fs::read_to_string(dir.join("meta.json")).unwrap().replace('1', "7"),
            )
            .unwrap()
        },
        &|| fs::remove_file(dir.join("meta.json")).unwrap(),
        &|| fs::remove_file(dir.join("tokens.bin")).unwrap(),
        &|| fs::write(dir.join("tokens.bin"), "").unwrap(),
        &|| {
            let mut bytes = fs::read(dir.join("tokens.bin")).unwrap();
            bytes[5] ^= 1;
            fs::remove_file(dir.join("tokens.bin")).unwrap();
            fs::write(dir.join("tokens.bin"), bytes).unwrap();
        },
        &|| fs::remove_dir_all(&dir).unwrap(),
        &|| {
            fs::remove_dir_all(&dir).unwrap();
            fs::write(&dir, "a file").unwrap();
        },
    ];
    // The good mapping must not see the damage: check its copy.
    let expected = (good.train.to_vec(), good.val.to_vec());
    drop(good);
    for (i, damage) in damage.iter().enumerate() {
        damage();
        let (corpus, made) = files.open_telling(&data);
        assert!(made, "damage {i}");
        assert_eq!((corpus.train.to_vec(), corpus.val.to_vec()), expected, "damage {i}");
        assert!(!files.open_telling(&data).1);
        cached(&files.cache());
    }
}

#[test]
fn several_at_once_agree() {
    let text: String = (0..2000).map(|i| format!("paragraph {i}\n\n")).collect();
    let files = Files::new(&[("a.txt", &text)]);
    let data = files.data(&["a.txt"]);
    let all: Vec<(Corpus, bool)> = std::thread::scope(|scope| {
        let open = || scope.spawn(|| files.open_telling(&data));
        let threads: Vec<_> = (0..8).map(|_| open()).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(all.iter().filter(|(_, made)| *made).count(), 1, "tokenised once");
    let all: Vec<Corpus> = all.into_iter().map(|(corpus, _)| corpus).collect();
    assert_eq!(all[0].val.len(), (text.len() + 5) / 10);
    assert!(all.iter().all(|c| c.train.to_vec() == all[0].train.to_vec()));
    cached(&files.cache());
}

/// A tokenizer of words, of which nothing is known about where a text may be cut.
fn of_words(files: &Files, vocabulary: serde_json::Value) -> Tokenizer {
    let model = serde_json::json!({"type": "WordLevel", "unk_token": "?", "vocab": vocabulary});
    files.write(
        "tok/tokenizer.json",
        &serde_json::json!({"model": model, "decoder": {"type": "Fuse"}}).to_string(),
    );
    Tokenizer::open(files.path("tok").to_str().unwrap()).unwrap()
}

#[test]
fn what_is_never_cut_is_no_text() {
    let files = Files::new(&[("a.txt", &"x".repeat(34 << 20))]);
    let tokenizer = of_words(&files, serde_json::json!({"?": 0, "x": 1}));
    let wanted = "33554432 bytes without a place to cut them, wanted words or lines";
    let error = Corpus::open(&files.data(&["a.txt"]), &tokenizer, &files.cache(), &|_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("a.txt: byte 3") && error.contains(wanted), "{error}");
    let error = Reading::of_text(&"x".repeat(34 << 20), &tokenizer).unwrap_err().to_string();
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn large_vocabularies_need_four_bytes() {
    let files = Files::new(&[("a.txt", "x")]);
    let tokenizer = of_words(&files, serde_json::json!({"?": 0, "x": 70_000}));
    assert_eq!(tokenizer.vocab_size(), 70_001);
    let corpus = Corpus::open(&files.data(&["a.txt"]), &tokenizer, &files.cache(), &|_, _| {}).unwrap();
    assert_eq!(corpus.train.to_vec(), [70_000]);
    assert!(corpus.val.is_empty());
}

#[test]
fn leftovers_of_dead_processes_are_removed() {
    let files = Files::new(&[("a.txt", "one"), (".cache/dead.partial-4000000/tokens.bin", "")]);
    let live = DirectoryWriter::new(files.path(".cache/live"), IfExists::Refuse).unwrap();
    files.open(&files.data(&["a.txt"])).unwrap();
    assert!(!files.path(".cache/dead.partial-4000000").exists());
    assert!(live.path().exists());
}

#[test]
fn real_corpora() {
    let Some(root) = shared(".") else { return };
    let cache = tempfile::tempdir().unwrap();
    let open = |file: &str, tokenizer: &Tokenizer| {
        let start = Instant::now();
        let data = DataConfig { train: vec![root.join(file)], ..DataConfig::default() };
        let corpus = Corpus::open(&data, tokenizer, cache.path(), &|_, _| {}).unwrap();
        println!("{file} with {tokenizer:?}: {corpus:?} in {:.2?}", start.elapsed());
        corpus
    };
    let prose = open("prose/train_data.txt", &Tokenizer::bytes());
    assert_eq!((prose.train.documents(), prose.val.documents()), (1, 1));
    let size = fs::metadata(root.join("prose/train_data.txt")).unwrap().len();
    assert_eq!(prose.val.len() as u64, (size as f64 / 10.0).round() as u64);
    assert_eq!(prose.train.text_bytes() as usize, prose.train.len());
    let records = open("enwiki/sample.jsonl", &Tokenizer::gpt2());
    let ends = records.train.to_vec().iter().filter(|&&id| id == 50_256).count() as u64;
    assert_eq!(ends, records.train.documents());
    for _ in 0..2 {
        open("enwiki/train.txt", &Tokenizer::gpt2());
    }
}
