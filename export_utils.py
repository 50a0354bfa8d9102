"""Training and evaluation of exported models, whose mode is written into their graph.

The names are those of ``torch.ao.quantization``.
"""

from __future__ import annotations

from torch.fx import GraphModule

from .errors import GraphInputError
from .ir.graph_module import check_trainable, let_train_and_eval_switch
from .ir.train_eval import freeze_batch_norms, to_evaluation, to_training
from .ir.wording import with_article

__all__ = [
    "allow_exported_model_train_eval",
    "freeze_bn_stats",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
]


def move_exported_model_to_eval(model: GraphModule) -> GraphModule:
    """Switch an exported model to evaluation, in place: what ``model.eval()`` is to one that is not exported.

    BatchNorm uses its running statistics, dropout drops nothing, fake quantizers stop observing. A model
    prepared for quantization-aware training computes what the converted one will, to the bit. Parameters,
    buffers and their names stay.

    Args:
        model: an exported, prepared, converted or lowered model.

    Returns:
        ``model``.

    Raises:
        GraphInputError: ``model`` is not an exported graph module.
    """
    to_evaluation(_exported(model))
    return model


def move_exported_model_to_train(model: GraphModule) -> GraphModule:
    """Switch an exported model to training, in place.

    What was in evaluation mode before :func:`move_exported_model_to_eval` (a frozen BatchNorm) is so again;
    dropout has the probability it was exported with. A model exported in evaluation mode is switched
    throughout; what export left out of it (dropout of probability 0, the counters of BatchNorm) stays out.

    Args:
        model: an exported float model, or one prepared for quantization-aware training.

    Returns:
        ``model``.

    Raises:
        GraphInputError: ``model`` is not an exported graph module.
        StageError: ``model`` was prepared for post-training quantization, or converted.
    """
    check_trainable(_exported(model))
    to_training(model)
    return model


def allow_exported_model_train_eval(model: GraphModule) -> GraphModule:
    """Let ``model.train()`` and ``model.eval()`` do what the two functions above do, in place.

    ``torch.export`` has them raise, until the model is copied with ``copy.deepcopy``: then they do nothing.
    Models that lowbit returned switch already. Copies do what the model does.

    Args:
        model: an exported model.

    Returns:
        ``model``.

    Raises:
        GraphInputError: ``model`` is not an exported graph module.
    """
    let_train_and_eval_switch(_exported(model))
    return model


def freeze_bn_stats(model: GraphModule) -> GraphModule:
    """Let BatchNorm use its running statistics from now on, in training too, and not update them, in place.

    For the last epochs of quantization-aware training. What the fake quantizers do is not changed; see
    ``model.apply(lowbit.disable_observer)``.

    Args:
        model: an exported float model, or one prepared for quantization-aware training.

    Returns:
        ``model``.

    Raises:
        GraphInputError: ``model`` is not an exported graph module.
    """
    freeze_batch_norms(_exported(model))
    return model


def _exported(model: object) -> GraphModule:
    if isinstance(model, GraphModule):
        return model
    raise GraphInputError(
        f"the model is {with_article(type(model).__name__)}, not an exported graph module",
        hint="export it: torch.export.export(model, example_inputs).module(); others have train() and eval()",
    )
