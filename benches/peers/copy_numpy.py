"""The whole `copy` recipe in NumPy, gradients by hand, from random weights to the accuracy on held-out sequences.

`--check` compares the gradients of a small full-precision model with finite differences instead."""

import argparse
import os
import time

START = time.perf_counter()  # importing NumPy is part of the run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--recipe", required=True, metavar="FILE")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--check", action="store_true")
args = parser.parse_args()
# Read once, when NumPy loads its BLAS.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = str(args.threads)

import json
import math
import sys

import numpy as np

from common import COPY, read_recipe, rope_angles, schedule, weight_decay

GELU, CUBE = math.sqrt(2 / math.pi), 0.044715


def rms_norm(x, gain, eps):
    """`y = x * gain * r` and `r = 1 / sqrt(mean(x^2) + eps)`."""
    r = 1 / np.sqrt(np.einsum("nc,nc->n", x, x)[:, None] / x.shape[1] + eps)
    return x * r * gain, r


def rms_norm_backward(x, r, gain, dy, dgain):
    a = x * r
    dgain += np.einsum("nc,nc->c", dy, a)
    dy = dy * gain
    return r * (dy - a * (np.einsum("nc,nc->n", dy, a)[:, None] / x.shape[1]))


# In place where they can be: a new array of this size is page faults first.
def gelu(x):
    """The tanh form, and the tanh for the backward pass."""
    t = x * x
    t *= GELU * CUBE
    t += GELU
    t *= x
    np.tanh(t, out=t)
    y = t + 1
    y *= x
    y *= 0.5
    return y, t


def gelu_backward(x, t, dy):
    """`dy (1 + t + x (1 - t^2) u') / 2`, `u` being what the tanh is of."""
    du = x * x
    du *= 3 * GELU * CUBE
    du += GELU
    du *= x
    s = t * t
    du *= np.subtract(1, s, out=s)
    du += t
    du += 1
    du *= 0.5
    du *= dy
    return du


