"""The judge against a server that has a preference for a place, cannot be read, fails; scores by hand; LLaVA's files."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from chat_server import ChatServer, Reply, status
from instructblip_hf.cli.app import app
from instructblip_hf.endpoints import AnswerCache, Asker, OpenAiCompatible, RetryPolicy
from instructblip_hf.evaluation.judge import JudgeOptions, judge, parse_verdict, read_questions, read_rules
from instructblip_hf.evaluation.judge.scores import QuestionScore, relative_scores


CATEGORIES = ("conv", "detail", "complex")
QUALITY = {"model": [6, 5, 4, 7, 6, 3], "reference": [8, 8, 5, 7, 9, 6]}
RULES = {
    name: {"role": "Assistant", "prompt": f"Judge {name}."}
    for category in CATEGORIES
    for name in (category, f"llava_bench_{category}")
}


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def files(tmp_path):
    """Two images with a question of each category; an answer says how good it is."""
    questions = [
        {"question_id": n, "image": f"{n // 3}.jpg", "text": f"question {n}?", "category": CATEGORIES[n % 3]}
        for n in range(6)
    ]
    contexts = [
        {
            "id": n,
            "image": f"{n}.jpg",
            "captions": ["A dog.", "One dog."],
            "instances": [{"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.45]}],
        }
        for n in range(2)
    ]
    found = {"questions": write_lines(tmp_path / "questions.jsonl", questions)}
    found["contexts"] = write_lines(tmp_path / "contexts.jsonl", contexts)
    for name, values in QUALITY.items():
        rows = [
            {"question_id": n, "text": f"{name} of {n}, quality {value}", "answer_id": f"x{n}"}
            for n, value in enumerate(values)
        ]
        found[name] = write_lines(tmp_path / f"{name}.jsonl", rows[::-1])  # found by id, not by line
    (tmp_path / "rule.json").write_text(json.dumps(RULES))
    return {**found, "rules": tmp_path / "rule.json", "out": tmp_path / "out"}


def questions_of(files):
    return read_questions(files["questions"], files["model"], files["reference"], files["contexts"])


def fair(body, bias=0.0):
    """Scores as good as the answers, and more for the first."""
    said = body["messages"][-1]["content"]
    one, other = (float(number) for number in re.findall(r"quality (\d+)", said))
    return Reply(text=f"{one + bias} {other}\nThe first is ...")


def run(server, files, rules=None, cached=False, **options):
    asker = Asker(OpenAiCompatible("judge", server.url, concurrency=2), retries=RetryPolicy(2, 0.01, 0.02))
    if cached:
        with AnswerCache(files["out"] / "cache") as cache:
            asker = Asker(asker.endpoint, cache, retries=RetryPolicy(2, 0.01, 0.02))
            return judge(questions_of(files), files["out"], asker, JudgeOptions(**options), rules)
    return judge(questions_of(files), files["out"], asker, JudgeOptions(**options), rules)


def relative(report):
    return {name: one["relative"] for name, one in report["scores"].items()}


def expected(shift_model=0.0, shift_reference=0.0):
    model = np.array(QUALITY["model"]) + shift_model
    reference = np.array(QUALITY["reference"]) + shift_reference
    scores = {name: model[n::3].mean() / reference[n::3].mean() * 100 for n, name in enumerate(CATEGORIES)}
    return {**scores, "all": model.mean() / reference.mean() * 100}


def test_a_preference_for_the_first_place_cancels(files):
    """Half a point for the first: both answers get half of it in both orders, so that the order of scores stays."""
    with ChatServer(lambda body, count: fair(body, bias=1.0)) as server:
        both = run(server, files)
        paper = run(server, files, order="reference-first")
        other = run(server, files, order="model-first")
    assert relative(both) == pytest.approx(expected(0.5, 0.5))
    assert relative(paper) == pytest.approx(expected(0, 1))
    assert relative(other) == pytest.approx(expected(1, 0))
    assert list(relative(both)) == ["conv", "detail", "complex", "all"]
    assert both["scores"]["all"]["advantage_of_first"] == pytest.approx(1.0)
    # Equal answers (question 3) have one winner in each order.
    assert both["scores"]["all"]["same_winner"] == pytest.approx(4 / 6)
    assert "advantage_of_first" not in paper["scores"]["all"]
    assert paper["order"] == "reference-first"


def test_a_fair_judge(files):
    with ChatServer(lambda body, count: fair(body)) as server:
        report = run(server, files)
    assert relative(report) == pytest.approx(expected())
    assert report["scores"]["all"]["advantage_of_first"] == 0
    assert report["scores"]["all"]["same_winner"] == 1
    assert report["scores"]["conv"]["model"] == 6.5
    assert report["scores"]["conv"]["reference"] == 7.5
    assert report["reviews"] == {"wanted": 12, "read": 12, "unread": 0, "no_answer": 0}
    rows = [json.loads(line) for line in (files["out"] / "reviews.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["order"]) for row in rows] == [
        (str(number), order) for number in range(6) for order in ("reference-first", "model-first")
    ]
    assert [(row["model"], row["reference"]) for row in rows[::2]] == list(zip(*QUALITY.values()))
    assert json.loads((files["out"] / "report.json").read_text()) == report


def test_what_cannot_be_read_is_in_no_mean(files):
    """One order of question 1 and both of question 5 cannot be read: neither question counts."""

    def behave(body, count):
        said = body["messages"][-1]["content"]
        is_model_first = said.index("model of") < said.index("reference of")
        if "question 5" in said or ("question 1" in said and is_model_first):
            return Reply(text="Both are good.\n9 9")
        return fair(body)

    with ChatServer(behave) as server:
        report = run(server, files)
    scores = report["scores"]
    assert (scores["detail"]["judged"], scores["detail"]["not_judged"]) == (1, 1)
    assert scores["detail"]["relative"] == pytest.approx(6 / 9 * 100)
    assert scores["complex"]["relative"] == pytest.approx(4 / 5 * 100)
    assert scores["all"]["relative"] == pytest.approx((6 + 4 + 7 + 6) / (8 + 5 + 7 + 9) * 100)
    assert report["reviews"] == {"wanted": 12, "read": 9, "unread": 3, "no_answer": 0}


def test_reviews_are_asked_again_and_nothing_twice(files):
    def behave(body, count):
        hard = "question 2" in body["messages"][-1]["content"]
        return Reply(text="Hm.") if hard and count < 2 else fair(body)

    with ChatServer(behave) as server:
        first = run(server, files, cached=True)
        assert len(server.bodies) == 12
        assert first["scores"]["complex"]["not_judged"] == 1
        second = run(server, files, cached=True, ask_again=5)
        assert len(server.bodies) == 12 + 2 + 2
        assert run(server, files, cached=True, ask_again=5) == second
        assert len(server.bodies) == 16
    assert relative(second) == pytest.approx(expected())
    assert second["reviews"] == {"wanted": 12, "read": 12, "unread": 4, "no_answer": 0}


def test_no_verdict_at_all(files):
    with ChatServer(lambda body, count: Reply(text="")) as server:
        report = run(server, files)
    assert relative(report) == {"conv": None, "detail": None, "complex": None, "all": None}
    assert report["reviews"]["unread"] == 12


@pytest.mark.parametrize("bench", [False, True])
def test_the_published_prompts(files, bench):
    """With LLaVA's rules: the content that its eval_gpt_review scripts put together, reference first."""
    rules = read_rules(files["rules"])
    if bench:
        rows = [{"image": f"{n}.jpg", "caption": "A dog in the wild."} for n in range(2)]
        write_lines(files["contexts"], rows)
    with ChatServer(lambda body, count: fair(body)) as server:
        run(server, files, rules, order="reference-first")
    sent = {re.search(r"question (\d)", body["messages"][1]["content"]).group(1): body for body in server.bodies}
    assert sorted(sent) == list("012345")
    for number in range(6):
        context = "A dog in the wild." if bench else "A dog.\nOne dog.\n\ndog: [0.1, 0.2, 0.3, 0.45]"
        category = f"llava_bench_{CATEGORIES[number % 3]}" if bench else CATEGORIES[number % 3]
        content = (
            f"[Context]\n{context}\n\n[Question]\nquestion {number}?\n\n"
            f"[Assistant 1]\nreference of {number}, quality {QUALITY['reference'][number]}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\nmodel of {number}, quality {QUALITY['model'][number]}\n\n[End of Assistant 2]\n\n"
            f"[System]\nJudge {category}.\n\n"
        )
        body = sent[str(number)]
        assert body["messages"][1] == {"role": "user", "content": content}
        assert body["messages"][0]["role"] == "system"
        assert (body["temperature"], body["max_tokens"]) == (0.2, 1024)


