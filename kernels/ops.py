"""The one door to the kernels: callers import from here, and what stands behind a name may change with the device.

Today each is one implementation in torch operators that serves CPU and CUDA alike. `kernels.reference` has the twins.
"""

from kernels.kv_store import store_kv_
from kernels.paged_attention import paged_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotate_
from kernels.segments import Segment
from kernels.silu_mul import silu_mul

__all__ = ["Segment", "paged_attention", "rms_norm", "rotate_", "silu_mul", "store_kv_"]
