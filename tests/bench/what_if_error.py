"""How far What-if's estimates are from exact runs of the bundled model at the same settings. A table, no tests.

python tests/bench/what_if_error.py [--prompt passkey_4k.txt]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from app.estimating import changed  # noqa: E402
from sampleattn import SampleAttentionConfig, Trace, record  # noqa: E402
from sampleattn.estimate import estimates  # noqa: E402
from sampleattn.models import load_model  # noqa: E402

RECORDED = SampleAttentionConfig()
SETTINGS = (
    dict(cra=0.8),
    dict(cra=0.9),
    dict(cra=0.9, scope="segment"),
    dict(cra=0.9, selection="independent"),
    dict(cra=0.9, selection="window"),
    dict(cra=0.9, sink_blocks=4, local_blocks=8),
    dict(cra=0.9, scope="segment", segments=2),
    dict(cra=0.9, scope="segment", segments=8),
    dict(cra=0.9, scope="segment", segments=2, selection="independent"),
    dict(cra=0.9, scope="segment", segments=2, selection="window"),
    dict(cra=0.975),
)


def of_stored_masses(trace: Trace, config: SampleAttentionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Density and recall [layers, heads] of the choice that the stored masses lead to."""
    found = [[part for _, part in estimates(trace, layer, config)] for layer in range(trace.layers)]
    return tuple(
        np.stack([np.concatenate([getattr(part, name) for part in parts]) for parts in found]) for name in ("density", "recall")
    )


def apart(estimated: np.ndarray, exact: np.ndarray) -> str:
    difference = 100 * np.abs(estimated - exact)
    return f"{np.median(difference):.2f}, {difference.max():.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="passkey_4k.txt")
    args = parser.parse_args()
    model, tokenizer, _ = load_model("bundled")
    text = (ROOT / "data" / "prompts" / args.prompt).read_text(encoding="utf-8")
    trace = record(model, tokenizer, text, RECORDED, continuation=1)
    print(
        f"{args.prompt}, {trace.length:,} tokens, {trace.layers} x {trace.heads} heads: estimated against run exactly, in points,"
    )
    print("median and largest over the heads. Recall: what 97% of the sampled rows keep, against 97% of all rows.\n")
    print("| setting | exact density | answer | density | recall |\n|---|---|---|---|---|")
    for changes in SETTINGS:
        config = changed(RECORDED, **(dict(cra=RECORDED.cra, selection=RECORDED.selection) | changes))
        exact = record(model, tokenizer, text, config, continuation=1)
        looked_up = trace.estimate_table.answers(config)
        rough = looked_up or trace.estimate_table.coarse(config, trace.length)
        answers = {"looked up" if looked_up else "coarse": (rough["density"], rough["recall"])}
        answers["from stored masses"] = of_stored_masses(trace, config)
        for name, (density, recall) in answers.items():
            words = ", ".join(f"{key} {value}" for key, value in changes.items())
            found = f"{apart(density, exact.density)} | {apart(recall, exact.recall_reached)}"
            print(f"| {words} | {exact.density.mean():.1%} | {name} | {found} |", flush=True)


if __name__ == "__main__":
    main()
