"""Models by name: the two that ship with the package, one that was fetched, a directory, or a hub id.

`loading.py` is the one to begin with: names, adapters, tokenizers. `config.py` reads configurations, `fetch.py`
brings weights through pip, `tiny.py` makes the networks and tokenizers of the shipped models, `encoders.py` turns text
into vectors. May import `cluster` and below.
"""

from ..moved import forward

__getattr__ = forward(__name__, "loading")
