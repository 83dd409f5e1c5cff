"""Push to and pull from a loopback Hub with the real client; code beside the weights; model cards."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from transformers.dynamic_module_utils import get_relative_import_files

import instructblip_hf
from hub_server import USER, HubServer
from instructblip_hf import Blip2Processor, InstructBlipForConditionalGeneration, InstructBlipProcessor, LlavaProcessor
from instructblip_hf.utils.hub import save_for_hub
from instructblip_hf.utils.model_card import model_card
from instructblip_hf.utils.remote_code import export_remote_code
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, batch, our_blip_2, our_llava, our_model, our_retrieval_model
from tiny_processors import language_tokenizer, our_processor
from tiny_processors import qformer_tokenizer as bert_tokenizer


PROMPT = "what color is the circle ?"

# Processes of these tests see no instructblip_hf, as on a machine where it was never installed.
WITHOUT_PACKAGE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "instructblip_hf":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""
TOOLS = """
import json, torch, transformers, numpy as np
from PIL import Image
image = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3))
def answer(model, processor, prompt="what color is the circle ?"):
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=6, return_full_text=False)
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
def weights(model):
    return {key: value.double().sum().item() for key, value in model.state_dict().items()}
"""


def run(code, home, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def scope_of_tools():
    scope = {}
    exec(TOOLS, scope)
    return scope


def answer_here(model, processor):
    scope = scope_of_tools()
    return scope["answer"](model, processor), scope["weights"](model)


# --- code beside the weights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "t5"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "a-model.v1"
    model, processor = our_model(request.param), our_processor(request.param)
    save_for_hub(folder, model, processor, include_code=True)
    return folder, model, processor


def test_exported_files_are_flat_siblings_that_name_each_other(exported):
    folder, _, _ = exported
    files = sorted(folder.glob("*.py"))
    assert {"configuration_instructblip.py", "modeling_instructblip.py", "pipelines_image_to_text.py"} <= {
        path.name for path in files
    }
    for path in files:
        for needed in get_relative_import_files(path):  # transformers' own reading of the imports
            assert os.path.exists(needed), f"{path.name} needs {needed}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                assert node.level == 0 or node.module
                assert not (node.level == 0 and node.module.startswith("instructblip_hf"))


def test_exported_folder_works_without_the_package(exported, tmp_path):
    folder, model, processor = exported
    code = (
        WITHOUT_PACKAGE
        + TOOLS
        + f"""
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
folder, again = {str(folder)!r}, {str(tmp_path / "again")!r}
model, info = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
pipe = pipeline("image-to-text", model=folder, trust_remote_code=True)
chat = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
content = [dict(type="image", image=image), dict(type="text", text={PROMPT!r})]
turns = [dict(role="user", content=content)]
model.save_pretrained(again)
processor.save_pretrained(again)
second = AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True)
stock = AutoModelForImageTextToText.from_pretrained(folder)
print(json.dumps(dict(
    modules=[type(part).__module__.split(".")[0] for part in (model, model.config, processor, pipe, second, stock)],
    keys=sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]),
    weights=weights(model),
    stock_weights=weights(stock),
    answers=[answer(model, processor), answer(second, processor)],
    pipe=pipe([image, image], prompt={PROMPT!r}, max_new_tokens=6, batch_size=2),
    chat_template=processor.chat_template,
    chat=chat(text=turns, max_new_tokens=6, return_full_text=False)[0]["generated_text"].strip(),
)))
"""
    )
    seen = run(code, tmp_path, HF_HUB_OFFLINE="1")
    expected, weights = answer_here(model, processor)
    assert seen["modules"] == ["transformers_modules"] * 5 + ["transformers"]
    assert seen["keys"] == []
    assert seen["weights"] == seen["stock_weights"] == weights
    assert seen["answers"] == [expected] * 2
    assert seen["pipe"] == [[{"generated_text": expected}]] * 2
    assert seen["chat_template"] == processor.chat_template
    assert seen["chat"] == expected


def test_exported_folder_works_with_the_package(exported):
    folder, model, processor = exported
    ours = instructblip_hf.AutoModelForVision2Seq.from_pretrained(folder)
    assert type(ours) is InstructBlipForConditionalGeneration
    expected, _ = answer_here(model, processor)
    picture = scope_of_tools()["image"]
    # transformers refuses the folder's own pipeline without trust_remote_code; ours can be handed to it.
    pipe = transformers.pipeline(
        "image-to-text", model=str(folder), pipeline_class=instructblip_hf.ImageToTextPipeline
    )
    assert pipe(picture, prompt=PROMPT, max_new_tokens=6) == [{"generated_text": expected}]


def test_export_is_for_our_families(tmp_path):
    transformers.OPTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'opt'.*instructblip"):
        export_remote_code(tmp_path)
    with pytest.raises(FileNotFoundError):
        export_remote_code(tmp_path / "nothing")


def test_a_folder_without_code_does_not_name_code(exported, tmp_path):
    folder, _, _ = exported
    InstructBlipForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path)
    InstructBlipProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json"):
        assert not json.loads((tmp_path / name).read_text()).keys() & {"auto_map", "custom_pipelines"}
    assert transformers.pipeline("image-to-text", model=str(tmp_path)).model.__module__.startswith("instructblip_hf.")


# --- the Hub ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """One process pushes: with code in one commit, and as stock transformers does, model and processor apart."""
    home = tmp_path_factory.mktemp("pusher")
    tests = os.path.dirname(__file__)
    code = (
        f"import sys; sys.path.insert(0, {tests!r})\n"
        + TOOLS
        + """
