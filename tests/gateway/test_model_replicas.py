"""Local models behind the gateway as deployments of Ray Serve decide and act as in the switch stage."""

import pytest
from gateway_parts import HOST
from switch_models import SHAPES, model, specs

from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.gateway.opening import recipe_of_gateway
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.switching.evaluate import evaluate_policy
from tests.gateway.test_learned import STEPS, play, run, switch_that_calls
from tests.gateway.test_replicas import TWO, free_port, pids

replicas = pytest.importorskip("atlas_ray.gateway.replicas", reason="Ray Serve: needs the extra 'gateway-ray'")
__all__ = ["run"]


@pytest.mark.slow
def test_local_models_are_deployments_of_their_own(ray_session, run, tmp_path):
    given = recipe_of_gateway(run, "switch-budget2-seed0").model_dump()
    given["engine"] |= {"cpus": 0.5, "actors": 2}
    given["gateway"] |= {"autoscaling": TWO}
    made = type(recipe_of_gateway(run, "switch-budget2-seed0")).model_validate(given)
    own = [Agent(TransformersEngine(model(name), 4, build_tokenizer()), made.style) for name in SHAPES]
    expected = evaluate_policy(switch_that_calls(), own, specs(STEPS), range(4), 2, record=True)
    port = free_port()
    with replicas.deployed(made, tmp_path, HOST, port):
        assert [len(pids(name)) for name in ("gateway", "model-0", "model-1")] == [2, 2, 2]
        clients = [play(port, seed) for seed in range(4)]
    for client, row in zip(clients, expected, strict=True):
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert client.called_at == row["called_at"]
