"""Train the bundled model in one run by the clock, and save it.

    python data/model/train.py --out DIR [--seconds 500]

collects the corpus (corpus.py, in a process of its own, while the GPU code compiles), trains until `--seconds` after the
start, and writes the model, the tokenizer, manifest.json, loss_curve.csv and training.json to DIR. Learning rate and
context length depend only on the elapsed share of the training time. Seeded; the number of steps depends on the machine.

    python data/model/train.py --out /tmp/try --smoke --seconds 60      # a tiny model on any machine: does the script work?
"""

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from corpus import BOS, EOS, PAD, VOCABULARY
from tasks import Tasks
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SEED = 20261123
STAGES = ((0.40, 2048), (0.22, 8192), (0.38, 16384))  # share of the training time, context in tokens
TOKENS_PER_STEP = 65536
PEAK_RATE, WARMUP, DECAY_FROM = 3e-3, 0.02, 0.45  # learning rate; shares of the training time
SMOKE_STAGES, SMOKE_TOKENS_PER_STEP = ((0.40, 128), (0.22, 256), (0.38, 512)), 1024


def model_config(smoke):
    size = dict(hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2)
    if smoke:
        size = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    return LlamaConfig(
        vocab_size=VOCABULARY,
        head_dim=64,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **size,
    )


def stage_at(progress, stages):
    """The index of the stage at an elapsed share of the training time."""
    bounds = np.cumsum([share for share, _ in stages])
    return min(int(np.searchsorted(bounds, progress, side="right")), len(stages) - 1)


