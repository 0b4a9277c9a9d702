"""Measure the bundled model: compression, retrieval, repetition, and what its attention looks like.

    python data/model/evaluate.py                                    # everything; a GPU is advised
    python data/model/evaluate.py --lengths 2048 --trials 10 --max-bytes 200000 --out /tmp/results.json

prints a table and writes results.json. The measures:

bits per byte   Each held-out file set (files joined by <|eos|>) is cut into windows of the trained context, each scored with
                nothing but <|bos|> before it; the sum of all losses in bits, <|eos|> included, over the bytes of the files.
                Beside it `xz -9` on the same files, joined.
passkey         One line with a key and five digits at a random depth of held-out code, asked for at the end. Greedy
                decoding must give every digit (checked by teacher forcing, which is the same).
repeat          Loss over the second copy of 1,024 random tokens, in nats.
oracle          The least tiles (128 x 128) any block method could compute, as found greedily: per head and query block, take
                the tile with the most still-missing mass, summed over the block's rows, until every row has 95% of its
                dense mass. Density = tiles taken / tiles of the causal triangle. No tile is free or forced.
heads           Per head, from dense attention (see HEAD_MEASURES for measure and threshold).
"""

import argparse
import json
import lzma
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from corpus import EOS, held_out_texts
from tasks import DIGITS, Tasks
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

HERE = Path(__file__).resolve().parent
BLOCK, TARGET = 128, 0.95
SEED = 7
HEAD_MEASURES = {  # name: (threshold, what is averaged over rows)
    "sink column": (0.30, "mass on the first token, rows from 256 on, held-out code of 4,096 tokens"),
    "previous-token slash": (0.30, "mass on the token just before, same rows"),
    "local slash": (0.50, "mass on the row's own and the 31 tokens before it, same rows"),
    "induction slash": (0.30, "mass on the token after the earlier copy of the row's token, second copy of 1,024 random tokens"),
    "retrieval column": (0.30, "mass on the needle's digits, rows that predict the passkey's digits, prompts of 4,096 tokens"),
}


