"""XNNPACK: the CPU kernels of ExecuTorch.

What ``convert_pt2e`` returns is what ExecuTorch's partitioner takes; it writes a program file of its own, so
there is nothing for ``lower_pt2e`` to do::

    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(converted, example_inputs)
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    edge.to_executorch().save("model.pte")
"""

from ..base import Backend
from ..capabilities import Preset
from ..pipelines import CONVERT, PREPARE, PREPARE_QAT
from ..registry import register_backend
from .gru import GRU_INPUTS
from .patterns import PATTERNS
from .quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

__all__ = ["XNNPACK", "XNNPACKQuantizer", "get_symmetric_quantization_config"]

XNNPACK = register_backend(
    Backend(
        name="xnnpack",
        patterns=PATTERNS,
        quantizer=lambda: XNNPACKQuantizer().set_global(get_symmetric_quantization_config()),
        prepare=PREPARE,
        convert=CONVERT,
        lower=None,
        lowered_by=(
            "ExecuTorch: to_edge_transform_and_lower(torch.export.export(converted, inputs), "
            "partitioner=[XnnpackPartitioner()])"
        ),
        prepare_qat=PREPARE_QAT,
        presets=(
            Preset("static", get_symmetric_quantization_config),
            Preset("static-per-channel", lambda: get_symmetric_quantization_config(is_per_channel=True)),
            Preset("static-qat", lambda: get_symmetric_quantization_config(is_qat=True)),
            Preset("dynamic", lambda: get_symmetric_quantization_config(True, is_dynamic=True)),
            Preset("dynamic-qat", lambda: get_symmetric_quantization_config(True, True, True)),
        ),
        device="cpu",
        by_hand=(GRU_INPUTS,),
    )
)
