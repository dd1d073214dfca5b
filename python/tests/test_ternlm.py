"""Right values come from NumPy, in the words of the number contract."""

import json
import subprocess
import sys

import numpy as np
import pytest

import ternlm

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    tomllib = None


def absmean(w, group):
    """Trits and scales by the definition: s = f16(mean |w|), 0 where |w| <= s / 2."""
    trits, scales = np.zeros(w.shape, np.int8), []
    for at in range(0, w.shape[1], group):
        part = w[:, at : at + group]
        s = np.abs(part.astype(np.float64)).mean(axis=1).astype(np.float32).astype(np.float16).astype(np.float32)
        scales.append(s)
        trits[:, at : at + group] = np.where(np.abs(part) <= s[:, None] / 2, 0, np.sign(part))
    return trits, np.stack(scales, axis=1)


@pytest.mark.parametrize("shape, group", [((5, 300), 128), ((3, 7), 3), ((17, 128), 64)])
def test_projection_packing_and_products_are_those_of_the_definition(shape, group):
    rng = np.random.default_rng(1)
    latents = rng.normal(size=shape).astype(np.float32)
    matrix = ternlm.project(latents, group=group)
    trits, scales = absmean(latents, group)
    assert (matrix.trits() == trits).all() and (matrix.scales() == scales).all()
    values = trits * np.repeat(scales, group, axis=1)[:, : shape[1]]
    assert (matrix.values() == values).all()
    again = [ternlm.TernaryMatrix.from_values(values, group), ternlm.TernaryMatrix.from_parts(trits, scales, group)]
    for density in ("base3", "2bit"):
        again.append(ternlm.TernaryMatrix.unpack(matrix.pack(density), shape, group, density))
    for other in again:
        assert (other.trits() == trits).all() and (other.scales() == scales).all() and other.shape == shape
    x = rng.normal(size=(4, shape[1])).astype(np.float32)
    np.testing.assert_allclose(matrix.linear(x), x.astype(np.float64) @ values.T, rtol=1e-5, atol=1e-5)
    # Eight bits: each input is off by half a step at most.
    steps = np.abs(x).max(axis=1, keepdims=True) / 127
    far = np.abs(matrix.linear(x, inputs="int8") - x @ values.T)
    assert (far <= steps * np.abs(values).sum(axis=1) / 2 + 1e-4).all()


def test_arrays_in_other_orders_and_scales_of_dead_groups_are_kept():
    latents = np.asfortranarray(np.random.default_rng(2).normal(size=(6, 9)).astype(np.float32))
    assert (ternlm.project(latents, 3).trits() == ternlm.project(latents.copy(order="C"), 3).trits()).all()
    dead = ternlm.TernaryMatrix.from_parts(np.zeros((1, 4), np.int8), np.full((1, 2), 0.5, np.float32), 2)
    assert dead.scales().tolist() == [[0.5, 0.5]] and not dead.values().any()


def packed_in_records(values):
    """The same values, five bytes apart: not aligned."""
    records = np.zeros(values.shape, [("other", "u1"), ("value", values.dtype)])
    records["value"] = values
    assert not records["value"].flags.aligned
    return records["value"]


def test_arrays_that_are_not_aligned_are_refused():
    w = packed_in_records(np.random.default_rng(3).normal(size=(2, 3)).astype(np.float32))
    matrix = ternlm.project(w.copy())
    trits, scales = matrix.trits(), packed_in_records(matrix.scales())
    for name, take in [("latents", lambda: ternlm.project(w)), ("values", lambda: ternlm.TernaryMatrix.from_values(w)),
                       ("scales", lambda: ternlm.TernaryMatrix.from_parts(trits, scales)), ("x", lambda: matrix.linear(w))]:
        with pytest.raises(ternlm.TernlmError, match=rf"{name}: found an array that is not aligned.*{name}\.copy\(\)"):
            take()
    # Every other column is aligned, and read as it is.
    wide = np.random.default_rng(4).normal(size=(2, 6)).astype(np.float32)
    assert (ternlm.project(wide[:, ::-2]).trits() == ternlm.project(wide[:, ::-2].copy()).trits()).all()


