"""The entry point: `streamlit run app/main.py`, from any folder. It holds the frame (navigation, open trace, layer and head)."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

# Read when numpy is loaded. Tiles of a map are computed side by side; threads inside each would wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import streamlit as st  # noqa: E402

from app import frame  # noqa: E402

st.set_page_config(page_title="SampleAttention explorer", page_icon=str(Path(__file__).with_name("icon.png")), layout="wide")
frame.run()
