"""Conversations for models that take no system message."""

import json

from gateway_parts import ask, chat
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.engines.chat_request import taking_turns as of_endpoints
from atlas_ray.gateway.turns import taking_turns

TALKS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()})
)


@given(TALKS)
def test_text_is_turned_as_it_is_for_our_own_agents(talk):
    assert taking_turns(talk) == of_endpoints(talk)


def test_tool_calls_names_and_answers_of_tools_stay_as_they_are():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    tool = {"role": "tool", "tool_call_id": "1", "content": "a wall"}
    named = {"role": "user", "name": "ann", "content": "hi"}
    talk = [{"role": "developer", "content": "be brief"}, named, call, tool, call, tool]
    assert taking_turns(talk) == [{"role": "user", "content": "be brief"}, *talk[1:]]


def test_parts_are_joined_as_parts():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    talk = [{"role": "system", "content": "look"}, {"role": "user", "content": [image]}]
    assert taking_turns(talk) == [{"role": "user", "content": [{"type": "text", "text": "look"}, image]}]
    assert talk[0]["content"] == "look", "the client's own is not touched"


def test_a_model_gets_it_so_where_the_recipe_says_so(upstream, serve):
    model = {"model": "m", "base_url": upstream.url, "key_variable": ""}
    port, _ = serve(models=[{**model, "send_system": False}, model], budget={"calls": 5})
    system = {"role": "system", "content": "be brief"}
    body = chat("hi")
    body["messages"].insert(0, system)
    for name in ("quick", "deepthink"):
        assert ask(port, {**body, "model": name})[0] == 200
    one, two = upstream.requests
    assert one["messages"] == [{"role": "user", "content": "be brief\n\nhi"}]
    assert json.dumps(two["messages"]) == json.dumps(body["messages"])
