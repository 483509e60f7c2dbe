// AMX: products with int8 matrices through its tiles of 16 x 64 bytes (tdpbssd); all else is the AVX-512 backend's.
//
// A tile of 16 outputs is stored as [k / 4, 16, 4]: 64 columns of it are, byte for byte, one right-hand tile. Sixteen
// tokens' codes are one left-hand tile. Whole numbers are added, so the results are those of the other backends.
#include "backend.h"

#if defined(__x86_64__) && defined(__linux__)
#ifndef EBB_EMULATED
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vec_avx512.h"

namespace ebb {
namespace {

constexpr bool kUnsignedCodes = false;  // both sides are signed here
constexpr int kPlainRows = 1, kAttentionRows = 1, kAccumulators = 1, kMaxGroup = 16;

inline F select_negative(F by, F yes, F no) { return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(by.v)), no.v, yes.v)}; }

#include "kernels.inc"

constexpr int kTile = 16;                 // rows of a tile
constexpr int kTileBytes = 64;            // bytes of a row
constexpr int kTileSize = kTile * kTile;  // sums in a tile

// Tiles 0 to 3 are sums, 4 (and 5, of two blocks of rows) codes, the others weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// With `rows` below 16 the sums and tile 4 get no more than these: fewer rows are loaded, multiplied and stored.
inline void configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kTileBytes;
    config.rows[tile] = static_cast<uint8_t>(tile < 5 ? rows : kTile);
  }
  // gcc 12 does not know that the instruction reads this memory, and would drop what was written to it
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Sums of MB blocks of 16 rows and NB tiles of outputs over all columns, left in tiles n * MB + m. What one tile adds up
// is a chain of 52 cycles a link, of which the unit begins one every 16: four sums keep it busy.
template <int MB, int NB>
inline void add_up(const int8_t* x, const int8_t* w, int stride) {
  static_assert(MB * NB <= 4 && (MB == 1 || MB == 2));
  const int64_t tile = static_cast<int64_t>(stride) * kTile;
  _tile_zero(0);
  if constexpr (MB * NB > 1) _tile_zero(1);
  if constexpr (MB * NB > 2) _tile_zero(2);
  if constexpr (MB * NB > 3) _tile_zero(3);
  for (int at = 0; at < stride; at += kTileBytes, w += kTile * kTileBytes) {
    _tile_loadd(4, x + at, stride);
    if constexpr (MB == 1) {
      _tile_loadd(5, w, kTileBytes);
      _tile_dpbssd(0, 4, 5);
      if constexpr (NB > 1) {
        _tile_loadd(6, w + tile, kTileBytes);
        _tile_dpbssd(1, 4, 6);
      }
      if constexpr (NB > 2) {
        _tile_loadd(7, w + 2 * tile, kTileBytes);
        _tile_dpbssd(2, 4, 7);
      }
      if constexpr (NB > 3) {
        _tile_loadd(5, w + 3 * tile, kTileBytes);
        _tile_dpbssd(3, 4, 5);
      }
    } else {
      _tile_loadd(6, w, kTileBytes);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, x + static_cast<int64_t>(kTile) * stride + at, stride);
      _tile_dpbssd(1, 5, 6);
      if constexpr (NB > 1) {
        _tile_loadd(7, w + tile, kTileBytes);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
      }
    }
  }
}

template <int count>
inline void keep(int32_t* sums) {
  _tile_stored(0, sums, kTileBytes);
  if constexpr (count > 1) _tile_stored(1, sums + kTileSize, kTileBytes);
  if constexpr (count > 2) _tile_stored(2, sums + 2 * kTileSize, kTileBytes);
  if constexpr (count > 3) _tile_stored(3, sums + 3 * kTileSize, kTileBytes);
}

class Product {
 public:
  Product(const EbbMatrix& m, const Activations& a, int first, float* out, int out_stride)
      : m_(m), a_(a), first_(first), out_(out), out_stride_(out_stride) {}

