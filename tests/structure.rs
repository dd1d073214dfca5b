//! The rules of DESIGN.md that `use` lines can show: which folder may know which, and no circle of files in a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each may know what stands in lines above its own; those of the first line may know each other.
const ORDER: [&[&str]; 10] = [
    &["error", "random", "number", "machine", "ternary", "config", "files"],
    &["kernels", "text", "formats"],
    &["model", "chat"],
    &["measure", "generate"],
    &["train"],
    &["report"],
    &["finish"],
    &["sweep"],
    &["serve"],
    &["cli"],
];

/// In `chat/` operators, methods and filters call each other, as Python's do.
const CIRCLES_KNOWN: &[&str] = &["chat"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// What a file says outside of comments and of its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// All files under a folder or the one file of a module.
fn files(module: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            match path.is_dir() {
                true => walk(&path, out),
                false if path.extension().is_some_and(|e| e == "rs") => out.push(path),
                false => {}
            }
        }
    }
    let single = src().join(format!("{module}.rs"));
    let mut out = Vec::new();
    match single.is_file() {
        true => out.push(single),
        false => walk(&src().join(module), &mut out),
    }
    out
}

/// The names that follow each `prefix::` in `code`: one, or those of a list in braces.
fn named(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let end = list.find(';').unwrap_or(list.len());
                names.extend(list[..end].split([',', '{']).map(|name| word(name.trim())));
            }
            None => drop(names.insert(word(rest))),
        }
    }
    names.remove("");
    names
}

