"""Templates: the shipped file, the loader's complaints, and rows made of examples."""

import itertools
import subprocess
import sys
from collections import Counter

import pytest

from instructblip_hf.data.schema import SLOTS, check_example
from instructblip_hf.data.templates import (
    InstructionDataset,
    Instructions,
    Template,
    TemplateError,
    load_templates,
    slot_texts,
    split_caption,
)
from instructblip_hf.data.templates.loading import FEWEST, MOST


CONTENT = {
    "question": "What is it?",
    "statement": "The cat is on the mat.",
    "options": ["the cat", "a dog"],
    "correct_option": 0,
    "context": "It was night.",
    "lecture": "Cats are animals.",
    "ocr_tokens": ["STOP", "ahead"],
    "text": "so cute",
    "caption": "An animal on a mat.",
    "history": [{"question": "Is it big?", "answer": "no"}],
    "video": {"path": "a.mp4", "start": None, "end": None},
}
WORDED = [category for category, slots in SLOTS.items() if slots.target != "messages"]


def example_of(category, required=None, optional=True):
    """An example with one slot of each required group, and with all optional slots or none."""
    slots = SLOTS[category]
    example = {"id": "7", "dataset": "some", "category": category, "images": ["a.png"], "answers": ["the cat"]}
    for slot in required or [group[0] for group in slots.required]:
        example[slot] = CONTENT[slot]
    if optional:
        example.update({slot: CONTENT[slot] for slot in slots.optional if slot in CONTENT})
    elif "history" in example:
        example["history"] = []
    check_example(example)
    return example


def kinds():
    for category in WORDED:
        for required in itertools.product(*SLOTS[category].required):
            for optional in (True, False):
                yield pytest.param(category, required, optional, id=f"{category}-{'-'.join(required)}-{optional}")


class TestShippedTemplates:
    def test_categories(self):
        assert set(load_templates()) == set(WORDED)
        assert len(WORDED) == 10

    @pytest.mark.parametrize(("category", "required", "optional"), list(kinds()))
    def test_every_kind_of_row_has_10_to_15_distinct_prompts(self, category, required, optional):
        example = example_of(category, required, optional)
        texts = {**slot_texts(example), "answer": "the cat"}
        fitting = [template for template in load_templates()[category].templates if template.needed <= texts.keys()]
        assert FEWEST <= len(fitting) <= MOST
        rows = [Instructions().row(example, row=3, epoch=epoch) for epoch in range(len(fitting))]
        prompts = {row["prompt"] for row in rows}
        assert len(prompts) == len(fitting)
        # All content that the prompt may hold is there, once, and nothing of the template's syntax is left.
        target = SLOTS[category].target
        unworded = {"conversational_qa": {"options"}, "question_generation": {"question", "options"}}.get(
            category, set()
        )
        shown = [text for slot, text in slot_texts(example).items() if slot not in unworded]
        for prompt in prompts:
            assert not set(prompt) & set("[]{}")
            assert "  " not in prompt
            assert prompt == prompt.strip()
            for text in shown:
                assert prompt.count(text) == 1
            assert ("the cat" in prompt.replace("(a) the cat", "")) == (target == "question")
        assert {row["completion"] for row in rows} == {"What is it?" if target == "question" else "the cat"}

    @pytest.mark.parametrize("category", sorted(set(WORDED) - {"question_generation"}))
    def test_some_ask_for_short_answers(self, category):
        templates = load_templates()[category].templates
        short = [t for t in templates if any(word in t.text.lower() for word in ("short", "brief"))]
        assert 3 <= len(short) < len(templates)

    def test_no_wording_in_two_categories_but_for_video(self):
        texts = Counter(t.text for task in load_templates().values() for t in task.templates)
        assert max(texts.values()) == 1


