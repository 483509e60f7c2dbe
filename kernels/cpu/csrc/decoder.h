// One model of the Llama family and the memory of its steps. Knows nothing of requests, files or Python.
#pragma once
#include <cstdlib>
#include <memory>
#include <vector>

#include "abi.h"
#include "backend.h"
#include "pool.h"
#include "sampler.h"

namespace ebb {

template <class T>
struct Free {
  void operator()(T* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free<T>>;

// Zeroed and aligned to a cache line; null where there is no memory.
template <class T>
Buffer<T> make_buffer(size_t count) {
  const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes > 0 ? bytes : 64);
  if (memory != nullptr) __builtin_memset(memory, 0, bytes);
  return Buffer<T>(static_cast<T*>(memory));
}

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

class Decoder {
 public:
  Decoder(const EbbModel& model, const Backend& backend, Pool& pool);

  // Computes one step and chooses its tokens. The caller has checked all indices.
  void step(const EbbStep& step);

  void embed_row(int token, float* out) const;

 private:
  struct Matrix {
    EbbMatrix m;
    std::vector<int32_t> compensation;
    int tiles() const { return round_up(m.n, 16) / 16; }
  };
  struct Layer {
    Matrix qkv, o, gate_up, down;
    Buffer<float> attn_norm, mlp_norm;
    const float *q_norm, *k_norm;
  };
  enum Part { kMatmul, kAttention, kSampling, kRest };

  Matrix prepare(const EbbMatrix& m) const;
  Buffer<float> padded(const float* values) const;
  template <class Fn>
  void each_row(int rows, Fn&& fn);
  void timed(const EbbStep& step, Part part);

  void layer(const EbbStep& step, int index);
  void rotate_and_store(const EbbStep& step, int index);
  void attend(const EbbStep& step, int index);
  void add_norm_quantize(int row, bool add, const float* norm, const Matrix& next);
  void quantize(int row, const float* values, const Matrix& next);
  Activations activations(int rows, const float* values, int stride, const Matrix& next) const;
  void multiply(const Matrix& matrix, const Activations& a, float* out, int out_stride);
  void logits_block(const EbbStep& step, int first, int count, bool add);

  EbbModel model_;
  const Backend& backend_;
  Pool& pool_;
  Sampler sampler_;
  std::vector<Layer> layers_;
  Matrix lm_head_;
  Buffer<float> norm_;
  int hidden_stride_, wide_stride_, attn_stride_, out_stride_, max_groups_, code_stride_;
  Buffer<float> x_, normed_, y_, attn_, wide_, scales_, sums_, cos_, sin_, logits_;
  Buffer<int8_t> codes_;
  std::vector<Buffer<float>> attention_scratch_;
  std::vector<Buffer<char>> multiply_scratch_;
  std::vector<Buffer<float>> logit_scratch_;
  std::vector<int> token_position_, token_table_;
  double mark_ = 0;
};

}  // namespace ebb