@torch.inference_mode()
def losses(model, tokens):
    """tokens [B, N] -> nats [B, N - 1] of each token after the first."""
    states = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
    rows = [
        F.cross_entropy(model.lm_head(part).float().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
        for part, target in zip(states.split(2048, 1), tokens[:, 1:].long().split(2048, 1), strict=True)
    ]
    return torch.cat(rows, 1)


def bits_per_byte(model, tokenizer, texts, context, batch_tokens):
    """Bits the model needs per byte of `texts` (a list of files)."""
    eos, bos = tokenizer.convert_tokens_to_ids(EOS), tokenizer.bos_token_id
    ids = [i for text in texts for i in (*tokenizer(text, add_special_tokens=False, verbose=False).input_ids, eos)]
    windows = [torch.tensor([bos, *ids[i : i + context - 1]]) for i in range(0, len(ids), context - 1)]
    nats, batch = 0.0, max(1, batch_tokens // context)
    for group in [windows[i : i + batch] for i in range(0, len(windows) - 1, batch)] + [windows[-1:]]:
        if len(group) > 1 and len(group[-1]) < context:
            group = group[:-1]  # the short last window has its own group
        nats += losses(model, torch.stack(group).to(model.device)).double().sum().item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def compression(model, tokenizer, texts, context, batch_tokens):
    """texts {package: [file]} -> {package or "all": {bytes, model, xz}}, in bits per byte."""
    joined = {name: "".join(files).encode() for name, files in texts.items()}
    joined["all"] = b"".join(joined.values())
    with ThreadPoolExecutor() as pool:  # lzma works beside the model
        packed = {name: pool.submit(lzma.compress, data, preset=9) for name, data in joined.items()}
        model_bits = {name: bits_per_byte(model, tokenizer, files, context, batch_tokens) for name, files in texts.items()}
        model_bits["all"] = sum(model_bits[name] * len(joined[name]) for name in texts) / len(joined["all"])
        return {
            name: {"bytes": len(data), "model": model_bits[name], "xz": 8 * len(packed[name].result()) / len(data)}
            for name, data in joined.items()
        }


@torch.inference_mode()
def passkey_accuracy(model, tasks, filler, length, trials, batch_tokens):
    """Share of `trials` passkey prompts of `length` tokens whose every digit is greedily right."""
    rng = np.random.default_rng([SEED, length])
    right, done = 0, 0
    while done < trials:
        count = min(trials - done, max(1, batch_tokens // length))
        cases = [
            tasks.passkey(rng, filler[(start := rng.integers(len(filler) - length)) : start + length], length)
            for _ in range(count)
        ]
        tokens = torch.tensor(np.stack([np.concatenate([c.prompt, c.answer]) for c in cases]), device=model.device)
        answer = len(cases[0].answer)
        logits = model(tokens[:, :-1], use_cache=False, logits_to_keep=answer).logits
        right += (logits.argmax(-1) == tokens[:, -answer:]).all(-1).sum().item()
        done += count
    return right / trials


def repeat_loss(model, tasks, half, count):
    """-> nats per token over the first and over the second copy of `half` random tokens, `count` sequences."""
    rng = np.random.default_rng([SEED, half])
    tokens = torch.tensor(np.stack([tasks.repeated_random(rng, half) for _ in range(count)]), device=model.device)
    nats = torch.cat([losses(model, part) for part in tokens.split(8)])
    return nats[:, :half].mean().item(), nats[:, half:].mean().item()


@torch.inference_mode()
def captured_qk(model, tokens):
    """q [Hq, N, D] and k [Hkv, N, D] of every layer after rotary embedding, from one dense run. tokens: int [N]."""
    layers = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        layers.append((query[0], key[0]))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("evaluate_capture", attention)
    AttentionMaskInterface.register("evaluate_capture", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("evaluate_capture")
    model.model(torch.as_tensor(tokens, device=model.device)[None], use_cache=False)
    model.set_attn_implementation(before)
    return layers


def attention_rows(q, k, head, rows):
    """Dense causal attention of one query head. rows: int [R] -> float32 [R, N]."""
    keys = k[head * k.shape[0] // q.shape[0]].float()
    scores = q[head, rows].float() @ keys.T * q.shape[-1] ** -0.5
    hidden = torch.arange(k.shape[1], device=k.device)[None] > rows[:, None]
    return scores.masked_fill_(hidden, -math.inf).softmax(-1)


def tile_masses(q, k, head, rows_at_once=1024):
    """-> float32 [query blocks, 128 rows, key blocks]: each row's attention mass per tile. N is a multiple of 128."""
    rows = torch.arange(q.shape[1], device=q.device)
    masses = torch.cat([attention_rows(q, k, head, part).unflatten(1, (-1, BLOCK)).sum(-1) for part in rows.split(rows_at_once)])
    return masses.unflatten(0, (-1, BLOCK))


def oracle_density(masses, target=TARGET):
    """Greedy least density at which every row keeps `target` of its mass. masses [query blocks, rows, key blocks]."""
    blocks = masses.shape[0]
    left = masses.clone()  # a taken tile has nothing left to give
    missing = torch.full(masses.shape[:2], target, device=masses.device)
    taken = torch.zeros(blocks, device=masses.device)
    for _ in range(masses.shape[2]):
        open_blocks = (missing > 1e-6).any(1)
        if not open_blocks.any():
            break
        gain = torch.minimum(left, missing.clamp(min=0)[..., None]).sum(1)
        best = gain.argmax(1)[:, None, None].expand(-1, masses.shape[1], 1)
        mass = left.gather(2, best)[..., 0] * open_blocks[:, None]
        missing -= mass
        left.scatter_(2, best, torch.where(open_blocks[:, None, None], 0.0, left.gather(2, best)))
        taken += open_blocks
    return taken.sum().item() / (blocks * (blocks + 1) / 2)


@torch.inference_mode()
def oracle_densities(model, tokens):
    """-> [[density of each head] of each layer] on one prompt, int [N]."""
    return [[oracle_density(tile_masses(q, k, head)) for head in range(q.shape[0])] for q, k in captured_qk(model, tokens)]


@torch.inference_mode()
def head_measures(model, tasks, filler, length=4096, trials=8):
    """-> {measure: float [layers, heads]}; see HEAD_MEASURES."""
    device, rng = model.device, np.random.default_rng(SEED)
    scores = {name: [] for name in HEAD_MEASURES}

    code = np.concatenate([[tasks.bos], filler[: length - 1]])
    rows = torch.arange(256, length, 5, device=device)
    distance = rows[:, None] - torch.arange(length, device=device)[None]
    near = {"previous-token slash": distance == 1, "local slash": (distance >= 0) & (distance < 32)}
    for q, k in captured_qk(model, code):
        heads = [attention_rows(q, k, head, rows) for head in range(q.shape[0])]
        scores["sink column"].append([a[:, 0].mean().item() for a in heads])
        for name, cells in near.items():
            scores[name].append([a[cells].sum().item() / len(rows) for a in heads])

    half = 1024
    rows = torch.arange(1 + half, 1 + 2 * half, device=device)
    for q, k in captured_qk(model, tasks.repeated_random(rng, half)):
        scores["induction slash"].append(
            [attention_rows(q, k, head, rows).gather(1, (rows - half + 1)[:, None]).mean().item() for head in range(q.shape[0])]
        )

    retrieval = []
    for _ in range(trials):
        start = rng.integers(len(filler) - length)
        case = tasks.passkey(rng, filler[start : start + length], length)
        tokens = np.concatenate([case.prompt, case.answer])
        rows = torch.arange(length - DIGITS - 1, length - 1, device=device)
        retrieval.append(
            [
                [attention_rows(q, k, head, rows)[:, case.needle].sum(1).mean().item() for head in range(q.shape[0])]
                for q, k in captured_qk(model, tokens)
            ]
        )
    scores["retrieval column"] = np.mean(retrieval, 0)
    return {name: np.array(values) for name, values in scores.items()}


def listed_heads(scores):
    """-> {measure: {threshold, measure, heads: [[layer, head, value]]}}, the strongest first."""
    listing = {}
    for name, (threshold, meaning) in HEAD_MEASURES.items():
        found = [
            [int(layer), int(head), round(float(scores[name][layer, head]), 3)]
            for layer, head in np.argwhere(scores[name] >= threshold)
        ]
        listing[name] = {"threshold": threshold, "measure": meaning, "heads": sorted(found, key=lambda h: -h[2])}
    return listing


def print_results(results):
    print(f"\n{'held-out package':20} {'bytes':>10} {'model':>7} {'xz -9':>7}   bits per byte")
    for name, row in results["bits_per_byte"].items():
        print(f"{name:20} {row['bytes']:10} {row['model']:7.3f} {row['xz']:7.3f}")
    for length, accuracy in results["passkey"].items():
        print(f"passkey {length:>6} tokens: {accuracy:.0%} of {results['settings']['trials']}")
    print("repeated random tokens: first copy {first:.2f} nats, second copy {second:.3f} nats".format(**results["repeat"]))
    for length, rows in results["oracle_density"].items():
        print(f"oracle density at {length} tokens, target {TARGET}: mean {np.mean(rows):.3f}, per layer (heads in order)")
        for layer, row in enumerate(rows):
            print(f"  {layer}: " + " ".join(f"{density:.3f}" for density in row))
    for name, entry in results["heads"].items():
        found = ", ".join(f"{layer}.{head} {value:.2f}" for layer, head, value in entry["heads"])
        print(f"{name} (at least {entry['threshold']}): {found or 'none'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--out", type=Path, help="default: results.json in the model's folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384], help="of the passkey prompts")
    parser.add_argument("--oracle-lengths", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--trials", type=int, default=100, help="passkey prompts per length")
    parser.add_argument("--max-bytes", type=int, help="score at most about this much of each held-out package")
    args = parser.parse_args()
    begin = time.monotonic()
    out = args.out or args.model / "results.json"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16 if args.device == "cuda" else torch.float32)
    model = model.to(args.device).eval()
    tasks = Tasks(tokenizer.backend_tokenizer)
    texts = held_out_texts(json.loads((args.model / "manifest.json").read_text()))
    if not texts:
        raise SystemExit("None of the held-out packages (see manifest.json) is installed here in the recorded version.")
    order = np.random.default_rng(SEED)
    texts = {name: [files[i] for i in order.permutation(len(files))] for name, files in texts.items()}
    filler = tasks.encode("\n".join(text for files in texts.values() for text in files[:40]))
    if args.max_bytes:
        texts = {
            name: [text for text, end in zip(files, np.cumsum([len(t) for t in files]), strict=True) if end <= args.max_bytes]
            or files[:1]
            for name, files in texts.items()
        }
    batch_tokens = 131072 if args.device == "cuda" else 16384

    def progress(what):
        print(f"[{time.monotonic() - begin:5.1f} s] {what}", flush=True)

    context = model.config.max_position_embeddings
    results = {
        "settings": {
            "trials": args.trials,
            "seed": SEED,
            "target": TARGET,
            "dtype": str(model.dtype),
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    }
    results["passkey"] = {}
    for length in args.lengths:
        results["passkey"][length] = passkey_accuracy(model, tasks, filler, length, args.trials, batch_tokens)
        progress(f"passkey {length}: {results['passkey'][length]:.0%}")
    first, second = repeat_loss(model, tasks, 1024, 32)
    results["repeat"] = {"half": 1024, "sequences": 32, "first": first, "second": second}
    progress(f"repeat: {second:.3f} nats")
    results["bits_per_byte"] = compression(model, tokenizer, texts, context, batch_tokens)
    progress(f"bits per byte: {results['bits_per_byte']['all']['model']:.3f}")
    scores = head_measures(model, tasks, filler)
    results["heads"] = listed_heads(scores)
    results["head_scores"] = {name: np.round(values, 4).tolist() for name, values in scores.items()}
    progress("heads")
    results["oracle_density"] = {}
    for length in args.oracle_lengths:
        tokens = np.concatenate([[tasks.bos], filler[: length - 1]])
        results["oracle_density"][length] = np.round(oracle_densities(model, tokens), 4).tolist()
        progress(f"oracle at {length} tokens")
    out.write_text(json.dumps(results, indent=1) + "\n")
    print_results(results)


if __name__ == "__main__":
    main()