class TestTemplate:
    def test_brackets(self):
        template = Template("[{context} ]Q: {question}[ Options: {options}.] A:")
        assert template.render({"question": "why?"}) == "Q: why? A:"
        assert (
            template.render({"question": "why?", "options": "(a) x", "context": "So."})
            == "So. Q: why? Options: (a) x. A:"
        )
        assert template.needed == {"question"}
        assert template.optional == {"context", "options"}

    def test_braces_and_brackets_of_the_content_are_text(self):
        assert (
            Template("{question}[ {text}]").render({"question": "{answer} [x]?", "text": "{0}"}) == "{answer} [x]? {0}"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{colour}?", "{colour} is no slot; allowed are answer"),
            ("{question!r}", "is no slot"),
            ("{question:>9}", "is no slot"),
            ("{}", "is no slot"),
            ("{question", "expected '}'"),
            ("[{question}", "pairs"),
            ("[[{question}]]", "nest"),
            ("{question} [please]", "names no slot"),
        ],
    )
    def test_errors(self, text, message):
        with pytest.raises(ValueError, match=message):
            Template(text)

    def test_slot_texts(self):
        example = {
            "options": ["x", "y "],
            "ocr_tokens": ["1", "2", "3"],
            "history": [{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d"}],
            "context": "",
            "question": " why? ",
        }
        assert slot_texts(example, max_ocr_tokens=2) == {
            "question": "why?",
            "options": "(a) x (b) y",
            "ocr_tokens": "1, 2",
            "history": "Question: a? Answer: b Question: c? Answer: d",
        }
        assert slot_texts({"options": ["o"] * 28})["options"].endswith("(z) o (27) o (28) o")


class TestLoading:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("image_qa: {name: x, plain: '{question}', templates: ['Say: {colour}']}", "{colour} is no slot"),
            ("image_qa: {name: x, plain: '', templates: ['{question} ?', '{Question}  ?']}", "{Question} is no slot"),
            ("image_qa: {name: x, plain: '{question}', templates: ['A {question}', 'a  {question}']}", "2 times"),
            ("image_qa: {name: x, plain: '{question}', templates: ['What?']}", "'What[?]': must name {question}"),
            ("image_qa: {name: x, plain: '{question}', templates: ['[{question}]']}", "must name {question}"),
            ("image_qa: {name: x, plain: '{question}', templates: ['{question} {text}']}", "names {text}, which"),
            ("image_qa: {name: x, plain: '{question}', templates: ['{question} {answer}']}", "names {answer}, which"),
            (
                "question_generation: {name: x, plain: '{answer}', templates: ['{answer} {question}']}",
                "{question}, which",
            ),
            (
                "qa_reading: {name: x, plain: '{question}', templates: ['{question}']}",
                "must name {ocr_tokens}, in brack",
            ),
            ("image_qa: {name: x, plain: '{question}', templates: []}", "at least one"),
            ("image_qa: {name: x, templates: ['{question}']}", "must have the keys"),
            ("image_qa: {name: 1, plain: '{question}', templates: ['{question}']}", "must be text"),
            (
                "image_q: {name: x, plain: '', templates: ['a']}",
                "image_q: no category with templates; allowed are image_c",
            ),
            ("llava_instruct: {name: x, plain: '', templates: ['a']}", "no category with templates"),
            ("[1, 2]", "must be a mapping"),
            ("a: [", "not readable as YAML"),
        ],
    )
    def test_errors(self, tmp_path, content, message):
        file = tmp_path / "mine.yaml"
        file.write_text(content)
        with pytest.raises(TemplateError, match=message) as caught:
            load_templates(file)
        assert all(problem.startswith("mine.yaml: ") for problem in caught.value.problems)

    def test_all_problems_at_once(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("image_qa: {name: x, plain: '{question}', templates: ['a', '{question}', 'b']}\nfoo: 1\n")
        with pytest.raises(TemplateError) as caught:
            load_templates(file)
        assert len(caught.value.problems) == 3

    def test_own_templates(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("image_qa: {name: Asking, plain: '{question}', templates: ['Tell me, {question}']}")
        instructions = Instructions(templates=load_templates(file))
        assert instructions.row(example_of("image_qa"))["prompt"] == "Tell me, What is it?"
        with pytest.raises(
            ValueError, match="some 7: there are no templates for image_captioning; they are for image_qa"
        ):
            instructions.row(example_of("image_captioning"))


class TestInstructions:
    def test_a_row(self):
        row = Instructions().row(example_of("image_qa"))
        assert set(row) == {"id", "dataset", "images", "prompt", "completion"}
        assert (row["id"], row["dataset"], row["images"], row["completion"]) == ("7", "some", ["a.png"], "the cat")

    def test_wordings_are_used_equally_often(self):
        instructions, example = Instructions(), example_of("image_qa")
        for epoch in (0, 5):
            counts = Counter(instructions.row(example, row, epoch)["prompt"] for row in range(1400))
            assert len(counts) == 14
            # Binomial bounds at four standard deviations around 100.
            assert 60 < min(counts.values()) <= max(counts.values()) < 140

    def test_a_row_meets_every_wording_before_one_again(self):
        instructions, example = Instructions(), example_of("video_qa")
        prompts = [instructions.row(example, 12, epoch)["prompt"] for epoch in range(24)]
        assert len(set(prompts[:12])) == 12
        assert prompts[12:] == prompts[:12]

    def test_seeds_and_datasets_differ(self):
        example = example_of("image_qa")
        other = {**example, "dataset": "other"}

        def prompts(seed, example):
            return [Instructions(seed=seed).row(example, row)["prompt"] for row in range(30)]

        assert prompts(0, example) == prompts(0, example)
        assert prompts(0, example) != prompts(1, example)
        assert prompts(0, example) != prompts(0, other)

    def test_the_same_in_another_process(self):
        code = (
            "from instructblip_hf.data.templates import Instructions\n"
            "example = {'id': '7', 'dataset': 'some', 'category': 'image_qa', 'images': [], 'answers': list('abcde'),"
            " 'question': 'What is it?'}\n"
            "rows = [Instructions(seed=3).row(example, row, row % 4) for row in range(40)]\n"
            "print([(row['prompt'], row['completion']) for row in rows])"
        )
        outputs = [
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
            ).stdout
            for seed in ("1", "2")
        ]
        here = [
            Instructions(seed=3).row({**example_of("image_qa"), "answers": list("abcde")}, row, row % 4)
            for row in range(40)
        ]
        assert outputs[0] == outputs[1] == str([(row["prompt"], row["completion"]) for row in here]) + "\n"

    def test_answers_and_questions_belong_together(self):
        example = {**example_of("question_generation", optional=False), "answers": ["red"] * 9 + ["crimson"]}
        rows = [Instructions().row(example, row) for row in range(200)]
        assert {row["completion"] for row in rows} == {"What is it?"}
        asked = Counter("crimson" in row["prompt"] for row in rows)
        assert 5 <= asked[True] <= 45
        chosen = Instructions(answer_choice="most_common").row(example)
        assert "red" in chosen["prompt"]

    def test_one_of_the_first_two(self):
        """As BLIP-2 samples captions that CapFilt ranked: the third is never learnt, the others in half of the epochs."""
        example = {**example_of("image_captioning"), "answers": ["best", " ", "second", "third"]}
        instructions = Instructions(answer_choice="first_two", seed=3)
        learnt = Counter(
            instructions.row(example, row, epoch)["completion"] for row in range(20) for epoch in range(50)
        )
        assert set(learnt) == {"best", "second"}
        assert abs(learnt["best"] - 500) < 80
        assert (
            Instructions(answer_choice="first_two").row({**example_of("image_captioning"), "answers": ["one"]})[
                "completion"
            ]
            == "one"
        )

    def test_free_answers_beside_options(self):
        """As in A-OKVQA: an option is learnt where options are shown, an annotator's words where they are not."""
        example = {**example_of("knowledge_qa"), "answers": ["kitty", "puss"], "correct_option": 1}
        for form in ("instruction", "plain"):
            rows = [Instructions(form=form).row(example, row, epoch) for row in range(20) for epoch in range(10)]
            shown = Counter((row["completion"], "(a) the cat (b) a dog" in row["prompt"]) for row in rows)
            assert set(shown) == {("a dog", True), ("kitty", False), ("puss", False)}
            assert 70 < shown["a dog", True] < 130
        assert {Instructions(without=("options",)).row(example, row)["completion"] for row in range(20)} == {
            "kitty",
            "puss",
        }

    def test_options_alone(self):
        """As in ScienceQA, where the only answer is the right option: options are always shown."""
        example = {**example_of("knowledge_qa"), "answers": ["a dog"], "correct_option": 1}
        rows = [Instructions().row(example, row) for row in range(20)]
        assert {(row["completion"], "(b) a dog" in row["prompt"]) for row in rows} == {("a dog", True)}
        unknown = {**example_of("knowledge_qa"), "answers": ["a dog", "the cat"]}
        del unknown["correct_option"]
        assert all("(b) a dog" in Instructions().row(unknown, row)["prompt"] for row in range(20))

    def test_slots_left_out(self):
        row = Instructions(without=("lecture", "options")).row(example_of("knowledge_qa"))
        assert "It was night." in row["prompt"]
        assert "Cats are animals." not in row["prompt"]
        assert "(a)" not in row["prompt"]

    @pytest.mark.parametrize(
        ("category", "plain"),
        [
            ("image_captioning", ""),
            ("captioning_reading", "STOP, ahead"),
            ("visual_reasoning", "What is it? (a) the cat (b) a dog"),
            ("image_qa", "What is it?"),
            ("knowledge_qa", "Cats are animals. It was night. What is it? (a) the cat (b) a dog"),
            ("qa_reading", "STOP, ahead What is it?"),
            ("question_generation", "the cat"),
            ("video_qa", "What is it?"),
            ("conversational_qa", "An animal on a mat. Question: Is it big? Answer: no What is it?"),
            ("image_classification", "so cute"),
        ],
    )
    def test_ablation_forms(self, category, plain):
        example = example_of(category)
        task = load_templates()[category].name
        for epoch in (0, 1):
            assert Instructions(form="plain").row(example, 0, epoch)["prompt"] == plain
            assert Instructions(form="identifier").row(example, 0, epoch)["prompt"] == f"[{task}:some] {plain}".strip()

    def test_a_statement_in_plain_form(self):
        example = example_of("visual_reasoning", ("statement",), optional=False)
        assert Instructions(form="plain").row(example)["prompt"] == "The cat is on the mat."

    def test_conversations_are_raw(self):
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ]
        example = {
            "id": "1", "dataset": "llava", "category": "llava_instruct", "images": ["a"], "answers": [], "messages": messages
        }  # fmt: skip
        for form in ("instruction", "plain"):
            row = Instructions(form=form).row(example)
            assert row == {"id": "1", "dataset": "llava", "images": ["a"], "messages": messages}
        marked = Instructions(form="identifier").row(example)["messages"]
        texts = "".join(part.get("text", "<image>") for part in marked[0]["content"])
        assert texts == "<image>[Visual conversation:llava] What?"
        assert marked[1:] == messages[1:]
        assert messages[0]["content"][1]["text"] == "What?"

    def test_errors(self):
        with pytest.raises(ValueError, match="form is 'raw'; allowed are instruction"):
            Instructions(form="raw")
        with pytest.raises(ValueError, match="without: 'colour' is no slot"):
            Instructions(without=("colour",))
        with pytest.raises(ValueError, match="answer_choice is 'all'"):
            Instructions(answer_choice="all")
        with pytest.raises(ValueError, match="some 7: answers is empty"):
            Instructions().row({**example_of("image_qa"), "answers": []})
        with pytest.raises(ValueError, match="some 7: no template of image_qa fits; the example has content for none"):
            Instructions(without=("question",)).row(example_of("image_qa"))

    def test_dataset(self):
        examples = [{**example_of("image_qa"), "id": str(index)} for index in range(5)]
        dataset = InstructionDataset(examples, Instructions())
        assert len(dataset) == 5
        assert dataset[2] == dataset.at(2, 0) != dataset.at(2, 1)
        assert [row["id"] for row in dataset] == list("01234")
        opened = InstructionDataset(examples, Instructions(), open_images=lambda example: ["open " + example["id"]])
        assert opened[3]["images"] == ["open 3"]


