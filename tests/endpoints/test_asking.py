"""Asking over HTTP: a server that fails in every way, limits, the cache, and a process that is killed."""

import base64
import json
import logging
import multiprocessing
import os
import signal
import threading
import time

import pytest

from chat_server import ChatServer, Reply, status
from instructblip_hf.endpoints import (
    AnswerCache,
    Asker,
    Budget,
    ChatAnswer,
    ChatFailure,
    ChatOptions,
    ChatRequest,
    EndpointError,
    OpenAiCompatible,
    Prices,
    RateLimit,
    RetryPolicy,
    estimate,
)
from killable_asking import PRELOAD, ask_all, requests


QUICK = RetryPolicy(attempts=4, first_wait=0.01, longest_wait=0.02)


def echo(body, count):
    return Reply(text=f"to {body['messages'][-1]['content']}")


def asker(server, cache=None, **more):
    endpoint = {"concurrency": 3, "timeout": 5.0}
    endpoint.update({name: more.pop(name) for name in list(more) if name in ("concurrency", "timeout")})
    return Asker(OpenAiCompatible("gpt", server.url, **endpoint), cache, **{"retries": QUICK, **more})


def texts(found):
    return [outcome.text if isinstance(outcome, ChatAnswer) else outcome.reason for _, outcome in found]


def test_answers_come_in_order_and_requests_go_out_together():
    gate = threading.Barrier(3)

    def together(body, count):
        if body["messages"][-1]["content"][-1] in "012":
            gate.wait(10)  # passes only if three requests are under way at once
        return echo(body, count)

    with ChatServer(together) as server:
        asked = requests(9)
        found = list(asker(server).ask(asked))
    assert [request for request, _ in found] == asked
    assert texts(found) == [f"to question {number}" for number in range(9)]
    assert server.most_at_once == 3


def test_body_and_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    options = ChatOptions(30, temperature=0.5, top_p=0.9, seed=7, extra={"reasoning_effort": "low"})
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hm"}]
    with ChatServer() as server:
        endpoint = OpenAiCompatible("gpt", server.url, "MY_KEY", max_tokens_field="max_completion_tokens")
        (answer,) = endpoint.answer([ChatRequest(messages, options, sample=2)])
    assert answer == ChatAnswer("fine", "stop", 10, 5)
    expected = {"model": "gpt", "messages": messages, "max_completion_tokens": 30, "temperature": 0.5}
    assert server.bodies == [{**expected, "top_p": 0.9, "seed": 9, "reasoning_effort": "low"}]
    assert server.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "model", "n", "stream", "messages"])
def test_fields_that_the_package_rests_on_are_its_own(name):
    with pytest.raises(ValueError, match=f"cannot have {name} as more fields"):
        ChatOptions(extra={name: 1, "top_k": 5})


def test_fields_that_are_options_too():
    with pytest.raises(ValueError, match="cannot have temperature, seed as"):
        ChatOptions(temperature=0.0, seed=1, extra={"temperature": 1, "seed": 2, "top_p": 0.5})
    assert ChatOptions(extra={"temperature": 1, "seed": 2}).extra == {"temperature": 1, "seed": 2}


def test_keys(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai")
    with ChatServer(lambda body, count: status(401, b"no such key: sk-for-openai")) as server:
        OpenAiCompatible("gpt")  # has its key
        with pytest.raises(EndpointError), AnswerCache(tmp_path) as cache:
            list(asker(server, cache).ask(requests(1)))
        assert server.keys == [None]  # OpenAI's key is not for others
        with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError, match=r"401.*no such key: \*\*\*"):
            list(Asker(OpenAiCompatible("gpt", server.url, "OPENAI_API_KEY"), retries=QUICK).ask(requests(1)))
    assert server.keys[1:] == ["Bearer sk-for-openai"]
    assert "sk-for-openai" not in caplog.text
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAiCompatible("gpt")


@pytest.mark.parametrize("place", range(270, 310, 3))
def test_a_key_that_is_cut_is_cut_out_too(monkeypatch, place):
    monkeypatch.setenv("MY_KEY", "sk-/secret-of-mine")
    body = b"x" * place + json.dumps({"key": "sk-/secret-of-mine"}).replace("/", "\\/").encode()
    for said in (body, b"x" * place + b"sk-/secret-of-mine"):
        with ChatServer(lambda body, count, said=said: status(400, said)) as server:
            ((_, failure),) = Asker(OpenAiCompatible("gpt", server.url, "MY_KEY"), retries=QUICK).ask(requests(1))
        assert "sk" not in failure.detail


