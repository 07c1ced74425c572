"""Copies of a state that a thread can write."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch

from cram_composer.train.snapshot import snapshot


def test_a_snapshot_keeps_its_values_while_the_state_changes() -> None:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    numbers, seen = np.arange(3), [1]
    state = {"model": model.state_dict(), "optim": [optimizer.state_dict()], "rng": (numbers, seen), "step": 1}
    copied = snapshot(state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    moments = optimizer.state[model.weight]["exp_avg"].clone()
    optimizer.step()
    numbers += 1
    seen.append(2)
    assert all(torch.equal(copied["model"][key], value) for key, value in before.items())
    assert not torch.equal(copied["model"]["weight"], model.weight)
    assert torch.equal(copied["optim"][0]["state"][0]["exp_avg"], moments)
    assert copied["rng"][0].tolist() == [0, 1, 2] and copied["rng"][1] == [1] and copied["step"] == 1


def test_shared_memory_and_strides_are_kept() -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"tied": whole, "again": whole, "row": whole[1], "turned": whole.t(), "empty": torch.empty(0)}
    copied = snapshot(state)
    assert all(torch.equal(copied[name], state[name]) for name in state)
    assert copied["turned"].stride() == (1, 4)
    assert copied["tied"].data_ptr() == copied["again"].data_ptr() != whole.data_ptr()
    assert copied["row"].data_ptr() == copied["tied"].data_ptr() + 16
    assert stored(copied) == stored(state) == [48, 0]


def stored(state: dict[str, torch.Tensor]) -> list[int]:
    """Return the bytes of the storages that torch.save writes."""
    file = io.BytesIO()
    torch.save(state, file)
    return [entry.file_size for entry in zipfile.ZipFile(file).infolist() if "/data/" in entry.filename]
