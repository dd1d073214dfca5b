"""The model of a recipe and its training step in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

from common import rope_angles, schedule, weight_decay


def project(w, group):
    """Ternary values of `[rows, cols]`: in each group of a row `s = f16(mean|w|)`, and 0 where `|w| <= s/2`, else
    the sign of `w` times `s`. The shorter last group of a row is a group of its own."""
    whole = w.shape[-1] // group * group
    if torch.compiler.is_compiling():
        # The compiler fuses this form best.
        def part(x):
            a = x.abs()
            s = a.mean(-1, keepdim=True).half().float()
            return torch.where(a > 0.5 * s, s, 0.0).copysign(x)

        parts = [part(w[..., :whole].unflatten(-1, (-1, group))).flatten(-2)] if whole else []
        if whole < w.shape[-1]:
            parts.append(part(w[..., whole:]))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    # Without it, what costs is memory traffic: one buffer, changed in place.
    out = w.abs()
    parts = [out[..., :whole].unflatten(-1, (-1, group))] if whole else []
    if whole < w.shape[-1]:
        parts.append(out[..., whole:].unsqueeze(-2))
    for a in parts:
        s = a.mean(-1, keepdim=True).half().float()
        a.gt_(0.5 * s).mul_(s)
    return out.copysign_(w)


class Project(torch.autograd.Function):
    """The projection with the straight-through gradient: that by the projected weight is that by the latent one."""

    @staticmethod
    def forward(ctx, w, group):
        return project(w, group)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Linear(nn.Module):
    """Ternary in groups of `group` inputs; with `None` an ordinary linear layer."""

    def __init__(self, inputs, outputs, group, bias=False):
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        w = self.weight if self.group is None else Project.apply(self.weight, self.group)
        return F.linear(x, w, self.bias)


class Embedding(nn.Module):
    def __init__(self, vocab, width, group):
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, tokens):
        rows = F.embedding(tokens, self.weight)
        # Groups do not cross rows: projecting the rows that are read is the same, and cheaper than the whole table.
        return rows if self.group is None else Project.apply(rows, self.group)


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x, cos, sin):
    """Rotary embedding in the half-split form, on `[B, T, H, D]`."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, c, group):
        super().__init__()
        self.dim, self.causal, self.grouped = c["head_dim"], c["causal"], c["kv_heads"] < c["heads"]
        width, kv_width = c["heads"] * self.dim, c["kv_heads"] * self.dim
        self.q_proj = Linear(c["hidden_size"], width, group, c["qkv_bias"])
        self.k_proj = Linear(c["hidden_size"], kv_width, group, c["qkv_bias"])
        self.v_proj = Linear(c["hidden_size"], kv_width, group, c["qkv_bias"])
        self.o_proj = Linear(width, c["hidden_size"], group)
        norm = lambda: RmsNorm(self.dim, c["rms_norm_eps"]) if c["qk_norm"] else nn.Identity()
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x, cos, sin):
        q, k, v = (proj(x).unflatten(-1, (-1, self.dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.grouped)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, c, group):
        super().__init__()
        self.activation = c["activation"]
        if self.activation == "swiglu":
            self.gate_proj = Linear(c["hidden_size"], c["intermediate_size"], group)
        self.up_proj = Linear(c["hidden_size"], c["intermediate_size"], group)
        self.down_proj = Linear(c["intermediate_size"], c["hidden_size"], group)

    def forward(self, x):
        if self.activation == "swiglu":
            y = F.silu(self.gate_proj(x)) * self.up_proj(x)
        elif self.activation == "gelu":
            y = F.gelu(self.up_proj(x), approximate="tanh")
        else:
            y = F.relu(self.up_proj(x)).square()
        return self.down_proj(y)


class Block(nn.Module):
    def __init__(self, c, group):
        super().__init__()
        self.input_layernorm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c, group)
        self.post_attention_layernorm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = FeedForward(c, group)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Modules are named so that `state_dict` has the Hugging Face names."""

    def __init__(self, recipe, seq):
        super().__init__()
        c, scope, group = recipe["model"], recipe["ternary"]["scope"], recipe["ternary"]["group"]
        blocks, ends = group if scope != "none" else None, group if scope == "all" else None
        self.ends = ends
        self.model = nn.Module()
        self.model.embed_tokens = Embedding(c["vocab_size"], c["hidden_size"], ends)
        self.model.layers = nn.ModuleList(Block(c, blocks) for _ in range(c["layers"]))
        self.model.norm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = None if c["tie_embeddings"] else Linear(c["hidden_size"], c["vocab_size"], ends)
        angles = torch.from_numpy(rope_angles(seq, c["head_dim"], c["rope_theta"]))[:, None, :]
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def init(self):
        """Random matrices: normal with standard deviation `fan_in^-1/2`."""
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def logits(self, tokens):
        x = self.model.embed_tokens(tokens)
        for block in self.model.layers:
            x = block(x, self.cos, self.sin)
        x = self.model.norm(x)
        if self.lm_head is not None:
            return self.lm_head(x)
        w = self.model.embed_tokens.weight
        return F.linear(x, w if self.ends is None else Project.apply(w, self.ends))

    def forward(self, tokens, targets):
        """Nats per scored position of `[B, T]`; a target of -1 is not scored."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1)


class Trainer:
    """`loss` is the decoder, or what `torch.compile` made of it; with `autocast` its products are in bf16."""

    def __init__(self, decoder, loss, train, autocast=False):
        self.loss, self.train, self.index, self.autocast = loss, train, 0, autocast
        self.params = list(decoder.parameters())
        groups = [
            {"params": [p for p in self.params if p.ndim == 2], "decayed": True},
            {"params": [p for p in self.params if p.ndim != 2], "decayed": False},
        ]
        options = {"lr": train["lr"], "betas": (train["beta1"], train["beta2"]), "eps": train["eps"]}
        try:
            self.optimizer = torch.optim.AdamW(groups, **options, fused=True)
        except RuntimeError:
            self.optimizer = torch.optim.AdamW(groups, **options, foreach=True)

    def step(self, batches):
        """One optimizer step over pairs of inputs and targets, `[B, T]` each; nats per scored position before it."""
        t = self.train
        self.optimizer.zero_grad(set_to_none=True)
        total, scored = 0.0, 0
        for inputs, targets in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = self.loss(inputs, targets)
            (loss / len(batches)).backward()
            count = int((targets != -1).sum())
            total, scored = total + loss.item() * count, scored + count
        if t["clip"] > 0:
            nn.utils.clip_grad_norm_(self.params, t["clip"], foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = t["lr"] * schedule(t, self.index)
            group["weight_decay"] = weight_decay(t, self.index) if group["decayed"] else 0.0
        self.optimizer.step()
        self.index += 1
        return total / scored