def test_name_and_password_of_an_address_are_sent_and_not_shown(caplog):
    with ChatServer(lambda body, count: status(401, b"not pass%20word but pass word")) as server:
        url = server.url.replace("//", "//me:pass%20word@")
        asking = Asker(OpenAiCompatible("gpt", url), retries=QUICK)
        with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as raised:
            list(asking.ask(requests(1)))
    assert server.keys == ["Basic " + base64.b64encode(b"me:pass word").decode()]
    assert server.url in str(raised.value)
    for told in (str(raised.value), caplog.text, str(asking.endpoint.facts)):
        assert "pass word" not in told
        assert "me:pass" not in told


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "http://localhost:port/v1",
        "http://localhost:99999/v1",
        "http://",
        "http://localhost/v1?key=word",
        "me:word@localhost/v1",
        "http://me:word@localhost:port/v1",
        "http://me:word/word@localhost/v1",
        "http://me:word@localhost/v1?key=word",
        "http://localhost:port/v1?key=word",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="base_url is ") as raised:
        OpenAiCompatible("gpt", url)
    assert "word" not in str(raised.value)


TROUBLES = {
    "500": status(500),
    "429": status(429, Retry_After="0.05"),
    "429 in milliseconds": status(429, retry_after_ms="50"),
    "429 with a date of the past": status(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
    "429 with nonsense": status(429, Retry_After="soon"),
    "drop": Reply(kind="drop"),
    "cut": Reply(kind="cut"),
    "no JSON": Reply(body=b"<html>nonsense</html>"),
    "no choices": Reply(body=b'{"choices": []}'),
    "JSON of another kind": Reply(body=b"[1]"),
    "JSON that is too deep": Reply(body=b"[" * 200_000),
    "no text": Reply(body=b'{"choices": [{"message": {"content": 3}}]}'),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_twice_then_answers(trouble):
    with ChatServer(lambda body, count: TROUBLES[trouble] if count < 2 else echo(body, count)) as server:
        asking = asker(server)
        assert texts(asking.ask(requests(4))) == [f"to question {number}" for number in range(4)]
    assert len(server.bodies) == 12
    assert asking.counts["asked"] == 4
    assert sum(count for what, count in asking.counts.items() if what.startswith("repeated: ")) == 8


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_servers_that_never_finish(kind):
    with ChatServer(lambda body, count: Reply(kind=kind) if count == 0 else echo(body, count)) as server:
        asking = asker(server, timeout=0.4)
        assert texts(asking.ask(requests(3))) == ["to question 0", "to question 1", "to question 2"]
    assert len(server.bodies) == 6


def test_no_server_at_all():
    with ChatServer() as server:
        pass
    asking = asker(server)
    assert texts(asking.ask(requests(2))) == ["no answer", "no answer"]
    assert asking.paid.prompt == 0  # nobody can have computed anything


def test_what_a_request_does_wrong_is_not_repeated():
    def behave(body, count):
        return status(400, b"too long") if body["messages"][-1]["content"] == "question 1" else echo(body, count)

    with ChatServer(behave) as server:
        found = list(asker(server).ask(requests(3)))
    assert texts(found) == ["to question 0", "refused", "to question 2"]
    assert found[1][1] == ChatFailure("refused", "status 400: too long")
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "hopeless", [status(401), status(404), status(429, b'{"error": {"code": "insufficient_quota"}}')]
)
def test_what_cannot_get_better_ends_it(hopeless):
    with ChatServer(lambda body, count: hopeless) as server:
        with pytest.raises(EndpointError, match=str(hopeless.status)):
            list(asker(server).ask(requests(500)))
    assert len(server.bodies) <= 3  # of those under way


def test_nothing_but_failures_end_it():
    with ChatServer(lambda body, count: status(400)) as server:
        with pytest.raises(EndpointError, match="20 requests in a row came to nothing; of the last: status 400"):
            list(asker(server).ask(requests(500)))
    assert len(server.bodies) <= 23


def test_failures_between_answers_do_not_end_it():
    def behave(body, count):
        return status(400) if int(body["messages"][-1]["content"].split()[-1]) % 2 else echo(body, count)

    with ChatServer(behave) as server:
        found = texts(asker(server, concurrency=1).ask(requests(60)))
    assert found.count("refused") == 30


def test_a_limit_of_the_server_holds_back_all_requests():
    seen = []

    def behave(body, count):
        seen.append(time.monotonic())
        if len(seen) == 4:
            return status(429, Retry_After="0.6")
        time.sleep(0.05)
        return echo(body, count)

    with ChatServer(behave) as server:
        assert texts(asker(server).ask(requests(40))) == [f"to question {number}" for number in range(40)]
    limited = seen[3]
    # What the other two threads had begun is let through.
    assert not [moment for moment in seen if limited + 0.2 < moment < limited + 0.6]
    assert len([moment for moment in seen if moment >= limited + 0.6]) > 20


def test_a_long_wait_that_is_asked_for_is_kept():
    seen = []

    def behave(body, count):
        seen.append(time.monotonic())
        return status(429, Retry_After="0.5") if len(seen) == 1 else echo(body, count)

    with ChatServer(behave) as server:
        assert texts(asker(server, concurrency=1).ask(requests(2))) == ["to question 0", "to question 1"]
    assert seen[1] - seen[0] >= 0.5
    with ChatServer(lambda body, count: status(503, Retry_After="900")) as server:
        assert texts(asker(server).ask(requests(1))) == ["no answer"]
    assert len(server.bodies) == 1


def test_a_server_that_counts_nothing():
    with ChatServer(lambda body, count: Reply(text="x" * 40, usage=None)) as server:
        ((_, answer),) = asker(server).ask(requests(1))
    assert (answer.completion_tokens, answer.is_counted) == (10, False)


@pytest.mark.parametrize("wrong", [{"prompt_tokens": -300}, {"completion_tokens": True}, {"prompt_tokens": 10**400}])
def test_counts_that_are_none_are_not_believed(wrong):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, **wrong}
    with ChatServer(lambda body, count: Reply(text="x" * 40, usage=usage)) as server:
        asking = asker(server, budget=Budget(Prices(1.0, 1.0)))
        ((_, answer),) = asking.ask(requests(1))
    assert (answer.prompt_tokens, answer.completion_tokens, answer.is_counted) == (7, 10, False)
    assert (asking.budget.spent.prompt, asking.budget.spent.completion) == (7, 10)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 10, "completion_tokens": 5}])
