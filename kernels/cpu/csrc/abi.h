// The structures that Python hands over (kernels/cpu/library.py mirrors them with ctypes). Plain C, no torch.
#pragma once
#include <cstdint>

extern "C" {

// How a matrix [n, k] (out, in) is stored. The layouts stand in kernels/cpu/layout.py.
enum EbbKind : int32_t { EBB_BF16 = 0, EBB_F32 = 1, EBB_INT8 = 2, EBB_INT4 = 3 };

struct EbbMatrix {
  int32_t kind;
  int32_t n, k;
  int32_t group;       // int4: columns that share a scale, 32, 64 or 128
  const void* weight;  // 64-byte aligned
  const void* scale;   // int8: float32 [n16]; int4: float16 [n16/16, k/group, 16]
  const void* min;     // int4: float16, as scale
  const float* bias;   // float32 [n] or null
};

struct EbbLayer {
  EbbMatrix qkv, o, gate_up, down;
  const float *attn_norm, *mlp_norm;  // float32 [hidden]
  const float *q_norm, *k_norm;       // float32 [head_dim] or null
};

struct EbbModel {
  int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
  int32_t kv_is_f32;    // the KV cache is bfloat16 otherwise
  int32_t num_blocks;   // of 16 tokens
  int32_t max_tokens;   // of one step
  float eps;
  const float* inv_freq;  // float32 [head_dim / 2]
  const float* norm;      // float32 [hidden]
  EbbMatrix embed, lm_head;
  const EbbLayer* layer;
  void* kv;  // [layers, num_blocks, kv_heads, 2, 16 * head_dim], 64-byte aligned; see kernels.inc for both halves
};

// One sequence's share of a step.
struct EbbRow {
  int32_t first, count;  // its tokens among the step's
  int32_t start;         // position of the first of them
  int32_t table;         // where its block ids begin in `blocks`
};

// How the token of one row of logits is chosen, and what is told of it.
struct EbbChoice {
  float temperature, top_p, min_p, repetition;
  int32_t top_k;
  int32_t num_logprobs;        // -1: none
  double point;                // in [0, 1): the random number of this seed and position
  int32_t target;              // >= 0: no choice, only this token's log-probability
  int32_t first_change, num_changes;  // additions to logits: biases, penalties
  int32_t first_seen, num_seen;       // tokens that the repetition penalty concerns
};

struct EbbStep {
  int32_t num_tokens, num_rows, num_logits;
  const int32_t* token_ids;  // [num_tokens]
  const EbbRow* rows;        // [num_rows]
  const int32_t* blocks;
  const int32_t* logit_tokens;  // [num_logits]: which tokens' hidden states get logits
  const EbbChoice* choices;     // [num_logits]
  const int32_t* change_ids;
  const float* changes;
  const int32_t* seen_ids;
  // results
  int32_t* chosen;        // [num_logits]; -1: the logits are not finite
  float* logprob;         // [num_logits]
  int32_t* top_ids;       // [num_logits, 20]
  float* top_logprobs;    // [num_logits, 20]
  float* logits;          // [num_logits, vocab] or null: also given, for tests and evaluation
  double* seconds;        // [4]: matmul, attention, sampling, rest; added to
};
}
