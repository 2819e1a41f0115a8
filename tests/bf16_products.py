"""Where products of bf16 matrices can be tested."""

from __future__ import annotations

import pytest
import torch

#: oneDNN computes bf16 on processors without units for it too, but not on those without AVX-512.
needs_bf16_products = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="PyTorch does not even emulate bfloat16 here"
)
