"""What one browser tab has open. The only module with st.cache_* and st.session_state.

Opened traces are files in a folder of this process, named by the hash of their content, or folders that stay where they lie.
A Trace is read only, so sessions may share one; nothing else is shared between them.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import streamlit as st
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app import map_feed
from app.estimating import Estimates
from app.figures import heads as figure
from app.reading import ROOT, telling_head
from sampleattn.torch_windows import TorchWindows
from sampleattn.trace import Trace, TraceError
from sampleattn.trace_files import trace_errors

KEPT_TRACES = 12
# The fragments that a pick on the board of Heads runs: the picture beside it, the selectors of layer and head.
PICTURE, SELECTORS = "picture", "selectors"
# The keys of the what-if page's settings, which are not those of "Use my text".
WHAT_IF = {name: f"if_{name}" for name in ("cra", "selection", "scope", "segments", "sink_blocks", "local_blocks")}


@dataclass(frozen=True)
class Opened:
    """A trace on screen: its data, the key that stands for its content, and where it lies."""

    trace: Trace
    key: str
    path: Path
    demo: bool


def demo_path() -> Path:
    """The recorded trace of the start screen; SAMPLEATTN_DEMO names another one."""
    return Path(os.environ.get("SAMPLEATTN_DEMO") or ROOT / "data" / "traces" / "demo.zip")


@st.cache_resource(show_spinner=False)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sampleattention-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@st.cache_resource(show_spinner=False)
def _accelerator() -> TorchWindows:
    return TorchWindows().start()


@st.cache_resource(max_entries=KEPT_TRACES, show_spinner=False)
def _load(path: str, stamp: tuple) -> tuple[Trace, tuple[int, int]]:
    trace = Trace.load(path)
    if Path(path).is_file():
        trace = _unpacked(trace, f"{path}{stamp}")
    trace.accelerator = _accelerator()
    return trace, telling_head(trace)


@st.cache_resource(max_entries=KEPT_TRACES, show_spinner=False)
def _estimates(path: str, stamp: tuple) -> Estimates:
    return Estimates(_load(path, stamp)[0])


def _unpacked(trace: Trace, name: str) -> Trace:
    """The trace in a folder of its own: out of a zip, each array would be unpacked again whenever it is read."""
    folder = _folder() / "unpacked" / hashlib.sha256(name.encode()).hexdigest()[:32]
    return Trace.load(trace.save(folder))


def _stamp(path: Path) -> tuple:
    meta = path / "meta.json" if path.is_dir() else path
    status = meta.stat()
    return status.st_mtime_ns, status.st_size


def _open(path: Path, key: str, demo: bool = False) -> Opened:
    try:
        stamp = _stamp(path)
    except OSError:
        raise TraceError(f"{path.name} is not there; check the path, or record a trace.") from None
    trace, _ = _load(str(path), stamp)
    return Opened(trace, key, path, demo)


def current() -> Opened:
    """The trace of this tab: the one opened here, the one its link names, else the demo. Raises TraceError if there is none."""
    opened = st.session_state.get("opened")
    if opened is None:
        opened = _from_link("trace") or _open(demo_path(), "", demo=True)
        st.session_state["opened"] = opened
    if not opened.demo:
        st.query_params["trace"] = opened.key
    return opened


def second() -> Opened:
    """The trace that B of Compare is taken from: the one opened for it, the one the link names, else the one on show."""
    opened = st.session_state.get("second") or _from_link("trace_b")
    if opened is None:
        return current()
    st.session_state["second"] = opened
    st.query_params["trace_b"] = opened.key
    return opened


def close_second() -> None:
    """Take B from the open trace again."""
    st.session_state.pop("second", None)
    st.query_params.pop("trace_b", None)
    _forget("layer_b", "head_b")


def _from_link(name: str) -> Opened | None:
    key = st.query_params.get(name)
    if not key:
        return None
    if len(key) == 32 and all(sign in "0123456789abcdef" for sign in key):
        path, folder = _folder() / f"{key}.zip", _folder() / f"{key}.path"
        if path.is_file():
            return _open(path, key)
        if folder.is_file():
            return _open(Path(folder.read_text(encoding="utf-8")), key)
    del st.query_params[name]
    instead = (
        "the demo is shown. Open its file again from Start" if name == "trace" else "B is of the open trace. Open its file again"
    )
    say(f"The trace of this link is not open on this machine any more, so {instead}.")
    return None


def open_bytes(data: bytes, for_b: bool = False) -> None:
    """Open an uploaded zip, or with `for_b` take B of Compare from it. Raises TraceError and leaves open what was open."""
    key = hashlib.sha256(data).hexdigest()[:32]
    Trace.load(data)
    path = _folder() / f"{key}.zip"
    path.write_bytes(data)
    _take(_open(path, key), for_b)


def open_path(place: str, for_b: bool = False) -> None:
    """As `open_bytes`, a trace of this machine: a folder where it lies, of a zip a copy."""
    with trace_errors(place[:200]):
        path = Path(place).expanduser().resolve()
    Trace.load(path)
    key = hashlib.sha256(f"{path}{_stamp(path)}".encode()).hexdigest()[:32]
    if path.is_dir():
        (_folder() / f"{key}.path").write_text(str(path), encoding="utf-8")
        _take(_open(path, key), for_b)
    else:
        _take(_open(Path(shutil.copyfile(path, _folder() / f"{key}.zip")), key), for_b)


def _take(opened: Opened, for_b: bool) -> None:
    if not for_b:
        _show(opened)
        return
    close_second()
    st.session_state["second"] = opened


def open_trace(trace: Trace, keep_view: bool = False) -> None:
    """Open what was just recorded; with `keep_view` the layer, head and What-if settings on show stay."""
    with tempfile.TemporaryDirectory(dir=_folder()) as own:
        saved = trace.save(Path(own) / "new.zip")
        with saved.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        target = saved.replace(_folder() / f"{key}.zip")
    _show(_open(target, key), keep_view)


def open_demo() -> None:
    st.query_params.pop("trace", None)
    _show(_open(demo_path(), "", demo=True))


def _show(opened: Opened, keep_view: bool = False) -> None:
    _forget_oldest()
    st.session_state["opened"] = opened
    if not keep_view:
        _forget(*WHAT_IF.values())
        show_head(*first_head())


def _forget(*keys: str) -> None:
    for key in keys:
        st.session_state.pop(key, None)
    st.session_state["forgotten"] = st.session_state.get("forgotten", set()) | set(keys)


def start_at(**values: int) -> None:
    """Give widgets that are about to be drawn the values of what was just opened. Left alone, they would go on showing those of
    what was open before, while the page uses their defaults."""
    forgotten = st.session_state.get("forgotten", set())
    for key in forgotten & values.keys():
        st.session_state[key] = values[key]
        forgotten.discard(key)


def shown_head() -> tuple[int, int]:
    """The layer and head on show."""
    return st.session_state["shown_head"]


def keep_head(layer: int, head: int) -> None:
    """Keep what the selectors say."""
    st.session_state["shown_head"] = layer, head


def show_head(layer: int, head: int) -> None:
    """Put a head on show."""
    keep_head(layer, head)
    hold_head()


def hold_head() -> None:
    """The selectors drawn next take the head on show, if there is one, not what the browser says: it sends the head before a
    pick until it has got the answer."""
    st.session_state["held"] = True


def use_held_head() -> bool:
    """Give the selectors that are about to be drawn the head on show, if it is held."""
    held = st.session_state.pop("held", False)
    if held and "shown_head" in st.session_state:
        layer, head = shown_head()
        st.session_state.update(layer=layer, head=head)
    return held


def came_to(page: str) -> bool:
    """Whether this is another page than the one before."""
    before, st.session_state["shown_page"] = st.session_state.get("shown_page"), page
    return before != page


def _forget_oldest() -> None:
    packed, unpacked = (
        sorted(_folder().glob(pattern), key=lambda file: file.stat().st_mtime)[:-KEPT_TRACES]
        for pattern in ("*.zip", "unpacked/*")
    )
    for file in packed:
        file.unlink(missing_ok=True)
    for folder in unpacked:
        shutil.rmtree(folder, ignore_errors=True)


def pick_head(*fragments: str) -> None:
    """A callback: take the head that was picked on the board. It is shown on another page, as asked, or by these fragments of
    this one; by all of it, if none is named, or the page runs as a whole for another reason."""
    picked = (st.session_state.get("head_board") or {}).get("picked")
    if not picked:
        return
    layer, head = (int(number) for number in picked["place"])
    if picked["act"] == "compare":
        st.session_state.update(layer_b=layer, head_b=head)
        go_to("compare")
    show_head(layer, head)
    st.session_state["picks"] = picks() + 1
    if picked["act"] == "open":
        go_to("map")
    whole_page = not get_script_run_ctx().fragment_ids_this_run
    st.rerun("app" if whole_page or not fragments else fragments)


def picks() -> int:
    """How many heads were picked so far."""
    return st.session_state.get("picks", 0)


def pick_target() -> None:
    """A callback: take the target that What-if's slider was moved to."""
    target = st.session_state["head_board"]["target"]
    if target is not None:
        st.session_state[WHAT_IF["cra"]] = float(target)


