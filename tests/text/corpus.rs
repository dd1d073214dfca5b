//! Tokenised corpora and their cache.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use ternlm::config::{DataConfig, Join};
use ternlm::files::{DirectoryWriter, IfExists};
use ternlm::text::{Corpus, Tokenizer, sources};

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
fn paragraphs_are_documents() {
    let files = Files::new(&[
        ("lf.txt", "one\n two\n\n\n  \nthree\n\nfour"),
        ("crlf.txt", "\u{feff}one\r\n two\r\n\r\n\r\nthree\r\n \t \r\nfour\r\n\r\n"),
    ]);
    for name in ["lf.txt", "crlf.txt"] {
        let corpus = files.open(&DataConfig { val_fraction: 0.4, ..files.data(&[name]) }).unwrap();
        assert_eq!(text(&corpus.train), "one\n two\n\nthree\n\n", "{name}");
        assert_eq!(text(&corpus.val), "four\n\n");
        assert_eq!((corpus.train.documents(), corpus.val.documents()), (2, 1));
        assert_eq!((corpus.train.text_bytes(), corpus.val.text_bytes()), (17, 6));
        assert_eq!(corpus.train.len(), 17);
        let mut ids = [0; 4];
        corpus.train.read(1, &mut ids);
        assert_eq!(ids, *b"ne\n ".map(u32::from).as_slice());
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
    assert_eq!(open(&gpt2, Join::Eos).unwrap().to_vec(), eos.to_vec());
    let blank = open(&gpt2, Join::Newline).unwrap();
    assert_eq!((gpt2.decode(&blank.to_vec()).as_str(), blank.text_bytes()), ("é\n\nb\n\n", 7));
    assert_eq!(text(&open(&Tokenizer::bytes(), Join::Auto).unwrap()), "é\n\nb\n\n");
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
        ("e.txt", "4"),
    ]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.path("d"), files.path("d/a/loop")).unwrap();
    let data = DataConfig { val: vec![files.path("e.txt")], ..files.data(&["d"]) };
    let corpus = files.open(&data).unwrap();
    assert_eq!(text(&corpus.train), "1\n\n2\n\n3\n\n");
    assert_eq!((text(&corpus.val).as_str(), corpus.val.documents()), ("4\n\n", 1));
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
    let error = sources::read_text(files.path("bad.txt")).unwrap_err().to_string();
    assert!(error.contains("byte 8"), "{error}");
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
    assert_eq!(text(&changed.val), "three!\n\n");
    assert!(files.open_telling(&DataConfig { val_fraction: 0.0, ..data.clone() }).1);
    assert!(files.open_telling(&DataConfig { join: Join::Newline, ..data.clone() }).1);
    assert!(!files.open_telling(&data).1);
    // The mapping of a corpus survives all that.
    assert_eq!(text(&first.train), "one\n\ntwo\n\n");
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
    let all: Vec<Corpus> = std::thread::scope(|scope| {
        let open = || scope.spawn(|| files.open(&data).unwrap());
        let threads: Vec<_> = (0..8).map(|_| open()).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(all[0].val.documents(), 200);
    assert!(all.iter().all(|c| c.train.to_vec() == all[0].train.to_vec()));
    cached(&files.cache());
}

#[test]
fn large_vocabularies_need_four_bytes() {
    let files = Files::new(&[("a.txt", "x")]);
    let dir = files.path("tok");
    fs::create_dir_all(&dir).unwrap();
    let json = serde_json::json!({"model": {"type": "WordLevel", "unk_token": "?",
        "vocab": {"?": 0, "x\n\n": 70_000}}, "decoder": {"type": "Fuse"}});
    fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.to_str().unwrap()).unwrap();
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
    assert_eq!(prose.train.documents() + prose.val.documents(), 957);
    assert_eq!(prose.val.documents(), 96);
    assert_eq!(prose.train.text_bytes() as usize, prose.train.len());
    let records = open("enwiki/sample.jsonl", &Tokenizer::gpt2());
    let ends = records.train.to_vec().iter().filter(|&&id| id == 50_256).count() as u64;
    assert_eq!(ends, records.train.documents());
    for _ in 0..2 {
        open("enwiki/train.txt", &Tokenizer::gpt2());
    }
}
