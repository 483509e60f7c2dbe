"""Products with quantized matrices, activations quantized on the way in. y = x · Wᵀ + b.

The arithmetic is that of the fused CPU path (`kernels/cpu`), so that both serve one artifact alike: a token's
activations become whole numbers a = round(x/s), s = max|x|/127, ties to even. Against int8 there is one s a token, and
y = (Σ a·q) · (s · scale). Against int4 there is one s a token and group of 32 columns, and y is the sum over these
groups, in order, of (Σ a·code) · (s · scale) + (s · Σ a) · min.

Products of whole numbers go through float32 matrix products in pieces whose sums stay below 2²⁴: exact, whatever the
order, and several times faster than torch's int8 products without VNNI.
"""

import torch
from torch import Tensor

EXACT_COLUMNS = 1024
"""127 · 127 · 1024 < 2²⁴: what one float32 sum of int8 products may span."""
GROUP = 32
"""Columns that share one scale of the activations before an int4 matrix."""
_BLOCK_ROWS = 4096
"""Rows of W widened to float32 at a time: 9 MB for 576 columns, where a whole vocabulary would be 113."""


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over the last dimension: whole numbers -127 to 127 in float32 like `x`, and s [..., 1]; s = 0 gives zeros."""
    x = x.float()
    s = x.abs().amax(dim=-1, keepdim=True) / 127
    return (x / torch.where(s == 0, 1.0, s)).round_(), s


def int8_linear(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [T, K], `q` int8 [N, K], `scale` float32 [N], `bias` [N] or None; gives [T, N] in x's dtype."""
    a, s = quantize_activations(x)
    y = torch.empty(x.shape[0], q.shape[0], dtype=torch.float32, device=x.device)
    for first in range(0, q.shape[0], _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        y[:, rows] = _exact_product(a, q[rows]) * (s * scale[rows])
    return _finish(y, bias, x.dtype)


def _exact_product(a: Tensor, q: Tensor) -> Tensor:
    """Σ a·q as float32 [T, N]: the exact sum, rounded once."""
    columns = q.shape[1]
    if columns <= EXACT_COLUMNS:
        return a @ q.float().T
    total = torch.zeros(a.shape[0], q.shape[0], dtype=torch.int32, device=a.device)
    for first in range(0, columns, EXACT_COLUMNS):
        piece = slice(first, first + EXACT_COLUMNS)
        total += (a[:, piece] @ q[:, piece].float().T).int()
    return total.float()


def int4_linear(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [T, K], `codes` uint8 [N, K] of 0 to 15, `scale` and `minimum` float32 [N, K/G], `bias` [N] or None.

    Gives [T, N] in x's dtype. G is a multiple of 32.
    """
    tokens, columns = x.shape
    groups = columns // GROUP
    a, s = quantize_activations(x.view(tokens, groups, GROUP))
    s = s.squeeze(-1)
    shift = s * a.sum(dim=-1)
    per_scale = groups // scale.shape[1]
    y = torch.zeros(tokens, codes.shape[0], dtype=torch.float32, device=x.device)
    for group in range(groups):
        part, at = codes[:, group * GROUP : (group + 1) * GROUP].float(), group // per_scale
        dot = a[:, group] @ part.T
        y += dot.mul_(torch.outer(s[:, group], scale[:, at])).addr_(shift[:, group], minimum[:, at])
    return _finish(y, bias, x.dtype)


def _finish(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y.add_(bias)).to(dtype)
