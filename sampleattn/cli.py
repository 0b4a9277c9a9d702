"""The command line: python -m sampleattn record | pin | show | bench. Torch is imported only once there is something to run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path

from sampleattn import __version__
from sampleattn.config import BACKENDS, SAMPLINGS, SCOPES, SELECTIONS, SampleAttentionConfig, meanings
from sampleattn.text import printable
from sampleattn.trace_format import LEVELS

MOST_PROMPT_BYTES = 256 << 20
CHOICES = {"selection": SELECTIONS, "scope": SCOPES, "sampling": SAMPLINGS, "backend": BACKENDS}
DTYPES = ("float32", "float16", "bfloat16")
OPTIONAL = {"segments": int, "alpha_columns": float, "alpha_slashes": float, "density": float}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns 0 if it worked, 1 for an error (one line on stderr), 130 after Ctrl-C; usage errors exit with 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser(with_bench="bench" in argv[:1])
    args = parser.parse_args(argv)
    try:
        return args.run(args, parser)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        about_file = isinstance(error, OSError) and error.filename is not None
        said = f"{error.filename}: {error.strerror}" if about_file else str(error)
        print("error: " + printable(" ".join(said.split())), file=sys.stderr)
        return 1


def _parser(with_bench: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sampleattn", description="SampleAttention: record, look at and time it.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="record | pin | show | bench")

    record = commands.add_parser("record", help="run a prompt dense and sparse, and write a trace")
    record.set_defaults(run=_record)
    record.add_argument("--model", required=True, help='a model folder, a hub id, or "bundled"')
    record.add_argument("--revision", help="branch, tag or commit of a hub id")
    record.add_argument("--prompt-file", required=True, help='a UTF-8 text file; "-" reads standard input')
    record.add_argument("--out", required=True, type=Path, help="the trace to write: a folder, or one file if it ends in .zip")
    record.add_argument("--force", action="store_true", help="replace the trace at --out, once the new one is complete")
    record.add_argument("--resume", action="store_true", help="go on with a recording to --out that was stopped")
    record.add_argument("--level", choices=LEVELS, help="how much is kept (default: pinned if heads are pinned, else explore)")
    record.add_argument("--title", help="the prompt's title in the trace (default: the file's name)")
    record.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    record.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the model's own")
    record.add_argument("--pin-layers", type=_layers, default=(), metavar="0,3", help="layers to keep q and k of (exact windows)")
    record.add_argument("--pin-heads", type=_heads, default=(), metavar="3.1,4.0", help="the same of single heads: layer.head")
    record.add_argument("--continuation", type=_positive, default=32, metavar="N", help="tokens (default %(default)s)")
    record.add_argument("--cut", type=_positive, metavar="N", help="cut the prompt after N tokens")
    record.add_argument("--json", action="store_true", help="print the summary as JSON")
    record.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _add_settings(record.add_argument_group("settings of the method"))

    pin = commands.add_parser("pin", help="keep q and k of heads of a recorded trace, for exact windows at any zoom")
    pin.set_defaults(run=_pin)
    pin.add_argument("trace", type=Path, help="a trace folder or .zip; changed in place")
    pin.add_argument("--model", required=True, help='the model that was recorded: a folder, a hub id, or "bundled"')
    pin.add_argument("--revision", help="branch, tag or commit of a hub id")
    pin.add_argument("--heads", required=True, type=_heads, metavar="3.1,4.0", help="which: layer.head")
    pin.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    pin.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the model's own")
    pin.add_argument("--half", action="store_true", help="keep float16 also where the model runs in float32: half the size")

    show = commands.add_parser("show", help="print the summary of a trace")
    show.set_defaults(run=_show)
    show.add_argument("trace", help="a trace folder or .zip")
    show.add_argument("--json", action="store_true", help="print it as JSON")

    bench = commands.add_parser("bench", help="time SampleAttention and dense attention on planted inputs")
    bench.set_defaults(run=_bench)
    if with_bench:
        from sampleattn.bench.command import add_arguments

        add_arguments(bench)
    return parser


def _add_settings(group):
    meant = meanings()
    for field in dataclasses.fields(SampleAttentionConfig):
        kind = OPTIONAL.get(field.name) or type(field.default)
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            choices=CHOICES.get(field.name),
            default=field.default,
            metavar=None if field.name in CHOICES else kind.__name__.upper(),
            help=f"{meant.get(field.name, '').rstrip('.').replace('%', '%%')} (default: {field.default})",
        )


def _layers(text):
    return tuple(sorted({int(part) for part in text.split(",")}))


def _heads(text):
    pairs = sorted({tuple(int(number) for number in part.split(".")) for part in text.split(",")})
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError("write layer.head, as in 3.1,4.0")
    return tuple(pairs)


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _record(args, parser) -> int:
    try:
        config = SampleAttentionConfig.from_dict({name: getattr(args, name) for name in SampleAttentionConfig().to_dict()})
    except ValueError as error:
        parser.error(str(error))
    text = _read_prompt(args.prompt_file)
    if args.out.exists() and not args.force:
        raise ValueError(f"{args.out} already exists; give another name, or --force to replace it.")
    partial = _stopped_folder(args.out) if args.resume else _partial_folder(args.out)
    from sampleattn.summary import table
    from sampleattn.trace import Trace

    progress = None if args.quiet else _Progress()
    try:
        path = _run_model(args, config, text, partial, progress).save(args.out)
        shutil.rmtree(partial)
    except BaseException as error:
        if not (partial / "meta.json").is_file():
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if isinstance(error, KeyboardInterrupt):
            print(f"\nstopped; what was recorded so far is in {partial}, and --resume goes on with it", file=sys.stderr)
            return 130
        print(f"\nwhat was recorded so far is in {partial}, and --resume goes on with it", file=sys.stderr)
        raise
    finally:
        if progress:
            progress.close()
    trace = Trace.load(path)
    print(_as_json(trace, path) if args.json else f"{table(trace)}\n\nwritten to {path}")
    return 0


def _load_model(args):
    import torch
    from transformers.utils import logging

    from sampleattn.models import load_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return load_model(args.model, device, dtype, args.revision)


def _pin(args, parser) -> int:
    from sampleattn.trace import Trace

    Trace.load(args.trace)
    model, _, _ = _load_model(args)
    from sampleattn.pinning import pin

    pin(args.trace, model, args.heads, args.half)
    print(f"{args.trace}: pinned {', '.join(f'{layer}.{head}' for layer, head in args.heads)} (layer.head)")
    return 0


def _run_model(args, config, text, folder, progress):
    from sampleattn.recorder import record

    if progress:
        progress(0.0, f"loading {args.model}", None)
    model, tokenizer, info = _load_model(args)
    return record(
        model,
        tokenizer,
        text,
        config,
        level=args.level,
        out=folder,
        resume=args.resume,
        title=args.title or ("" if args.prompt_file == "-" else Path(args.prompt_file).name),
        progress=progress,
        pin_layers=args.pin_layers,
        pin_heads=args.pin_heads,
        continuation=args.continuation,
        max_tokens=args.cut,
        model_name=info["name"],
        revision=info["revision"] or None,
    )


def _read_prompt(name):
    with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as stream:
        data = stream.read(MOST_PROMPT_BYTES + 1)
    if len(data) > MOST_PROMPT_BYTES:
        raise ValueError(f"{name} has more than {MOST_PROMPT_BYTES >> 20} MB, too much for a prompt; give a smaller file.")
    if b"\0" in data[:65536]:
        raise ValueError(f"{name} is a binary file, not text; give a UTF-8 text file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 (byte {error.start:,}); save it as UTF-8.") from None


def _partial_folder(out: Path) -> Path:
    """A new folder where the trace grows until it is complete, beside what earlier or other recordings to this name left."""
    for n in itertools.count(1):
        partial = out.with_name(out.name + ".partial" + (f".{n}" if n > 1 else ""))
        try:
            partial.mkdir(parents=True)
        except FileExistsError:
            continue
        return partial


def _stopped_folder(out: Path) -> Path:
    """The folder of the last recording to `out` that was stopped."""
    stopped = sorted(out.parent.glob(f"{glob.escape(out.name)}.partial*/meta.json"), key=lambda meta: meta.stat().st_mtime)
    if not stopped:
        raise ValueError(f"There is no stopped recording to {out}; leave --resume out to record it.")
    return stopped[-1].parent


def _show(args, parser) -> int:
    from sampleattn.summary import table
    from sampleattn.trace import Trace

    trace = Trace.load(args.trace)
    print(_as_json(trace, args.trace) if args.json else table(trace))
    return 0


def _bench(args, parser) -> int:
    from sampleattn.bench.command import run

    return run(args)


def _as_json(trace, path) -> str:
    from sampleattn.summary import layer_rows, summarise

    meta = trace.meta
    keys = ("model", "prompt", "settings", "machine", "timings", "created")
    return json.dumps(
        {
            "trace": str(path),
            "complete": trace.complete,
            "summary": summarise(trace),
            "layers": layer_rows(trace),
            **{key: meta[key] for key in keys},
        },
        indent=2,
    )


class _Progress:
    """One line on stderr that is overwritten; where stderr is no terminal, a line for each new step."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.text, self.shown = "", 0.0

    def __call__(self, share: float, text: str, left: float | None):
        now = time.monotonic()
        if text == self.text and (not self.terminal or now - self.shown < 0.1):
            return
        self.text, self.shown = text, now
        time_left = "" if left is None else f", about {_duration(left)} left"
        line = f"{100 * share:3.0f}%  {text}{time_left}"
        print(f"\r\033[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def close(self):
        if self.terminal and self.text:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _duration(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
