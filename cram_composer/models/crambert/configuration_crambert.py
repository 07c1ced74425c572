"""Configuration of CramBERT. This file travels with exported models: it needs only transformers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PretrainedConfig

_PACKAGE = __name__.rpartition(".")[0]
try:
    importlib.import_module(_PACKAGE)
except ImportError:
    # transformers 4.53 names the package after the folder of the export. Python reads a dot in it as a package
    # within a package, which does not exist, so that the relative imports of the other files fail.
    sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
    sys.modules[_PACKAGE].__path__ = [str(Path(__file__).parent)]

# The class that each transformers Auto class loads from an exported folder. All are always written, so that a folder
# saved as a masked LM can also be loaded as a bare encoder or a classifier.
AUTO_MAP = {
    "AutoConfig": "configuration_crambert.CramBertConfig",
    "AutoModel": "modeling_crambert.CramBertModel",
    "AutoModelForMaskedLM": "modeling_crambert.CramBertForMaskedLM",
    "AutoModelForMultipleChoice": "modeling_crambert.CramBertForMultipleChoice",
    "AutoModelForQuestionAnswering": "modeling_crambert.CramBertForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_crambert.CramBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_crambert.CramBertForTokenClassification",
}


class CramBertConfig(PretrainedConfig):
    """A pre-norm BERT encoder; the defaults are crammed BERT (Geiping and Goldstein 2022, arXiv 2212.14034, section 4).

    `intermediate_size` is the width of the up-projection. The gate of `ffn="geglu"` halves it, so 3072 means
    768 -> 3072 -> 1536 -> 768. Linear layers have no biases (`attention_bias`, `mlp_bias`); LayerNorm has weight and
    bias, as in the published model. Dropout is 0, as in pretraining; fine-tuning sets it.

    `embedding_size` is the width of the token embedding, and of the decoder tied to it; matrices project it to the
    hidden size and back (ALBERT, Lan et al. 2019, arXiv 1909.11942, section 3.1). None is the hidden size, without
    projections.

    `output_init` initializes the projections into the residual stream: "normal" like all others, "scaled" by 1 / sqrt(2
    layers) (Shoeybi et al. 2019, arXiv 1909.08053), or "zero" (Zhang et al. 2019, arXiv 1901.09321). With `shift`, a
    token is predicted from the hidden state of the position before it. `matrix_init_scale` multiplies the initial
    matrices of the layers, `logit_scale` the logits; maximal update parametrisation sets both (see factory.py).
    `classifier_pooling` is "mean" (over the unmasked tokens) or "first".

    Other files describe the remaining settings: stacks.py (`stack`), layer.py (`norm_position`), positions.py
    (`positions`), attention.py (the windows), convolution.py (`short_convolution`) and heads.py (the head).
    """

    model_type = "crambert"

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        embedding_size: int | None = None,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        stack: str = "plain",
        repeats: int = 4,
        dropped_tokens: float = 0.5,
        norm: str = "layernorm",
        norm_position: str = "pre",
        norm_eps: float = 1e-12,
        norm_bias: bool = True,
        embedding_norm: bool = True,
        first_norm: bool = True,
        final_norm: bool = True,
        qk_norm: bool = False,
        attention_gate: bool = False,
        ffn: str = "geglu",
        ffn_every: int = 1,
        positions: str = "scaled-sinusoidal",
        max_position_embeddings: int = 512,
        rope_theta: float = 10000.0,
        local_rope_theta: float | None = None,
        local_window: int | None = None,
        global_every: int = 3,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        value_embeddings: int = 0,
        short_convolution: int = 0,
        head_transform: bool = False,
        head_bias: bool = False,
        logit_softcap: float | None = None,
        logit_scale: float = 1.0,
        shift: bool = False,
        initializer_range: float = 0.02,
        output_init: str = "normal",
        matrix_init_scale: float = 1.0,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        classifier_pooling: str = "mean",
        classifier_hidden_size: int = 1024,
        pad_token_id: int = 0,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.stack = stack
        self.repeats = repeats
        self.dropped_tokens = dropped_tokens
        self.norm = norm
        self.norm_position = norm_position
        self.norm_eps = norm_eps
        self.norm_bias = norm_bias
        self.embedding_norm = embedding_norm
        self.first_norm = first_norm
        self.final_norm = final_norm
        self.qk_norm = qk_norm
        self.attention_gate = attention_gate
        self.ffn = ffn
        self.ffn_every = ffn_every
        self.positions = positions
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.local_rope_theta = local_rope_theta
        self.local_window = local_window
        self.global_every = global_every
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.value_embeddings = value_embeddings
        self.short_convolution = short_convolution
        self.head_transform = head_transform
        self.head_bias = head_bias
        self.logit_softcap = logit_softcap
        self.logit_scale = logit_scale
        self.shift = shift
        self.initializer_range = initializer_range
        self.output_init = output_init
        self.matrix_init_scale = matrix_init_scale
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_pooling = classifier_pooling
        self.classifier_hidden_size = classifier_hidden_size
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        # transformers 5 keeps these only as attributes of the class, and 4 only what it is given.
        kept: dict[str, Any] = {
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "tie_word_embeddings": tie_word_embeddings,
        }
        super().__init__(**kept, **kwargs)
        for name, value in kept.items():
            setattr(self, name, value)
