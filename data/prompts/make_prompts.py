"""Write the example prompts: held-out code and passkey prompts of about 4,096 and 16,384 tokens.

    python data/prompts/make_prompts.py [--model data/model] [--out data/prompts]

The code comes from installed packages that the bundled model never saw (held out in data/model/manifest.json, checked by
SHA-256). Files are joined whole, with their licence headers; the last one ends at a line break.
"""

import argparse
import json
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "model"))

from corpus import installed_packages, read_source, sha256  # noqa: E402
from tasks import Tasks  # noqa: E402

CODE = {  # package: (licence, files in the order they are joined)
    "rich": ("MIT", ("rich/columns.py", "rich/panel.py", "rich/align.py", "rich/progress_bar.py")),
    "networkx": (
        "BSD-3-Clause",
        (
            "networkx/algorithms/dag.py",
            "networkx/algorithms/bridges.py",
            "networkx/algorithms/clique.py",
            "networkx/algorithms/cycles.py",
            "networkx/algorithms/matching.py",
        ),
    ),
}
ROOM_FOR_ANSWER = 32  # tokens kept free under the model's context, so that a passkey prompt and its continuation fit
SEED = 11


def held_out_files(manifest, package_name):
    """The files named in CODE that are held out and installed here unchanged. -> {name: text}, in CODE's order."""
    digests = next(entry for entry in manifest["held_out"] if entry["name"] == package_name)["sha256"]
    paths = next(package for package in installed_packages() if package.name == package_name).paths
    texts = {name: read_source(paths[name]) for name in CODE[package_name][1] if name in digests and name in paths}
    return {name: text for name, text in texts.items() if text and sha256(text) == digests[name]}


def joined_code(tokenizer, files, tokens):
    """Whole files until there are at least `tokens` tokens, the last one cut at a line break. -> text, names used."""
    text, names = "", []
    for name, source in files.items():
        names.append(name)
        lines = (f"# {name}\n" + source.rstrip() + "\n\n").splitlines(keepends=True)
        whole = text + "".join(lines)
        if len(tokenizer.encode(whole).ids) >= tokens:
            low, high = 0, len(lines)  # the least number of lines that is enough
            while low < high:
                middle = (low + high) // 2
                if len(tokenizer.encode(text + "".join(lines[:middle])).ids) >= tokens:
                    high = middle
                else:
                    low = middle + 1
            return text + "".join(lines[:low]), names
        text = whole
    raise SystemExit(f"the files of {names[0]} have fewer than {tokens} tokens")


def licence_text(package_name):
    files = distribution(package_name).files or ()
    return "\n".join(
        Path(f.locate()).read_text()
        for f in files
        if ".dist-info" in f.as_posix() and f.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE.parent / "model")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tasks, rng = Tasks(tokenizer), np.random.default_rng(SEED)
    manifest = json.loads((args.model / "manifest.json").read_text())
    entries, notices = [], []

    def add(file, text, title, description, package, **more):
        (args.out / file).write_text(text)
        entries.append(
            {
                "file": file,
                "title": title,
                "description": description,
                "tokens": len(tokenizer.encode(text).ids),
                "source": f"{package} {distribution(package).version}",
                "licence": CODE[package][0],
                **more,
            }
        )

    for package, size, count in (("rich", "4k", 4096), ("networkx", "16k", 16384)):
        files = held_out_files(manifest, package)
        code, names = joined_code(tokenizer, files, count)
        add(
            f"held_out_{size}.txt",
            code,
            f"Python code, {size.upper()} tokens",
            f"Real code the bundled model never saw: {', '.join(names)}.",
            package,
        )
        filler = tasks.encode("\n".join(files.values()))
        filler = np.tile(filler, 1 + count // len(filler))
        length = count if size == "4k" else count - ROOM_FOR_ANSWER
        case = tasks.passkey(rng, filler, length, depth=0.35)
        answer = tokenizer.decode(case.answer).strip()
        add(
            f"passkey_{size}.txt",
            tokenizer.decode(case.prompt),
            f"Passkey, {size.upper()} tokens",
            "One line with a five-digit key at about a third of the way through code, asked for at the end.",
            package,
            answer=answer,
        )
        notices.append(
            f"## {package} {distribution(package).version} ({CODE[package][0]})\n\n"
            f"Files: {', '.join(names)}, in held_out_{size}.txt and passkey_{size}.txt.\n\n"
            f"```\n{licence_text(package).strip()}\n```\n"
        )

    (args.out / "index.json").write_text(json.dumps(entries, indent=1) + "\n")
    (args.out / "NOTICE.md").write_text(
        "# Where the example prompts come from\n\nMade by make_prompts.py from packages that are held out of the bundled model's "
        "training data.\nWhat was added: a comment line with each file's name, and in the passkey prompts the passkey lines.\n\n"
        + "\n".join(notices)
    )


if __name__ == "__main__":
    main()
