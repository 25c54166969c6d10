"""Amounts and limits, the worst case, and that no order of events exceeds a limit."""

import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from gateway_parts import answer_of, ask, chat, recipe, tokens_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_ray.gateway.budget import SessionAccount, offer, read_usage, worst_case
from atlas_ray.gateway.replies import ApiError
from atlas_ray.gateway.requests import read_request
from atlas_ray.gateway.store import Store
from atlas_ray.gateway.tables import reservations, sessions
from atlas_ray.recipe.gateway import GatewayModel
from atlas_ray.switching.spending import Account, Amount, Limits, Usage, cost, dollars, picodollars

MODELS = recipe("http://127.0.0.1:1/v1").gateway.models
JSON = {"content-type": "application/json"}


def request(body):
    import json

    return read_request(json.dumps(body, ensure_ascii=False).encode(), JSON)


def test_money_is_exact_and_limits_are_never_looser_than_what_was_said():
    assert picodollars("0.20") == 200_000_000_000
    assert picodollars("0.0000000000019") == 1
    assert cost(MODELS[1], Usage(1, 0), True) == Amount(1, 1, 2_000_000)
    dear = MODELS[1].model_copy(update={"price_prompt": 0.0000001, "price_completion": 0.0})
    assert cost(dear, Usage(1, 0), True).usd == 1, "a fraction of a picodollar is rounded up"
    assert dollars(200_000_000_000) == Decimal("0.2")
    assert Limits(3, None, 7).tightened(Limits(5, 9, 2)) == Limits(3, 9, 2)
    assert str(Limits(3, None, 10**10).left(Amount(1, 5, 4 * 10**9))) == "calls=2 usd=0.006"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(1, 100))
def test_the_worst_case_is_no_less_than_what_a_byte_level_tokenizer_reads(texts, limit):
    try:
        made = request(chat(*texts, max_tokens=limit))
    except UnicodeEncodeError:
        return
    worst = worst_case(MODELS[0], made)
    bytes_said = sum(len(m["content"].encode()) for m in made.messages)
    assert worst.prompt >= bytes_said + 16 * len(texts) and worst.prompt >= tokens_of(made.body)
    assert worst.completion == min(limit, 50)


def test_images_have_no_bound_but_the_context():
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    made = request({"model": "londi", "messages": [{"role": "user", "content": parts}]})
    with pytest.raises(ApiError, match="context") as error:
        worst_case(MODELS[0], made)
    assert (error.value.status, error.value.reason) == (400, "unbounded_cost")
    assert worst_case(MODELS[0].model_copy(update={"context": 8000}), made) == Usage(8000, 50)


def test_a_tokenizer_counts_where_it_is_known():
    made = request(chat("a b c", "d", "e"))
    assert worst_case(MODELS[0], made, lambda text: 5).prompt == 4 * 5 + 3 * 16 + 256


@pytest.mark.parametrize(
    "said",
    [
        None,
        3,
        {},
        *({"prompt_tokens": p, "completion_tokens": c} for p, c in ((-1, 1), (True, 1), (1.5, 1), (1, 10**13))),
    ],
)
def test_usage_that_is_none_keeps_the_reservation(said):
    assert read_usage(said) is None


def test_thoughts_that_stand_in_the_total_alone_count_as_written():
    assert read_usage({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 9}) == Usage(3, 6)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_shorter_answer_is_the_longest_that_fits(choices):
    model = GatewayModel(model="m", base_url="http://127.0.0.1:1/v1", max_tokens=50, min_answer=20, price_completion=1)
    asked, whole = request(chat("go", n=choices)), Usage(100, 50 * choices)
    prices = [cost(model, Usage(100, n * choices), True) for n in range(51)]

    def offered(tokens=None, usd=None, day=None, **more):
        own, today = Account(Limits(9, tokens, usd), Amount()), Account(Limits(None, day, None), Amount())
        return offer(model.model_copy(update=more), True, asked, whole, SessionAccount("s", own, "k", "day", today))

    for left in range(100, 100 + 60 * choices):
        longest = max((n for n in range(51) if prices[n].tokens <= left), default=0)
        expected = (prices[longest], True, longest) if 20 <= longest < 50 else (prices[50], longest == 50, None)
        assert offered(tokens=left) == offered(day=left) == expected
        assert offered(tokens=left, min_answer=None) == (prices[50], longest == 50, None)
    assert offered(usd=prices[30].usd)[1:] == (True, 30) and offered(usd=prices[19].usd)[1:] == (False, None)
    short = request(chat("go", n=choices, max_tokens=5))  # of which no part is enough
    room = Account(Limits(9, 100 + 4 * choices, None), Amount())
    made = offer(model, True, short, Usage(100, 5 * choices), SessionAccount("s", room, "k", "day", room))
    assert not made.fits


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_is_asked_for_what_fits(upstream, serve, stream):
    model = {"base_url": upstream.url, "key_variable": "", "max_tokens": 600, "min_answer": 200}
    models = [{"model": "small", **model}, {"model": "large", **model}]
    port, _ = serve(models=models, budget={"tokens": 1700})
    upstream.script = lambda body: answer_of(body, {"role": "assistant", "content": "x"}, body["max_tokens"])
    found = [ask(port, chat(*talk, stream=stream), {"x-session-id": "s"}) for talk in (["go"], ["go", "x", "on"])]
    assert [(status, headers["x-atlas-model"]) for status, headers, _ in found] == [(200, "large")] * 2
    first, second = (asked["max_tokens"] for asked in upstream.requests)
    assert first == 600 and 200 <= second < 600 and upstream.spent()[1] <= 1700


