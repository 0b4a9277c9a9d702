"""The dialog that opens a trace: an upload, or a path on the machine that runs the page."""

import streamlit as st

from app import parts, session
from sampleattn.trace import TraceError

UPLOAD = "A trace as one .zip of at most 256 MB (a larger one turns red and is not read: give its path below)"


@st.dialog("Open a trace", width="medium")
def dialog(for_b: bool = False) -> None:
    """Choose a file or a place; with `for_b` B of Compare is taken from it."""
    upload = st.file_uploader(UPLOAD, type="zip", key="trace_upload")
    place = st.text_input(
        "or a trace folder or .zip on the machine that runs this page", key="trace_path", placeholder="/data/my_trace.zip"
    )
    if st.button("Open", type="primary", disabled=not (upload or place.strip())):
        try:
            if upload:
                session.open_bytes(upload.getvalue(), for_b)
            else:
                session.open_path(place.strip(), for_b)
        except TraceError as error:
            parts.failure(error)
            st.caption("What was open stays open.")
        else:
            st.rerun()