#[test]
fn folders_know_only_what_they_may() {
    let rank = |module: &str| ORDER.iter().position(|line| line.contains(&module));
    let mut wrong = Vec::new();
    for module in ORDER.concat() {
        for file in files(module) {
            for other in named(&code(&file), "crate::") {
                let (Some(from), Some(to)) = (rank(module), rank(&other)) else { continue };
                if other != module && !(to < from || (to == 0 && from == 0)) {
                    wrong.push(format!("{} uses {other}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let known: BTreeSet<&str> = ORDER.concat().into_iter().collect();
    let entries = fs::read_dir(src()).unwrap().map(|e| e.unwrap().path());
    let all: BTreeSet<String> =
        entries.map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let unlisted: Vec<&String> =
        all.iter().filter(|m| !known.contains(&***m) && *m != "lib" && *m != "main").collect();
    assert!(unlisted.is_empty(), "no rank for {unlisted:?}");
}

/// Which files of a folder each of its files uses, by module name; `mod.rs` is the door and has none.
fn uses(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let files = files(folder);
    let module = |path: &Path| {
        let inside = path.strip_prefix(src().join(folder)).unwrap().with_extension("");
        inside.iter().next().unwrap().to_string_lossy().into_owned()
    };
    let modules: BTreeSet<String> = files.iter().map(|file| module(file)).filter(|m| m != "mod").collect();
    // What the door hands on, and whose it is.
    let door = code(&src().join(folder).join("mod.rs"));
    let mut owner: BTreeMap<String, String> = BTreeMap::new();
    for name in &modules {
        owner.extend(named(&door, &format!("{name}::")).into_iter().map(|item| (item, name.clone())));
    }
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| module(file) != "mod") {
        let (code, own) = (code(file), module(file));
        let depth = file.strip_prefix(src().join(folder)).unwrap().iter().count();
        let prefix = "super::".repeat(depth - file.ends_with("mod.rs") as usize);
        let mut names = named(&code, &prefix);
        names.extend(named(&code, &format!("crate::{}::", folder.replace('/', "::"))));
        let used = names.into_iter().filter_map(|name| match modules.contains(&name) {
            true => Some(name),
            false => owner.get(&name).cloned(),
        });
        out.entry(own.clone()).or_default().extend(used.filter(|name| *name != own));
    }
    out
}

/// A circle of files, if there is one.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left = uses.clone();
    // Whoever uses nothing that is left is on no circle.
    while let Some(name) =
        left.iter().find(|(_, used)| !used.iter().any(|u| left.contains_key(u))).map(|(n, _)| n.clone())
    {
        left.remove(&name);
    }
    (!left.is_empty()).then(|| left.into_keys().collect())
}

#[test]
fn no_files_of_a_folder_know_each_other_in_a_circle() {
    for folder in ORDER.concat().into_iter().filter(|f| src().join(f).is_dir() && !CIRCLES_KNOWN.contains(f))
    {
        for folder in std::iter::once(folder.to_string()).chain(folders(folder)) {
            assert_eq!(circle(&uses(&folder)), None, "{folder}/");
        }
    }
}

/// The folders inside of a folder, at every depth, that have a door.
fn folders(folder: &str) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir(src().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.join("mod.rs").is_file() {
            let inside = format!("{folder}/{}", path.file_name().unwrap().to_string_lossy());
            out.extend(folders(&inside));
            out.push(inside);
        }
    }
    out
}

/// A check that finds nothing would pass as well.
#[test]
fn what_is_wrong_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in edges {
            uses.entry(from.to_string()).or_default().insert(to.to_string());
            uses.entry(to.to_string()).or_default();
        }
        circle(&uses)
    };
    assert_eq!(graph(&[("a", "b"), ("b", "c"), ("a", "c")]), None);
    let found = graph(&[("door", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "ground")]);
    assert!(found.is_some_and(|names| names.contains(&"b".to_string())));
    let inside = folders("kernels");
    assert!(inside.contains(&"kernels/product/lookup".to_string()), "{inside:?}");
    assert!(uses("kernels/product")["lookup"].contains("rounding"), "from a file further inside");
    assert!(uses("kernels")["product"].contains("simd") && uses("kernels")["norm"].contains("simd"));
    let text = uses("text");
    assert!(text["corpus"].contains("encode") && text["stream"].contains("tokenizer"), "{text:?}");
    assert!(uses("model")["linear"].contains("weight"), "through the door");
    let names = named("use crate::{a::B, c};\nuse super::d::{E, f::G};", "crate::");
    assert!(names.contains("a") && names.contains("c") && !names.contains("d"), "{names:?}");
}

/// Layers hold buffers and hand them to kernels: they neither own nor slice host memory of activations.
#[test]
fn layers_leave_memory_to_kernels() {
    let layers = [
        "advance",
        "attention",
        "cache",
        "cross_entropy",
        "block",
        "decoder",
        "dropout",
        "embedding",
        "feed_forward",
        "gradients",
        "linear",
    ];
    let mut wrong = Vec::new();
    for name in layers.into_iter().chain(["relations", "rms_norm", "workspace"]) {
        for line in code(&src().join(format!("model/{name}.rs"))).lines() {
            if host_memory(line) {
                wrong.push(format!("model/{name}.rs: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a line declares values of its own, or takes a range of some. Tokens, targets, numbers of sequences and shapes are
/// no activations, and logits leave the model as plain values.
fn host_memory(line: &str) -> bool {
    let owned = line.contains(": Vec<f32>") || line.contains("Vec<Vec<f32>>") || line.contains(", 0.0)");
    let ranges = line.match_indices('[').filter(|(at, _)| {
        let inside = line[at + 1..].split(']').next().unwrap_or_default();
        let name = line[..*at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        inside.contains("..") && !["", "tokens", "targets", "sequences", "shape", "pages"].contains(&name)
    });
    owned || ranges.count() > 0
}

#[test]
fn host_memory_is_found() {
    for line in ["    keys: Vec<f32>,", "let x = &h[rows.start * width..];", "saved.q.resize(n, 0.0);"] {
        assert!(host_memory(line), "{line}");
    }
    for line in
        ["let t = &tokens[a..b];", "for i in [0..n] {", "x.resize(n);", "let [a, b] = w.shape[..] else {"]
    {
        assert!(!host_memory(line), "{line}");
    }
}

/// Rule 2: instruction sets are named in `kernels` alone, and `unsafe` is there, around the memory map and where MPI is
/// called.
#[test]
fn only_kernels_name_an_instruction_set_or_vouch_for_memory() {
    let others = ["files/mapped.rs", "train/group/library.rs"].map(|file| src().join(file));
    let mut wrong = Vec::new();
    for module in ORDER.concat().into_iter().filter(|module| *module != "kernels") {
        for file in files(module) {
            let code = code(&file);
            let vouches = code.contains("unsafe ") && !others.contains(&file);
            if vouches || ["std::arch", "target_feature", "is_x86_feature"].iter().any(|w| code.contains(w)) {
                wrong.push(file.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(others.iter().all(|file| code(file).contains("unsafe ")), "the memory map or MPI has moved");
}

/// Rule 4: the JSON of a model's files is read by those who read files, and written by those who tell people.
#[test]
fn layers_see_no_json() {
    for module in ["ternary", "kernels", "model", "generate"] {
        for file in files(module) {
            assert!(!code(&file).contains("serde_json"), "{}", file.display());
        }
    }
}
