"""Ray: where it is, what it is asked for, and the actors that work for a stage.

`workers.py` is the one to begin with: a pool of actors that survives their deaths. `address.py` finds a cluster,
`resources.py` counts what a recipe asks for, `container.py` what this machine may use, `remote_rundir.py` brings
the run directory to nodes that have not got it, `causes.py` finds the real cause in what Ray wraps. May import
`recipe` and below.
"""
