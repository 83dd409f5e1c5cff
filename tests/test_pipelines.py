"""The image-to-text pipeline in every form that transformers 4.57 took, and stock's image-text-to-text with ours."""

import base64
import http.server
import io
import json
import threading

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import instructblip_hf
from instructblip_hf import ImageToTextPipeline, InstructBlipForConditionalGeneration, InstructBlipProcessor
from tiny_models import IMAGE_SIZE, our_model, stock_model
from tiny_processors import language_tokenizer, our_processor, qformer_tokenizer


KINDS = ("llama", "t5")
PROMPT = "what color is the circle ?"
SHORT = {"max_new_tokens": 6}


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    image(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model and processor for each kind of language model."""
    result = {}
    for kind in KINDS:
        result[kind] = str(tmp_path_factory.mktemp(kind))
        our_model(kind).save_pretrained(result[kind])
        our_processor(kind).save_pretrained(result[kind])
    return result


@pytest.fixture(scope="module")
def pipes(folders):
    return {kind: pipeline("image-to-text", model=folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def expected(pipes):
    """Greedy completions by model and processor alone, with and without prompt."""
    result = {}
    for kind, pipe in pipes.items():
        model, processor = pipe.model, our_processor(kind)
        for prompt in (None, PROMPT):
            inputs = [processor(images=image(i), text=prompt or "", return_tensors="pt") for i in range(3)]
            tokens = [model.generate(**row, return_full_text=False, **SHORT)[0] for row in inputs]
            result[kind, prompt] = [
                [{"generated_text": processor.decode(row, skip_special_tokens=True).strip()}] for row in tokens
            ]
    return result


def test_pipeline_loads_our_classes(pipes):
    for pipe in pipes.values():
        assert type(pipe) is ImageToTextPipeline
        assert pipe.task == "image-to-text"
        assert type(pipe.model) is InstructBlipForConditionalGeneration
        assert type(pipe.processor) is InstructBlipProcessor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [None, PROMPT], ids=["image only", "prompt"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_equal_single_images(pipes, expected, kind, prompt, batch_size):
    kwargs = {} if prompt is None else {"prompt": prompt}
    images = [image(i) for i in range(3)]
    assert pipes[kind](images, batch_size=batch_size, **kwargs, **SHORT) == expected[kind, prompt]
    assert len({row[0]["generated_text"] for row in expected["llama", prompt]}) > 1


def test_completions_do_not_repeat_the_prompt(pipes, expected):
    texts = [row[0]["generated_text"] for rows in expected.values() for row in rows]
    assert all(text and not text.startswith(PROMPT) for text in texts)


@pytest.fixture(scope="module")
def image_url():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(0))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/image.png"
    server.shutdown()
    server.server_close()


def test_sources_of_an_image(pipes, expected, tmp_path, image_url):
    path = tmp_path / "image.png"
    path.write_bytes(png(0))
    encoded = base64.b64encode(png(0)).decode()
    sources = [image(0), str(path), path, encoded, f"data:image/png;base64,{encoded}", png(0), image_url]
    for source in sources:
        assert pipes["llama"](source, timeout=10, **SHORT) == expected["llama", None][0], str(source)[:40]


def test_collections_of_images(pipes, expected):
    pipe, rows = pipes["llama"], expected["llama", PROMPT]
    images = [image(i) for i in range(3)]

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index]

    keyed = KeyDataset([{"picture": picture} for picture in images], "picture")
    kwargs = {"prompt": PROMPT, **SHORT}
    assert pipe(images, **kwargs) == rows
    assert pipe(images=images, **kwargs) == rows
    assert pipe(images=images[0], **kwargs) == rows[0]
    assert list(pipe((picture for picture in images), **kwargs)) == rows
    assert list(pipe(Images(), batch_size=2, **kwargs)) == rows
    assert list(pipe(keyed, batch_size=2, num_workers=1, **kwargs)) == rows
    assert pipe([], **kwargs) == []


def test_datasets_of_the_datasets_library(pipes, expected):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [{"bytes": png(i), "path": None} for i in range(3)]})
    data = data.cast_column("image", datasets.Image())
    assert list(pipes["llama"](KeyDataset(data, "image"), **SHORT)) == expected["llama", None]


@pytest.mark.parametrize("kind", KINDS)
def test_several_sequences_give_several_entries(pipes, expected, kind):
    beams = {"num_beams": 3, "num_return_sequences": 2}
    single = pipes[kind](image(0), generate_kwargs=beams, **SHORT)
    assert len(single) == 2
    rows = pipes[kind]([image(i) for i in range(3)], generate_kwargs=beams, batch_size=2, **SHORT)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert rows[0] == single
    inputs = our_processor(kind)(images=image(1), text="", return_tensors="pt")
    tokens = pipes[kind].model.generate(**inputs, return_full_text=False, **beams, **SHORT)
    decoded = [our_processor(kind).decode(row, skip_special_tokens=True).strip() for row in tokens]
    assert [entry["generated_text"] for entry in rows[1]] == decoded


def test_arguments_at_construction_and_at_the_call(folders, expected):
    pipe = pipeline("image-to-text", model=folders["llama"], prompt=PROMPT, batch_size=2, max_new_tokens=6)
    assert pipe([image(i) for i in range(3)]) == expected["llama", PROMPT]
    assert len(pipe(image(0), max_new_tokens=2)[0]["generated_text"].split()) <= 2
    config = GenerationConfig(max_new_tokens=6, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    assert pipe(image(0), generate_kwargs={"generation_config": config}) == expected["llama", PROMPT][0]
    assert config.max_new_tokens == 6


def new_tokens(monkeypatch, pipe, **kwargs):
    seen = {}
    generate = pipe.model.generate

    def spy(*args, **generate_kwargs):
        seen.update(generate_kwargs)
        return generate(*args, **{**generate_kwargs, "max_new_tokens": 1})

    monkeypatch.setattr(pipe.model, "generate", spy)
    pipe(image(0), **kwargs)
    monkeypatch.undo()
    return seen.get("max_new_tokens")


def test_default_length_is_256_unless_the_model_has_its_own(monkeypatch, pipes):
    pipe = pipes["llama"]
    assert new_tokens(monkeypatch, pipe) == 256
    assert new_tokens(monkeypatch, pipe, max_new_tokens=7) == 7
    assert new_tokens(monkeypatch, pipe, generate_kwargs={"max_new_tokens": 9}) == 9
    pipe.model.generation_config.max_new_tokens = 11
    assert new_tokens(monkeypatch, pipe) is None
    pipe.model.generation_config.max_new_tokens = None


def test_bad_arguments(pipes, folders, tmp_path):
    pipe = pipes["llama"]
    with pytest.raises(ValueError, match="max_new_tokens is given twice"):
        pipe(image(0), max_new_tokens=3, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="max_new_tokens is given twice"):
        pipeline("image-to-text", model=folders["llama"], max_new_tokens=3, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="prompt must be one string"):
        pipe([image(0), image(1)], prompt=[PROMPT, PROMPT])
    with pytest.raises(ValueError, match="at least one image"):
        pipe()
    with pytest.raises(TypeError, match="question"):
        pipe(image(0), question=PROMPT)
    with pytest.raises(ValueError, match="no-such-file.png"):
        pipe(str(tmp_path / "no-such-file.png"))
    with pytest.raises(ValueError, match="processor="):
        pipeline("image-to-text", model=pipe.model, tokenizer=pipe.tokenizer, image_processor=pipe.image_processor)


def test_a_broken_checkpoint_is_not_papered_over(tmp_path):
    model = our_model()
    state = model.state_dict()
    del state["query_tokens"]
    model.save_pretrained(tmp_path, state_dict=state)
    our_processor().save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="query_tokens"):
        pipeline("image-to-text", model=str(tmp_path))


def test_save_pretrained_saves_the_processor(pipes, expected, tmp_path):
    pipes["llama"].save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    again = pipeline("image-to-text", model=str(tmp_path))
    assert again(image(0), prompt=PROMPT, **SHORT) == expected["llama", PROMPT][0]


def test_folders_of_stock_processors_work(expected, tmp_path):
    stock_model().save_pretrained(tmp_path)  # the same weights as our_model()
    part = our_processor()
    transformers.InstructBlipProcessor(
        part.image_processor, language_tokenizer(image_token=False), qformer_tokenizer(), num_query_tokens=4
    ).save_pretrained(tmp_path)
    pipe = pipeline("image-to-text", model=str(tmp_path))
    assert pipe(image(0), prompt=PROMPT, **SHORT) == expected["llama", PROMPT][0]


# --- stock models -------------------------------------------------------------------------------------------------

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def bert_tokenizer():
    """With CLS and SEP, as GIT and BLIP have it."""
    return qformer_tokenizer()


def fixed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def stock_blip_2(_):
    config = transformers.Blip2Config(
        vision_config={**TINY, "image_size": IMAGE_SIZE},
        qformer_config={**TINY, "vocab_size": 30, "encoder_hidden_size": 16},
        text_config=transformers.OPTConfig(
            vocab_size=99, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        num_query_tokens=4,
        image_token_index=98,
    )  # fmt: skip
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessorPil(size=SIZE), language_tokenizer(image_token=False), num_query_tokens=4
    )
    return fixed(transformers.Blip2ForConditionalGeneration(config)), {"processor": processor}, PROMPT


def stock_llava(_):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TINY, image_size=IMAGE_SIZE, patch_size=14),
        text_config=transformers.LlamaConfig(**TINY, vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=98,
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size=SIZE, crop_size=SIZE),
        language_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return fixed(transformers.LlavaForConditionalGeneration(config)), {"processor": processor}, f"<image> {PROMPT}"


def stock_git(_):
    config = transformers.GitConfig(
        **TINY, vocab_size=30, bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=64,
        vision_config={**TINY, "image_size": IMAGE_SIZE, "patch_size": 14},
    )  # fmt: skip
    image_processor = transformers.CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    processor = transformers.GitProcessor(image_processor, bert_tokenizer())
    return fixed(transformers.GitForCausalLM(config)), {"processor": processor}, PROMPT


def stock_blip(_):
    config = transformers.BlipConfig(
        text_config={
            **TINY, "vocab_size": 30, "encoder_hidden_size": 16, "max_position_embeddings": 64,
            "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0,
        },
        vision_config={**TINY, "image_size": IMAGE_SIZE, "patch_size": 14},
    )  # fmt: skip
    processor = transformers.BlipProcessor(transformers.BlipImageProcessorPil(size=SIZE), bert_tokenizer())
    return fixed(transformers.BlipForConditionalGeneration(config)), {"processor": processor}, PROMPT


def stock_encoder_decoder(_):
    vision = transformers.ViTConfig(**TINY, image_size=IMAGE_SIZE, patch_size=14)
    text = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=99, n_positions=64, bos_token_id=1, eos_token_id=2,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model = transformers.VisionEncoderDecoderModel(
        transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    )
    model.generation_config.decoder_start_token_id = 1
    parts = {
        "tokenizer": language_tokenizer(),
        "image_processor": transformers.ViTImageProcessorPil(size=SIZE),
    }
    return fixed(model), parts, None


STOCK = [stock_blip_2, stock_llava, stock_git, stock_blip, stock_encoder_decoder]


@pytest.mark.parametrize("build", STOCK, ids=lambda build: build.__name__)
def test_stock_models_answer_with_the_completion_alone(build, tmp_path):
    model, parts, prompt = build(None)
    model.save_pretrained(tmp_path)
    for part in parts.values():
        part.save_pretrained(tmp_path)
    pipe = pipeline("image-to-text", model=str(tmp_path))
    ours = {
        stock_blip_2: instructblip_hf.Blip2ForConditionalGeneration,
        stock_llava: instructblip_hf.LlavaForConditionalGeneration,
    }
    assert type(pipe.model) is ours.get(build, type(model))
    images = [image(i) for i in range(3)]
    prompts = [{}, {"prompt": prompt}] if prompt is not None else [{}]
    for kwargs in prompts:
        single = [pipe(picture, **kwargs, **SHORT) for picture in images]
        assert pipe(images, batch_size=3, **kwargs, **SHORT) == single
        for row in single:
            assert PROMPT not in row[0]["generated_text"]
            assert len(row[0]["generated_text"].split()) <= 6
    if build is stock_encoder_decoder:
        with pytest.raises(ValueError, match="without"):
            pipe(images[0], prompt=PROMPT)


@pytest.mark.parametrize("build", [stock_git, stock_blip, stock_blip_2, stock_llava], ids=lambda build: build.__name__)
def test_stock_models_answer_as_generate_does(build):
    model, parts, prompt = build(None)
    processor = parts["processor"]
    inputs = dict(processor(images=image(0), text=prompt, return_tensors="pt"))
    if build is stock_git:
        inputs = {key: value if key == "pixel_values" else value[:, :-1] for key, value in inputs.items()}  # no [SEP]
    answer = processor.decode(model.generate(**inputs, **SHORT)[0], skip_special_tokens=True)
    assert answer.startswith(PROMPT)
    pipe = ImageToTextPipeline(model=model, **parts)
    assert pipe(image(0), prompt=prompt, **SHORT) == [{"generated_text": answer.removeprefix(PROMPT).strip()}]


# --- stock's image-text-to-text with our model and processor ------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stock_image_text_to_text_takes_chat_messages(pipes, kind):
    model, processor = pipes[kind].model, our_processor(kind)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    assert type(pipe) is transformers.ImageTextToTextPipeline
    content = [{"type": "image", "image": image(0)}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]
    outputs = pipe(text=messages, return_full_text=False, **SHORT)

    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    tokens = model.generate(**inputs, return_full_text=False, **SHORT)
    answer = processor.decode(tokens[0], skip_special_tokens=True).strip()
    assert outputs[0]["generated_text"].strip() == answer
    conversation = pipe(text=messages, **SHORT)[0]["generated_text"]
    assert conversation[0] == messages[0]
    assert conversation[1]["role"] == "assistant"
    assert conversation[1]["content"].strip() == answer


@pytest.mark.parametrize("kind", KINDS)
def test_stock_image_text_to_text_gives_the_same_in_batches(pipes, kind):
    pipe = pipeline("image-text-to-text", model=pipes[kind].model, processor=our_processor(kind))
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image(i)}, {"type": "text", "text": text}]}]
        for i, text in enumerate([PROMPT, "a square", "is the red circle left of the square ?"])
    ]
    single = [row[0]["generated_text"] for row in pipe(text=chats, return_full_text=False, **SHORT)]
    batched = pipe(text=chats, batch_size=3, return_full_text=False, **SHORT)
    assert [row[0]["generated_text"] for row in batched] == single


def test_stock_image_text_to_text_takes_our_processor_for_a_folder(folders, pipes):
    pipe = pipeline("image-text-to-text", model=folders["llama"], processor=our_processor())
    content = [{"type": "image", "image": image(0)}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]
    ours = pipeline("image-text-to-text", model=pipes["llama"].model, processor=our_processor())
    assert pipe(text=messages, **SHORT) == ours(text=messages, **SHORT)


def test_stock_image_text_to_text_from_a_folder_is_untouched(folders):
    pipe = pipeline("image-text-to-text", model=folders["llama"])
    assert type(pipe.model) is transformers.InstructBlipForConditionalGeneration
    assert type(pipe.processor) is transformers.InstructBlipProcessor


def test_public_name():
    assert instructblip_hf.ImageToTextPipeline is ImageToTextPipeline