AMOUNTS = st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 9))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 2), AMOUNTS),
        st.tuples(st.sampled_from(["settle", "release", "settle twice"]), st.integers(0, 20), st.floats(0, 1)),
        st.tuples(st.sampled_from(["crash", "torn"]), st.integers(0, 2), st.just(0.0)),
        st.tuples(st.just("tighten"), st.integers(0, 2), st.integers(0, 20)),
    ),
    max_size=40,
)  # fmt: skip


def torn(store, session, day):
    with store.transaction() as tx:
        tx.reserve(tx.account(session, "k", "day", day), 0, Amount(1, 1, 1), 0.0)
        raise ZeroDivisionError


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(EVENTS, st.integers(0, 4), st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_no_order_of_reserving_settling_and_crashing_exceeds_a_limit(events, calls, tokens, usd, daily):
    """The truth is kept beside it: what was really used, which is at most what was reserved."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s.sqlite"
        store, limits, day = Store(place), [Limits(calls, tokens, usd)] * 3, Limits(None, daily, None)
        with store.transaction() as tx:
            for n in range(3):
                amounts = {f"{p}_{k}": 0 for p in ("base", "spent") for k in Amount._fields}
                caps = {f"limit_{k}": v for k, v in limits[n]._asdict().items()}
                tx.put(
                    sessions, id=str(n), key="k", goal="", created=0, touched=0, steps=0, recorded=0, **amounts, **caps
                )
        open_ones, used = [], [Amount()] * 3
        for kind, n, what in events:
            if kind == "reserve":
                with store.transaction() as tx:
                    made = tx.reserve(tx.account(str(n), "k", "day", day), 0, Amount(*what), 0.0)
                if made is not None:
                    # from now on a model may use all of it, whether anybody hears of it or not
                    open_ones.append((made, n, Amount(*what)))
                    used[n] = used[n].plus(Amount(*what))
            elif kind in ("settle", "release", "settle twice") and open_ones:
                made, session, reserved = open_ones.pop(n % len(open_ones))
                real = Amount() if kind == "release" else Amount(*(int(a * what) for a in reserved))
                for _ in range(1 + (kind == "settle twice")):
                    with store.transaction() as tx:
                        tx.settle(made, real, 0.0)
                used[session] = used[session].minus(reserved).plus(real)
            elif kind == "crash":
                store.close()
                store = Store(place)
                open_ones.clear()  # nobody will ever settle them
            elif kind == "torn":
                with pytest.raises(ZeroDivisionError):
                    torn(store, str(n), day)
            elif kind == "tighten":
                tighter = limits[n].tightened(Limits(None, what, None))
                if used[n].tokens <= (tighter.tokens or 0):
                    limits[n] = tighter
                    with store.transaction() as tx:
                        tx.do(sessions.update().where(sessions.c.id == str(n)).values(limit_tokens=tighter.tokens))
            for session in range(3):
                caps = zip(limits[session], used[session], strict=True)
                assert all(cap is None or use <= cap for cap, use in caps), (session, limits, used)
                with store.transaction() as tx:
                    spent = tx.account(str(session), "k", "day", day).spent
                    assert spent == used[session] == tx.spent_until(str(session), 9)
            total = sum(u.tokens for u in used)
            with store.transaction() as tx:
                assert tx.spent_on("k", "day").tokens == total <= daily
        with store.transaction() as tx:
            count = tx.row(sa.select(sa.func.count()).select_from(reservations))[0]
        assert count <= len(events)
        store.close()
