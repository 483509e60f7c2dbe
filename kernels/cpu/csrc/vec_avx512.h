// Sixteen floats in one AVX-512 register. The same names and the same roundings as vec_avx2.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

struct F {
  __m512 v;
};

static inline F zero() { return {_mm512_setzero_ps()}; }
static inline F set1(float x) { return {_mm512_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
static inline F add(F x, F y) { return {_mm512_add_ps(x.v, y.v)}; }
static inline F sub(F x, F y) { return {_mm512_sub_ps(x.v, y.v)}; }
static inline F mul(F x, F y) { return {_mm512_mul_ps(x.v, y.v)}; }
static inline F divide(F x, F y) { return {_mm512_div_ps(x.v, y.v)}; }
static inline F maximum(F x, F y) { return {_mm512_max_ps(x.v, y.v)}; }
static inline F fma(F x, F y, F z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
static inline F absolute(F x) { return {_mm512_abs_ps(x.v)}; }

static inline F load(const uint16_t* p) {  // bfloat16
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static inline void load_pairs(const uint16_t* p, F& even, F& odd) {
  const __m512i x = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline F load_half(const uint16_t* p) {  // float16
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline F load_int(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }

// in the order of vec_avx2.h, so that both give the same bits
static inline float sum(F x) {
  const __m256 s = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  q = _mm_add_ss(q, _mm_shuffle_ps(q, q, 1));
  return _mm_cvtss_f32(q);
}
static inline float largest(F x) { return _mm512_reduce_max_ps(x.v); }

static inline void store(uint16_t* p, F x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff))), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

static inline int32_t store_int8(int8_t* p, F x) {
  const __m512i whole = _mm512_cvtps_epi32(x.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(whole));
  return _mm512_reduce_add_epi32(whole);
}

static inline F keep_first(F x, int count, F y) {
  const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1);
  return {_mm512_mask_blend_ps(mask, y.v, x.v)};
}

static inline F power_of_two(F n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
static inline F round_even(F x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
