"""Environments of this package in the hands of others: OpenEnv's protocol, packages for verifiers (ours).

What an extra brings is imported when it is asked for. May import what lies below ``gateway``'s floor.
"""