def what_if_target(least: float) -> float:
    """The target that What-if shows: the one chosen, else its link's, else the recorded one. The address follows it."""
    key, recorded = WHAT_IF["cra"], current().trace.config.cra
    if key not in st.session_state:
        st.session_state[key] = _share(st.query_params.get(key), least, recorded)
    target = st.session_state[key]
    if target != recorded:
        st.query_params[key] = f"{target:g}"
    else:
        st.query_params.pop(key, None)
    return target


def _share(text: str | None, least: float, otherwise: float) -> float:
    try:
        share = float(text or "")
    except ValueError:
        return otherwise
    return share if least <= share <= 1 else otherwise


@st.cache_data(max_entries=64, show_spinner="Reading the heads' numbers…")
def _made_once(path: str, stamp: tuple, name: str, _make):
    return _make(_load(path, stamp)[0])


def made_once(name: str, make):
    """What make(trace) says of the open trace, such as a number of every head: made once under its name."""
    opened = current()
    return _made_once(str(opened.path), _stamp(opened.path), name, make)


@st.cache_data(max_entries=4096, show_spinner=False)
def _thumbnail(path: str, stamp: tuple, layer: int, head: int) -> np.ndarray:
    return figure.thumbnail(_load(path, stamp)[0].overview(layer, head))