class Model:
    """Weights, gradients and moments are one flat array each, the ternary matrices first, then the other matrices,
    then the gains: projection, norm and optimizer are then a few operations on long arrays."""

    def __init__(self, recipe, rng, dtype=np.float32):
        c = self.c = recipe["model"]
        self.group, scope = recipe["ternary"]["group"], recipe["ternary"]["scope"]
        if c["activation"] != "gelu" or c["qk_norm"] or c["qkv_bias"] or c["kv_heads"] != c["heads"]:
            sys.exit("copy_numpy.py: wanted a model of the copy recipe's kind: GELU, as many key as query heads")
        if c["causal"] or c["tie_embeddings"]:
            sys.exit("copy_numpy.py: wanted a model of the copy recipe's kind: not causal, embeddings not tied")
        width, inner = c["heads"] * c["head_dim"], c["intermediate_size"]
        blocks, gains = {}, {"norm": (c["hidden_size"],)}
        for i in range(c["layers"]):
            blocks |= {
                # Query, key and value are one product.
                f"{i}.qkv": (3 * width, c["hidden_size"]), f"{i}.o": (c["hidden_size"], width),
                f"{i}.up": (inner, c["hidden_size"]), f"{i}.down": (c["hidden_size"], inner),
            }
            gains |= {f"{i}.norm1": (c["hidden_size"],), f"{i}.norm2": (c["hidden_size"],)}
        ends = {"embed": (c["vocab_size"], c["hidden_size"]), "head": (c["vocab_size"], c["hidden_size"])}
        ternary = {"all": blocks | ends, "blocks": blocks, "none": {}}[scope]
        if any(shape[1] % self.group for shape in ternary.values()):
            sys.exit(f"copy_numpy.py: wanted widths that are multiples of the group, {self.group}")
        shapes = ternary | blocks | ends | gains
        size = lambda names: sum(math.prod(shapes[name]) for name in names)
        self.ternary, self.matrices, total = size(ternary), size(blocks | ends), size(shapes)
        self.latent, self.grad, self.first, self.second = (np.zeros(total, dtype) for _ in range(4))
        self.projected, self.scratch = np.zeros(total, dtype), np.zeros((2, total), dtype)
        self.latents, self.w, self.g = ({} for _ in range(3))
        at = 0
        for name, shape in shapes.items():
            part, at = slice(at, at + math.prod(shape)), at + math.prod(shape)
            self.latents[name] = self.latent[part].reshape(shape)
            self.w[name] = (self.projected if name in ternary else self.latent)[part].reshape(shape)
            self.g[name] = self.grad[part].reshape(shape)
            if name in gains:
                self.latents[name][:] = 1
            else:
                self.latents[name][:] = rng.standard_normal(shape) * shape[1] ** -0.5
        angles = rope_angles(recipe["data"]["sequence"], c["head_dim"], c["rope_theta"])
        self.cos, self.sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
        self.project()

    def project(self):
        """In each group `s = f16(mean|w|)`, and 0 where `|w| <= s/2`, else the sign of `w` times `s`."""
        w, out = (x[:self.ternary].reshape(-1, self.group) for x in (self.latent, self.projected))
        np.abs(w, out=out)
        s = out.mean(1, keepdims=True).astype(np.float16).astype(w.dtype)
        np.copysign((out > 0.5 * s) * s, w, out=out)

    def rotate(self, x, sign):
        """Rotary embedding in the half-split form, in place on `[..., T, D]`; the backward pass turns back."""
        a, b = np.split(x, 2, -1)
        sin = sign * self.sin
        low = a * self.cos - b * sin
        b[:] = b * self.cos + a * sin
        a[:] = low

    def heads(self, x, parts):
        """`[N, parts * H * D]` to `[parts, B, H, T, D]`."""
        x = x.reshape(-1, len(self.cos), parts, self.c["heads"], self.c["head_dim"])
        return np.ascontiguousarray(x.transpose(2, 0, 3, 1, 4))

    def rows(self, x):
        """`[parts, B, H, T, D]` to `[N, parts * H * D]`."""
        return x.transpose(1, 3, 0, 2, 4).reshape(-1, x.shape[0] * self.c["heads"] * self.c["head_dim"])

    def forward(self, tokens):
        """Logits `[N, V]` of `[B, T]`, and what the backward pass needs."""
        w, eps, scale = self.w, self.c["rms_norm_eps"], self.c["head_dim"] ** -0.5
        x, saved = w["embed"][tokens.ravel()], []
        for i in range(self.c["layers"]):
            h1, r1 = rms_norm(x, w[f"{i}.norm1"], eps)
            qkv = self.heads(h1 @ w[f"{i}.qkv"].T, 3)
            q, k, v = qkv
            self.rotate(qkv[:2], 1)
            p = q @ k.swapaxes(-1, -2) * scale
            p -= p.max(-1, keepdims=True)
            np.exp(p, out=p)
            p /= p.sum(-1, keepdims=True)
            mixed = self.rows((p @ v)[None])
            mid = x + mixed @ w[f"{i}.o"].T
            h2, r2 = rms_norm(mid, w[f"{i}.norm2"], eps)
            up = h2 @ w[f"{i}.up"].T
            act, t = gelu(up)
            saved.append((x, r1, h1, q, k, v, p, mixed, mid, r2, h2, up, t, act))
            x = mid + act @ w[f"{i}.down"].T
        h, r = rms_norm(x, w["norm"], eps)
        return h @ w["head"].T, (saved, x, r, h)

    def loss_and_gradient(self, tokens, targets, share):
        """Nats per position; `share` times its gradient is added to the gradients. Mirror of `forward`."""
        logits, (saved, x, r, h) = self.forward(tokens)
        w, g, scale = self.w, self.g, self.c["head_dim"] ** -0.5
        at = np.arange(len(logits)), targets.ravel()
        logits -= logits.max(1, keepdims=True)
        right = logits[at]
        np.exp(logits, out=logits)
        sums = logits.sum(1, keepdims=True)
        loss = float(np.mean(np.log(sums[:, 0]) - right, dtype=np.float64))
        dlogits = np.divide(logits, sums, out=logits)
        dlogits[at] -= 1
        dlogits *= share / len(dlogits)
        g["head"] += dlogits.T @ h
        dx = rms_norm_backward(x, r, w["norm"], dlogits @ w["head"], g["norm"])
        for i in reversed(range(self.c["layers"])):
            x, r1, h1, q, k, v, p, mixed, mid, r2, h2, up, t, act = saved[i]
            g[f"{i}.down"] += dx.T @ act
            dup = gelu_backward(up, t, dx @ w[f"{i}.down"])
            g[f"{i}.up"] += dup.T @ h2
            dx = dx + rms_norm_backward(mid, r2, w[f"{i}.norm2"], dup @ w[f"{i}.up"], g[f"{i}.norm2"])
            g[f"{i}.o"] += dx.T @ mixed
            dmixed = self.heads(dx @ w[f"{i}.o"], 1)[0]
            dp = dmixed @ v.swapaxes(-1, -2)
            dp -= np.einsum("bhts,bhts->bht", dp, p)[..., None]
            dp *= p
            dp *= scale
            dqkv = np.stack((dp @ k, dp.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dmixed))
            self.rotate(dqkv[:2], -1)
            dqkv = self.rows(dqkv)
            g[f"{i}.qkv"] += dqkv.T @ h1
            dx = dx + rms_norm_backward(x, r1, w[f"{i}.norm1"], dqkv @ w[f"{i}.qkv"], g[f"{i}.norm1"])
        # A product with one-hot rows: faster than adding row by row.
        ones = np.zeros((len(dx), len(w["embed"])), dx.dtype)
        ones[np.arange(len(dx)), tokens.ravel()] = 1
        g["embed"] += ones.T @ dx
        return loss

    def adamw(self, train, step):
        """One step with clipped gradients, projections brought up to date; `step` is counted from 0."""
        lr, b1, b2 = train["lr"] * schedule(train, step), train["beta1"], train["beta2"]
        a, b = self.scratch
        norm = math.sqrt(float(self.grad @ self.grad))
        clip = train["clip"] / norm if 0 < train["clip"] < norm else 1.0
        np.multiply(self.grad, clip * (1 - b1), out=a)
        self.first *= b1
        self.first += a
        np.multiply(self.grad, self.grad, out=b)
        b *= clip * clip * (1 - b2)
        self.second *= b2
        self.second += b
        np.sqrt(self.second, out=b)
        b *= 1 / math.sqrt(1 - b2 ** (step + 1))
        b += train["eps"]
        np.divide(self.first, b, out=a)
        a *= lr / (1 - b1 ** (step + 1))
        if decay := lr * weight_decay(train, step):
            self.latent[:self.matrices] *= 1 - decay
        self.latent -= a
        self.project()


