"""Models of somebody else: their own code never runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cram_composer.errors import CramError
from cram_composer.evaluation.model_source import find_model


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
