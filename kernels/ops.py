"""The one door to the kernels: callers import from here, and what stands behind a name may change with the device.

Today each is one implementation in torch operators that serves CPU and CUDA alike. `kernels.reference` has the twins.
"""

from kernels.kv_store import store_kv_
from kernels.paged_attention import paged_attention
from kernels.quantized_linear import int4_linear, int8_linear, quantize_activations
from kernels.rms_norm import rms_norm
from kernels.rotary import rotate_
from kernels.segments import Segment
from kernels.silu_mul import silu_mul
from kernels.tiles import dequantize_int4, dequantize_int8, rows_of_groups, rows_of_int4, rows_of_int8

__all__ = [
    "Segment",
    "dequantize_int4",
    "dequantize_int8",
    "int4_linear",
    "int8_linear",
    "paged_attention",
    "quantize_activations",
    "rms_norm",
    "rotate_",
    "rows_of_groups",
    "rows_of_int4",
    "rows_of_int8",
    "silu_mul",
    "store_kv_",
]
