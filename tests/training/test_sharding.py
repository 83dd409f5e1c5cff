"""What happens to models before their weights are spread over processes; the runs are in `test_two_processes.py`."""

from types import SimpleNamespace

import pytest
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from instructblip_hf.training import VisionLanguageTrainer
from instructblip_hf.training.sharding import whole_weights
from tiny_shapes import tiny_model, tiny_processor


class Configuration:
    def is_zero3(self):
        return True


def test_whole_weights_has_transformers_forget_zero_3_for_a_while():
    configuration = Configuration()
    args = SimpleNamespace(deepspeed_plugin=SimpleNamespace(dschf=configuration))
    set_hf_deepspeed_config(configuration)
    try:
        with whole_weights(args):
            assert not is_deepspeed_zero3_enabled()
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()


def test_a_model_that_zero_3_has_dealt_out_is_refused(tmp_path):
    model = tiny_model()
    model.query_tokens.ds_id = 0
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="model has its weights spread over processes by ZeRO-3 already"):
        VisionLanguageTrainer(model, args, processing_class=tiny_processor())
