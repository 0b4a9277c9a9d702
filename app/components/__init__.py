"""What is painted in the browser: the map of a head, the board of all heads, a line of tokens; and the page's style and history.

Their code is ours alone; text of a trace or a user only ever reaches the page through textContent or a canvas.
"""

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent


def _component(name: str, css: str = "", scripts: tuple[str, ...] = ()):
    """The component of `name`.js and .css, or of several scripts read as one."""
    js = "\n".join((HERE / script).read_text(encoding="utf-8") for script in scripts or (f"{name}.js",))
    css = (HERE / (css or f"{name}.css")).read_text(encoding="utf-8")
    return st.components.v2.component(f"sampleattention_{name}", html='<div class="root"></div>', js=js, css=css)


MAP_PARTS = ("unpack", "dom", "view", "pictures", "paint", "axes", "address", "readout", "minimap", "panel", "ribbon",
             "pointer", "keys", "main")  # fmt: skip
_map_scripts = tuple(f"map/{part}.js" for part in MAP_PARTS)
_map_canvas = _component("map_canvas", "map/map.css", (*_map_scripts, "map/entry.js"))
_map_compare = _component("map_compare", "map/map.css", (*_map_scripts, "map/compare.js"))
_board_scripts = ("map/unpack.js", "map/dom.js", "head_board.js")
_head_board = _component("head_board", scripts=(*_board_scripts, "head_board_entry.js"))
_target_board = _component("target_board", "head_board.css", (*_board_scripts, "target_board.js"))
_token_line = _component("token_line")


_snippet = _component("snippet")
_page = st.components.v2.component(
    "sampleattention_page",
    html='<span class="page-frame"></span>',
    js=(HERE / "page.js").read_text(encoding="utf-8"),
    css=(HERE / "page.css").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def page() -> None:
    """The style of the whole page, and its history: one press of Back undoes one act. To be called before what is drawn."""
    _page(key="page")


def map_canvas(buffer: bytes, key: str, on_asked) -> None:
    """Paint the map that `map_feed.message` packed. When it needs more, or its state changes, `on_asked` is called and the
    fragment runs again; session_state[key]["asked"] says what is asked."""
    _map_canvas(data=buffer, key=key, on_asked_change=on_asked)


def map_compare(buffer: bytes, key: str, on_asked) -> None:
    """Paint the maps that `map_feed.comparison` packed side by side; `on_asked` as for `map_canvas`."""
    _map_compare(data=buffer, key=key, on_asked_change=on_asked)


def head_board(buffer: bytes, key: str, on_pick) -> None:
    """Draw the board of heads that `figures.heads.board` packed. When a head is picked, `on_pick` is called; it reads
    session_state[key]["picked"]: {"place": [layer, head], "compare": bool}."""
    _head_board(data=buffer, key=key, on_picked_change=on_pick)


def target_board(buffer: bytes, key: str, on_pick, on_target) -> None:
    """Draw a board of heads below a slider of targets (see `figures.heads.target_board`); `on_pick` as for `head_board`. When the
    slider is moved, `on_target` is called; it reads session_state[key]["target"], one of the header's targets."""
    _target_board(data=buffer, key=key, on_picked_change=on_pick, on_target_change=on_target)


def token_line(pieces: list[str], others: list[str], key: str) -> None:
    """Write the pieces in a row, line ends kept; those that differ from `others` are marked, the first one with an arrow."""
    different = [i >= len(others) or piece != others[i] for i, piece in enumerate(pieces)]
    _token_line(data={"pieces": pieces, "different": different}, key=key)


def snippet(text: str, key: str) -> None:
    """Show text to take along, such as a command, with a button that copies it and that the Tab key reaches."""
    _snippet(data=text, key=key)
