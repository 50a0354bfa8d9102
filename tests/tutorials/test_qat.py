"""The tutorials on quantization-aware training, with other imports, smaller images and random data.

"PyTorch 2 Export Quantization-Aware Training (QAT)" of the handbook, and the QAT section of "… with X86
Backend through Inductor". Names, arguments and the order of calls are theirs. Where a page leaves training
out, a step of it stands.
"""

from __future__ import annotations

import copy
from pathlib import Path

import lowbit
import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    XNNPACKQuantizer,
    convert_pt2e,
    decisions,
    get_symmetric_quantization_config,
    prepare_qat_pt2e,
)
from lowbit.backends import x86_inductor as xiq
from lowbit.tools.models import resnet18
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(191009)


def train_step(model, *inputs):
    """What stands where the pages omit training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(*inputs).square().mean().backward()
    optimizer.step()


# The page takes the preset for calibration.
@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingRoundedWarning")
def test_the_flow_at_a_glance():
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(5, 10)

        def forward(self, x):
            return self.linear(x)

    example_inputs = (torch.randn(1, 5),)
    m = M()

    # Step 1. program capture
    m = torch.export.export(m, example_inputs).module()
    # we get a model with aten ops

    # Step 2. quantization-aware training
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    m = prepare_qat_pt2e(m, quantizer)

    train_step(m, *example_inputs)

    m = convert_pt2e(m)
    # we have a model with aten ops doing integer computations when possible

    # move the quantized model to eval mode, equivalent to `m.eval()`
    lowbit.move_exported_model_to_eval(m)

    assert [d.status for d in decisions(m)] == ["quantized"]
    assert m(*example_inputs).isfinite().all()


class AverageMeter:
    """Computes and stores the average and current value"""

    def __init__(self, name, fmt=":f"):
        self.name = name
        self.fmt = fmt
        self.reset()

    def reset(self):
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        maxk = max(topk)
        batch_size = target.size(0)

        _, pred = output.topk(maxk, 1, True, True)
        pred = pred.t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))

        res = []
        for k in topk:
            correct_k = correct[:k].reshape(-1).float().sum(0, keepdim=True)
            res.append(correct_k.mul_(100.0 / batch_size))
        return res


def evaluate(model, criterion, data_loader, device, neval_batches):
    lowbit.move_exported_model_to_eval(model)
    top1 = AverageMeter("Acc@1", ":6.2f")
    top5 = AverageMeter("Acc@5", ":6.2f")
    cnt = 0
    with torch.no_grad():
        for image, target in data_loader:
            image = image.to(device)  # noqa: PLW2901  (the page's)
            target = target.to(device)  # noqa: PLW2901
            output = model(image)
            criterion(output, target)
            cnt += 1
            acc1, acc5 = accuracy(output, target, topk=(1, 5))
            top1.update(acc1[0], image.size(0))
            top5.update(acc5[0], image.size(0))
            if cnt >= neval_batches:
                break
    return top1, top5


def train_one_epoch(model, criterion, optimizer, data_loader, device, ntrain_batches):  # noqa: PLR0917
    # Note: do not call model.train() here, since this doesn't work on an exported model.
    top1 = AverageMeter("Acc@1", ":6.2f")
    avgloss = AverageMeter("Loss", "1.5f")

    cnt = 0
    for image, target in data_loader:
        cnt += 1  # noqa: SIM113
        image, target = image.to(device), target.to(device)  # noqa: PLW2901
        output = model(image)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        acc1, _acc5 = accuracy(output, target, topk=(1, 5))
        top1.update(acc1[0], image.size(0))
        avgloss.update(loss, image.size(0))
        if cnt >= ntrain_batches:
            return avgloss
    return avgloss


def batch_norms(model):
    targets = [
        torch.ops.aten._native_batch_norm_legit.default,
        torch.ops.aten.cudnn_batch_norm.default,
        # What torch.export writes since the page was.
        torch.ops.aten.batch_norm.default,
    ]
    return [n for n in model.graph.nodes if n.target in targets]


def test_quantization_aware_training(tmp_path: Path):
    data = TensorDataset(torch.rand(4, 3, 48, 48), torch.arange(4))
    data_loader = data_loader_test = DataLoader(data, batch_size=2)
    criterion = nn.CrossEntropyLoss()
    float_model = resnet18().train()

    example_inputs = (torch.rand(2, 3, 48, 48),)
    # Captured with dynamic dimensions, as the page does.
    dynamic_shapes = ({0: torch.export.Dim("batch", min=2)},)
    exported_model = torch.export.export(float_model, example_inputs, dynamic_shapes=dynamic_shapes).module()

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_qat=True))

    prepared_model = prepare_qat_pt2e(exported_model, quantizer)
    assert len(batch_norms(prepared_model)) == 20

    num_epochs = 4
    num_train_batches = 2
    num_eval_batches = 1
    num_observer_update_epochs = 2
    num_batch_norm_update_epochs = 1
    num_epochs_between_evals = 2
    optimizer = torch.optim.SGD(prepared_model.parameters(), lr=1e-3)

    statistics = []
    for nepoch in range(num_epochs):
        loss = train_one_epoch(prepared_model, criterion, optimizer, data_loader, "cpu", num_train_batches)
        assert loss.avg.isfinite()

        # Optionally disable observer/batchnorm stats after certain number of epochs
        if nepoch >= num_observer_update_epochs:
            prepared_model.apply(lowbit.disable_observer)
        if nepoch >= num_batch_norm_update_epochs:
            for n in batch_norms(prepared_model):
                # Args: input, weight, bias, running_mean, running_var, training, momentum, eps
                # We set the `training` flag to False here to freeze BN stats
                new_args = list(n.args)
                new_args[5] = False
                n.args = new_args
            prepared_model.recompile()

        # Check the quantized accuracy every N epochs
        if (nepoch + 1) % num_epochs_between_evals == 0:
            prepared_model_copy = copy.deepcopy(prepared_model)
            quantized_model = convert_pt2e(prepared_model_copy)
            top1, _ = evaluate(quantized_model, criterion, data_loader_test, "cpu", num_eval_batches)
            assert 0 <= top1.avg <= 100
        state = prepared_model.state_dict()
        statistics.append(
            {
                k: v.clone()
                for k, v in state.items()
                if k.endswith("running_mean") or "post_process.scale" in k
            }
        )

    def moved(name, first, second):
        return any(
            not torch.equal(statistics[first][k], statistics[second][k]) for k in statistics[0] if name in k
        )

    # BatchNorm's statistics stand still once they are frozen, the ranges once observers are disabled.
    assert moved("running_mean", 0, 1)
    assert not moved("running_mean", 1, 2)
    assert moved("scale", 1, 2)
    assert not moved("scale", 2, 3)

    checkpoint_path = tmp_path / f"checkpoint_{nepoch}.pth"
    torch.save(prepared_model.state_dict(), checkpoint_path)

    # To load the checkpoints, you must export and prepare the model the exact same way
    float_model = resnet18().train()
    exported_model = torch.export.export(float_model, example_inputs, dynamic_shapes=dynamic_shapes).module()
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_qat=True))
    loaded_model = prepare_qat_pt2e(exported_model, quantizer)
    loaded_model.load_state_dict(torch.load(checkpoint_path))

    quantized_model = convert_pt2e(prepared_model)

    # move certain ops like dropout to eval mode, equivalent to `m.eval()`
    lowbit.move_exported_model_to_eval(quantized_model)
    evaluate(quantized_model, criterion, data_loader_test, "cpu", num_eval_batches)

    (images, _target) = next(iter(data_loader_test))
    assert torch.equal(convert_pt2e(loaded_model)(images), quantized_model(images))
    lowbit.move_exported_model_to_eval(prepared_model)
    assert torch.equal(prepared_model(images), quantized_model(images))


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_x86_backend_through_inductor(is_dynamic):
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1024, 1000)

        def forward(self, x):
            return self.linear(x)

    example_inputs = (torch.randn(1, 1024),)
    m = M()

    # Step 1. program capture
    exported_model = torch.export.export(m, example_inputs).module()
    # we get a model with aten ops

    # Step 2. quantization-aware training
    # Use Backend Quantizer for X86 CPU
    # To apply dynamic quantization, add an argument ``is_dynamic=True`` when getting the config.
    quantizer = X86InductorQuantizer()
    # reduce_range: what CPUs without VNNI need.
    config = xiq.get_default_x86_inductor_quantization_config(
        is_qat=True, is_dynamic=is_dynamic, reduce_range=not xiq.has_vnni()
    )
    quantizer.set_global(config)
    prepared_model = prepare_qat_pt2e(exported_model, quantizer)

    train_step(prepared_model, *example_inputs)

    converted_model = convert_pt2e(prepared_model)
    # we have a model with aten ops doing integer computations when possible

    # move the quantized model to eval mode, equivalent to `m.eval()`
    lowbit.move_exported_model_to_eval(converted_model)

    # Lower the model into Inductor
    with torch.no_grad():
        optimized_model = torch.compile(lowbit.lower_pt2e(converted_model))
        y = optimized_model(*example_inputs)

    prepared_model.eval()
    expected = prepared_model(*example_inputs)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
