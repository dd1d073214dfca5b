"""Train, prove and run language models whose every weight is -1, 0 or +1.

    >>> import numpy as np, ternlm
    >>> w = ternlm.project(np.array([[0.5, -2.0, 0.5, 0.25, -0.5]], np.float32), group=3)
    >>> w.trits().tolist(), w.scales().tolist()
    ([[0, -1, 0, 1, -1]], [[1.0, 0.375]])
"""

import json
import os
import signal
import sys
from pathlib import Path as _Path

from ._ternlm import Model, TernaryMatrix, TernlmError, __version__, project, verify
from . import _ternlm

__all__ = ["Model", "TernaryMatrix", "TernlmError", "project", "train", "verify", "__version__"]


def train(recipe, *, data=(), init=None, out=None, seed=None, resume=False, settings=None, on_metrics=None):
    """Trains a model by a recipe: a built-in name, such as "copy" or "shakespeare", or a TOML file.

    data: text files or folders to train on. init: a pretrained model to start from. out: the folder of the run
    [runs/NAME]. settings: keys of the recipe, as in {"train.lr": 1e-3}. on_metrics: called with a dict of every step that
    is logged (step, loss, lr, grad_norm, tokens_per_s) and of every validation (step, val_nll, val_perplexity); returning
    False ends the training after the step at hand, with a checkpoint to resume from.

    Returns True when the training came to its end. Raises TernlmError where a file or a setting cannot be used, and where the
    model that was trained misses a bar of the recipe (report.min_accuracy, report.max_train_loss); it is stored all the same.
    """
    arguments = [str(recipe)]
    if data:
        arguments += ["--data", *map(os.fspath, [data] if isinstance(data, (str, os.PathLike)) else data)]
    for name, value in [("--init", init), ("--out", out), ("--seed", seed)]:
        if value is not None:
            arguments += [name, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    if resume:
        arguments.append("--resume")
    for key, value in (settings or {}).items():
        arguments += ["--set", f"{key}={_toml(value)}"]
    return _ternlm.train(arguments, on_metrics)


def _toml(value):
    """A setting as a recipe spells it."""
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, _Path)):
        # JSON escapes what TOML does; a character outside of its plane 0 stays as it is, in both.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"a setting is a text, a number, True, False or a list of these, not {value!r}")


def _command_line():
    # Python's own handler would wait until the command has ended.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_ternlm.call(sys.argv, [sys.executable, "-m", "ternlm"]))