def test_our_prompts_tell_of_boxes_where_there_are_some(files):
    with ChatServer(lambda body, count: fair(body)) as server:
        run(server, files, order="model-first")
        write_lines(files["contexts"], [{"image": f"{n}.jpg", "caption": ["A dog.", "Two."]} for n in range(2)])
        run(server, files, order="model-first")
    said = [body["messages"][1]["content"] for body in server.bodies]
    assert all("from 0 to 1" in one for one in said[:6])
    assert not any("from 0 to 1" in one for one in said[6:])
    assert all(one.index("model of") < one.index("reference of") for one in said)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 9\nBecause.", (8, 9)),
        ("\n 7.5, 10 \n", (7.5, 10)),
        ("1 1", (1, 1)),
        ("8 9 7", None),
        ("8", None),
        ("", None),
        ("8/10 9/10", None),
        ("0 5", None),
        ("5 11", None),
        ("Assistant 1: 8, Assistant 2: 9", None),
        ("Sure!\n8 9", None),
        ("-1 -1", None),
        ("nan nan", None),
        ("8.9", None),
    ],
)
def test_verdicts(text, scores):
    verdict = parse_verdict(text)
    assert (verdict and (verdict.first, verdict.second)) == scores


def test_intervals_cover_the_score():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(100):
        model, reference = rng.integers(2, 9, 40), rng.integers(5, 10, 40)
        scores = relative_scores([QuestionScore("conv", float(m), float(r)) for m, r in zip(model, reference)], draw)
        low, high = scores["conv"]["interval"]
        assert low < scores["conv"]["relative"] < high
        covered += low <= 5.0 / 7.0 * 100 <= high  # the mean of what was drawn from
    assert covered > 85
    assert relative_scores([QuestionScore("b", 1.0, 2.0), QuestionScore("a", 1.0, 2.0)]).keys() == {"a", "b", "all"}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("questions", [{"question_id": 1, "image": "0.jpg", "text": "a"}], "line 1: has no category"),
        (
            "questions",
            [{"question_id": 9, "image": "0.jpg", "text": "a", "category": "conv"}],
            "no answer to question 9",
        ),
        ("questions", [{"question_id": 1, "image": "x", "text": "a", "category": "conv"}], "nothing about image x"),
        ("questions", [{"question_id": 1, "image": "0.jpg", "text": "a", "category": "conv"}] * 2, "twice"),
        ("questions", [], "no questions"),
        ("model", [{"question_id": 0, "text": "a"}, {"question_id": 0, "text": "a"}], "line 2: question_id 0"),
        ("reference", [{"question_id": 0}], "line 1: has no text"),
        ("contexts", [{"image": "0.jpg"}, {"image": "1.jpg"}], "neither captions nor a caption"),
        ("contexts", [{"image": "0.jpg", "caption": "a", "instances": [{}]}, {"image": "1.jpg"}], "without category"),
    ],
)
def test_files_that_are_malformed(files, name, rows, message):
    write_lines(files[name], rows)
    with pytest.raises(ValueError, match=message):
        questions_of(files)


