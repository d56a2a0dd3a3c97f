"""A model whose code lies in its own folder, as repositories on the hub bring some along (trust_remote_code)."""

import json
from pathlib import Path

from tests.toys import toy_tokenizer

CODE = '''
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class AverageConfig(PretrainedConfig):
    model_type = "running_average"

    def __init__(self, vocab_size=300, hidden_size=32, num_hidden_layers=2, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)


class Layer(nn.Module):
    """Adds a product of the mean over a token and those before it."""

    def __init__(self, dim):
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, hidden):
        counts = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        return hidden + torch.tanh(self.mix(hidden.cumsum(1) / counts))


class AverageBase(PreTrainedModel):
    config_class = AverageConfig

    def _init_weights(self, module):
        if hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.2)


class AverageModel(AverageBase):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, **kwargs):
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden)


class AverageForCausalLM(AverageBase, GenerationMixin):
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = AverageModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

ACCESSOR
    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids).last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)
'''
ACCESSOR = """    def get_output_embeddings(self):
        return self.lm_head
"""
NOTHING = """    def get_output_embeddings(self):
        return None
"""
TWO_HEADS = """    def get_output_embeddings(self):
        return [self.lm_head, self.lm_head]
"""


def save_remote(folder: Path, accessor: str = ACCESSOR) -> str:
    """Write the folder of such a model, without weights: it is for ``init: random``, or to be saved with them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "running_average.py").write_text(CODE.replace("ACCESSOR\n", accessor))
    config = {
        "architectures": ["AverageForCausalLM"],
        "model_type": "running_average",
        "auto_map": {
            "AutoConfig": "running_average.AverageConfig",
            "AutoModelForCausalLM": "running_average.AverageForCausalLM",
        },
        "vocab_size": 300,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    toy_tokenizer().save_pretrained(folder)
    return str(folder)
