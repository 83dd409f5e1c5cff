"""Compose an InstructBLIP of a CLIP tower, a T5 and a BERT-initialised Q-Former, take a training step, save, load.

    python examples/compose_model.py

The parts are tiny and random, made on the spot, so it runs offline in seconds. With real ones, give
`from_vision_text_pretrained` their names in place of the models, see docs/models.md.
"""

import tempfile

import torch
import transformers

from instructblip_hf import AutoModelForVision2Seq, InstructBlipForConditionalGeneration


def main() -> None:
    torch.manual_seed(0)
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
        )
    )
    language_model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=200, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    )
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
        )
    )
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        tower, language_model, qformer=bert, num_query_tokens=8
    )
    for name, part in model.named_children():
        print(f"{name:20} {type(part).__name__:28} {sum(p.numel() for p in part.parameters()):>9,} parameters")

    # Two images, one instruction each; the processor makes these tensors from pictures and text.
    prompt = torch.randint(3, 200, (2, 6))
    placeholders = torch.full((2, 8), model.config.image_token_index)
    batch = {
        "pixel_values": torch.randn(2, 3, 56, 56),
        "qformer_input_ids": torch.randint(3, 100, (2, 6)),
        "input_ids": torch.cat([placeholders, prompt], dim=1),
    }
    model.train()
    loss = model(**batch, labels=torch.randint(3, 200, (2, 4))).loss
    loss.backward()
    print(f"loss {loss.item():.3f}, gradient of the queries {model.query_tokens.grad.norm().item():.2e}")

    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForVision2Seq.from_pretrained(folder)
    same = torch.equal(again.generate(**batch, max_new_tokens=5), model.generate(**batch, max_new_tokens=5))
    print(f"saved, loaded by AutoModelForVision2Seq as {type(again).__name__}: same answers {same}")


if __name__ == "__main__":
    main()
