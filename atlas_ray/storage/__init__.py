"""One run on S3, GCS or a shared directory, kept while it goes on.

`sync.py` is the one to begin with: the run and its copy. `snapshot.py` says what of a run travels,
`object_store.py` reads and writes a place, `place.py` whether a place can be one at all. May import `recipe`,
`rundir` and `errors`.
"""

from ..moved import forward

__getattr__ = forward(__name__, "object_store")
