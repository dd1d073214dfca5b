#!/usr/bin/env python3
"""Inputs to begin with, from the fixtures of the tests: fuzz/corpus/TARGET/*. Needs target/release/ternlm."""

import json
import pathlib
import struct
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TERNLM = ROOT / "target/release/ternlm"
FIXTURE = ROOT / "tests/fixtures/qwen3-tiny"
CHAT = ROOT / "tests/chat_templates"


def put(target, name, *files):
    """Files stand one after the other, a byte 0 between them."""
    folder = ROOT / "fuzz/corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0".join(f if isinstance(f, bytes) else f.encode() for f in files))


def run(*args):
    subprocess.run([TERNLM, *map(str, args)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def split(path):
    """Header and data of a safetensors file."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def main():
    header, data = split(FIXTURE / "model.safetensors")
    put("safetensors", "tiny", json.dumps(header), data[:4096])
    put("safetensors", "as-is", json.dumps(header | {"as_is": {}}), data)
    dtypes = {d: {"dtype": d, "shape": [2, 3], "data_offsets": [0, 0]} for d in ("F32", "F16", "BF16", "U8", "I64")}
    put("safetensors", "dtypes", json.dumps(dtypes), bytes(range(256)))
    index = {"metadata": {"total_size": 8}}
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    put("shards", "two", json.dumps(index | {"weight_map": names}))
    put("shards", "outside", json.dumps({"weight_map": names | {"c": "../c.safetensors"}}))

    for folder in sorted((ROOT / "tests/fixtures/ternary-tiny").glob("*/")):
        header, data = split(folder / "model.safetensors")
        put("directory", folder.name, (folder / "config.json").read_text(), json.dumps(header), data)

    for path in (ROOT / "recipes").glob("*.toml"):
        put("recipe", path.stem, path.read_text().replace("needs_init = true", 'init = "a"'))
    for path in [*CHAT.glob("templates/*.jinja"), *CHAT.glob("own/*.jinja")]:
        put("chat", path.stem, path.read_text(), "Hi")
    for i, (template, _) in enumerate(json.loads((CHAT / "expressions.json").read_text())["cases"]):
        put("chat", f"expression-{i}", template, "Hi")
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    put("npy", "header", header, bytes(24))
    put("npy", "whole", (FIXTURE / "ref_hidden_0.npy").read_bytes()[:300])
    put("documents", "text", "\ufeffOne line.\r\n\r\nAnother – ünïcode 日本 🦀\n")
    put("documents", "records", '{"text": "a\\n\\u00e9", "n": NaN}\n{"text": null}\n{"text": ""}\n{"id": [1, {}]}\n')

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        run("train", "copy", "--out", scratch / "run", "--set", "train.steps=2", "--set", "model.hidden_size=32",
            "--set", "model.layers=1", "--set", "model.intermediate_size=48", "--set", "train.batch=2", "--set", "report.max_train_loss=99", "--set", "report.min_accuracy=0")
        model = scratch / "run/model"
        config, manifest = (model / "config.json").read_text(), (model / "ternary.json").read_text()
        put("manifest", "trained", json.dumps(json.loads(manifest)))
        put("config", "trained", config, '{"eos_token_id": [1, 2]}')
        put("config", "qwen3", (FIXTURE / "config.json").read_text())
        for kind in ("qwen2", "llama", "mistral"):
            other = json.loads((FIXTURE / "config.json").read_text()) | {"model_type": kind}
            put("config", kind, json.dumps(other))
        families = FIXTURE.parent / "architectures"
        for family in sorted(families.glob("*/config.json")):
            put("config", f"family-{family.parent.name}", family.read_text())
        llama = json.loads((families / "llama/config.json").read_text())
        llama |= {"rope_parameters": None, "rope_theta": 1e4}
        for name, scaling in json.loads((families / "ropes.json").read_text()).items():
            put("config", f"rope-{name}", json.dumps(llama | {"rope_scaling": scaling}))
        for density in ("2bit", "base3"):
            packed = scratch / f"{density}.tern"
            run("export", model, "--density", density, "--out", packed)
            header, data = split(packed)
            small = {name: header.pop(name)["data_offsets"] for name in list(header) if name.startswith("file/")}
            text = {name: data[begin:end] for name, (begin, end) in small.items()}
            metadata = header["__metadata__"]
            metadata["ternlm.packed"] = json.loads(metadata["ternlm.packed"])
            files = [text["file/config.json"], text["file/ternary.json"]]
            put("packed", density, json.dumps(header), *files, data[: min(b for b, _ in small.values())])
            odd = {"m": [17, 139], "n": [1, 300]}
            metadata = {"ternlm.packed": {"format": 1, "density": density, "group": 48, "matrices": odd}}
            header = {n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in odd}
            put("packed", f"odd-{density}", json.dumps({"__metadata__": metadata} | header), "{}", "{}", b"\x15\x00")

        (scratch / "text.txt").write_text("the cat sat on the mat, that cat. 123\n" * 20)
        run("tokenizer", "train", scratch / "text.txt", "--vocab-size", "280", "--out", scratch / "bpe")
        tokenizer = json.loads((scratch / "bpe/tokenizer.json").read_text())
        side = (scratch / "bpe/tokenizer_config.json").read_text()
        put("tokenizer", "bpe", json.dumps(tokenizer), side, "{}", "{}", "the cat sat")

    # The other kinds, as small as they get.
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    bytes_of = {f"<0x{i:02X}>": i + 3 for i in range(256)}
    words = {"▁": 259, "a": 260, "b": 261, "ab": 262, "▁a": 263}
    llama = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2} | bytes_of | words,
                  "merges": [["a", "b"], ["▁", "a"]]},
    }
    named = '{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ bos_token }}"}'
    put("tokenizer", "llama", json.dumps(llama), named, "{}", '{"eos_token_id": [2]}', "ab a\nb é")
    unigram = llama | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                  "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["▁", -1.0], ["a", -2.0], ["▁ab", -3.5]]},
    }
    put("tokenizer", "unigram", json.dumps(unigram), named, "{}", "{}", "ab a b")
    wordpiece = llama | {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "##b": 4, "b": 5}},
    }
    put("tokenizer", "wordpiece", json.dumps(wordpiece), "{}", "{}", "{}", "ab a 日 b.")


if __name__ == "__main__":
    main()
