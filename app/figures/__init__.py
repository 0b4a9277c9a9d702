"""Arrays in, figures out: no streamlit, no torch. A figure is a `chart.Chart`, drawn by `interactive` or `static`."""