def test_a_product_with_no_rows_has_none():
    assert ternlm.project(np.ones((3, 2), np.float32)).linear(np.zeros((0, 2), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("make, said", [
    (lambda: ternlm.project(np.ones((2, 2), np.float32), group=0), "wanted a number of inputs"),
    (lambda: ternlm.project(np.full((2, 2), np.nan, np.float32)), "latents is not finite"),
    (lambda: ternlm.project(np.zeros((2, 0), np.float32)), r"latents: found \[2, 0\]"),
    (lambda: ternlm.TernaryMatrix.from_values(np.zeros((0, 2), np.float32)), r"values: found \[0, 2\]"),
    (lambda: ternlm.TernaryMatrix.from_parts(np.zeros((0, 0), np.int8), np.zeros((0, 0), np.float32)),
     r"trits: found \[0, 0\]"),
    (lambda: ternlm.TernaryMatrix.from_parts(np.ones((1, 3), np.int8), np.ones((1, 3), np.float32), 2),
     r"scales: found \[1, 3\], wanted \[1, 2\]"),
    (lambda: ternlm.project(np.ones((2, 2), np.float32)).linear(np.ones((1, 3), np.float32)), "3 inputs a row, wanted 2"),
    (lambda: ternlm.TernaryMatrix.from_values(np.array([[1.0, 0.5]], np.float32)), "none of"),
    (lambda: ternlm.TernaryMatrix.from_parts(np.array([[2]], np.int8), np.ones((1, 1), np.float32)), r"trits\[0, 0\]"),
    (lambda: ternlm.TernaryMatrix.unpack(b"\xff", (4, 4)), "bytes"),
    (lambda: ternlm.Model.load("/nowhere"), "nowhere"),
    (lambda: ternlm.train("no such recipe"), "no such recipe"),
])
def test_what_cannot_be_used_is_an_error_that_says_so(make, said):
    with pytest.raises(ternlm.TernlmError, match=said):
        make()


def parts(error):
    return error.file, error.field, error.found, error.wanted


def test_an_error_has_its_parts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ternlm.TernlmError) as of_a_file:
        ternlm.verify(tmp_path)
    file, field, found, wanted = parts(of_a_file.value)
    assert file == str(tmp_path / "config.json") and field == "model_type"
    assert str(of_a_file.value) == f"{file}: {field}: found {found}, wanted {wanted}"
    with pytest.raises(ternlm.TernlmError) as of_a_request:
        ternlm.Model.load(tmp_path, precision="f64")
    assert parts(of_a_request.value) == (None, "precision", '"f64"', '"f32" or "int8"')
    assert parts(ternlm.TernlmError("mine")) == (None,) * 4


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A tiny training on a text of bytes."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. " * 400)
    seen = []
    settings = {
        "model.layers": 1, "model.hidden_size": 64, "model.heads": 2, "model.kv_heads": 2, "model.head_dim": 32,
        "model.intermediate_size": 128, "train.steps": 60, "train.batch": 8, "train.seq": 32,
        "train.log_every": 20, "train.eval_every": 30, "train.warmup": 5,
    }
    out = folder / "run"
    done = ternlm.train("shakespeare-bytes", data=text, out=out, seed=1, settings=settings, on_metrics=seen.append)
    assert done
    return out, seen


def test_a_training_tells_what_happens_and_its_model_runs(run):
    out, seen = run
    steps = [m for m in seen if "loss" in m]
    assert steps[0]["loss"] > 4 > steps[-1]["loss"] and any("val_nll" in m for m in seen)
    assert all(type(m["step"]) is int for m in seen) and steps[-1]["step"] == 60
    model = ternlm.Model.load(out)
    assert ternlm.verify(out / "model")["pass"] and ternlm.verify(out) == ternlm.verify(out / "model")
    assert model.config["hidden_size"] == 64
    tokens = model.encode("the cat")
    logits = model.logits(tokens)
    assert logits.shape == (7, model.config["vocab_size"]) and np.isfinite(logits).all()
    pieces = []
    made = model.generate("the cat", 12, on_text=pieces.append)
    assert "".join(pieces) == made["text"] == model.decode(made["tokens"]) and len(made["tokens"]) == 12
    # Greedy: each token is the most likely one after those before it.
    assert made["tokens"][0] == logits[-1].argmax()
    assert made == made | model.generate(tokens, 12) | {k: made[k] for k in ("prefill_seconds", "decode_seconds")}
    assert len(model.generate("the", 50, on_text=lambda piece: False)["tokens"]) == 1
    name = ternlm.verify(out / "model")["tensors"][0]["name"]
    matrix = model.matrix(name)
    assert set(np.unique(matrix.trits())) <= {-1, 0, 1} and name in model.names()
    with pytest.raises(ternlm.TernlmError, match="below"):
        model.logits([10**6])


