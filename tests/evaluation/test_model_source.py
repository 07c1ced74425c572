"""Models of somebody else: their own code never runs, and their weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cram_composer.errors import CramError
from cram_composer.evaluation.model_source import find_model
from tests.evaluation.tiny_folders import save


def test_code_of_a_model_folder_is_not_run(tmp_path: Path) -> None:
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Tokens: pass\n")
    classes = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Config"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": classes}))
    model = find_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokens", None]}}))
    for load in (model.load_tokenizer, lambda: model.load_masked_lm(0), lambda: model.load_classifier(2, 0.1)):
        with pytest.raises(CramError, match="cannot be loaded") as error:
            load()
        assert "\n" not in str(error.value)
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CramError, match="cannot be loaded"):
        model.check_loadable()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["crambert", "bert", "modernbert", "roberta"])
def test_an_encoder_has_the_weights_of_its_masked_lm(kind: str, tmp_path: Path):
    source = find_model(str(save(tmp_path / "model", kind)))
    whole, encoder = source.load_masked_lm(1), source.load_encoder(dropout=0.0)
    weights = getattr(whole, whole.base_model_prefix).state_dict()
    loaded = encoder.state_dict()
    assert len(weights) > 10 and weights.keys() <= loaded.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    torch.manual_seed(1)
    untrained = find_model(f"untrained:{source.name}").load_encoder(dropout=0.0).state_dict()
    assert not all(torch.equal(untrained[name], loaded[name]) for name in weights)
