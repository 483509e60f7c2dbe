// AVX-512 VNNI and AMX in AVX2, for processors that lack them: forced in front of a backend by the compiler's -include.
//
// Only what the backends use, each written from Intel's description of the instruction, none with an eye to speed.
// What a program gets wrong about tiles (no configuration, shapes that do not fit) ends the process, as the hardware
// would.
#pragma once
#define EBB_EMULATED 1
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};

template <class To, class From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <class T>
struct Lanes {
  T at[64 / sizeof(T)];
};

inline Floats setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats set1_ps(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats loadu_ps(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void storeu_ps(float* p, Floats x) { std::memcpy(p, &x, 64); }
inline Floats add_ps(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats sub_ps(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats mul_ps(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats div_ps(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats max_ps(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats fmadd_ps(Floats x, Floats y, Floats z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Floats abs_ps(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
template <int mode>
inline Floats roundscale_ps(Floats x) {
  static_assert(mode == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), "no fraction is kept");
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline float reduce_max_ps(Floats x) {
  float best = as<Lanes<float>>(x).at[0];
  for (float each : as<Lanes<float>>(x).at) best = each > best ? each : best;
  return best;
}
inline __m256 castps512_ps256(Floats x) { return x.a; }
inline __m256 extractf32x8_ps(Floats x, int part) { return part == 0 ? x.a : x.b; }
inline Floats mask_blend_ps(__mmask16 mask, Floats x, Floats y) {
  auto to = as<Lanes<float>>(x);
  for (int lane = 0; lane < 16; ++lane)
    if (mask >> lane & 1) to.at[lane] = as<Lanes<float>>(y).at[lane];
  return as<Floats>(to);
}

inline Ints setzero_si512() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints set1_epi32(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints set1_epi8(char x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
inline Ints loadu_si512(const void* p) {
  Ints x;
  std::memcpy(&x, p, 64);
  return x;
}
inline void storeu_si512(void* p, Ints x) { std::memcpy(p, &x, 64); }
inline Ints add_epi32(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints sub_epi32(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline Ints and_si512(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline Ints slli_epi32(Ints x, int by) { return {_mm256_slli_epi32(x.a, by), _mm256_slli_epi32(x.b, by)}; }
inline Ints srli_epi32(Ints x, int by) { return {_mm256_srli_epi32(x.a, by), _mm256_srli_epi32(x.b, by)}; }
inline Ints srli_epi16(Ints x, int by) { return {_mm256_srli_epi16(x.a, by), _mm256_srli_epi16(x.b, by)}; }
inline int reduce_add_epi32(Ints x) {
  uint32_t sum = 0;
  for (uint32_t each : as<Lanes<uint32_t>>(x).at) sum += each;
  return static_cast<int>(sum);
}
inline __mmask16 movepi32_mask(Ints x) {
  return static_cast<__mmask16>(_mm256_movemask_ps(_mm256_castsi256_ps(x.a)) | _mm256_movemask_ps(_mm256_castsi256_ps(x.b)) << 8);
}

inline Floats castsi512_ps(Ints x) { return as<Floats>(x); }
inline Ints castps_si512(Floats x) { return as<Ints>(x); }
inline Floats cvtepi32_ps(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints cvtps_epi32(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Floats cvtph_ps(__m256i x) { return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))}; }
inline Ints cvtepu16_epi32(__m256i x) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
inline __m256i cvtepi32_epi16(Ints x) {  // the lower halves
  uint16_t to[16];
  for (int lane = 0; lane < 16; ++lane) to[lane] = static_cast<uint16_t>(as<Lanes<uint32_t>>(x).at[lane]);
  return as<__m256i>(to);
}
inline __m128i cvtsepi32_epi8(Ints x) {  // saturated
  int8_t to[16];
  for (int lane = 0; lane < 16; ++lane) {
    const int32_t value = as<Lanes<int32_t>>(x).at[lane];
    to[lane] = static_cast<int8_t>(value > 127 ? 127 : value < -128 ? -128 : value);
  }
  return as<__m128i>(to);
}

// each lane of `sum` plus four products of an unsigned byte of x and a signed one of y
inline __m256i dpbusd(__m256i sum, __m256i x, __m256i y) {
  const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)), _mm256_cvtepi8_epi16(_mm256_castsi256_si128(y)));
  const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(y, 1)));
  return _mm256_add_epi32(sum, _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8));
}
inline Ints dpbusd_epi32(Ints sum, Ints x, Ints y) { return {dpbusd(sum.a, x.a, y.a), dpbusd(sum.b, x.b, y.b)}; }

// ---- tiles ------------------------------------------------------------------------------------------------------------

struct Tiles {
  int rows[8] = {}, bytes[8] = {};  // none: not configured
  int8_t data[8][16][64] = {};
};
inline thread_local Tiles tiles;

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}
inline void loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  require(bytes[0] == 1, "the palette is not 1");
  for (int at = 1; at < 64; ++at) require(bytes[at] == 0 || (at >= 16 && at < 32) || (at >= 48 && at < 56), "a reserved byte is not 0");
  tiles = {};
  for (int tile = 0; tile < 8; ++tile) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * tile, 2);
    tiles.rows[tile] = bytes[48 + tile];
    tiles.bytes[tile] = width;
    require(tiles.rows[tile] >= 1 && tiles.rows[tile] <= 16 && width >= 1 && width <= 64, "a tile is not of 1 to 16 rows of 1 to 64 bytes");
  }
}
inline void release() { tiles = {}; }
inline void clear(int tile) {
  require(tiles.rows[tile] > 0, "a tile is used without a configuration");
  std::memset(tiles.data[tile], 0, sizeof(tiles.data[tile]));
}
inline void load(int tile, const void* from, long stride) {
  clear(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(tiles.data[tile][row], static_cast<const char*>(from) + row * stride, static_cast<size_t>(tiles.bytes[tile]));
}
inline void store(int tile, void* to, long stride) {
  require(tiles.rows[tile] > 0, "a tile is used without a configuration");
  for (int row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[tile][row], static_cast<size_t>(tiles.bytes[tile]));
}
inline void dpbssd(int sum, int x, int y) {
  const int rows = tiles.rows[x], links = tiles.bytes[x] / 4, columns = tiles.bytes[y] / 4;
  require(rows > 0 && tiles.rows[sum] == rows && tiles.rows[y] == links && tiles.bytes[sum] == tiles.bytes[y], "tiles of a product do not fit");
  for (int row = 0; row < rows; ++row) {
    int32_t* to = reinterpret_cast<int32_t*>(tiles.data[sum][row]);
    for (int link = 0; link < links; ++link)
      for (int column = 0; column < columns; ++column)
        for (int i = 0; i < 4; ++i) to[column] += tiles.data[x][row][4 * link + i] * tiles.data[y][link][4 * column + i];
  }
}

}  // namespace emulated

#define __builtin_cpu_supports(feature) 1
#define __m512 emulated::Floats
#define __m512i emulated::Ints
#undef _mm512_roundscale_ps
#undef _mm512_extractf32x8_ps
#define _mm512_roundscale_ps(x, mode) emulated::roundscale_ps<(mode)>(x)
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_add_ps emulated::add_ps
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_div_ps emulated::div_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_abs_ps emulated::abs_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_mask_blend_ps emulated::mask_blend_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_epi8 emulated::set1_epi8
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_and_si512 emulated::and_si512
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_srli_epi16 emulated::srli_epi16
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#define _mm512_movepi32_mask emulated::movepi32_mask
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtsepi32_epi8 emulated::cvtsepi32_epi8
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig emulated::loadconfig
#define _tile_release emulated::release
#define _tile_zero emulated::clear
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbssd emulated::dpbssd
