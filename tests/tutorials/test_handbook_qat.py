"""The handbook's training loop, on a model prepared from a BackendConfig; ``test_qat.py`` has it on XNNPACK.

The code is the page's, with other imports, a small model and random data. Its block that swaps
``_native_batch_norm_legit`` for ``cudnn_batch_norm`` runs too: ``torch.export`` writes ``aten.batch_norm``
since, which picks the kernel of the device at run time, so there is nothing to swap.
"""

from __future__ import annotations

import copy
from pathlib import Path

import lowbit
import pytest
import torch
from lowbit import convert_fx, decisions, get_default_qat_qconfig_mapping, prepare_qat_fx
from lowbit.backends.backend_config import get_x86_backend_config
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

BATCH_NORMS = [
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten.cudnn_batch_norm.default,
    # What torch.export writes since the page was.
    torch.ops.aten.batch_norm.default,
]


class Model(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * 2 * 2, 6)),
        )


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(191009)


def prepared_from_scratch(example_inputs: tuple[Tensor, ...]) -> GraphModule:
    float_model = Model().train()
    return prepare_qat_fx(
        float_model,
        get_default_qat_qconfig_mapping(),
        example_inputs,
        backend_config=get_x86_backend_config(),
    )


def evaluate(model: GraphModule, data_loader: DataLoader, neval_batches: int) -> float:
    lowbit.move_exported_model_to_eval(model)
    right = total = 0
    with torch.no_grad():
        for cnt, (image, target) in enumerate(data_loader):
            if cnt >= neval_batches:
                break
            right += int((model(image).argmax(1) == target).sum())
            total += len(target)
    return 100 * right / total


def train_one_epoch(model, criterion, optimizer, data_loader) -> float:
    for image, target in data_loader:
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_training_loop(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(12, 1, 8, 8), torch.arange(12) % 6)
    data_loader = DataLoader(data, batch_size=6)
    example_inputs = (torch.randn(6, 1, 8, 8),)
    prepared_model = prepared_from_scratch(example_inputs)
    criterion = nn.CrossEntropyLoss()

    # To get this op, either call `model.cuda()` before export, or run the following after prepare
    # to manually swap the ops:
    before = str(prepared_model.graph)
    for n in prepared_model.graph.nodes:
        if n.target == torch.ops.aten._native_batch_norm_legit.default:
            n.target = torch.ops.aten.cudnn_batch_norm.default
    prepared_model.recompile()
    assert str(prepared_model.graph) == before

    num_epochs = 6
    num_eval_batches = 2
    num_observer_update_epochs = 3
    num_batch_norm_update_epochs = 2
    num_epochs_between_evals = 3
    optimizer = torch.optim.SGD(prepared_model.parameters(), lr=0.05)

    ranges, means, losses = [], [], []
    for nepoch in range(num_epochs):
        losses.append(train_one_epoch(prepared_model, criterion, optimizer, data_loader))

        # Optionally disable observer/batchnorm stats after certain number of epochs
        if nepoch >= num_observer_update_epochs:
            prepared_model.apply(lowbit.disable_observer)
        if nepoch >= num_batch_norm_update_epochs:
            for n in prepared_model.graph.nodes:
                # Args: input, weight, bias, running_mean, running_var, training, momentum, eps
                # We set the `training` flag to False here to freeze BN stats
                if n.target in BATCH_NORMS:
                    new_args = list(n.args)
                    new_args[5] = False
                    n.args = new_args
            prepared_model.recompile()

        # Check the quantized accuracy every N epochs
        if (nepoch + 1) % num_epochs_between_evals == 0:
            prepared_model_copy = copy.deepcopy(prepared_model)
            quantized_model = convert_fx(prepared_model_copy)
            assert 0 <= evaluate(quantized_model, data_loader, num_eval_batches) <= 100
        state = prepared_model.state_dict()
        ranges.append([v.clone() for k, v in state.items() if "post_process" in k and k.endswith(".scale")])
        means.append([v.clone() for k, v in state.items() if k.endswith("running_mean")])

    def same(first: list[Tensor], second: list[Tensor]) -> bool:
        return all(map(torch.equal, first, second))

    assert losses[-1] < losses[0]
    assert [same(means[i], means[i + 1]) for i in range(5)] == [False, False, True, True, True]
    assert [same(ranges[i], ranges[i + 1]) for i in range(5)] == [False, False, False, True, True]

    # Saving and Loading Model Checkpoints
    checkpoint_path = tmp_path / f"checkpoint_{nepoch}.pth"
    torch.save(prepared_model.state_dict(), checkpoint_path)
    # To load the checkpoints, you must export and prepare the model the exact same way
    loaded_model = prepared_from_scratch(example_inputs)
    loaded_model.load_state_dict(torch.load(checkpoint_path))

    # Convert the Trained Model to a Quantized Model
    quantized_model = convert_fx(prepared_model)

    # move certain ops like dropout to eval mode, equivalent to `m.eval()`
    lowbit.move_exported_model_to_eval(quantized_model)
    evaluate(quantized_model, data_loader, num_eval_batches)

    quantized = {d.node for d in decisions(quantized_model) if d.status == "quantized"}
    assert quantized >= {"conv2d", "relu", "conv2d_1", "relu_1", "flatten", "linear"}
    assert torch.equal(convert_fx(loaded_model)(*example_inputs), quantized_model(*example_inputs))
    lowbit.move_exported_model_to_eval(prepared_model)
    assert torch.equal(prepared_model(*example_inputs), quantized_model(*example_inputs))
