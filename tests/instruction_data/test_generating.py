"""The generator against a server on loopback: what is asked, what is written, rejects, kills, budgets, and a local model."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import transformers

from chat_server import ChatServer, Reply, status
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.endpoints import AnswerCache, Asker, Budget, LocalModel, OpenAiCompatible, Prices, RetryPolicy
from instructblip_hf.instruction_data import (
    RESPONSE_TYPES,
    GenerationOptions,
    coco_contexts,
    estimate_generation,
    generate,
    load_prompts,
    parse_answer,
)
from official_formats import write_image
from tiny_contexts import asked_of, good_answer, well_behaved, write_coco
from tiny_models import randomise
from tiny_tokenizers import language_tokenizer


FILES = [
    "complex_reasoning.json",
    "conversation.json",
    "detail.json",
    "llava_instruct.json",
    "raw.jsonl",
    "rejected.jsonl",
    "report.json",
]


def run(server, folder, count=4, concurrency=3, budget=None, progress=None, **options):
    contexts = coco_contexts(*write_coco(folder.parent / f"coco-{count}", count))
    with AnswerCache(folder / "cache") as cache:
        endpoint = OpenAiCompatible("gpt", server.url, concurrency=concurrency, timeout=0.5)
        asker = Asker(endpoint, cache, budget, retries=RetryPolicy(4, 0.01, 0.02))
        return generate(contexts, folder, asker, GenerationOptions(**options), progress=progress)


def rows_of(file):
    return json.loads(file.read_text())


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_what_is_asked(tmp_path):
    with ChatServer(well_behaved) as server:
        run(server, tmp_path / "out", count=1, concurrency=1)
    prompts = load_prompts()
    captions = "\n".join(f"Dog 7, view {k}." for k in range(5))
    boxes = "\n\ndog: [0.502, 0.5, 1.0, 0.75]"
    for body, (name, expected) in zip(server.bodies, prompts.items(), strict=True):
        messages = [(message["role"], message["content"]) for message in body["messages"]]
        assert messages[0] == ("system", expected.system)
        assert [role for role, _ in messages[1:]] == ["user", "assistant"] * len(expected.examples) + ["user"]
        with_boxes = name != "conversation"
        assert messages[-1][1] == captions + (boxes if with_boxes else "")
        for number, (context, answer) in enumerate(expected.examples):
            assert messages[1 + 2 * number][1] == context.text(with_boxes)
            assert messages[2 + 2 * number][1] == answer
        assert body["max_tokens"] == RESPONSE_TYPES[name].max_tokens


def test_rows_are_those_that_were_answered(tmp_path):
    out = tmp_path / "out"
    with ChatServer(well_behaved) as server:
        report = run(server, out)
    everything = rows_of(out / "llava_instruct.json")
    questions = load_prompts()["detail"].questions
    for name, response_type in RESPONSE_TYPES.items():
        rows = rows_of(out / response_type.file)
        assert [row["image"] for row in rows] == [f"{number:012}.jpg" for number in range(7, 11)]
        for number, row in enumerate(rows, start=7):
            assert list(row) == ["id", "image", "conversations"]
            assert row["id"] == f"{number:012}"
            assert row in everything
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert all(list(turn) == ["from", "value"] for turn in turns)
            first = turns[0]["value"]
            assert first.startswith("<image>\n") != first.endswith("\n<image>")
            assert not any("<image>" in turn["value"] for turn in turns[1:])
            plain = [turn["value"].replace("<image>", "").strip() for turn in turns]
            if name == "detail":
                assert plain[0] in questions
                assert plain[1] == good_answer("detail", number)
            else:
                expected = parse_answer(response_type, good_answer(name, number), "stop")
                assert plain == [text for turn in expected for text in (turn.question, turn.answer)]
    assert len(everything) == 12 == report["rows"]
    assert [row["image"] for row in everything] == [f"{number:012}.jpg" for number in range(7, 11) for _ in range(3)]
    assert report["complete"]
    assert report["types"]["conversation"]["turns"] == {"mean": 2.0, "median": 2, "min": 2, "max": 2}
    assert report["types"]["detail"]["answer_words"]["mean"] == 15
    assert (out / "rejected.jsonl").read_text() == ""
    assert [record["result"] for record in lines_of(out / "raw.jsonl")] == ["kept"] * 12


def test_the_image_is_before_or_after_the_question_by_a_fair_draw(tmp_path):
    with ChatServer(well_behaved) as server:
        run(server, tmp_path / "a", 150, types=("detail",))
        run(server, tmp_path / "b", 150, types=("detail",), seed=1)
    first = {}
    for name in "ab":
        rows = rows_of(tmp_path / name / "detail.json")
        first[name] = [row["conversations"][0]["value"].startswith("<image>\n") for row in rows]
        assert 50 < sum(first[name]) < 100
    assert first["a"] != first["b"]


def test_the_catalog_reads_what_was_written(tmp_path):
    out = tmp_path / "out"
    with ChatServer(well_behaved) as server:
        run(server, out)
    for number in range(7, 11):
        write_image(tmp_path / "images" / f"{number:012}.jpg")
    for response_type in RESPONSE_TYPES.values():
        examples = list(CatalogDataset(response_type.dataset, out, image_root=tmp_path / "images"))
        assert len(examples) == 4
        for row, example in zip(rows_of(out / response_type.file), examples):
            assert example["images"][0].name == row["image"]
            said = ["".join(part.get("text", "") for part in turn["content"]) for turn in example["messages"]]
            assert said == [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
            kinds = [part["type"] for part in example["messages"][0]["content"]]
            assert kinds == (
                ["image", "text"] if row["conversations"][0]["value"].startswith("<image>") else ["text", "image"]
            )


TROUBLES = [
    status(500),
    status(429, Retry_After="0.02"),
    Reply(kind="drop"),
    Reply(kind="cut"),
    Reply(body=b"nonsense"),
    Reply(kind="stall"),
]


def test_a_server_in_every_trouble_gives_the_same_data(tmp_path):
    def troubled(body, count):
        kind, number = asked_of(body)
        trouble = (number + list(RESPONSE_TYPES).index(kind)) % 7
        return TROUBLES[trouble] if count == 0 and trouble < 6 else well_behaved(body, count)

    with ChatServer(well_behaved) as server:
        run(server, tmp_path / "calm")
    with ChatServer(troubled) as server:
        run(server, tmp_path / "troubled")
    assert content(tmp_path / "calm") == content(tmp_path / "troubled")


NONSENSE = {
    0: (Reply(text=""), "empty"),
    1: (Reply(text="Hm."), "structure"),
    2: (Reply(finish_reason="length"), "cut off"),
    3: (Reply(text=good_answer("conversation", 1) + "\n===\nQuestion: And?"), "no answer"),
    4: (Reply(text=good_answer("conversation", 1).replace("called", "in the caption")), "source"),
    5: (Reply(text=None, finish_reason="content_filter"), "empty"),
}


def test_rejects_are_reported_and_asked_again(tmp_path):
    """Of seven conversations six are nonsense; three of those get better when they are asked again, one at the third time."""

    def behave(body, count):
        _, number = asked_of(body)
        better = {0: 1, 1: 1, 2: 2}.get(number - 7, 99)
        if number - 7 in NONSENSE and count < better:
            return NONSENSE[number - 7][0]
        return well_behaved(body, count)

    with ChatServer(behave) as server:
        plain = run(server, tmp_path / "plain", 7, types=("conversation",))
        assert plain["types"]["conversation"]["rejected"] == {
            "cut off": 1,
            "empty": 2,
            "no answer": 1,
            "source": 1,
            "structure": 1,
        }
        assert [row["id"] for row in rows_of(tmp_path / "plain" / "conversation.json")] == ["000000000013"]
        for record in lines_of(tmp_path / "plain" / "rejected.jsonl"):
            assert record["reason"] == NONSENSE[int(record["image"][:12]) - 7][1]
        before = len(server.bodies)
        # In the same folder: what was asked is not asked again, and the first answers of all count.
        again = run(server, tmp_path / "plain", 7, types=("conversation",), ask_again=2)
        assert len(server.bodies) - before == 6 + 4
    assert again["types"]["conversation"]["rows"] == 4
    assert sum(again["types"]["conversation"]["rejected"].values()) == 6 + 4 + 3
    assert again["types"]["conversation"]["answers"] == 7 + 6 + 4
    kept = [row["id"] for row in rows_of(tmp_path / "plain" / "conversation.json")]
    assert kept == ["000000000007", "000000000008", "000000000009", "000000000013"]
    assert again["complete"]


def test_what_has_no_answer_is_not_asked_for_another_one(tmp_path):
    def behave(body, count):
        return status(400, b"no dogs") if asked_of(body)[1] == 7 else well_behaved(body, count)

    with ChatServer(behave) as server:
        report = run(server, tmp_path / "out", 3, types=("detail",), ask_again=3)
        assert len(server.bodies) == 3
    assert not report["complete"]
    (record,) = lines_of(tmp_path / "out" / "rejected.jsonl")
    assert (record["reason"], record["detail"]) == ("refused", "status 400: no dogs")


def test_questions_asked_twice_about_an_image_are_left_out(tmp_path):
    def behave(body, count):
        kind, number = asked_of(body)
        if kind == "complex_reasoning":
            question = "Is it asleep in the image?" if number == 7 else "Is it old?"
            return Reply(text=f"Question:\n{question}\n===\nAnswer:\nYes.")
        return well_behaved(body, count)

    with ChatServer(behave) as server:
        report = run(server, tmp_path / "out", 2)
    assert [row["id"] for row in rows_of(tmp_path / "out" / "complex_reasoning.json")] == ["000000000008"]
    assert report["types"]["complex_reasoning"]["duplicate_rows"] == 1
    assert [r["result"] for r in lines_of(tmp_path / "out" / "raw.jsonl")].count("duplicate") == 1


def test_fewer_images_of_a_type(tmp_path):
    with ChatServer(well_behaved) as server:
        run(server, tmp_path / "a", 20, counts={"detail": 5, "conversation": 2}, types=("conversation", "detail"))
        run(server, tmp_path / "b", 20, counts={"detail": 8}, types=("detail",))
    few, more = (rows_of(tmp_path / name / "detail.json") for name in "ab")
    assert (len(few), len(more)) == (5, 8)
    assert all(row in more for row in few)
    drawn = [int(row["id"]) - 7 for row in few]
    assert drawn == sorted(drawn) != list(range(5))  # by hash, in the order of the images
    assert len(rows_of(tmp_path / "a" / "conversation.json")) == 2


def test_the_budget_stops_it_and_more_goes_on(tmp_path):
    def budget(dollars):
        return Budget(Prices(10_000, 10_000), max_cost=dollars)  # a cent a token, 1.20 an answer

    out = tmp_path / "out"
    with ChatServer(well_behaved) as server:
        report = run(server, out, budget=budget(100.0), types=("detail",), count=100, concurrency=1)
        paid = len(server.bodies)
        assert not report["complete"]
        assert report["cost_of_answers"] == pytest.approx(1.2 * paid)
        assert report["cost_of_answers"] <= 100
        assert report["types"]["detail"]["failed"] == {"budget": 100 - paid}
        assert len(rows_of(out / "detail.json")) == paid > 70
        report = run(server, out, budget=budget(200.0), types=("detail",), count=100, concurrency=1)
    assert report["complete"]
    assert len(server.bodies) == 100
    assert report["cost_of_answers"] == pytest.approx(120.0)


def test_what_is_under_way_when_it_is_interrupted_is_kept(tmp_path):
    """Ctrl-C between two outcomes, while three other requests are under way."""

    def slow(body, count):
        if asked_of(body)[1] > 7:
            time.sleep(0.3)
        return well_behaved(body, count)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with ChatServer(slow) as server:
        with pytest.raises(KeyboardInterrupt):
            run(server, tmp_path / "out", count=20, types=("detail",), progress=interrupt)
        assert 2 <= len(server.bodies) <= 4
        with AnswerCache(tmp_path / "out" / "cache") as cache:
            assert len(cache) == len(server.bodies) == len(server.answered)


def test_an_estimate(tmp_path):
    contexts = coco_contexts(*write_coco(tmp_path, 3))
    with ChatServer(well_behaved) as server, AnswerCache(tmp_path / "cache") as cache:
        asker = Asker(OpenAiCompatible("gpt", server.url), cache, Budget(Prices(1.0, 2.0)))
        found = estimate_generation(contexts, asker)
        assert server.bodies == []
        generate(contexts, tmp_path, asker)
        after = estimate_generation(contexts, asker)
    assert (found.requests, found.cached) == (9, 0)
    assert found.completion_tokens == 3 * sum(one.expected_tokens for one in RESPONSE_TYPES.values())
    characters = sum(len(message["content"]) for body in server.bodies for message in body["messages"])
    assert characters / 4 < found.prompt_tokens < characters / 4 * 1.1
    assert (after.cached, after.prompt_tokens, after.cost) == (9, 0, 0.0)


def command(server, folder, coco, *more):
    arguments = ["--captions", str(coco[0]), "--instances", str(coco[1]), "--output", str(folder)]
    endpoint = ["--endpoint", server.url, "--model", "gpt", "--concurrency", "2"]
    return [sys.executable, "-m", "instructblip_hf.cli", "generate-data", *arguments, *endpoint, *more]


def test_a_killed_command_pays_for_nothing_twice(tmp_path):
    """SIGKILL while two requests are under way: the same command asks for those and what is left, and writes the same."""
    coco = write_coco(tmp_path / "coco", 8)

    def hold(body, count):
        if len(server.bodies) > 13 and not server.release.is_set():
            server.release.wait(60)
            return Reply(kind="drop")
        return well_behaved(body, count)

    with ChatServer(well_behaved) as server:
        done = subprocess.run(command(server, tmp_path / "calm", coco), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with ChatServer(hold) as server:
        out = tmp_path / "out"
        child = subprocess.Popen(command(server, out, coco), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6000):
            if len(server.bodies) == 15:
                break
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert len(server.answered) == 13 == len((out / "cache" / "answers.jsonl").read_text().splitlines())
        assert not (out / "llava_instruct.json").exists()
        server.release.set()
        again = subprocess.run(command(server, out, coco), capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        answered = collections.Counter(json.dumps(body) for body in server.answered)
        assert len(answered) == 24
        assert set(answered.values()) == {1}
        assert len(server.bodies) == 24 + 2
    assert content(out) == content(tmp_path / "calm")
    assert "answers     24, of which 11 were asked for now" in again.stdout


def test_the_command(tmp_path, run_command):
    coco = write_coco(tmp_path / "coco", 3)
    with ChatServer(well_behaved) as server:
        arguments = command(server, tmp_path / "out", coco)[3:]
        prices = ["--prompt-price", "10", "--answer-price", "30"]
        dry = run_command(*arguments, *prices, "--dry-run")
        assert dry.exit_code == 0
        assert "requests    9, of which 0 are answered already" in dry.output
        assert server.bodies == []
        fields = ["--request", "reasoning_effort=low", "--request", "top_k=5"]
        done = run_command(*arguments, *prices, *fields, "--images", "detail=2", "--no-temperature")
        assert done.exit_code == 0
        assert "cost        $0.0128 in all" in done.output  # 8 x (100 x 10 + 20 x 30) / 1e6
        assert len(server.bodies) == 8
        for body in server.bodies:
            assert (body["reasoning_effort"], body["top_k"]) == ("low", 5)
            assert "temperature" not in body
        same = ["--no-temperature", *fields]
        stopped = run_command(*arguments, *prices, *same, "--max-cost", "0.0129", "--concurrency", "1")
        assert stopped.exit_code == 1
        assert "not kept    budget 1" in stopped.output
    with ChatServer(lambda body, count: Reply(text="") if count == 0 else well_behaved(body, count)) as server:
        again = run_command(*command(server, tmp_path / "again", coco, "--ask-again", "1")[3:])
        assert "answers     18, of which 18 were asked for now" in again.output
        assert len(rows_of(tmp_path / "again" / "llava_instruct.json")) == 9
    with ChatServer(lambda body, count: status(401, b"who are you?")) as server:
        refused = run_command(*command(server, tmp_path / "other", coco)[3:])
        assert refused.exit_code == 1
        assert "who are you?" in refused.output
    for wrong, message in (
        (["--types", "poem"], "poem"),
        (["--images", "detail"], "TYPE=N"),
        (["--api-key-variable", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--ask-again", "-1"], "ask-again"),
        (["--max-cost", "1"], "prices"),
        (["--request", "low"], "KEY=VALUE"),
        (["--request", "max_tokens=9"], "a request cannot have max_tokens"),
        (["--request", "temperature=0"], "a request cannot have temperature"),
        (["--ask-again", "1", "--temperature", "0"], "gives the same answer again"),
        (["--ask-again", "1", "--request", "seed=3"], "gives the same answer again"),
        (["--endpoint", "http://localhost:port/v1"], "base_url is 'http://localhost:port/v1'"),
        (["--contexts", "a.jsonl"], "needs --captions"),
        (["--prompts", str(tmp_path)], "has none of"),
        (["--local", "folder"], "not both"),
    ):
        result = run_command(*arguments, *wrong)
        assert result.exit_code == 2, wrong
        assert message in result.output


def test_what_was_lost_is_in_the_cost(tmp_path, run_command):
    """The dry run, the command and the budget name one sum, whose lost part is told apart."""
    coco = write_coco(tmp_path / "coco", 2)
    with ChatServer(lambda body, count: Reply(kind="cut") if count == 0 else well_behaved(body, count)) as server:
        arguments = [*command(server, tmp_path / "out", coco, "--types", "detail")[3:], "--prompt-price", "10"]
        done = run_command(*arguments, "--answer-price", "30")
        dry = run_command(*arguments, "--answer-price", "30", "--dry-run")
    with AnswerCache(tmp_path / "out" / "cache") as cache:
        lost, spent = cache.lost, cache.spent
    assert (spent.prompt - lost.prompt, spent.completion - lost.completion) == (200, 40)
    assert lost.completion == 2 * RESPONSE_TYPES["detail"].max_tokens
    cost, in_vain = (one.prompt * 10e-6 + one.completion * 30e-6 for one in (spent, lost))
    assert f"cost        ${cost:.4f} in all, of which up to ${in_vain:.4f}" in done.output
    assert f"({lost.prompt + lost.completion:,} tokens) for requests whose answers were lost" in done.output
    assert f"spent so far ${cost:.2f}" in dry.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["cost_of_answers"] == pytest.approx(200 * 10e-6 + 40 * 30e-6)


def test_with_a_local_model(tmp_path):
    """A tiny random model writes nonsense, all of which is rejected; asked for descriptions, what it writes is taken."""
    tokenizer = language_tokenizer("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16384,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    local = LocalModel(randomise(transformers.LlamaForCausalLM(config)), tokenizer, "tiny", batch_size=4)
    contexts = coco_contexts(*write_coco(tmp_path, 3))
    options = GenerationOptions(max_tokens=dict.fromkeys(RESPONSE_TYPES, 6), types=("conversation", "detail"))
    reports = []
    for _ in range(2):
        with AnswerCache(tmp_path / "cache") as cache:
            asker = Asker(local, cache)
            reports.append(generate(contexts, tmp_path / "out", asker, options))
            assert asker.counts["asked"] == (0 if len(reports) == 2 else 6)
    assert reports[0] == reports[1]
    raw = lines_of(tmp_path / "out" / "raw.jsonl")
    assert [(record["type"], record["image"][-6:]) for record in raw] == [
        (name, f"{number:02}.jpg") for number in (7, 8, 9) for name in ("conversation", "detail")
    ]
    for record in raw:
        parsed = parse_answer(RESPONSE_TYPES[record["type"]], record["text"], record["finish_reason"])
        assert record["result"] == (parsed if isinstance(parsed, str) else "kept")
    assert reports[0]["types"]["conversation"]["rows"] == 0
