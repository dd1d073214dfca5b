//! What the metadata say of the model's shape, as a Hugging Face configuration.

use serde_json::{Map, Value as Json, json};

use super::file::GgufFile;
use super::rope;
use super::value::Value;
use super::view::View;
use crate::config::RopeScaling;
use crate::error::{Error, Result};
use crate::formats::any_of;

/// Architectures that are read, by their name in a file.
const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "bitnet"];

/// The architecture's own keys that are read, or that change nothing.
const KNOWN: &[&str] = &[
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
    "tensor_data_layout",
    "expert_used_count",
    "attention.layer_norm_epsilon",
];

/// What the tensors of a file say of its model.
pub(super) struct Tensors<'a> {
    /// Rows of the embedding.
    pub vocab: usize,
    /// There is no output head.
    pub tied: bool,
    /// Of queries, keys and values; of attention's output; of the feed-forward network.
    pub biases: [bool; 3],
    pub rope_factors: Option<View<'a>>,
}

/// The keys of one file under its architecture's name.
pub(super) struct Keys<'a> {
    file: &'a GgufFile,
    pub architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// # Errors
    /// An architecture that is not read, a model in several files.
    pub fn of(file: &'a GgufFile) -> Result<Self> {
        // Only the first of several names the architecture.
        let (key, parts) = ("split.count", file.get("split.count"));
        if parts.and_then(|parts| parts.as_u64()).is_some_and(|parts| parts > 1) {
            return Err(bad(
                file,
                key,
                parts,
                "1, the whole model: llama.cpp's gguf-split --merge joins the files",
            ));
        }
        let key = "general.architecture";
        let value = file.get(key);
        match value.and_then(|value| value.as_str()).filter(|name| ARCHITECTURES.contains(name)) {
            Some(architecture) => Ok(Self { file, architecture }),
            None => Err(bad(file, key, value, &any_of(ARCHITECTURES))),
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.file.get(&self.name(key))
    }

    fn bad(&self, key: &str, wanted: &str) -> Error {
        bad(self.file, &self.name(key), self.get(key), wanted)
    }

    /// A value that is absent or of the kind that `read` takes.
    fn maybe<T>(&self, key: &str, wanted: &str, read: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.bad(key, wanted))).transpose()
    }

    fn size_if_there(&self, key: &str) -> Result<Option<u64>> {
        self.maybe(key, "a whole number, 0 or more", |value| value.as_u64())
    }

    fn size(&self, key: &str) -> Result<u64> {
        self.size_if_there(key)?.ok_or_else(|| self.bad(key, "a whole number, 0 or more"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.maybe(key, "a number with a point", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    pub fn heads(&self) -> Result<[usize; 2]> {
        let heads = self.size("attention.head_count")?;
        let kv = self.size_if_there("attention.head_count_kv")?.unwrap_or(heads);
        Ok([heads, kv].map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    /// A configuration of the model.
    ///
    /// # Errors
    /// A key that is absent or of another type, or that changes the function in a way that is not supported.
    pub fn config(&self, tensors: &Tensors<'_>) -> Result<Map<String, Json>> {
        let [heads, kv_heads] = self.heads()?;
        let (width, context) = (self.size("embedding_length")?, self.size("context_length")?);
        let head_dim = match self.size_if_there("attention.key_length")? {
            Some(dim) => dim,
            None if heads > 0 && width.is_multiple_of(heads as u64) => width / heads as u64,
            None => return Err(self.bad("attention.key_length", "the width of a head")),
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if self.size_if_there(key)?.is_some_and(|n| n != head_dim) {
                return Err(self.bad(key, &format!("{head_dim}, the width of a head: no other is supported")));
            }
        }
        let eps = self.number("attention.layer_norm_rms_epsilon")?;
        let eps = eps.ok_or_else(|| self.bad("attention.layer_norm_rms_epsilon", "a number with a point"))?;
        self.refuse_others(context)?;
        let [qkv_bias, o_bias, mlp_bias] = tensors.biases;
        // LLaMA with biases of queries, keys and values alone is Qwen2's function; how its rows are ordered is a matter of
        // the file.
        let kind = match self.architecture {
            "llama" if qkv_bias && !o_bias => "qwen2",
            // With SiLU, where Hugging Face's has ReLU²: what only our own name says.
            "bitnet" => "ternlm",
            other => other,
        };
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let scaling = match (&tensors.rope_factors, self.rope_scaling()?) {
            (Some(factors), Json::Null) => rope::scaling(self.file, factors, theta, head_dim)?,
            (Some(_), _) => return Err(self.bad("rope.scaling.type", "nothing beside a tensor of factors")),
            (None, scaling) => scaling,
        };
        let config = json!({
            "model_type": kind,
            "vocab_size": tensors.vocab,
            "hidden_size": width,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": self.size("feed_forward_length")?,
            "max_position_embeddings": context,
            "rms_norm_eps": eps,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": tensors.tied,
            "attention_bias": qkv_bias && o_bias,
            "mlp_bias": mlp_bias,
        });
        let Json::Object(mut config) = config else { unreachable!("it is written as one") };
        if kind == "ternlm" {
            config.extend([("ffn".into(), "swiglu".into()), ("sub_norm".into(), true.into())]);
        }
        Ok(config)
    }

    /// A stretched rotation, as llama.cpp reads it: one without a name is linear, a factor of 1 is none.
    fn rope_scaling(&self) -> Result<Json> {
        let kind = self.maybe("rope.scaling.type", "a text", |value| value.as_str())?.unwrap_or("linear");
        let number = |key: &str| self.number(&format!("rope.scaling.{key}"));
        let factor = number("factor")?.filter(|x| *x != 0.0);
        let idle = kind == "none" || (kind == "linear" && factor.unwrap_or(1.0) == 1.0);
        let attention = number("attn_factor")?.filter(|x| *x != 1.0);
        if attention.is_some() && (idle || kind != "yarn") {
            return Err(self.bad("rope.scaling.attn_factor", "1, or a rotation of the type \"yarn\""));
        }
        if idle {
            return Ok(Json::Null);
        }
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), kind.into());
        scaling.extend(factor.map(|x| ("factor".into(), x.into())));
        if kind == "yarn" {
            let size = self.size_if_there("rope.scaling.original_context_length")?;
            scaling.extend(size.map(|n| ("original_max_position_embeddings".into(), n.into())));
            for (key, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                scaling.extend(number(key)?.map(|x| (name.into(), x.into())));
            }
            // Of what the factor makes of itself.
            let usual = RopeScaling::yarn_attention(factor.unwrap_or(1.0));
            scaling.extend(attention.map(|x| ("attention_factor".into(), (x * usual).into())));
        }
        Ok(scaling.into())
    }

    /// A key of the architecture that is not known changes the function, unless it says that it does nothing.
    fn refuse_others(&self, context: u64) -> Result<()> {
        let own = |key: &'a str| key.strip_prefix(self.architecture)?.strip_prefix('.');
        for (key, value) in self.file.metadata().filter_map(|(key, value)| Some((own(key)?, value))) {
            let number = value.as_f64().or(value.as_u64().map(|n| n as f64));
            let idle = match key {
                _ if KNOWN.contains(&key) => true,
                "attention.causal" => value.as_bool() == Some(true),
                "attention.sliding_window" => number.is_some_and(|n| n == 0.0 || n >= context as f64),
                // What they multiply with; llama.cpp has its own rule for YaRN, that of Hugging Face.
                "rope.scaling.yarn_attn_factor" | "rope.scaling.yarn_ext_factor" => number == Some(1.0),
                _ if key.ends_with("scale") || key.ends_with("scale_linear") => {
                    number == Some(1.0) || number == Some(0.0)
                }
                _ => number == Some(0.0) || value.as_bool() == Some(false) || value.as_str() == Some(""),
            };
            if !idle {
                return Err(self.bad(key, "nothing, or a value that changes nothing: it is not supported"));
            }
        }
        Ok(())
    }
}

/// The error for a key of a file.
pub(super) fn bad(file: &GgufFile, key: &str, found: Option<Value<'_>>, wanted: &str) -> Error {
    let found = found.map_or("nothing".into(), |value| value.to_string());
    Error::input(file.path(), format!("key {key:?}"), found, wanted)
}