def test_rules_that_are_missing(files):
    (files["out"].parent / "few.json").write_text(json.dumps({"conv": RULES["conv"]}))
    with ChatServer() as server, pytest.raises(ValueError, match="none for category 'detail'"):
        run(server, files, read_rules(files["out"].parent / "few.json"))
    (files["out"].parent / "few.json").write_text('{"conv": "be good"}')
    with pytest.raises(ValueError, match="a role and a prompt"):
        read_rules(files["out"].parent / "few.json")


def test_the_command(files):
    def command(*more):
        named = ["--questions", "--answers", "--reference", "--contexts"]
        paths = [files["questions"], files["model"], files["reference"], files["contexts"]]
        pairs = [str(part) for pair in zip(named, paths) for part in pair]
        arguments = ["judge", *pairs, "-o", str(files["out"]), "-m", "judge", "--attempts", "1", *more]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    def behave(body, count):
        return status(500) if "question 4" in body["messages"][1]["content"] and is_down else fair(body, bias=1.0)

    is_down = True
    with ChatServer(behave) as server:
        dry = command("--endpoint", server.url, "--dry-run")
        assert "requests    12, of which 0 are answered already" in dry.output
        assert server.bodies == []
        down = command("--endpoint", server.url)
        assert down.exit_code == 1
        assert "not complete" in down.output
        is_down = False
        done = command("--endpoint", server.url)
        assert done.exit_code == 0
        assert len(server.bodies) == 14
        table = [line.split() for line in done.output.splitlines()]
        assert table[1][:2] == ["conv", f"{expected(0.5, 0.5)['conv']:.1f}"]
        assert "whoever comes first gets +1.00; same winner in both orders 67%" in done.output
        wrong = command("--endpoint", server.url, "--order", "random")
    assert wrong.exit_code == 2
    assert "order is 'random'" in wrong.output
