"""One way to run one model, in a process of its own: built once, then timed on demand.

``latency.py`` starts a process a contestant, because OpenVINO and ONNX Runtime live in an environment of
their own, and lets the processes take turns. They talk in lines of JSON: a contestant that is built says how
long compiling took, and then answers the number of calls that it is to time with the seconds of each::

    ← {"compile": 12.3, "coverage": "54 of 54"}
    → 3
    ← [0.0041, 0.0040, 0.0041]

The environment's variable OMP_NUM_THREADS sets the number of threads of each of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import click
import torch
import torch._inductor.config
from flows import Flow, export, lowbit_flow, torchao_flow
from lowbit import package_pt2e
from lowbit.backends import get_backend
from lowbit.backends.x86_inductor import KeepFasterFloat, has_vnni
from lowbit.passes import Pass, PropagateBf16
from lowbit.quantize_pt2e import lower_pt2e
from lowbit.tools.lowering_report import lowering_report
from lowbit.tools.models.catalogue import CATALOGUE
from torch import Tensor, nn
from torch.fx import GraphModule

CALIBRATION_BATCHES = 3

Run = Callable[[], Tensor]


@attrs.frozen
class Built:
    """A contestant: what computes its output, seconds that compiling took, and how much of it is int8."""

    run: Run
    compiled_in: float
    coverage: str = ""


def float32(model: nn.Module, batches: list[Tensor], *, freezing: bool) -> Built:
    """The model that all others approximate."""
    return _compiled(export(model, batches[0]), batches[0], freezing=freezing)


def lowbit(
    model: nn.Module, batches: list[Tensor], *, cpp_wrapper: bool = False, first: Pass | None = None
) -> Built:
    """Ours, lowered ahead of compilation, with a pass ``first``; what is timed includes lowering."""
    flow = lowbit_flow()
    converted = _converted(flow, model, batches)
    pipeline = get_backend("x86_inductor").lower
    assert pipeline is not None
    if first is not None:
        pipeline = pipeline.before("emit-inductor", first)
    start = time.perf_counter()
    lowered = lower_pt2e(converted, cpp_wrapper=cpp_wrapper, pipeline=pipeline)
    lowering = time.perf_counter() - start
    built = _compiled(lowered, batches[0], freezing=False, compile_it=not cpp_wrapper)
    return attrs.evolve(built, compiled_in=lowering + built.compiled_in, coverage=_coverage(lowered))


def packaged(model: nn.Module, batches: list[Tensor]) -> Built:
    """Ours, as a file that AOTInductor made and that runs without Python; what is timed includes lowering."""
    converted = _converted(lowbit_flow(), model, batches)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lowered = lower_pt2e(converted, pack_weights=False)
        run = torch._inductor.aoti_load_package(package_pt2e(lowered, Path(folder) / "model.pt2"))
        took = time.perf_counter() - start
    return Built(lambda: run(batches[0]), took, _coverage(lowered))


def _coverage(lowered: GraphModule) -> str:
    report = lowering_report(lowered)
    return f"{len(report.lowered)} of {len(report.lowered) + len(report.missed)}"


def torchao(model: nn.Module, batches: list[Tensor]) -> Built:
    """torchao's, which Inductor lowers while it freezes."""
    return _compiled(_converted(torchao_flow(), model, batches), batches[0], freezing=True)


def openvino(model: nn.Module, batches: list[Tensor]) -> Built:
    """NNCF's post-training quantization, on OpenVINO's CPU plugin."""
    import nncf
    import openvino as ov

    found = ov.convert_model(torch.export.export(model, (batches[0],)))
    # Without VNNI int8 dot products saturate; this leaves a bit of the weights unused, as ours does.
    overflow = nncf.OverflowFix.DISABLE if has_vnni() else nncf.OverflowFix.ENABLE
    quantized = nncf.quantize(
        found,
        nncf.Dataset(batches, lambda batch: batch.numpy()),
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )
    start = time.perf_counter()
    threads = torch.get_num_threads()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(quantized, "CPU", settings)
    request, array = compiled.create_infer_request(), batches[0].numpy()
    took = time.perf_counter() - start
    return Built(lambda: torch.from_numpy(next(iter(request.infer([array]).values()))), took)


def onnxruntime(model: nn.Module, batches: list[Tensor]) -> Built:
    """ONNX Runtime's static quantization in Q/DQ form."""
    import onnxruntime as ort
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = Path(tempfile.mkdtemp())
    plain, ready, quantized = (str(folder / f"{name}.onnx") for name in ("plain", "ready", "int8"))
    torch.onnx.export(model, (batches[0],), plain, input_names=["x"], external_data=False)
    quant_pre_process(plain, ready, skip_symbolic_shape=True)
    q.quantize_static(
        ready,
        quantized,
        _Batches(batches),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
    )
    start = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    array = batches[0].numpy()
    took = time.perf_counter() - start
    return Built(lambda: torch.from_numpy(session.run(None, {"x": array})[0]), took)


class _Batches:
    """What ONNX Runtime reads calibration data by."""

    def __init__(self, batches: list[Tensor]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> dict[str, object] | None:
        batch = next(self._rest, None)
        return None if batch is None else {"x": batch.numpy()}


CONTESTANTS: dict[str, Callable[[nn.Module, list[Tensor]], Built]] = {
    "float32": lambda model, batches: float32(model, batches, freezing=False),
    "float32-freezing": lambda model, batches: float32(model, batches, freezing=True),
    "lowbit": lowbit,
    "lowbit-cpp": lambda model, batches: lowbit(model, batches, cpp_wrapper=True),
    "lowbit-aot": packaged,
    "lowbit-timed": lambda model, batches: lowbit(model, batches, cpp_wrapper=True, first=KeepFasterFloat()),
    "lowbit-bf16": lambda model, batches: lowbit(model, batches, first=PropagateBf16()),
    "torchao": torchao,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
}


def _converted(flow: Flow, model: nn.Module, batches: list[Tensor]) -> GraphModule:
    prepared = flow.prepare(flow.export(model, batches[0]))
    for batch in batches:
        prepared(batch)
    return flow.convert(prepared)


def _compiled(graph: GraphModule, example: Tensor, *, freezing: bool, compile_it: bool = True) -> Built:
    """``graph`` compiled for inputs like ``example``.

    Under freezing, weights become constants that the compiler may lay out anew. The flag is set as the
    environment variable TORCHINDUCTOR_FREEZING sets it: as an option of ``torch.compile`` it does not reach
    all of the rewrites that torchao relies on.
    """
    compiled = torch.compile(graph) if compile_it else graph
    start = time.perf_counter()
    with torch._inductor.config.patch(freezing=freezing):
        compiled(example)
    return Built(lambda: compiled(example), time.perf_counter() - start)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", type=click.Choice(list(CONTESTANTS)))
@click.option("--model", type=click.Choice(list(CATALOGUE)), required=True)
@click.option("--batch", type=int, required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where to save its output.")
@torch.no_grad()
def main(*, name: str, model: str, batch: int, output: Path) -> None:
    """Build a contestant, and then time as many calls as each line of the standard input says."""
    # Compilers print what they please; the answers go where nothing else does.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    entry = CATALOGUE[model]
    with contextlib.redirect_stdout(sys.stderr):
        built = CONTESTANTS[name](entry.make(), entry.batches(CALIBRATION_BATCHES, batch, 0))
        torch.save(built.run(), output)
    print(json.dumps({"compile": built.compiled_in, "coverage": built.coverage}), file=answers, flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            built.run()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
