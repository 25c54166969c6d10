"""Who of several gateways on one store is taken to live."""

import fcntl

from atlas_ray.gateway.owners import FileOwner


def test_one_that_starts_meanwhile_does_not_take_another_for_dead(tmp_path, monkeypatch):
    real, others = fcntl.flock, []

    def flock(file, how):
        if how == fcntl.LOCK_EX and not others:
            others.append("starts")
            others[0] = FileOwner(tmp_path / "owners")
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    first = FileOwner(tmp_path / "owners")
    (other,) = others
    assert other.lives(first.name) and first.lives(other.name)
    first.close()
    assert not other.lives(first.name) and first.lives(other.name)
