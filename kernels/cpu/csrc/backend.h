// What one instruction set offers: the same functions, compiled once for each (backend_*.cpp). Knows nothing of models.
#pragma once
#include <cstdint>

#include "abi.h"

namespace ebb {

// Inputs of a product, made once for all tasks of a phase. Rows are `stride` apart; tails are zero.
struct Activations {
  const float* values;    // [rows, stride]: for plain matrices
  const int8_t* codes;    // [rows, stride]: for int8 and int4
  const float* scales;    // int8: [rows, groups] of which the first counts; int4: [rows, groups]
  const float* sums;      // int4: scale * sum of codes, [rows, groups]
  int stride, groups, rows;
};

// One sequence's queries against one KV head, at `tokens` consecutive positions.
struct AttentionTask {
  const void* cache;        // of the layer
  const int32_t* blocks;    // of the sequence
  int block_stride;         // elements from one block to the next
  int kv_head, group, head_dim;
  int start, tokens;        // position of the first query, number of them
  const float* q;           // [tokens, q_stride], at the first of the group's heads
  int q_stride;
  float* out;               // likewise
  int out_stride;
  float scale;
};

struct Backend {
  const char* name;
  // out[row, 16 * tile + lane] for tiles [first, last): no bias, no addition. `scratch`: scratch_bytes() of memory.
  void (*multiply)(const EbbMatrix&, const int32_t* compensation, const Activations&, int first, int last, float* out,
                   int out_stride, void* scratch);
  // int8 codes of one row, per token or (per_group) per 32 columns; zeroes the tail up to `stride`
  void (*quantize)(const float* row, int k, int stride, bool per_group, int8_t* codes, float* scales, float* sums);
  // 128 * the sum of each row's weights, for the instruction that wants unsigned activations; null: not needed
  void (*compensate)(const EbbMatrix&, int32_t* out);
  void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* out);
  void (*silu_mul)(const float* gate, const float* up, int size, float* out);
  void (*attend_bf16)(const AttentionTask&, float* scratch);
  void (*attend_f32)(const AttentionTask&, float* scratch);
  void (*narrow)(const float* x, int size, uint16_t* out);  // to bfloat16; size a multiple of 16
  float (*largest)(const float* x, int size, bool* finite);
  void (*weigh_tokens)(const float* x, int size, float largest, float temperature, float* out, double* chunks);
};

// How many of one sequence's tokens a task of attention takes at most: its scratch is sized by it.
constexpr int kAttentionTokens = 32;
constexpr int kBlock = 16;       // tokens a KV block
constexpr int kSpan = 64;        // keys between two corrections of the running softmax
constexpr int kChunk = 256;      // tokens of a vocabulary whose weights are summed apart
constexpr int kQuantGroup = 32;  // columns that share an activation's scale in front of int4

int attention_scratch_floats(int group, int head_dim);

const Backend* avx2_backend();
const Backend* avx512_backend();  // null where the processor, or the compiler, lacks it
const Backend* amx_backend();

}  // namespace ebb
