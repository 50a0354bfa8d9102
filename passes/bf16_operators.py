"""What ATen operators compute in when a model is to use bfloat16: the tables of ``propagate-bf16``.

Names are those of operators without their overload. ``COMPUTE_IN_BFLOAT16``, ``STAY_FLOAT32`` and the three
operators that autocast brings to one dtype (``cat``, ``stack``, ``index_copy``) are what ``torch.autocast``
treats on CPU in torch 2.13 (its C++ registrations for the dispatch key ``AutocastCPU``), and a few more where
autocast reaches the same inside the operator, or would fail. ``tests/passes/test_propagate_bf16.py`` compares
them with the installed torch.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COMPUTE_IN_BFLOAT16", "MOVE_VALUES", "PROMOTE", "RECURRENT", "STAY_FLOAT32"]

# fmt: off
COMPUTE_IN_BFLOAT16: Final = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "_convolution",
    "linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "_addmm_activation", "linalg_vecdot",
    "scaled_dot_product_attention", "_native_multi_head_attention", "prelu",
    "convolution", "einsum", "tensordot", "inner",
})
"""Their floating-point inputs are cast to bfloat16, and so is their result.

In the last line what autocast casts inside (``einsum`` is made of ``bmm``) or one decomposition further out
(``convolution`` is what all convolutions decompose to).
"""

STAY_FLOAT32: Final = frozenset({
    "adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d", "max_unpool2d", "max_unpool3d", "grid_sampler", "grid_sampler_2d",
    "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "prod", "quantile", "nanquantile", "cdist", "trace", "polar", "view_as_complex", "stft",
    "fake_quantize_per_tensor_affine",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_embedding_loss",
    "cross_entropy_loss", "ctc_loss", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss",
    "margin_ranking_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss",
    "multilabel_margin_loss_forward", "nll_loss", "nll_loss2d", "poisson_nll_loss", "smooth_l1_loss",
    "soft_margin_loss", "triplet_margin_loss",
    "fft_fft", "fft_fft2", "fft_fftn", "fft_hfft", "fft_ifft", "fft_ifft2", "fft_ifftn", "fft_ihfft",
    "fft_irfft", "fft_irfft2", "fft_irfftn", "fft_rfft", "fft_rfft2", "fft_rfftn",
    "cholesky", "cholesky_inverse", "cholesky_solve", "geqrf", "inverse", "lu_solve", "_lu_with_info",
    "orgqr", "ormqr", "pinverse", "qr", "svd", "triangular_solve", "linalg_cholesky",
    "linalg_cholesky_ex", "linalg_cond", "linalg_eig", "linalg_eigh", "linalg_eigvals", "linalg_eigvalsh",
    "linalg_householder_product", "linalg_inv", "linalg_inv_ex", "linalg_lstsq", "linalg_matrix_rank",
    "linalg_qr", "linalg_solve", "linalg_svd", "linalg_svdvals", "linalg_tensorinv", "linalg_tensorsolve",
    "_upsample_bilinear2d_aa", "complex", "histogram", "pdist", "det", "logdet", "slogdet", "linalg_det",
    "linalg_slogdet", "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex", "linalg_lu_solve",
    "linalg_matrix_power", "linalg_pinv", "linalg_solve_ex", "linalg_solve_triangular",
})
"""Their bfloat16 inputs are cast to float32.

From ``_upsample_bilinear2d_aa`` on, operators that autocast would call in bfloat16, for which torch has no
such kernel on CPU.
"""

RECURRENT: Final = frozenset({
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "mkldnn_rnn_layer",
})
"""Left in the dtype they were exported in: what is carried from step to step would be rounded at each."""

PROMOTE: Final = frozenset({
    "cat", "stack", "copy_", "to", "type_as",
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update", "instance_norm", "layer_norm", "native_layer_norm", "group_norm",
    "native_group_norm", "rms_norm",
    "hardswish", "multiply", "subtract", "divide", "true_divide",
})
"""Take tensors of several dtypes as they are, besides the operators that torch tags as pointwise.

Normalizations give the dtype of their input; their parameters and statistics stay float32.
"""

MOVE_VALUES: Final = frozenset({
    "_unsafe_view", "adjoint", "alias", "clone", "contiguous", "detach", "expand", "flatten", "mT",
    "movedim", "numpy_T", "permute", "reshape", "squeeze", "swapaxes", "swapdims", "t", "transpose",
    "unflatten", "unsqueeze", "view",
})
"""Return the values they are given, all of them: rounding before or after is the same."""
# fmt: on
