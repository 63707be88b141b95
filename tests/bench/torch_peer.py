#!/usr/bin/python3
"""The peer of tests/bench/train_speed.py: the same model as configuration A, in PyTorch, as a user of it would write it.

A pre-norm GPT with learned positions and tied embeddings; in each layer causal attention and a mixture of SwiGLU experts (softmax, top-k,
weights normalised, auxiliary loss), experts by index_select and index_add; AdamW (foreach) and clipping. Random tokens. Prints one JSON line.
"""
import argparse
import json
import math
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional


class Expert(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class MixtureOfExperts(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.topk = options.topk
        self.router = nn.Linear(options.hidden, options.experts, bias=False)
        self.experts = nn.ModuleList(Expert(options.hidden, options.ffn) for _ in range(options.experts))

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        probabilities = self.router(rows).float().softmax(-1)
        weights, chosen = probabilities.topk(self.topk, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(rows)
        shares = []
        for number, expert in enumerate(self.experts):
            tokens, slots = (chosen == number).nonzero(as_tuple=True)
            shares.append(tokens.numel() / chosen.numel())
            if tokens.numel() == 0:
                continue
            h = expert(rows.index_select(0, tokens)) * weights[tokens, slots].unsqueeze(1).to(rows.dtype)
            y = y.index_add(0, tokens, h.to(y.dtype))
        balance = len(self.experts) * (probabilities.mean(0) * torch.tensor(shares)).sum()
        return y.view_as(x), balance


class Layer(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.heads = options.heads
        self.norms = nn.ModuleList(nn.LayerNorm(options.hidden) for _ in range(2))
        self.qkv = nn.Linear(options.hidden, 3 * options.hidden, bias=False)
        self.out = nn.Linear(options.hidden, options.hidden, bias=False)
        self.moe = MixtureOfExperts(options)

    def forward(self, x, mask):
        batch, sequence, hidden = x.shape
        q, k, v = (part.view(batch, sequence, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.norms[0](x)).split(hidden, 2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(hidden // self.heads)
        mixed = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, sequence, hidden))
        y, balance = self.moe(self.norms[1](x))
        return x + y, balance


class Model(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.tokens = nn.Embedding(options.vocabulary, options.hidden)
        self.positions = nn.Embedding(options.sequence, options.hidden)
        self.layers = nn.ModuleList(Layer(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.hidden)
        self.vocabulary = options.vocabulary
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, 0, 0.02)
        self.register_buffer("mask", torch.triu(torch.ones(options.sequence, options.sequence, dtype=torch.bool), 1), persistent=False)

    def forward(self, tokens, labels):
        x = self.tokens(tokens) + self.positions.weight[None]
        balance = 0.0
        for layer in self.layers:
            x, more = layer(x, self.mask)
            balance = balance + more
        logits = functional.linear(self.norm(x), self.tokens.weight).float()
        return functional.cross_entropy(logits.view(-1, self.vocabulary), labels.view(-1)) + 0.01 * balance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    for name, value in {"layers": 4, "hidden": 256, "heads": 8, "sequence": 256, "vocabulary": 8192, "batch": 8, "experts": 8, "topk": 2,
                        "ffn": 512, "steps": 20, "warm-up": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = Model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, foreach=True)
    seconds = []
    for _ in range(options.warm_up + options.steps):
        text = torch.randint(0, options.vocabulary, (options.batch, options.sequence + 1))
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            loss = model(text[:, :-1].contiguous(), text[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"step_s": statistics.median(seconds[options.warm_up:]), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                      "parameters": sum(p.numel() for p in model.parameters()), "loss": loss.item(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
