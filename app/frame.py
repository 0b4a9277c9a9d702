"""The frame around every view: navigation, what is open, and the layer and head on show."""

import streamlit as st

from app import components, session
from app.reading import counted, model_name, plain, title
from app.views import compare, head_map, heads, output, overview, recall, speed, text, what_if
from sampleattn.trace import TraceError

START, TEXT = "overview", "Use my text"
# Function, name, url path, icon, and the question that the page answers.
PAGES = (
    (overview.page, "Start", "overview", ":material/image:", "What does sparse prefill look like?"),
    (text.page, TEXT, "text", ":material/edit_note:", "What does it look like on my text, with my model?"),
    (heads.page, "Heads", "heads", ":material/grid_view:", "Which heads break, and where does the time go?"),
    (head_map.page, "Map", "map", ":material/grid_on:", "What was kept, what was dropped, did it matter?"),
    (compare.page, "Compare", "compare", ":material/compare:", "How do two heads differ?"),
    (recall.page, "Recall", "recall", ":material/show_chart:", "Which rows lose their attention?"),
    (what_if.page, "What-if", "what_if", ":material/tune:", "How low can I go on my prompt?"),
    (speed.page, "Speed", "speed", ":material/speed:", "Is it worth it on my GPU, at my length?"),
    (output.page, "Output", "output", ":material/compare_arrows:", "Does the model still say the same?"),
)
# Pages that show nothing of a single head: its choice keeps its value there, but is hidden.
HEADLESS = (TEXT, "Speed", "Output")
# The page on which a pick runs the picture and the selectors alone.
PICKING = "Heads"
QUESTIONS = {name: question for _, name, _, _, question in PAGES}


def pages() -> dict:
    """The pages by url path."""
    return {
        path: st.Page(function, title=name, url_path=path, icon=icon, default=path == START)
        for function, name, path, icon, _ in PAGES
    }


def run() -> None:
    """Draw the navigation, the line that says what is open, and the page."""
    components.page()
    known = pages()
    chosen = st.navigation(list(known.values()), position="top")
    session.keep_pages(known)
    try:
        opened = session.current()
    except TraceError as error:
        st.warning(f"{plain(str(error))} Without a trace, start with *Use my text*.", icon=":material/folder_off:")
        if chosen.title == TEXT:
            chosen.run()
        return
    for sentence in session.said():
        st.info(sentence, icon=":material/info:")
    try:
        _what_is_open(opened, chosen.title)
        chosen.run()
    except TraceError as error:
        _unreadable(error)


def _unreadable(error: TraceError) -> None:
    """Say why the open trace can't be drawn, and offer the way back."""
    st.error(plain(str(error)), icon=":material/error:")
    if st.button("Back to the demo", icon=":material/undo:", key="leave_trace"):
        session.open_demo()
        st.rerun()


def _what_is_open(opened, name: str) -> None:
    """The page's question, what is open, and the choice of a layer and a head."""
    trace = opened.trace
    line, choice = st.columns([3, 1], vertical_alignment="center")
    state = "" if trace.complete else " · recording stopped early, layers recorded so far"
    elsewhere = "On the other pages now: " if name == TEXT else ""
    line.markdown(
        f"## {QUESTIONS[name]}\n\n{elsewhere}**{plain(title(trace))}** · {trace.length:,} tokens · {plain(model_name(trace))}, "
        f"{counted(trace.layers, 'layer')} × {counted(trace.heads, 'head')} · target {trace.config.cra:g}"
        f"{' · demo' if opened.demo else ''}{state}"
    )
    if session.came_to(name) or name == PICKING:
        session.hold_head()
    with choice:
        (_choice_alone if name == PICKING else _choice)(trace, "no_head" if name in HEADLESS else "head_choice")


def _choice(trace, key: str) -> bool:
    """The selectors of the layer and head on show; False if they show what was chosen with them, not the head that is held."""
    held, first, chosen = session.use_held_head(), session.first_head(), []
    with st.container(key=key, horizontal=True, vertical_alignment="center", horizontal_alignment="right"):
        for i, (name, count) in enumerate((("layer", trace.layers), ("head", trace.heads))):
            st.markdown(name.capitalize(), width="content")
            chosen.append(
                st.selectbox(
                    name.capitalize(),
                    range(count),
                    index=first[i],
                    key=name,
                    bind="query-params",
                    label_visibility="collapsed",
                    width=84,
                )
            )
    session.keep_head(*chosen)
    return held


@st.fragment(key=session.SELECTORS)
def _choice_alone(trace, key: str) -> None:
    """The selectors as a fragment: a pick runs them without the page; what is chosen with them, the page follows."""
    if not _choice(trace, key):
        st.rerun()
