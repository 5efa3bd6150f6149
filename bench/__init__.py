"""Side-by-side measurements against peers: `python -m bench`."""

from pathlib import Path

CACHE = Path(".cache/bench")  # what is made once and measured often, and logs
