"""A trace in a few numbers, and as a table for a terminal. Numpy only."""

from __future__ import annotations

import numpy as np

from sampleattn.text import printable
from sampleattn.trace import Trace

SPARSE_STAGES = ("sampling", "filtering", "sparse_attention")


def summarise(trace: Trace) -> dict:
    """The totals of a trace: plain numbers, None where something was not recorded.

    Over all analysed layers and heads: density, oracle_density, output_error, rows_at_target (means), cra (exact, the worst
    head's), sparse_run_density. Of the predictions: kl (mean, nats), top1_agreement (share), perplexities, next_token_kl and
    next_token_equal, continuation (tokens), first_difference.
    """
    info = trace.meta["layers"]
    totals = {
        "layers": trace.layers,
        "analysed_layers": len(trace.recorded_layers),
        "sparse_layers": sum(entry["ran"] == "sparse" for entry in info),
        "density": _mean(trace.density),
        "sparse_run_density": _mean(trace.sparse_run_density),
        "oracle_density": _mean(trace.oracle_density),
        "cra": _least(trace.cra),
        "rows_at_target": _mean(trace.rows_at_target),
        "output_error": _mean(trace.output_error),
    }
    output = trace.output
    if output is None:
        return totals
    return totals | {
        "kl": _mean(output.kl),
        "top1_agreement": _mean(output.top1_equal),
        "perplexity_dense": _perplexity(output.nll_dense),
        "perplexity_sparse": _perplexity(output.nll_sparse),
        "next_token_kl": _mean(output.continuation_kl[:1]),
        "next_token_equal": bool(output.logits_dense.argmax() == output.logits_sparse.argmax()),
        "continuation": len(output.continuation_dense),
        "first_difference": output.first_difference,
    }


def column_share(trace: Trace) -> np.ndarray:
    """Of all rows' mass in a head's kept columns and in its kept slashes, the share in columns. float [layers, heads]

    A tile of both counts in both; a column or slash kept in any segment counts whole. NaN where not analysed, or nothing is kept.
    """
    shares = np.full((trace.layers, trace.heads), np.nan)
    for layer in trace.recorded_layers:
        for head in range(trace.heads):
            columns = trace.column_mass(layer, head)[trace.columns(layer, head)].sum(dtype=np.float64)
            slashes = trace.slash_mass(layer, head)[trace.slashes(layer, head)].sum(dtype=np.float64)
            if columns + slashes > 0:
                shares[layer, head] = columns / (columns + slashes)
    return shares


def sparse_seconds(trace: Trace) -> np.ndarray:
    """Seconds that each layer's sampling, filtering and sparse attention took; NaN where not recorded. float [layers]"""
    seconds = np.full(trace.layers, np.nan)
    for entry in trace.meta["layers"]:
        if entry["seconds"].keys() >= set(SPARSE_STAGES):
            seconds[entry["layer"]] = sum(entry["seconds"][stage] for stage in SPARSE_STAGES)
    return seconds


def layer_rows(trace: Trace) -> list[dict]:
    """One dict per layer: how it ran and why; density, oracle, worst CRA, rows at target, output error over its heads; labels."""
    entries = {entry["layer"]: entry for entry in trace.meta["layers"]}
    rows = []
    for layer in range(trace.layers):
        entry = entries.get(layer, {"ran": "", "reason": "", "labels": []})
        rows.append(
            {
                "layer": layer,
                "ran": entry["ran"],
                "reason": entry["reason"],
                "density": _mean(trace.density[layer]),
                "oracle_density": _mean(trace.oracle_density[layer]),
                "cra": _least(trace.cra[layer]),
                "rows_at_target": _mean(trace.rows_at_target[layer]),
                "output_error": _mean(trace.output_error[layer]),
                "labels": entry["labels"],
            }
        )
    return rows


def table(trace: Trace) -> str:
    """The summary as text: a line per layer, the totals, and what both runs predict."""
    model, prompt = trace.meta["model"], trace.meta["prompt"]
    state = "" if trace.complete else "; the recording was not finished, this is what it has"
    lines = [
        f"{printable(model['name'])}: {prompt['tokens']:,} tokens, {model['layers']} layers x {model['heads']} heads, "
        f"CRA target {trace.config.cra:g}, selection {trace.config.selection}{state}",
        "",
        f"{'layer':>5} {'ran':>7} {'density':>8} {'oracle':>8} {'CRA exact':>10} {'at target':>10} {'out error':>10}",
    ]
    for row in layer_rows(trace):
        lines.append(_line(row["layer"], row["ran"] or "-", row) + (f"  {printable(row['reason'])}" if row["reason"] else ""))
    totals = trace.meta["summary"] or summarise(trace)
    lines += [_line("all", "", totals), ""]
    if trace.output is None:
        return "\n".join([*lines, "Predictions were not recorded."])
    first = trace.output.first_difference
    same = f"equal for all {totals['continuation']} tokens" if first is None else f"differs from token {first} on"
    lines += [
        f"continuation   {same}; next token {'equal' if totals['next_token_equal'] else 'differs'}",
        f"prompt         top-1 agreement {_percent(totals['top1_agreement'])}, KL {totals['kl']:.2e} nats, "
        f"perplexity {totals['perplexity_dense']:.4g} dense, {totals['perplexity_sparse']:.4g} sparse",
    ]
    timings = trace.meta["timings"]
    if {"dense_run_s", "sparse_run_s"} <= timings.keys():
        lines.append(f"seconds        dense run {timings['dense_run_s']:.2f}, sparse run {timings['sparse_run_s']:.2f}")
    return "\n".join(lines)


def _line(name, ran, row):
    shares = [_percent(row[key]) for key in ("density", "oracle_density")]
    cra, error = (f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("cra", "output_error"))
    return f"{name:>5} {ran:>7} {shares[0]:>8} {shares[1]:>8} {cra:>10} {_percent(row['rows_at_target']):>10} {error:>10}"


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}%"


def _mean(values):
    values = np.asarray(values, np.float64)
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else None


def _least(values):
    return None if np.isnan(values).all() else float(np.nanmin(values))


def _perplexity(nll):
    mean = _mean(nll)
    return None if mean is None else float(np.exp(min(mean, 700.0)))
