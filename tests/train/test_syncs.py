"""Transfers from the device to the host in a step, counted on a CPU by tensors that stand for those on a GPU."""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from composer.devices import DeviceCPU
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.data.data_sets import write_data_set
from tests.tiny_runs import TinyRuns, compose_tiny, losses, run_tiny

SETTINGS = ["checkpoint.interval=10m", "algorithms.batch_size_ramp=null"]


class DeviceReads(TorchDispatchMode):
    """Count reads of tensors that a GPU would hold: moved to the device, or computed from such tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._device: set[int] = set()  # ids of storages

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark a tensor as one on the device."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._device:
            self._device.add(id(storage))
            weakref.finalize(storage, self._device.discard, id(storage))
        return tensor

    def read(self, tensor: torch.Tensor) -> bool:
        """Count a read of a tensor on the device by the line that reads it."""
        if id(tensor.untyped_storage()) not in self._device:
            return False
        frames = [frame for frame in traceback.extract_stack() if "/site-packages/torch/" not in frame.filename]
        self.count[next(frame.name for frame in reversed(frames) if frame.filename != __file__)] += 1
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            self.read(tensors[0])
        result = func(*args, **(kwargs or {}))
        if any(id(tensor.untyped_storage()) in self._device for tensor in tensors):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self.moved(leaf)
        return result


def count_reads(data: Path, path: Path, steps: int, *settings: str) -> Counter[str]:
    """Train `steps` steps; count the reads, by the function that reads."""
    reads = DeviceReads()
    module_to_device, tensor_to_device = DeviceCPU.module_to_device, DeviceCPU.tensor_to_device
    as_list = torch.Tensor.tolist

    def move_module(device: DeviceCPU, module: Any) -> Any:
        for parameter in module.parameters():
            reads.moved(parameter)
        return module_to_device(device, module)

    def to_host(tensor: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(tensor.detach().numpy().copy()) if reads.read(tensor) else tensor

    def to_list(tensor: torch.Tensor) -> Any:
        reads.read(tensor)
        return as_list(tensor)

    patches: dict[tuple[Any, str], Callable[..., Any]] = {
        (DeviceCPU, "module_to_device"): move_module,
        (DeviceCPU, "tensor_to_device"): lambda device, tensor: reads.moved(tensor_to_device(device, tensor)),
        (torch.Tensor, "cpu"): to_host,
        (torch.Tensor, "tolist"): to_list,
    }
    composed = compose_tiny(data, *SETTINGS, f"budget={{wall: null, steps: {steps}}}", *settings)
    for (owner, name), function in patches.items():
        mock.patch.object(owner, name, function).start()  # this process ends with the run
    with reads:
        run_tiny(composed, path)
    return reads.count


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_the_device_in_one_place(optimizer: str, tiny_run: TinyRuns, tmp_path: Path) -> None:
    recipes = "recipes=[crammed-bert,muon]" if optimizer == "muon" else "recipes=[crammed-bert]"
    data = write_data_set(tmp_path / "data")
    few, many = (tiny_run.call(count_reads, data, tmp_path / str(n), n, recipes) for n in (4, 8))
    per_step = {name: (many[name] - few[name]) / 4 for name in many if many[name] != few[name]}
    # The loss is read when the guard has waited for the backward pass, before the optimizer's kernels are queued.
    assert per_step == {"_cause": 1, "_train_microbatches": 1}
    assert len(losses(tmp_path / "8")) == 8