def test_a_packed_file_has_the_matrices_and_the_logits_of_its_model(run, tmp_path):
    packed = tmp_path / "model.tern"
    command = [sys.executable, "-m", "ternlm", "export", str(run[0]), "--out", str(packed), "--density", "2bit"]
    subprocess.run(command, check=True, capture_output=True)
    one, other = ternlm.Model.load(run[0]), ternlm.Model.load(packed)
    proof = ternlm.verify(packed)
    assert proof["pass"] and one.names() == other.names()
    for name in [tensor["name"] for tensor in proof["tensors"]]:
        a, b = one.matrix(name), other.matrix(name)
        assert (a.trits() == b.trits()).all() and (a.scales() == b.scales()).all()
    # A few tokens, and so many that weights are unpacked.
    for text in ("the cat", "the cat sat on the mat."):
        logits = one.logits(one.encode(text))
        most = np.abs(logits).max()
        np.testing.assert_allclose(other.logits(other.encode(text)), logits, atol=1e-5 * most)
        rounded = ternlm.Model.load(run[0], precision="int8").logits(one.encode(text))
        assert 0 < np.abs(rounded - logits).max() < 0.1 * most


def test_an_exception_of_on_text_comes_through_and_ends_it(run):
    pieces = []

    def fails(piece):
        pieces.append(piece)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ternlm.Model.load(run[0]).generate("the cat", 12, on_text=fails)
    assert len(pieces) == 1


def test_a_model_without_a_tokenizer_has_logits_and_no_texts(tmp_path):
    # Three steps reach no bar; the model is stored all the same.
    with pytest.raises(ternlm.TernlmError) as missed:
        ternlm.train("copy", out=tmp_path / "run", settings={"train.steps": 3})
    assert parts(missed.value) == (None,) * 4
    model = ternlm.Model.load(tmp_path / "run")
    assert model.logits([1, 2, 3]).shape == (3, 256)
    for make in (lambda: model.generate([1, 2, 3]), lambda: model.encode("a"), lambda: model.decode([1])):
        with pytest.raises(ternlm.TernlmError, match="has no tokenizer"):
            make()


def test_a_training_ends_when_told_and_an_exception_comes_through(run, tmp_path):
    text = run[0].parent / "text.txt"
    settings = {"train.steps": 400, "train.log_every": 1, "train.batch": 2, "train.seq": 16, "model.layers": 1}
    done = ternlm.train("shakespeare-bytes", data=[text], out=tmp_path / "a", settings=settings, on_metrics=lambda m: False)
    assert not done and list((tmp_path / "a" / "checkpoints").glob("step-*"))

    seen = []

    def fails(metrics):
        seen.append(metrics)
        raise KeyError("mine")

    # The step is followed by a validation, of which nobody is told any more.
    settings["train.eval_every"] = 1
    with pytest.raises(KeyError, match="mine"):
        ternlm.train("shakespeare-bytes", data=[text], out=tmp_path / "b", settings=settings, on_metrics=fails)
    assert len(seen) == 1


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
@pytest.mark.parametrize("value, meant", [
    (np.float64(1e-3), 1e-3), (np.int32(3), 3), (np.bool_(True), True), (["First\nSecond", 'a "b" \\ \x7f é'],) * 2,
    ("line\nline\t\x01", "line\nline\t\x01"), (np.array([1, 2]), [1, 2]),
])
def test_settings_are_spelled_as_toml_has_them(value, meant):
    assert tomllib.loads("value = " + ternlm._toml(value))["value"] == meant


def test_a_setting_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="a setting is"):
        ternlm.train("copy", settings={"train.lr": None})


def test_the_command_line_starts_processes_of_its_own(tmp_path):
    command = [sys.executable, "-m", "ternlm", "sweep", "copy", "--seeds", "0,1", "--set", "train.steps=3", "--out", "sweep"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [run["figure"] is not None for run in runs] == [True, True]
