"""The model that a trace was recorded with, to be run again: the user says where it is, and nothing is looked for before that."""

import streamlit as st

from app import session


def ask(trace, key: str) -> str:
    """Where the user says the model is, at first its name in the trace, or the folder that this tab recorded it from."""
    usual = session.model_place(trace.meta["model"]["name"])
    return st.text_input("The model that was recorded: a folder on this machine, or a hub id", usual, key=key).strip()