def test_half_a_character_is_replaced_and_kept(tmp_path, usage):
    with ChatServer(lambda body, count: Reply("a \ud83d b \U0001f600", "st\ude00p", usage)) as server:
        with AnswerCache(tmp_path) as cache:
            ((_, answer),) = asker(server, cache).ask(requests(1))
        with AnswerCache(tmp_path) as cache:
            assert list(asker(server, cache).ask(requests(1))) == [(requests(1)[0], answer)]
    assert (answer.text, answer.finish_reason) == ("a \ufffd b \U0001f600", "st\ufffdp")
    assert len(server.bodies) == 1


class Half:
    """Refuses every other request of a batch."""

    batch_size, concurrency, facts = 8, 1, {"model": "half"}

    def answer(self, requests):
        return [ChatFailure("refused", "odd") if n % 2 == 0 else ChatAnswer("yes", "stop", 1, 1) for n in range(8)]


def test_answers_beside_the_failure_that_ends_it_are_kept(tmp_path):
    with AnswerCache(tmp_path) as cache:
        asking = Asker(Half(), cache, max_failures=1)
        with pytest.raises(EndpointError, match="1 requests in a row"):
            list(asking.ask(requests(8)))
        assert len(cache) == 4
        assert asking.budget.spent.prompt == asking.paid.prompt == 4


def test_what_is_in_the_cache_is_not_asked_again(tmp_path):
    asked = requests(6)
    with ChatServer(echo) as server:
        with AnswerCache(tmp_path) as cache:
            first = list(asker(server, cache).ask(asked[:4]))
        with AnswerCache(tmp_path) as cache:
            asking = asker(server, cache)
            again = list(asking.ask([*asked, *asked]))
            assert asking.paid.prompt == 20
    assert len(server.bodies) == 6
    assert again[:4] == first
    assert again[6:] == again[:6]


