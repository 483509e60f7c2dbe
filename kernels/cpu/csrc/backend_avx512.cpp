// AVX-512 with VNNI: four bytes of each of sixteen outputs in one instruction (vpdpbusd).
#include "backend.h"

#if defined(__x86_64__)
#ifndef EBB_EMULATED
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include <algorithm>
#include <cmath>
#include <cstring>

#include "vec_avx512.h"

namespace ebb {
namespace {

// vpdpbusd wants one unsigned side: the codes of activations get 128 added, and what that adds is taken off again
constexpr bool kUnsignedCodes = true;
constexpr int kPlainRows = 12, kAttentionRows = 12, kAccumulators = 12, kMaxGroup = 16;

inline F select_negative(F by, F yes, F no) { return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(by.v)), no.v, yes.v)}; }

#include "kernels.inc"
#include "vnni.inc"

void multiply(const EbbMatrix& m, const int32_t* compensation, const Activations& a, int first, int last, float* out, int out_stride, void*) {
  if (m.kind == EBB_INT4) {
    multiply_int4_tiles(m, a, first, last, out, out_stride);
  } else if (m.kind == EBB_INT8) {
    for (int tile = first; tile < last; ++tile) {
      const auto* w = static_cast<const int8_t*>(m.weight) + static_cast<int64_t>(tile) * a.stride * 16;
      by_rows<12>(a.rows, [&]<int MR>(int row) {
        multiply_int8<MR>(w, static_cast<const float*>(m.scale) + 16 * tile, compensation + 16 * tile, a, row,
                          out + 16 * (tile - first) + static_cast<int64_t>(row) * out_stride, out_stride);
      });
    }
  } else {
    multiply_plain(m, a, first, last, out, out_stride);
  }
}

const Backend kBackend{"avx512_vnni", multiply, quantize, compensate, rms_norm, silu_mul, attend<uint16_t>, attend<float>, narrow, largest_of, weigh_tokens};

}  // namespace

const Backend* avx512_backend() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
             ? &kBackend
             : nullptr;
}

}  // namespace ebb
#else
namespace ebb {
const Backend* avx512_backend() { return nullptr; }
}  // namespace ebb
#endif
