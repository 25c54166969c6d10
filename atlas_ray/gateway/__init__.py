"""A switch behind OpenAI's chat API, with budgets that hold: ``atlas-ray gateway`` (ours).

Begin with ``answering.py``: what becomes of one request. ``requests.py`` reads it, ``admission.py`` finds its session,
decides who acts and reserves the worst case in one transaction of ``store.py``, ``upstream.py`` asks a model behind
HTTP and ``local.py`` one of a run, and what came back settles the reservation. ``routes.py`` and ``limits.py`` are the
HTTP side, ``recording.py`` writes sessions as trajectories. Needs the extra ``gateway``. It may import whatever is on
a lower floor than the command line; of ``serving`` it takes how bodies are limited.
"""
