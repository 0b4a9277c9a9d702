"""What the settings cost and what they keep, measured on the bundled model: the tables of notes/study.md.

    python tests/bench/study.py [--device cuda] [--lengths 4096,16384] [--trials 50] [--targets 0.8,0.95] [--out study.json]

Per setting, from the dense run's q, k and v: density, the greedy oracle's density, the share of all rows at or above the target,
mean and least recall (all exact), relative error of the layers' outputs. From the sparse run: change of perplexity, top-1
agreement with the dense run, passkey accuracy (every digit greedily right) beside the dense run's on the same prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "model")]

from tasks import Tasks  # noqa: E402

from sampleattn import SampleAttentionConfig, sample_attention, use_sample_attention  # noqa: E402
from sampleattn.metrics import oracle_tiles, tile_masses  # noqa: E402

PAPER = SampleAttentionConfig(selection="independent", sampling="tail", sample_ratio=1 / 8)
CONFIGS = {
    "joint, spread (default)": SampleAttentionConfig(),
    "independent, spread": SampleAttentionConfig(selection="independent"),
    "independent, tail (paper)": PAPER,
}


def texts(tokenizer, length, device):
    """Up to four windows of held-out Python (networkx and rich): token ids, int64 [1, length] each."""
    windows = []
    for name in ("held_out_4k.txt", "held_out_16k.txt"):
        ids = tokenizer((ROOT / "data/prompts" / name).read_text(), add_special_tokens=False).input_ids
        windows += [[tokenizer.bos_token_id, *ids[i : i + length - 1]] for i in range(0, len(ids) - length + 2, length)]
    return [torch.tensor([window], device=device) for window in windows[:4]]


def passkeys(tokenizer, length, trials, seed=5):
    """`trials` prompts of `length` tokens with random key, digits and depth: [(prompt and answer ids, answer length)]."""
    tasks = Tasks(tokenizer.backend_tokenizer)
    filler = tasks.encode((ROOT / "data/prompts/held_out_16k.txt").read_text())
    rng = np.random.default_rng([seed, length])
    made = [tasks.passkey(rng, filler, length) for _ in range(trials)]
    return [(torch.tensor(np.concatenate((p.prompt, p.answer)))[None].long(), len(p.answer)) for p in made]


def analyse(model, ids, targets, configs):
    """Exact figures per (config name, target) from one dense run: dict of means over all layers' heads and rows."""
    sums = {}

    def observe(call):
        q, k, v, scale = call.query, call.key, call.value, call.scale
        masses = [block for _, block, _ in tile_masses(q, k, scale)]
        for target in targets:
            causal = sum(range(1, len(masses) + 1))
            oracle = sum(oracle_tiles(block, target).sum((0, 2)) for block in masses).float() / causal
            for name, config in configs.items():
                out, selection = sample_attention(q, k, v, config.replace(cra=target), scale, return_selection=True)
                recall = torch.cat([(m * selection.block_mask[:, :, i, None]).sum(-1) for i, m in enumerate(masses)], -1)
                row = sums.setdefault((name, target), [])
                error = (out.float() - call.output.float()).norm(dim=(-2, -1)) / call.output.float().norm(dim=(-2, -1))
                at_target = (recall >= target - 1e-4).float().mean(-1)
                row.append(
                    torch.stack(
                        [x[0] for x in (selection.density, oracle[None], at_target, recall.mean(-1), recall.amin(-1), error)]
                    )
                )

    with torch.no_grad(), use_sample_attention(model, None, observe):
        model(input_ids=ids, logits_to_keep=1)
    fields = ("density", "oracle", "rows_at_target", "mean_recall", "min_recall", "output_error")
    return {key: dict(zip(fields, torch.cat(rows, -1).cpu(), strict=True)) for key, rows in sums.items()}


def predictions(model, ids, config):
    """Per position: nats of the next token, and the top token."""
    with torch.no_grad(), use_sample_attention(model, config):
        states = model.model(input_ids=ids).last_hidden_state[0]
        nats, top = [], []
        for part, target in zip(states[:-1].split(2048), ids[0, 1:].split(2048), strict=True):
            logits = model.lm_head(part).float()
            nats.append(F.cross_entropy(logits, target, reduction="none"))
            top.append(logits.argmax(-1))
    return torch.cat(nats), torch.cat(top)


def passkey_accuracy(model, prompts, config, device):
    right = 0
    for ids, answer in prompts:
        with torch.no_grad(), use_sample_attention(model, config):
            top = model(input_ids=ids.to(device), logits_to_keep=answer + 1).logits[0, :-1].argmax(-1).cpu()
        right += bool((top == ids[0, -answer:]).all())
    return right / len(prompts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", default="4096,16384")
    parser.add_argument("--targets", default="0.8,0.9,0.95,0.99,1.0", help="1.0 keeps everything: the control for rounding")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    targets = [float(t) for t in args.targets.split(",")]
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/model")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/model", dtype=dtype).to(args.device).eval()
    device_name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{device_name}, torch {torch.__version__}, {dtype}, {args.trials} passkey trials a length")
    results = []
    for length in map(int, args.lengths.split(",")):
        windows, prompts = texts(tokenizer, length, args.device), passkeys(tokenizer, length, args.trials)
        dense = [predictions(model, ids, None) for ids in windows]
        exact = [analyse(model, ids, targets, CONFIGS) for ids in (*windows, prompts[0][0].to(args.device))]
        dense_passkey = passkey_accuracy(model, prompts, None, args.device)
        print(f"\n{length} tokens, dense passkey {dense_passkey:.1%}")
        print(
            "| setting | target | text | density | oracle | rows at target | mean recall | least recall | output error |"
            " perplexity | top-1 equal | passkey |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
        )
        for name, config in CONFIGS.items():
            for target in targets:
                started = time.perf_counter()
                sparse = [predictions(model, ids, config.replace(cra=target)) for ids in windows]
                perplexity = float(torch.cat([s[0] for s in sparse]).mean() - torch.cat([d[0] for d in dense]).mean())
                agreement = float(torch.cat([s[1] == d[1] for s, d in zip(sparse, dense, strict=True)]).float().mean())
                passkey = passkey_accuracy(model, prompts, config.replace(cra=target), args.device)
                for text, parts in (("Python", exact[:-1]), ("passkey", exact[-1:])):
                    mean = {f: float(torch.stack([p[name, target][f] for p in parts]).mean()) for f in parts[0][name, target]}
                    mean["min_recall"] = min(float(p[name, target]["min_recall"].min()) for p in parts)
                    row = dict(length=length, setting=name, target=target, text=text, **mean)
                    if text == "Python":
                        row |= dict(perplexity_change=np.expm1(perplexity), top1=agreement)
                        tail = f"{np.expm1(perplexity):+.2%} | {agreement:.2%} | |"
                    else:
                        row |= dict(passkey=passkey, dense_passkey=dense_passkey)
                        tail = f"| | {passkey:.0%} |"
                    results.append(row)
                    print(
                        f"| {name} | {target} | {text} | {mean['density']:.3f} | {mean['oracle']:.3f} | "
                        f"{mean['rows_at_target']:.2%} | {mean['mean_recall']:.4f} | {mean['min_recall']:.3f} | "
                        f"{mean['output_error']:.4f} | {tail}",
                        flush=True,
                    )
                print(f"{name} {target}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
