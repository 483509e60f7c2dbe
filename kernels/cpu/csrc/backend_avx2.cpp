// AVX2, FMA and F16C: the smallest instruction set with a backend of its own. Without VNNI, bytes are multiplied in
// pairs (vpmaddubsw, vpmaddwd).
#include "backend.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <algorithm>
#include <cmath>
#include <cstring>

#include "vec_avx2.h"

namespace ebb {
namespace {

constexpr bool kUnsignedCodes = false;
// of 16 registers two hold an accumulator, and four the weights or keys: one more row, and they are spilled
constexpr int kPlainRows = 5, kAttentionRows = 6, kAccumulators = 4, kMaxGroup = 16;
constexpr int kPrefetchBytes = 2048;

inline F select_negative(F by, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, by.a), _mm256_blendv_ps(no.b, yes.b, by.b)};
}

#include "kernels.inc"

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i repeat32(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

// Adds in place. Left alone, gcc turns eight additions in a row into a tree, and spills all the products for it.
inline void accumulate(__m256i& total, __m256i words) {
  total = _mm256_add_epi16(total, words);
  asm("" : "+x"(total));
}

// The processor's own prefetching stops at each page of 4 KiB: one row alone then waits for memory.
inline void prefetch_group(const uint8_t* w) {
  for (int line = 0; line < 4; ++line) prefetch(w + kPrefetchBytes + 64 * line);
}

// A group of 32 columns adds up in 16 bits: 8 * 2 * 15 * 127 = 30,480 at most.
template <int MR>
inline void multiply_int4(const uint8_t* w, const uint16_t* scale, const uint16_t* low, int groups, int shift,
                          const Activations& a, int row, float* out, int out_stride) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const int8_t* x = a.codes + static_cast<int64_t>(row) * a.stride;
  const float* s = a.scales + static_cast<int64_t>(row) * a.groups;
  const float* t = a.sums + static_cast<int64_t>(row) * a.groups;
  F total[MR];
  for (int r = 0; r < MR; ++r) total[r] = zero();
  for (int g = 0; g < groups; ++g, w += 256, x += 32) {
    __m256i words[MR][2];
    for (int r = 0; r < MR; ++r) words[r][0] = words[r][1] = _mm256_setzero_si256();
    if constexpr (MR == 1) prefetch_group(w);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i w0 = load_bytes(w + 64 * j), w1 = load_bytes(w + 64 * j + 32);
      const __m256i even0 = _mm256_and_si256(w0, mask), even1 = _mm256_and_si256(w1, mask);
      for (int r = 0; r < MR; ++r) {
        const __m256i four = repeat32(x + static_cast<int64_t>(r) * a.stride + 8 * j);
        accumulate(words[r][0], _mm256_maddubs_epi16(even0, four));
        accumulate(words[r][1], _mm256_maddubs_epi16(even1, four));
      }
      const __m256i odd0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), mask), odd1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), mask);
      for (int r = 0; r < MR; ++r) {
        const __m256i four = repeat32(x + static_cast<int64_t>(r) * a.stride + 8 * j + 4);
        accumulate(words[r][0], _mm256_maddubs_epi16(odd0, four));
        accumulate(words[r][1], _mm256_maddubs_epi16(odd1, four));
      }
    }
    const F factor = load_half(scale + 16 * (g >> shift)), least = load_half(low + 16 * (g >> shift));
    for (int r = 0; r < MR; ++r) {
      const F dot = {_mm256_cvtepi32_ps(_mm256_madd_epi16(words[r][0], ones)), _mm256_cvtepi32_ps(_mm256_madd_epi16(words[r][1], ones))};
      total[r] = fma(dot, mul(set1(s[r * a.groups + g]), factor), total[r]);
      total[r] = fma(set1(t[r * a.groups + g]), least, total[r]);
    }
  }
  for (int r = 0; r < MR; ++r) store(out + static_cast<int64_t>(r) * out_stride, total[r]);
}

// `x`: the codes widened to 16 bits, [MR, stride]
template <int MR>
inline void multiply_int8(const int8_t* w, const float* scale, const int16_t* x, int stride, const float* s, int s_stride,
                          float* out, int out_stride) {
  __m256i total[MR][4];
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < 4; ++c) total[r][c] = _mm256_setzero_si256();
  for (int at = 0; at < stride; at += 4, w += 64) {
    __m256i four[MR];
    for (int r = 0; r < MR; ++r) {
      int64_t words;
      std::memcpy(&words, x + r * stride + at, 8);
      four[r] = _mm256_set1_epi64x(words);
    }
    for (int c = 0; c < 4; ++c) {
      const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * c)));
      for (int r = 0; r < MR; ++r) total[r][c] = _mm256_add_epi32(total[r][c], _mm256_madd_epi16(wide, four[r]));
    }
  }
  for (int r = 0; r < MR; ++r) {
    const __m256i low = _mm256_permute4x64_epi64(_mm256_hadd_epi32(total[r][0], total[r][1]), 0xd8);
    const __m256i high = _mm256_permute4x64_epi64(_mm256_hadd_epi32(total[r][2], total[r][3]), 0xd8);
    const F factor = mul(set1(s[r * s_stride]), load(scale));
    store(out + static_cast<int64_t>(r) * out_stride, mul(F{_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}, factor));
  }
}

void multiply(const EbbMatrix& m, const int32_t*, const Activations& a, int first, int last, float* out, int out_stride, void* scratch) {
  if (m.kind == EBB_INT4) {
    const int groups = m.k / 32, scales = m.k / m.group;
    for (int tile = first; tile < last; ++tile) {
      const auto* w = static_cast<const uint8_t*>(m.weight) + static_cast<int64_t>(tile) * groups * 256;
      const auto* scale = static_cast<const uint16_t*>(m.scale) + static_cast<int64_t>(tile) * scales * 16;
      const auto* low = static_cast<const uint16_t*>(m.min) + static_cast<int64_t>(tile) * scales * 16;
      by_rows<4>(a.rows, [&]<int MR>(int row) {
        multiply_int4<MR>(w, scale, low, groups, m.group / 64, a, row, out + 16 * (tile - first) + static_cast<int64_t>(row) * out_stride, out_stride);
      });
    }
  } else if (m.kind == EBB_INT8) {
    auto* wide = static_cast<int16_t*>(scratch);
    by_rows<3>(a.rows, [&]<int MR>(int row) {
      for (int r = 0; r < MR; ++r)
        for (int at = 0; at < a.stride; at += 16)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide + r * a.stride + at),
                              _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a.codes + static_cast<int64_t>(row + r) * a.stride + at))));
      for (int tile = first; tile < last; ++tile)
        multiply_int8<MR>(static_cast<const int8_t*>(m.weight) + static_cast<int64_t>(tile) * a.stride * 16, static_cast<const float*>(m.scale) + 16 * tile, wide,
                          a.stride, a.scales + static_cast<int64_t>(row) * a.groups, a.groups, out + 16 * (tile - first) + static_cast<int64_t>(row) * out_stride, out_stride);
    });
  } else {
    multiply_plain(m, a, first, last, out, out_stride);
  }
}

const Backend kBackend{"avx2", multiply, quantize, nullptr, rms_norm, silu_mul, attend<uint16_t>, attend<float>, narrow, largest_of, weigh_tokens};

}  // namespace

const Backend* avx2_backend() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? &kBackend : nullptr; }

}  // namespace ebb
#else
namespace ebb {
const Backend* avx2_backend() { return nullptr; }
}  // namespace ebb
#endif
