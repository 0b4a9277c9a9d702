"""The entry point: `streamlit run app/main.py`, from any folder. It holds the frame (navigation, open trace, layer and head)."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

import streamlit as st  # noqa: E402

from app import frame  # noqa: E402

st.set_page_config(page_title="SampleAttention explorer", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide")
frame.run()