def rate_at(progress):
    """Learning rate: linear warm-up, constant, linear to zero."""
    return PEAK_RATE * min(1.0, progress / WARMUP, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


def build_model(config, device):
    """A fresh model in float32; projections into the residual stream start smaller, by 1 / sqrt(2 layers)."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight /= math.sqrt(2 * config.num_hidden_layers)
    return model.to(device).train()


def hidden_states(model, tokens):
    """tokens [B, N] -> bfloat16 [B, N, hidden], after the last norm."""
    states = model.model.embed_tokens(tokens).bfloat16()
    rotary = model.model.rotary_emb(states, torch.arange(tokens.shape[1], device=tokens.device)[None])
    for layer in model.model.layers:
        states = layer(states, position_embeddings=rotary)
    return model.model.norm(states)


def head_loss(states, matrix, targets, weights):
    """states [B, N, hidden], matrix [vocabulary, hidden], targets and weights [B, N] -> (weighted mean loss, plain mean of
    the tokens with weight 1), in nats."""
    logits = F.linear(states, matrix.bfloat16()).float().flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
    weights = weights.flatten()
    ordinary = (weights == 1).float()
    return (losses * weights).sum() / weights.sum(), (losses.detach() * ordinary).sum() / ordinary.sum()


class Trainer:
    def __init__(self, model, device):
        self.model, self.device = model, device
        self._head_loss = head_loss
        if device.type == "cuda":
            for layer in model.model.layers:  # one layer is compiled once per context length and shared by all
                layer.compile(dynamic=False)
            self._head_loss = torch.compile(head_loss, dynamic=False)
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2 or p is model.get_input_embeddings().weight]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
            lr=PEAK_RATE,
            betas=(0.9, 0.95),
            fused=True,
        )

    def backward(self, tokens, weights):
        """tokens and loss weights [B, N + 1], CPU tensors. Accumulates gradients. -> (weighted loss, plain loss)."""
        tokens = tokens.to(self.device, torch.long, non_blocking=True)
        weights = weights.to(self.device, torch.float32, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            states = hidden_states(self.model, tokens[:, :-1])
            loss, plain = self._head_loss(
                states, self.model.get_input_embeddings().weight, tokens[:, 1:].contiguous(), weights[:, 1:].contiguous()
            )
        loss.backward()
        return loss.detach(), plain

    def step(self, tokens, weights, rate):
        losses = self.backward(tokens, weights)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def compile(self, contexts, tokens_per_step):
        """Run every shape once, so that training starts without compiling."""
        for context in contexts:
            tokens = torch.randint(VOCABULARY, (tokens_per_step // context, context + 1))
            self.backward(tokens, torch.ones_like(tokens))
        self.optimizer.zero_grad(set_to_none=True)


class Batches(torch.utils.data.Dataset):
    """The batches of one stage; the step alone decides what is in one."""

    def __init__(self, work, stage, context, count):
        self.work, self.stage, self.context, self.count = work, stage, context, count
        self.tasks = Tasks(Tokenizer.from_file(str(work / "tokenizer.json")))

    def __len__(self):
        return 1_000_000

    def __getitem__(self, step):
        stream = np.memmap(self.work / "train.bin", np.uint16, mode="r")
        rng = np.random.default_rng([SEED, self.stage, step])
        return tuple(map(torch.from_numpy, self.tasks.training_batch(rng, stream, self.context, self.count)))


def loaders(work, stages, tokens_per_step, workers):
    """One running iterator of batches per stage, prefetching in `workers` processes."""
    made = [
        torch.utils.data.DataLoader(
            Batches(work, i, context, tokens_per_step // context),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork",
            pin_memory=torch.cuda.is_available(),
        )
        for i, (_, context) in enumerate(stages)
    ]
    return [iter(loader) for loader in made]


def train(trainer, batches, stages, seconds):
    """Train for `seconds`. -> rows of the loss curve."""
    rows, tokens_seen, begin = [], 0, time.monotonic()
    for step in itertools.count():
        progress = (time.monotonic() - begin) / seconds
        if progress >= 1:
            return rows
        stage = stage_at(progress, stages)
        tokens, weights = next(batches[stage])
        loss, plain = trainer.step(tokens, weights, rate_at(progress))
        tokens_seen += weights[:, 1:].numel()
        if step % 10 == 0:  # reading the loss waits for the GPU and so keeps the clock honest
            rows.append(
                {
                    "step": step,
                    "seconds": round(time.monotonic() - begin, 2),
                    "context": stages[stage][1],
                    "rate": f"{rate_at(progress):.3e}",
                    "tokens": tokens_seen,
                    "weighted_loss": round(loss.item(), 4),
                    "loss": round(plain.item(), 4),
                }
            )
            if step % 200 == 0:
                print(rows[-1], flush=True)


def save(model, work, out, rows, facts):
    """Weights in bfloat16, tokenizer, manifest, loss curve and facts of the run, into the folder `out`."""
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="15MB")
    PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)
    shutil.copy(work / "manifest.json", out)
    with open(out / "loss_curve.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main():
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500, help="wall clock from the start to the saved model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/bundled-model-corpus"), help="folder for the corpus")
    parser.add_argument("--workers", type=int, default=4, help="processes that build batches, per stage")
    parser.add_argument("--smoke", action="store_true", help="tiny model, contexts and corpus")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stages, tokens_per_step = (SMOKE_STAGES, SMOKE_TOKENS_PER_STEP) if args.smoke else (STAGES, TOKENS_PER_STEP)
    corpus = subprocess.Popen(
        [sys.executable, str(HERE / "corpus.py"), "--out", str(args.work), *(["--max-files", "500"] if args.smoke else [])]
    )

    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(build_model(model_config(args.smoke), device), device)
    trainer.compile([context for _, context in stages], tokens_per_step)
    compiled = time.monotonic() - start
    if corpus.wait():
        raise SystemExit("the corpus could not be made")
    prepared = time.monotonic() - start
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(f"compiled after {compiled:.0f} s, corpus ready after {prepared:.0f} s", flush=True)

    batches = loaders(args.work, stages, tokens_per_step, args.workers)
    training_seconds = args.seconds - (time.monotonic() - start) - 5
    rows = train(trainer, batches, stages, training_seconds)
    facts = {
        "seed": SEED,
        "parameters": trainer.model.num_parameters(),
        "stages": stages,
        "tokens_per_step": tokens_per_step,
        "steps": rows[-1]["step"],
        "tokens": rows[-1]["tokens"],
        "peak_rate": PEAK_RATE,
        "seconds": {"compiled": round(compiled, 1), "prepared": round(prepared, 1), "training": round(training_seconds, 1)},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__},
    }
    save(trainer.model, args.work, args.out, rows, facts)
    print(json.dumps(facts), f"saved after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
