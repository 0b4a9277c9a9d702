"""One file per screen; each has `page()`."""
