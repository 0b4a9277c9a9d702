"""What tests of traces share: everything that a view may read, and the altering of files as an attacker would."""

import hashlib
import json

import numpy as np
import pytest

from sampleattn.trace import Trace, TraceError
from sampleattn.trace_format import META
from sampleattn.trace_meta import dump_meta


def read_everything(trace):
    """Every array that a view may ask for."""
    names = ("density", "cra", "sampled_cra", "output_error", "oracle_density", "rows_at_target", "recall_reached",
             "recall_of_99", "sparse_run_density")  # fmt: skip
    values = [trace.token_ids, trace.offsets, np.array(trace.tokens), *(getattr(trace, name) for name in names)]
    values += [trace.columns_kept, trace.slashes_kept]
    for layer in trace.recorded_layers:
        values.append(trace.rows(layer))
        for head in range(trace.heads):
            for name in ("overview", "recall", "block_mask", "columns", "slashes", "column_mass", "slash_mass", "tile_masses",
                         "recall_quantiles"):  # fmt: skip
                values.append(getattr(trace, name)(layer, head))
            if trace.pinned(layer, head):
                values.append(trace.window(layer, head, (0, trace.length), (0, trace.length // 2 + 1), (16, 16)))
    output = trace.output
    if output is not None:
        values += [output.logits_dense, output.kl, output.top1_equal, output.continuation_sparse]
    return values


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.floating)) for x, y in zip(a, b, strict=True))


def rewrite(folder, **changes):
    """meta.json with some fields changed and a fresh checksum: what an attacker, not an accident, would write."""
    meta = json.loads((folder / META).read_bytes())
    meta.update(changes)
    (folder / META).write_bytes(dump_meta(meta))


def rehash(folder, name):
    data = (folder / name).read_bytes()
    files = json.loads((folder / META).read_bytes())["files"]
    rewrite(folder, files=files | {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


def assert_refused(place, *words):
    with pytest.raises(TraceError) as caught:
        read_everything(Trace.load(place))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    for word in words:
        assert word in message
    return message