def thumbnail(layer: int, head: int) -> np.ndarray:
    """A small picture of a head of the open trace (see `figures.heads`), made once."""
    opened = current()
    return _thumbnail(str(opened.path), _stamp(opened.path), layer, head)


def first_head() -> tuple[int, int]:
    """The telling head of the open trace."""
    opened = current()
    return _load(str(opened.path), _stamp(opened.path))[1]


def asked(key: str) -> dict | None:
    """What the map of this key asked for last."""
    return (st.session_state.get(key) or {}).get("asked")


def map_state() -> dict[str, str]:
    """The map's state in the page's address. A tab has one, which follows the map: files made later hold what is shown then."""
    state = st.session_state.setdefault("map_state", {})
    state.update(map_feed.checked_state(st.query_params.to_dict()))
    return state


def keep_map_state(key: str) -> None:
    """A callback: put the state of the map of this key into the address; what is usual is left out of it."""
    told = (asked(key) or {}).get("state")
    if told is None:
        return
    state, shown = map_feed.checked_state(told), st.query_params.to_dict()
    changed = {name: value for name, value in state.items() if value != shown.get(name, map_feed.USUAL[name])}
    unusual = {name: value for name, value in changed.items() if value != map_feed.USUAL[name]}
    if unusual:
        st.query_params.update(unusual)
    for name in changed.keys() - unusual.keys():
        del st.query_params[name]


def say(sentence: str) -> None:
    """A sentence for the top of the next page drawn."""
    st.session_state.setdefault("said", []).append(sentence)


def said() -> list[str]:
    return st.session_state.pop("said", [])


def pages() -> dict:
    """The pages of the navigation by url path."""
    return st.session_state["pages"]


def keep_pages(pages: dict) -> None:
    st.session_state["pages"] = pages


def go_to(path: str, **query: str) -> None:
    """Show another page with what its address shall hold; the widgets put layer and head back into it."""
    st.switch_page(pages()[path], query_params=query)


def keep_model_place(name: str, place: str) -> None:
    """Remember where this tab loaded the model from that traces call `name`: of a folder they hold the last part only."""
    st.session_state.setdefault("model_places", {})[name] = place


def model_place(name: str) -> str:
    """The folder or hub id that this tab loaded the model from, else its name."""
    return st.session_state.get("model_places", {}).get(name, name)


def job():
    """The recording of this tab, if there is one."""
    return st.session_state.get("job")


def keep_job(job) -> None:
    st.session_state["job"] = job


def pin_job():
    """The pinning of this tab, if there is one."""
    return st.session_state.get("pin_job")


def keep_pin_job(job) -> None:
    st.session_state["pin_job"] = job


def estimates() -> Estimates:
    """What was estimated of the open trace."""
    opened = current()
    return _estimates(str(opened.path), _stamp(opened.path))


def estimate_job():
    """What this tab estimates, and the job that does it; (None, None) if there is none."""
    return st.session_state.get("estimate_job", (None, None))


def keep_estimate_job(wish, job) -> None:
    st.session_state["estimate_job"] = wish, job


def exact_job():
    """The exact run of What-if's settings in this tab, if there is one."""
    return st.session_state.get("exact_job")


def keep_exact_job(job) -> None:
    st.session_state["exact_job"] = job


def timing_job():
    """The timing of this tab, if there is one."""
    return st.session_state.get("timing_job")


def keep_timing_job(job) -> None:
    st.session_state["timing_job"] = job


def still_here():
    """A function that says, from any thread, whether this tab is still connected."""
    context = get_script_run_ctx()
    if context is None or not Runtime.exists():
        return lambda: True
    return partial(Runtime.instance().is_active_session, context.session_id)
