//! What `ternlm info` says of a model's tensors, and of the file that holds them.

use serde::Serialize;
use std::collections::BTreeMap;

use super::thousands;
use crate::formats::Stored;
use crate::formats::gguf::GgufFile;
use crate::ternary::Grouping;

#[derive(Serialize)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
    pub ternary: bool,
    /// In its file.
    pub bytes: u64,
}

impl TensorInfo {
    /// Of one tensor of a model.
    pub fn of(name: &str, tensor: &Stored<'_>, ternary: bool) -> Self {
        Self {
            name: name.into(),
            shape: tensor.shape().into(),
            dtype: tensor.coding(),
            ternary,
            bytes: tensor.byte_len() as u64,
        }
    }

    /// Its weights.
    pub fn len(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Scales that it has in groups of that size.
    pub fn scales(&self, group: Grouping) -> u64 {
        let cols = self.shape.last().copied().unwrap_or(1).max(1);
        match group {
            Grouping::Size(_) => self.len() / cols as u64 * cols.div_ceil(group.size(cols)) as u64,
            Grouping::Tensor => 1,
        }
    }
}

/// The types of the tensors, the largest share first.
pub fn show_types(tensors: &[TensorInfo], bits: f64) {
    let mut types: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for t in tensors {
        let sums = types.entry(&t.dtype).or_default();
        [1, t.len(), t.bytes].into_iter().zip(sums).for_each(|(n, sum)| *sum += n);
    }
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(_, [_, _, bytes])| std::cmp::Reverse(*bytes));
    let each = types.iter().map(|(name, [count, weights, bytes])| {
        let bits = 8.0 * *bytes as f64 / (*weights).max(1) as f64;
        format!("{count} in {name} ({} weights, {bits:.4} bits each)", thousands(*weights))
    });
    say!("Stored: {bits:.4} bits a weight: {}", each.collect::<Vec<_>>().join(", "));
}

/// Tensors that differ in the number of their layer only, counted.
pub fn alike(tensors: &[TensorInfo]) -> BTreeMap<(String, Vec<usize>, String), usize> {
    let mut found = BTreeMap::new();
    for t in tensors {
        let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = t.name.split('.').map(|part| if number(part) { "*" } else { part }).collect();
        let kind = if t.ternary { format!("ternary, in {}", t.dtype) } else { t.dtype.clone() };
        let name = parts.join(".").escape_debug().to_string();
        *found.entry((name, t.shape.clone(), kind)).or_insert(0) += 1;
    }
    found
}

/// What is particular to a GGUF file.
#[derive(Serialize)]
pub struct GgufInfo {
    version: u32,
    name: Option<String>,
    /// The kind of vocabulary, and how it cuts a text.
    vocabulary: Option<String>,
    pre_tokenizer: Option<String>,
}

impl GgufInfo {
    pub fn of(file: &GgufFile) -> Self {
        let text = |key: &str| file.get(key)?.as_str().map(String::from);
        Self {
            version: file.version,
            name: text("general.name"),
            vocabulary: text("tokenizer.ggml.model"),
            pre_tokenizer: text("tokenizer.ggml.pre"),
        }
    }

    pub fn show(&self) {
        let or_nothing =
            |text: &Option<String>| text.as_deref().unwrap_or("nothing").escape_debug().to_string();
        say!(
            "GGUF: version {}, name {}, vocabulary {}, cut as {}",
            self.version,
            or_nothing(&self.name),
            or_nothing(&self.vocabulary),
            or_nothing(&self.pre_tokenizer)
        );
    }
}
