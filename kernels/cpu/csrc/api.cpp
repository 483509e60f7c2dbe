// The functions that Python calls. Nothing is thrown across them: null or a negative number says that it failed.
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "bandwidth.h"
#include "decoder.h"

using ebb::Backend;

namespace {

const Backend* pick(const char* name) {
  const Backend* known[] = {ebb::amx_backend(), ebb::avx512_backend(), ebb::avx2_backend()};
  for (const Backend* backend : known)
    if (backend != nullptr && (name == nullptr || *name == 0 || std::strcmp(name, backend->name) == 0)) return backend;
  return nullptr;
}

struct Handle {
  const Backend* backend;
  std::unique_ptr<ebb::Pool> pool;
  std::unique_ptr<ebb::Decoder> decoder;
};

// dst[tile, k / pair, 16, pair] from src [n, k], zeros in the tails
template <class T>
void pack(const T* src, int64_t n, int64_t k, int64_t pair, int64_t first, int64_t last, T* dst) {
  const int64_t padded = (k + pair - 1) / pair * pair;
  for (int64_t tile = first; tile < last; ++tile) {
    T* to = dst + tile * 16 * padded;
    for (int64_t at = 0; at < padded; at += pair)
      for (int64_t lane = 0; lane < 16; ++lane)
        for (int64_t i = 0; i < pair; ++i, ++to) *to = tile * 16 + lane < n && at + i < k ? src[(tile * 16 + lane) * k + at + i] : T(0);
  }
}

}  // namespace

extern "C" {

int32_t ebb_abi() { return 2; }

// The best backend of this processor, or the one of this name; null: there is none.
const char* ebb_backend(const char* name) {
  const Backend* backend = pick(name);
  return backend == nullptr ? nullptr : backend->name;
}

void* ebb_open(const EbbModel* model, const char* backend_name, const int32_t* cpus, int32_t threads) {
  const Backend* backend = pick(backend_name);
  if (backend == nullptr) return nullptr;
  try {
    auto handle = std::make_unique<Handle>();
    handle->backend = backend;
    handle->pool = std::make_unique<ebb::Pool>(std::vector<int>(cpus, cpus + threads));
    handle->decoder = std::make_unique<ebb::Decoder>(*model, *backend, *handle->pool);
    return handle.release();
  } catch (const std::exception&) {
    return nullptr;
  }
}

void ebb_close(void* handle) { delete static_cast<Handle*>(handle); }

int32_t ebb_step(void* handle, const EbbStep* step) {
  try {
    static_cast<Handle*>(handle)->decoder->step(*step);
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}

// y [rows, n rounded up to 16] = x [rows, k] · Wᵀ through the decoder's own code, for tests and benchmarks.
int32_t ebb_multiply(const EbbMatrix* matrix, const char* backend_name, const float* x, int32_t rows, float* y) {
  const Backend* backend = pick(backend_name);
  if (backend == nullptr) return -1;
  const int k = matrix->k, stride = ebb::round_up(k, 64), groups = stride / ebb::kQuantGroup, padded = ebb::round_up(rows, 16);
  auto values = ebb::make_buffer<float>(static_cast<size_t>(padded * stride));
  auto codes = ebb::make_buffer<int8_t>(static_cast<size_t>(padded * stride));
  auto scales = ebb::make_buffer<float>(static_cast<size_t>(padded * groups)), sums = ebb::make_buffer<float>(static_cast<size_t>(padded * groups));
  auto scratch = ebb::make_buffer<char>(static_cast<size_t>(16 * stride * 4));
  std::vector<int32_t> compensation(static_cast<size_t>(ebb::round_up(matrix->n, 16)));
  if (!values || !codes || !scales || !sums || !scratch) return -1;
  for (int row = 0; row < rows; ++row) {
    std::memcpy(values.get() + row * stride, x + row * k, sizeof(float) * static_cast<size_t>(k));
    if (matrix->kind == EBB_INT8 || matrix->kind == EBB_INT4)
      backend->quantize(values.get() + row * stride, k, stride, matrix->kind == EBB_INT4, codes.get() + row * stride, scales.get() + row * groups, sums.get() + row * groups);
  }
  if (matrix->kind == EBB_INT8 && backend->compensate != nullptr) backend->compensate(*matrix, compensation.data());
  const int tiles = ebb::round_up(matrix->n, 16) / 16;
  const ebb::Activations a{values.get(), codes.get(), scales.get(), sums.get(), stride, groups, rows};
  backend->multiply(*matrix, compensation.data(), a, 0, tiles, y, tiles * 16, scratch.get());
  return 0;
}

// GB/s of reading `bytes` of memory over and over, shared out among the threads, for at least `seconds`.
double ebb_read_bandwidth(int64_t bytes, int32_t threads, double seconds) { return ebb::read_bandwidth(bytes, threads, seconds); }

// Plain weights into the decoder's tiles; `threads` of them share the work.
void ebb_pack(const void* src, int64_t n, int64_t k, int32_t is_f32, int32_t threads, void* dst) {
  const int64_t tiles = (n + 15) / 16;
  const auto part = [&](int64_t first, int64_t last) {
    if (is_f32 != 0)
      pack(static_cast<const float*>(src), n, k, 1, first, last, static_cast<float*>(dst));
    else
      pack(static_cast<const uint16_t*>(src), n, k, 2, first, last, static_cast<uint16_t*>(dst));
  };
  std::vector<std::thread> others;
  const int64_t share = (tiles + threads - 1) / threads;
  for (int64_t at = 1; at < threads && at * share < tiles; ++at) others.emplace_back(part, at * share, std::min(tiles, (at + 1) * share));
  part(0, std::min(share, tiles));
  for (auto& other : others) other.join();
}
}