def test_equal_requests_are_sent_once_without_a_cache():
    with ChatServer(echo) as server:
        assert texts(asker(server, concurrency=1).ask(requests(1) * 3)) == ["to question 0"] * 3
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sample": 1},
        {"options": ChatOptions(7)},
        {"options": ChatOptions(temperature=0.0)},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": ""}, {"role": "user", "content": "a"}]},
    ],
)
def test_everything_that_decides_is_in_the_key(change):
    plain = {"messages": [{"role": "user", "content": "a"}]}
    request = ChatRequest(**plain)
    assert request.key({"model": "m"}) == ChatRequest(**plain, tag=3).key({"model": "m"})
    assert request.key({"model": "m"}) != request.key({"model": "n"})
    assert request.key({"model": "m"}) != ChatRequest(**{**plain, **change}).key({"model": "m"})


def test_half_a_line_is_cut_off_and_other_damage_named(tmp_path):
    with AnswerCache(tmp_path) as cache:
        for number in range(3):
            cache.add(f"k{number}", ChatAnswer(f"ä {number}\n", "stop", 1, 2))
    whole = cache.file.read_bytes()
    cache.file.write_bytes(whole[:-5])
    with AnswerCache(tmp_path) as cache:
        assert len(cache) == 2
        assert cache.get("k2") is None
        cache.add("k2", ChatAnswer("ä 2\n", "stop", 1, 2))
        assert cache.get("k1") == ChatAnswer("ä 1\n", "stop", 1, 2)
        assert (cache.spent.prompt, cache.spent.completion) == (3, 6)
        with pytest.raises(ValueError, match="another process is writing"):
            AnswerCache(tmp_path)
    assert cache.file.read_bytes() == whole
    cache.file.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(ValueError, match="line 1"):
        AnswerCache(tmp_path)