from tiny_models import our_model
from tiny_processors import our_processor
from instructblip_hf.utils.hub import push_to_hub
model, processor = our_model(), our_processor()
url = push_to_hub("tester/one-commit", model, processor, include_code=True, max_shard_size="40KB")
push_to_hub("tester/one-commit", our_model(seed=1), processor, revision="other")
push_to_hub("tester/private", model, processor, private=True)
model.push_to_hub("tester/two-steps", max_shard_size="40KB")
processor.push_to_hub("tester/two-steps")
print(json.dumps(dict(url=url)))
"""
    )
    return run(code, home, **hub.environment(home))


def test_push_writes_shards_processor_card_and_code(hub, pushed):
    files = hub.files(f"{USER}/one-commit")
    shards = [name for name in files if name.startswith("model-") and name.endswith(".safetensors")]
    assert len(shards) > 2
    index = json.loads(files["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == set(shards)
    assert not any(name.endswith((".bin", ".pt")) for name in files)
    assert {"config.json", "processor_config.json", "modeling_instructblip.py", "README.md"} <= set(files)
    assert pushed["url"].startswith(f"{hub.url}/{USER}/one-commit/commit/")
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert f'"{USER}/one-commit"' in card.text
    assert len(hub.repos[f"{USER}/one-commit"]["trees"]) == 3  # empty, main, other


def pull(hub, home, code, **environment):
    return run(code, home, **{**hub.environment(home), **environment})


def test_pull_gives_equal_weights_and_answers(hub, pushed, tmp_path):
    code = (
        TOOLS
        + """
import instructblip_hf
from transformers import AutoModelForVision2Seq, pipeline
ids = ["tester/one-commit", "tester/two-steps", "tester/private"]
models = [AutoModelForVision2Seq.from_pretrained(name) for name in ids]
processors = [instructblip_hf.InstructBlipProcessor.from_pretrained(name) for name in ids]
other = AutoModelForVision2Seq.from_pretrained(ids[0], revision="other")
pipe = pipeline("image-to-text", model=ids[1])
print(json.dumps(dict(
    modules=[type(model).__module__ for model in models],
    weights=[weights(model) for model in models],
    other=weights(other),
    answers=[answer(*pair) for pair in zip(models, processors)],
    pipe=pipe(image, prompt="what color is the circle ?", max_new_tokens=6)[0]["generated_text"],
)))
"""
    )
    seen = pull(hub, tmp_path, code)
    expected, weights = answer_here(our_model(), our_processor())
    assert set(seen["modules"]) == {InstructBlipForConditionalGeneration.__module__}
    assert seen["weights"] == [weights] * 3
    assert seen["other"] == answer_here(our_model(seed=1), our_processor())[1] != weights
    assert seen["answers"] == [expected] * 3
    assert seen["pipe"] == expected


def test_pull_of_remote_code_without_the_package(hub, pushed, tmp_path):
    code = (
        WITHOUT_PACKAGE
        + TOOLS
        + """
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
name = "tester/one-commit"
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
pipe = pipeline("image-to-text", model=name, trust_remote_code=True)
print(json.dumps(dict(
    module=type(model).__module__,
    weights=weights(model),
    answer=answer(model, processor),
    pipe=pipe(image, prompt="what color is the circle ?", max_new_tokens=6)[0]["generated_text"],
)))
"""
    )
    seen = pull(hub, tmp_path, code)
    expected, weights = answer_here(our_model(), our_processor())
    assert seen["module"].startswith("transformers_modules.tester.")
    assert seen["weights"] == weights
    assert seen["answer"] == seen["pipe"] == expected


def test_refusals_say_why_and_broken_downloads_leave_nothing(hub, pushed, tmp_path):
    code = """
