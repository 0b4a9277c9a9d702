"""SampleAttention for any transformers model: run it, record it, look at what it kept.

The names below are loaded on first use, so that reading a trace needs neither torch nor transformers.
"""

from importlib import import_module

_HOME = {
    "SampleAttentionConfig": "config",
    "sample_attention": "attention",
    "use_sample_attention": "hf",
    "record": "recorder",
    "Trace": "trace",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