  template <int MB, int NB>
  void block(int row, int tile) {
    add_up<MB, NB>(a_.codes + static_cast<int64_t>(row) * a_.stride,
                   static_cast<const int8_t*>(m_.weight) + static_cast<int64_t>(tile) * a_.stride * kTile, a_.stride);
    // the block before is scaled while the tiles' unit is still at this one
    finish();
    sums_ = buffers_[sums_ == buffers_[0] ? 1 : 0];
    keep<MB * NB>(sums_);
    row_ = row;
    rows_ = std::min(a_.rows - row, MB * kTile);
    tile_ = tile;
    tiles_ = NB;
    blocks_ = MB;
  }

  // Scales the sums of the last block, if there is one.
  void finish() const {
    for (int n = 0; n < tiles_; ++n) {
      const F scale = load(static_cast<const float*>(m_.scale) + 16 * (tile_ + n));
      float* to = out_ + 16 * (tile_ + n - first_) + static_cast<int64_t>(row_) * out_stride_;
      const float* s = a_.scales + static_cast<int64_t>(row_) * a_.groups;
      for (int r = 0; r < rows_; ++r) {
        const int32_t* sums = sums_ + kTileSize * (n * blocks_ + r / kTile) + 16 * (r % kTile);
        store(to + static_cast<int64_t>(r) * out_stride_, mul(load_int(sums), mul(set1(s[static_cast<int64_t>(r) * a_.groups]), scale)));
      }
    }
  }

 private:
  const EbbMatrix& m_;
  const Activations& a_;
  const int first_;
  float* const out_;
  const int out_stride_;
  alignas(64) int32_t buffers_[2][4 * kTileSize];
  int32_t* sums_ = buffers_[0];
  int row_ = 0, rows_ = 0, tile_ = 0, tiles_ = 0, blocks_ = 1;
};

// Rows outside: the codes of 32 rows stay in the first cache, and the weights stream through it in their own order.
void multiply_int8(const EbbMatrix& m, const Activations& a, int first, int last, float* out, int out_stride) {
  Product product(m, a, first, out, out_stride);
  int row = 0;
  if (a.rows > kTile) configure(kTile);
  for (; a.rows - row > kTile; row += 2 * kTile) {
    int tile = first;
    for (; tile + 2 <= last; tile += 2) product.block<2, 2>(row, tile);
    if (tile < last) product.block<2, 1>(row, tile);
  }
  if (row < a.rows) {
    configure(a.rows - row);
    int tile = first;
    for (; tile + 4 <= last; tile += 4) product.block<1, 4>(row, tile);
    if (last - tile == 3) product.block<1, 3>(row, tile);
    if (last - tile == 2) product.block<1, 2>(row, tile);
    if (last - tile == 1) product.block<1, 1>(row, tile);
  }
  product.finish();
  _tile_release();
}

const Backend* wide = nullptr;

// Every call brings its configuration along: what else this thread runs may have its own.
void multiply(const EbbMatrix& m, const int32_t* compensation, const Activations& a, int first, int last, float* out, int out_stride, void* scratch) {
  if (m.kind == EBB_INT8)
    multiply_int8(m, a, first, last, out, out_stride);
  else
    wide->multiply(m, compensation, a, first, last, out, out_stride, scratch);
}

bool has_tiles() {
#ifdef EBB_EMULATED
  return true;
#else
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxTile) == 0 || (d & kAmxInt8) == 0) return false;
  // a process asks the kernel for the tiles' registers once; threads begun later have them too
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}

const Backend* probe() {
  wide = avx512_backend();
  if (wide == nullptr || !has_tiles()) return nullptr;
  static Backend made = *wide;
  made.name = "amx";
  made.multiply = multiply;
  made.quantize = quantize;
  made.compensate = nullptr;
  return &made;
}

}  // namespace

const Backend* amx_backend() {
  static const Backend* const found = probe();
  return found;
}

}  // namespace ebb
#else
namespace ebb {
const Backend* amx_backend() { return nullptr; }
}  // namespace ebb
#endif