import json, os
from pathlib import Path
from instructblip_hf import AutoModelForVision2Seq
from instructblip_hf.utils.hub import push_to_hub
from transformers import pipeline
def error(call):
    try:
        call()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return "no error"
seen = dict(
    private=error(lambda: AutoModelForVision2Seq.from_pretrained("tester/private")),
    private_pipeline=error(lambda: pipeline("image-to-text", model="tester/private")),
    missing=error(lambda: AutoModelForVision2Seq.from_pretrained("tester/no-such-model")),
    revision=error(lambda: AutoModelForVision2Seq.from_pretrained("tester/two-steps", revision="nowhere")),
    push=error(lambda: push_to_hub("tester/refused", None, token="wrong")),
    broken=error(lambda: AutoModelForVision2Seq.from_pretrained("tester/two-steps")),
)
snapshots = Path(os.environ["HF_HOME"]) / "hub" / "models--tester--two-steps"
seen["weights"] = [path.name for path in snapshots.rglob("*.safetensors")]
print(json.dumps(seen))
"""
    shards = sorted(name for name in hub.files(f"{USER}/two-steps") if name.endswith(".safetensors"))
    hub.broken.add(shards[0])
    try:
        seen = pull(hub, tmp_path, code, HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
    finally:
        hub.broken.clear()
    for message in (seen["private"], seen["private_pipeline"]):
        assert "tester/private" in message
        assert "private repository" in message
    assert "tester/no-such-model" in seen["missing"]
    assert "nowhere" in seen["revision"]
    assert "401" in seen["push"]
    assert "Invalid username or password" in seen["push"]
    assert f"{USER}/refused" not in hub.repos
    assert seen["broken"] != "no error"
    assert shards[0] not in seen["weights"]  # whole files only, under their names
    # and the next try, with the connection back, succeeds from the same cache
    repaired = TOOLS + (
        "from instructblip_hf import AutoModelForVision2Seq\n"
        "print(json.dumps(weights(AutoModelForVision2Seq.from_pretrained('tester/two-steps'))))"
    )
    assert pull(hub, tmp_path, repaired) == answer_here(our_model(), our_processor())[1]


# --- model cards --------------------------------------------------------------------------------------------------


def trainer_state(**kwargs):
    log = [{"loss": 4.0, "step": 1, "epoch": 0.1}]
    log += [{"eval_loss": 2.0 - i / 50, "eval_runtime": 3.0, "step": 10 * i, "epoch": i / 10} for i in range(50)]
    log += [{"loss": 0.5, "step": 500, "epoch": 5.0}]
    return transformers.TrainerState(global_step=500, epoch=5.0, log_history=log, **kwargs)


def test_model_card_tells_parts_training_and_origin(tmp_path):
    model = our_model("t5")
    for part in (model.vision_model, model.language_model):
        part.requires_grad_(False)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4, use_cpu=True)
    card = model_card(
        model,
        trainer_state(best_metric=0.25),
        arguments,
        location="tester/model",
        description="Knows shapes alone.",
        license="apache-2.0",
        base_model=["google/flan-t5-xl", str(tmp_path / "my-base")],
        datasets=["tester/data"],
        results=[{"task": "counting", "accuracy": 0.91}, {"task": "a|b", "accuracy": 1.0}],
        command="instructblip train recipe.yaml",
        include_code=True,
    )
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.license == "apache-2.0"
    assert again.data.base_model == ["google/flan-t5-xl"]
    assert again.data.pipeline_tag == "image-text-to-text"
    text = again.text
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"| **all** | | **{total:,}** | **{trained:,}** |" in text
    for part in ("vision_model", "query_tokens", "qformer", "language_projection", "language_model"):
        assert text.count(f"| `{part}` |") == 1
    for expected in (
        "| learning_rate | 0.0003 |",
        "500 steps, 5.00 epochs, training loss 4.0000 at first, 0.5000 at the end, best metric 0.2500",
        "| counting | 0.91 |",
        "a\\|b",
        "instructblip train recipe.yaml",
        "trust_remote_code=True",
        "Knows shapes alone.",
        "my-base",
        "sequence-to-sequence `t5`",
    ):
        assert expected in text, expected
    assert str(tmp_path) not in again.content
    assert "eval_runtime" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 490 |"))]
    assert len(rows) == 2  # the first and the last evaluation are kept
    assert "\n\n\n" not in text


def test_model_card_of_a_bare_model():
    card = model_card(our_model())
    assert "## Training" not in card.text
    assert "No licence was named" in card.text
    assert "\n\n\n" not in card.text
    with pytest.raises(ValueError, match="results rows need the same keys"):
        model_card(our_model(), results=[{"a": 1}, {"b": 2}])


def test_snippet_of_the_card_runs(tmp_path, monkeypatch):
    model, processor = our_model(), our_processor()
    save_for_hub(tmp_path, model, processor, card=model_card(model, location=str(tmp_path)))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    snippet = ModelCard.load(tmp_path / "README.md").text.split("```python\n")[1].split("```")[0]
    exec(snippet, {})


def test_logits_survive_save_for_hub(tmp_path):
    model = our_model()
    save_for_hub(tmp_path, model, our_processor(), max_shard_size="40KB")
    again = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch()).logits, model(**batch()).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [our_blip_2, our_retrieval_model, our_llava])
def test_card_and_code_of_other_families(build, tmp_path, monkeypatch):
    model = build()
    tokenizer = bert_tokenizer() if build is our_retrieval_model else language_tokenizer()
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if build is our_llava:
        image_processor = transformers.CLIPImageProcessorPil(size=size, crop_size=size)
        processor = LlavaProcessor(image_processor, tokenizer, 14, "default", num_additional_image_tokens=1)
    else:
        processor = Blip2Processor(
            transformers.BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=NUM_QUERY_TOKENS
        )
    generates = build is not our_retrieval_model
    save_for_hub(tmp_path, model, processor, include_code=generates)
    card = (tmp_path / "README.md").read_text()
    assert ("arXiv 2304.08485" if build is our_llava else "arXiv 2301.12597") in card
    assert "InstructBLIP:" not in card
    assert ("language model" in card) is generates
    monkeypatch.chdir(tmp_path)
    scope_of_tools()["image"].save("image.png")
    snippet = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path))
    scope = {}
    exec(snippet, scope)
    assert type(scope["model"]) is type(model)
    if not generates:
        with pytest.raises(ValueError, match="holds a Blip2ForImageTextRetrieval; code can be added for Blip2ForCond"):
            export_remote_code(tmp_path)
        return
    code = (
        WITHOUT_PACKAGE
        + TOOLS
        + f"""
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(json.dumps(dict(module=type(model).__module__.split(".")[0], answer=answer(model, processor))))
"""
    )
    seen = run(code, tmp_path, HF_HUB_OFFLINE="1")
    assert seen == {"module": "transformers_modules", "answer": answer_here(model, processor)[0]}


def test_snippets_of_the_documentation_run(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "transformers_integration.md"
    save_for_hub(tmp_path / "model", our_model(), our_processor())
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    snippets = page.read_text().split("```python\n")[1:]
    assert len(snippets) == 6
    scope = {}
    for snippet in snippets:
        exec(snippet.split("```")[0], scope)
    assert type(scope["vision"]) is instructblip_hf.InstructBlipVisionModel
    assert type(scope["qformer"]) is instructblip_hf.InstructBlipQFormerModel
    assert type(scope["pipe"]).__module__.startswith("transformers_modules.")