def test_the_collator_takes_the_rows():
    """Rows of every category, plain and worded, through the processor, with images and without."""
    from PIL import Image

    from instructblip_hf.data.collators import VisionLanguageCollator
    from tiny_processors import our_processor

    rows = []
    for category in WORDED:
        for form in ("instruction", "plain", "identifier"):
            example = {**example_of(category), "images": [Image.new("RGB", (8, 8))]}
            rows.append(Instructions(form=form).row(example))
    batch = VisionLanguageCollator(our_processor())(rows)
    assert len(batch["labels"]) == len(rows)
    assert bool((batch["labels"] != -100).any(dim=1).all())


# --- captions and questions as BLIP-2 is trained with them --------------------------------------------------------


def test_a_caption_is_split_from_its_first_word_to_its_middle():
    caption = "a small red circle under the blue square"
    words = caption.split()
    firsts = Counter()
    for row in range(4000):
        prefix, rest = split_caption(caption, seed=3, epoch=0, row=row)
        assert f"{prefix} {rest}" == caption
        firsts[len(prefix.split())] += 1
    assert set(firsts) == {1, 2, 3, 4} == set(range(1, len(words) // 2 + 1))
    assert all(abs(count - 1000) < 120 for count in firsts.values()), firsts
    assert len({split_caption(caption, 3, epoch, 0) for epoch in range(20)}) == 4
    assert split_caption(caption, 3, 5, 7) == split_caption(caption, 3, 5, 7)
    assert split_caption("circle", 0, 0, 0) == ("", "circle")
    assert split_caption("red circle", 0, 0, 0) == ("red", "circle")


def test_the_form_prefix():
    instructions = Instructions(form="prefix", seed=1)
    example = {**example_of("image_captioning"), "answers": ["a small red circle"]}
    row = instructions.row(example, 5, 2)
    assert (row["prompt"], row["completion"]) == split_caption("a small red circle", 1, 2, 5)
    with pytest.raises(ValueError, match="form prefix is for captions, which image_qa has none of"):
        instructions.row(example_of("image_qa"))


def test_one_wording_for_all_rows_and_another_for_the_qformer():
    instructions = Instructions(wording="Question: {question} Answer:", qformer_wording="{question}")
    example = example_of("image_qa")
    for row in range(3):
        worded = instructions.row(example, row)
        assert worded["prompt"] == f"Question: {CONTENT['question']} Answer:"
        assert worded["qformer_text"] == CONTENT["question"]
    assert Instructions(wording="a photo of").row(example_of("image_captioning"))["prompt"] == "a photo of"
    with pytest.raises(ValueError, match="wording needs 'question', and the example has content for none"):
        instructions.row(example_of("image_captioning"))
    with pytest.raises(ValueError, match=r"qformer_wording: \{quetion\} is no slot"):
        Instructions(qformer_wording="{quetion}")
    with pytest.raises(ValueError, match="wording is given, and form is 'plain'"):
        Instructions(wording="a photo of", form="plain")


def test_captions_as_lavis_puts_them():
    example = {**example_of("image_captioning"), "answers": ['A "small" Cat; on (a) mat.']}
    assert Instructions(clean_captions=True, form="plain").row(example)["completion"] == "a small cat on a mat"
    split = Instructions(clean_captions=True, form="prefix").row(example)
    assert f"{split['prompt']} {split['completion']}" == "a small cat on a mat", "before it is split"
    answer = {**example_of("image_qa"), "answers": ["U.S.A."]}
    assert Instructions(clean_captions=True).row(answer)["completion"] == "U.S.A."
    with pytest.raises(ValueError, match="nothing is left of the caption '!!!'"):
        Instructions(clean_captions=True).row({**example, "answers": ["!!!"]})