def test_a_disk_that_is_full_ends_it(tmp_path, monkeypatch):
    write, room = os.write, [400]

    def nearly_full(stream, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = write(stream, data[: room[0]])
        room[0] -= written
        return written

    with ChatServer(echo) as server, AnswerCache(tmp_path) as cache:
        monkeypatch.setattr(os, "write", nearly_full)
        with pytest.raises(OSError, match="No space left"):
            list(asker(server, cache).ask(requests(100)))
        monkeypatch.undo()
    assert cache.file.read_bytes().count(b"\n") == 2
    assert cache.file.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("limit", [{"max_cost": 1.0}, {"max_tokens": 1000}])
def test_the_budget_is_not_gone_over_and_nearly_used(tmp_path, limit):
    """Prompts of 10 tokens, answers of 5 to 40, of which nobody knows the length before."""
    lengths = [5 + (7 * number) % 36 for number in range(200)]

    def behave(body, count):
        number = int(body["messages"][-1]["content"].split()[-1])
        return Reply(text="x", usage={"prompt_tokens": 10, "completion_tokens": lengths[number]})

    prices = Prices(prompt=1_000, completion=1_000)  # a thousandth of a dollar a token, so both limits are the same
    with ChatServer(behave) as server:
        for _ in range(2):  # what was spent before counts
            with AnswerCache(tmp_path) as cache:
                asking = asker(server, cache, budget=Budget(prices, **limit))
                found = list(asking.ask(requests(200, max_tokens=40)))
                assert cache.spent.prompt + cache.spent.completion <= 1000
                assert asking.budget.cost <= 1.0
                # Requests wait for those under way, and do not end it while these may leave room.
                assert cache.spent.prompt + cache.spent.completion >= 1000 - 40 - 10 - 8 * 2
    spent = sum(10 + lengths[int(body["messages"][-1]["content"].split()[-1])] for body in server.answered)
    assert spent <= 1000
    assert {outcome.reason for _, outcome in found if isinstance(outcome, ChatFailure)} == {"budget"}
    assert sum(isinstance(outcome, ChatAnswer) for _, outcome in found) == len(server.answered)


def test_what_may_have_been_paid_for_in_vain_counts(tmp_path):
    with ChatServer(lambda body, count: Reply(kind="drop")) as server:
        for _ in range(2):
            with AnswerCache(tmp_path) as cache:
                asking = asker(server, cache, budget=Budget(max_tokens=150))
                assert texts(asking.ask(requests(4, max_tokens=40))) == ["budget"] * 4
    assert len(server.bodies) == 2


def test_limits_that_cannot_be():
    with pytest.raises(ValueError, match="max_cost needs the prices"):
        Budget(max_cost=1.0)
    with pytest.raises(ValueError, match="requests_per_minute is 0"):
        RateLimit(0)
    with pytest.raises(ValueError, match="concurrency is 0"):
        OpenAiCompatible("gpt", "http://localhost", concurrency=0)


class Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def is_set(self):
        return False

    def wait(self, seconds):
        self.now += seconds
        return False


@pytest.mark.parametrize("limits", [(7, None), (None, 100), (7, 100)])
def test_no_minute_has_more_than_the_limits(limits):
    clock = Clock()
    limit = RateLimit(*limits, clock=clock)
    sent = []
    for number in range(60):
        clock.now += (number % 5) / 3
        guess = 10 + (number * 13) % 30
        entry = limit.enter(guess, clock)
        actual = guess - number % 9
        sent.append((clock.now, actual))
        limit.correct(entry, actual)
    for start, _ in sent:
        window = [tokens for when, tokens in sent if start <= when < start + 60]
        assert limits[0] is None or len(window) <= limits[0]
        assert limits[1] is None or sum(window) <= limits[1]
    # And it is used: what was sent is at least half of what the time allows.
    assert limits[0] is None or limits[1] is not None or len(sent) > clock.now / 60 * limits[0] / 2
    assert limits[1] is None or sum(tokens for _, tokens in sent) > clock.now / 60 * limits[1] / 2
    limit.pause(5)
    before = clock.now
    clock.now += 100
    limit.pause(5)
    limit.enter(1, clock)
    assert clock.now == before + 105


def test_an_answer_that_comes_late_changes_nothing_of_the_minute():
    clock = Clock()
    limit = RateLimit(tokens_per_minute=10, clock=clock)
    late = limit.enter(10, clock)
    clock.now = 70
    limit.enter(6, clock)
    limit.correct(late, 0)
    limit.enter(5, clock)
    assert clock.now == 130


def test_a_request_above_the_limit_goes_alone():
    clock = Clock()
    limit = RateLimit(tokens_per_minute=10, clock=clock)
    limit.enter(50, clock)
    limit.enter(5, clock)
    assert clock.now == 60
    limit.enter(50, clock)
    assert clock.now == 120


def test_an_estimate_sends_nothing(tmp_path):
    asked = requests(5, max_tokens=50)
    with ChatServer(echo) as server, AnswerCache(tmp_path) as cache:
        asking = asker(server, cache, budget=Budget(Prices(2.0, 10.0)))
        list(asking.ask(asked[:2]))
        found = estimate(asking, [*asked, asked[4]], lambda request: 20)
        assert len(server.bodies) == 2
    assert (found.requests, found.cached) == (6, 3)
    assert (found.prompt_tokens, found.completion_tokens, found.most_completion_tokens) == (3 * 7, 60, 150)
    assert found.cost == pytest.approx((21 * 2 + 60 * 10) / 1e6)
    assert found.most_cost == pytest.approx((21 * 2 + 150 * 10) / 1e6)
    assert found.spent == pytest.approx((20 * 2 + 10 * 10) / 1e6)


def _wait(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_pays_for_nothing_twice(tmp_path, way):
    """Two requests are under way when it ends; with Ctrl-C they are waited for."""

    def hold(body, count):
        number = int(body["messages"][-1]["content"].split()[-1])
        if number >= 11 and count == 0 and not server.release.is_set():
            server.release.wait(10)
            return echo(body, count) if way == signal.SIGINT else Reply(kind="drop")
        return echo(body, count)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ChatServer(hold) as server:
        child = context.Process(target=ask_all, args=(server.url, tmp_path))
        child.start()
        _wait(lambda: len(server.bodies) == 13)
        lines = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert len(lines) == 11
        os.kill(child.pid, way)
        if way == signal.SIGINT:
            time.sleep(0.2)
        else:
            child.join(20)
        server.release.set()
        child.join(20)
        assert child.exitcode not in (0, None)
        stored = len((tmp_path / "answers.jsonl").read_text().splitlines())
        assert stored == (13 if way == signal.SIGINT else 11)
        with AnswerCache(tmp_path) as cache:
            asking = asker(server, cache)
            assert texts(asking.ask(requests(20))) == [f"to question {number}" for number in range(20)]
        answered = [json.dumps(body) for body in server.answered]
        assert len(answered) == len(set(answered)) == 20
