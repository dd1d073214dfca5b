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


def gguf_file(keys, tensors):
    """Of (key, type, bytes) and (name, dims with the inputs first, type, bytes)."""
    text = lambda t: struct.pack("<Q", len(t.encode())) + t.encode()
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    out += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in keys)
    data = b""
    for name, dims, kind, value in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += value + bytes(-len(value) % 32)
    return out + bytes(-len(out) % 32) + data


def gguf_model(vocabulary, matrix_type, row_bytes, tokens, more):
    """One layer of width 256, as small as whole blocks allow."""
    text = lambda t: struct.pack("<Q", len(t.encode())) + t.encode()
    texts = lambda values: struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))
    keys = [("general.architecture", 8, text("llama")), ("tokenizer.ggml.model", 8, text(vocabulary))]
    sizes = {"context_length": 8, "embedding_length": 256, "block_count": 1, "feed_forward_length": 256,
             "attention.head_count": 4, "attention.head_count_kv": 1}
    keys += [(f"llama.{key}", 4, struct.pack("<I", n)) for key, n in sizes.items()]
    keys += [("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-6))]
    keys += [("tokenizer.ggml.tokens", 9, texts(tokens)), *more(texts)]
    matrix = lambda rows: struct.pack("<e", 0.5) + bytes(i * 37 % 169 & 0x6A for i in range(row_bytes * rows - 2))
    tensors = [("token_embd.weight", [256, len(tokens)], matrix_type, matrix(len(tokens)))]
    rows = {"attn_q": 256, "attn_k": 64, "attn_v": 64, "attn_output": 256, "ffn_gate": 256, "ffn_up": 256, "ffn_down": 256}
    tensors += [(f"blk.0.{n}.weight", [256, r], matrix_type, matrix(r)) for n, r in rows.items()]
    ones = struct.pack("<256f", *[1.0] * 256)
    tensors += [(f"{n}.weight", [256], 0, ones) for n in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")]
    return gguf_file(keys, tensors)


def main():
    put("gguf", "blocks", (ROOT / "tests/fixtures/gguf/blocks.gguf").read_bytes())
    ids = lambda values: struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)
    pieces = ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab"]
    scores = lambda _: [("tokenizer.ggml.scores", 9, struct.pack("<IQ8f", 6, 8, *range(0, -8, -1))),
                        ("tokenizer.ggml.token_type", 9, ids([2, 3, 3, 6, 1, 1, 1, 1]))]
    put("gguf", "pieces", gguf_model("llama", 35, 66, pieces, scores))
    merges = lambda texts: [("tokenizer.ggml.merges", 9, texts(["a b"])),
                            ("tokenizer.ggml.pre", 8, struct.pack("<Q", 6) + b"smollm")]
    put("gguf", "merges", gguf_model("gpt2", 42, 72, ["a", "b", "ab", "<s>"], merges))

    index = {"format": 1, "teacher": "a", "corpus": "b", "vocabulary": 5, "positions": 6, "context": 4, "top": 2,
             "precision": "f32", "shard": 4}
    put("lessons", "small", json.dumps(index), b"".join(struct.pack("<I", n) for n in range(48)))
    put("lessons", "all", json.dumps(index | {"top": 5, "vocabulary": 5}), struct.pack("<5I5f", *range(5), *[1.609] * 5))

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
        text = path.read_text().replace("needs_init = true", 'init = "a"')
        put("recipe", path.stem, text, "train.lr=1e-3\nternary.group=tensor\ndata.train=['a b.txt']\nreport.prompts=[\"a\\nb\"]")
    given = json.dumps({"documents": [{"title": "a", "text": "b"}], "variables": {"enable_thinking": False, "in": 1}})
    call = '{"name": "f", "arguments": {"x": [1, "}"]}}'
    said = f"So: <tool_call>\n{call}\n</tool_call>\n[TOOL_CALLS][{call}, {call}] <tool_call>\n{{"
    for path in [*CHAT.glob("templates/*.jinja"), *CHAT.glob("own/*.jinja")]:
        put("chat", path.stem, path.read_text(), "Hi", given)
        put("calls", path.stem, path.read_text(), said)
    bare = "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    put("calls", "bare", bare, call)
    for i, (template, _) in enumerate(json.loads((CHAT / "expressions.json").read_text())["cases"]):
        put("chat", f"expression-{i}", template, "Hi", given)
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    put("npy", "header", header, bytes(24))
    put("npy", "whole", (FIXTURE / "ref_hidden_0.npy").read_bytes()[:300])
    put("documents", "text", "\ufeffOne line.\r\n\r\nAnother – ünïcode 日本 🦀\n")
    put("documents", "records", '{"text": "a\\n\\u00e9", "n": NaN}\n{"text": null}\n{"text": ""}\n{"id": [1, {}]}\n')
    put("documents", "all", '{"text": "a"}\n\n{"text": null}\r\n{"x": "\\ud83d\\ude00", "text": "\\u00e9\\n"}')
    put("wikitext", "lines", ' = = Early life = = \n \n He was 1 @,@ 000 @.@ 5 m well @-@ known , \" no ! \" ( so ) it \'s .\n \u3000 \n')
    for target in ("cuts", "bpe"):
        put(target, "text", "?One word. aaa11..\r\n\n  Zwei\u00a0\u3000Wörter e\u0301 日本 🦀's<|endoftext|> ab\n")
        put(target, "records", '{"text": "a \\n\\nb"}\n{"text": "aa aa aaa"}\n')

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        run("train", "copy", "--out", scratch / "run", "--set", "train.steps=2", "--set", "model.hidden_size=32",
            "--set", "model.layers=1", "--set", "model.intermediate_size=48", "--set", "train.batch=2", "--set", "report.max_train_loss=99", "--set", "report.min_accuracy=0")
        model = scratch / "run/model"
        checkpoint = scratch / "run/checkpoints/step-00000002/trainer.json"
        left = [scratch / "run" / name for name in ("metrics.jsonl", "report.json")]
        plan = "recipe = 'copy'\nseeds = [1, 2]\n[set]\n'train.steps' = 5\n[grid]\n'train.lr' = [1e-3, 2]\n'ternary.scope' = ['all', 'none']\n"
        put("runs", "copy", checkpoint.read_text(), *(path.read_text() for path in left), plan)
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
        put("vocabulary", "bpe", json.dumps(tokenizer), side, "{}", "{}")

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
    put("vocabulary", "llama", json.dumps(llama), named, "{}", '{"eos_token_id": [2]}')
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

    message = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": [1]}}}}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "items": {"type": "integer"}}}}
    for number, body in enumerate([
        {"prompt": ["a", "b"], "n": 2, "stop": ["x"], "logprobs": 1, "echo": True, "logit_bias": {"5": 1}, "seed": 1},
        {"messages": [message, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "1"}],
         "tools": [tool], "tool_choice": "auto", "stream": True, "response_format": schema},
        {"input": [message], "instructions": "b", "text": {"format": {"type": "json_object"}}, "max_output_tokens": 5},
        {"input": [[1, 2], [3]], "encoding_format": "base64"},
        {"content": "a"},
        {"tokens": [1, 2]},
    ]):
        put("request", str(number), bytes([number + 6]), json.dumps(body), "So: <call>" + json.dumps(call["function"]) + "</call> <ca")


if __name__ == "__main__":
    main()