def check(recipe):
    """The gradient of the loss along random directions, one a tensor, against a central difference, in f64."""
    recipe["ternary"]["scope"] = "none"  # differences through rounding measure nothing
    recipe["model"] |= {"vocab_size": 11, "hidden_size": 12, "heads": 2, "kv_heads": 2, "head_dim": 6}
    recipe["model"] |= {"intermediate_size": 20}
    recipe["data"]["sequence"] = 5
    rng = np.random.default_rng(args.seed)
    model = Model(recipe, rng, np.float64)
    tokens, targets = rng.integers(11, size=(2, 3, 5))
    model.loss_and_gradient(tokens, targets, 1.0)
    gradients, worst = {name: g.copy() for name, g in model.g.items()}, 0.0
    for name, p in model.latents.items():
        direction, whole, step = rng.standard_normal(p.shape), p.copy(), 1e-5
        p[:] = whole + step * direction
        up = model.loss_and_gradient(tokens, targets, 0.0)
        p[:] = whole - step * direction
        down = model.loss_and_gradient(tokens, targets, 0.0)
        p[:] = whole
        wanted, found = (up - down) / (2 * step), float((gradients[name] * direction).sum())
        error = abs(found - wanted) / max(abs(wanted), 1e-3)
        print(f"{name:10} gradient {found:+.9f}  difference {wanted:+.9f}  error {error:.1e}")
        worst = float(np.maximum(worst, error))  # not a number where one of them is none
    # The difference itself is off by step^2 times the third derivative along a direction some ten long: near 1e-7.
    if not worst <= 1e-6:
        sys.exit(f"the gradients are wrong by {worst:.1e}")


def main():
    recipe = read_recipe(args.recipe, COPY)
    if args.check:
        return check(recipe)
    t, seq, vocab = recipe["train"], recipe["data"]["sequence"], recipe["model"]["vocab_size"]
    rng = np.random.default_rng(args.seed)
    model, losses = Model(recipe, rng), []
    for step in range(t["steps"]):
        model.grad[:] = 0
        loss = 0.0
        for _ in range(t["accumulate"]):
            tokens = rng.integers(vocab, size=(t["batch"], seq))
            loss += model.loss_and_gradient(tokens, tokens, 1 / t["accumulate"]) / t["accumulate"]
        losses.append(loss)
        model.adamw(t, step)
    held_out = rng.integers(vocab, size=(1000, seq))
    parts = (held_out[at:at + t["batch"]] for at in range(0, len(held_out), t["batch"]))
    right = sum(int((model.forward(x)[0].argmax(1) == x.ravel()).sum()) for x in parts)
    print(json.dumps({
        "first_loss": losses[0], "last_loss": losses[-1], "accuracy": right / held_out.size,
        "seconds": time.perf_counter() - START, "numpy": np.__version__, "threads": args.threads,
        "losses_every_100": losses[::100],
    }))


if __name__ == "__main__":
    main()
