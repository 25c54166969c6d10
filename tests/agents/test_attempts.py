"""What an environment's death may end is tried again, so often and no more."""

import pytest

from atlas_ray import envs
from atlas_ray.agents.attempts import MOST_ATTEMPTS, Attempts


def tried(errors, most=MOST_ATTEMPTS):
    """How often a block ran that raises these errors one after the other, and the deaths that were noted."""
    attempts, count = Attempts(most), 0
    raised = None
    try:
        for attempt in attempts:
            with attempt:
                count += 1
                if count <= len(errors):
                    raise errors[count - 1]
    except Exception as error:
        raised = error
    return count, attempts.deaths, raised


@pytest.mark.parametrize("deaths", range(MOST_ATTEMPTS))
def test_it_goes_well_after_fewer_deaths_than_attempts(deaths):
    errors = [envs.EnvironmentDiedError(str(n)) for n in range(deaths)]
    assert tried(errors) == (deaths + 1, errors, None)


def test_the_last_death_is_raised():
    errors = [envs.EnvironmentDiedError(str(n)) for n in range(5)]
    assert tried(errors) == (MOST_ATTEMPTS, errors[:MOST_ATTEMPTS], errors[MOST_ATTEMPTS - 1])
    assert tried(errors, 1) == (1, errors[:1], errors[0])


def test_any_other_error_ends_it_at_once():
    died, wrong = envs.EnvironmentDiedError("died"), ValueError("wrong")
    assert tried([died, wrong]) == (2, [died], wrong)
