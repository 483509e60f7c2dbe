#include "decoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

namespace ebb {

namespace {

constexpr int kLogitRows = 64;    // rows of logits at a time: 12 MB for a vocabulary of 49,152
constexpr int kLogitTiles = 16;   // tiles of the vocabulary a task

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class T>
T check(T buffer) {
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

}  // namespace

int attention_scratch_floats(int group, int head_dim) {
  const int rows = kAttentionTokens * group;
  return 2 * rows * head_dim + 16 * rows + round_up(rows, 16) + kSpan * 16 + 2 * kSpan * head_dim;
}

Decoder::Decoder(const EbbModel& model, const Backend& backend, Pool& pool)
    : model_(model), backend_(backend), pool_(pool), sampler_(backend, model.vocab, pool.size()) {
  const int heads_dim = model.heads * model.head_dim;
  hidden_stride_ = round_up(model.hidden, 64);
  wide_stride_ = round_up(model.intermediate, 64);
  attn_stride_ = round_up(heads_dim, 64);
  const int qkv = (model.heads + 2 * model.kv_heads) * model.head_dim;
  out_stride_ = round_up(std::max({2 * model.intermediate, qkv, model.hidden}), 64);
  code_stride_ = std::max({hidden_stride_, wide_stride_, attn_stride_});
  max_groups_ = code_stride_ / kQuantGroup;
  const size_t rows = static_cast<size_t>(round_up(std::max(model.max_tokens, kLogitRows), 16));
  x_ = check(make_buffer<float>(rows * hidden_stride_));
  normed_ = check(make_buffer<float>(rows * hidden_stride_));
  y_ = check(make_buffer<float>(rows * out_stride_));
  attn_ = check(make_buffer<float>(rows * attn_stride_));
  wide_ = check(make_buffer<float>(rows * wide_stride_));
  codes_ = check(make_buffer<int8_t>(rows * code_stride_));
  scales_ = check(make_buffer<float>(rows * max_groups_));
  sums_ = check(make_buffer<float>(rows * max_groups_));
  cos_ = check(make_buffer<float>(rows * static_cast<size_t>(model.head_dim / 2)));
  sin_ = check(make_buffer<float>(rows * static_cast<size_t>(model.head_dim / 2)));
  for (int thread = 0; thread < pool.size(); ++thread) {
    attention_scratch_.push_back(check(make_buffer<float>(static_cast<size_t>(attention_scratch_floats(model.heads / model.kv_heads, model.head_dim)))));
    multiply_scratch_.push_back(check(make_buffer<char>(static_cast<size_t>(16 * code_stride_ * 4))));
    logit_scratch_.push_back(check(make_buffer<float>(static_cast<size_t>(kLogitRows * kLogitTiles * 16))));
  }
  norm_ = padded(model.norm);
  lm_head_ = prepare(model.lm_head);
  for (int at = 0; at < model.layers; ++at) {
    const EbbLayer& from = model.layer[at];
    layers_.push_back({prepare(from.qkv), prepare(from.o), prepare(from.gate_up), prepare(from.down), padded(from.attn_norm),
                       padded(from.mlp_norm), from.q_norm, from.k_norm});
  }
}

Decoder::Matrix Decoder::prepare(const EbbMatrix& m) const {
  Matrix made{m, {}};
  if (m.kind == EBB_INT8 && backend_.compensate != nullptr) {
    made.compensation.resize(static_cast<size_t>(round_up(m.n, 16)));
    backend_.compensate(m, made.compensation.data());
  }
  return made;
}

Buffer<float> Decoder::padded(const float* values) const {
  auto made = check(make_buffer<float>(static_cast<size_t>(hidden_stride_)));
  std::memcpy(made.get(), values, sizeof(float) * static_cast<size_t>(model_.hidden));
  return made;
}

template <class Fn>
void Decoder::each_row(int rows, Fn&& fn) {
  const int per_task = std::max(1, rows / (pool_.size() * 4));
  pool_.run((rows + per_task - 1) / per_task, [&](int task, int) {
    for (int row = task * per_task; row < std::min(rows, (task + 1) * per_task); ++row) fn(row);
  });
}

void Decoder::timed(const EbbStep& step, Part part) {
  const double time = now();
  step.seconds[part] += time - mark_;
  mark_ = time;
}

void Decoder::step(const EbbStep& step) {
  mark_ = now();
  pool_.begin();
  token_position_.resize(static_cast<size_t>(step.num_tokens));
  token_table_.resize(static_cast<size_t>(step.num_tokens));
  for (int at = 0; at < step.num_rows; ++at) {
    const EbbRow& row = step.rows[at];
    for (int token = 0; token < row.count; ++token) {
      token_position_[static_cast<size_t>(row.first + token)] = row.start + token;
      token_table_[static_cast<size_t>(row.first + token)] = row.table;
    }
  }
  const int half = model_.head_dim / 2;
  each_row(step.num_tokens, [&](int token) {
    embed_row(step.token_ids[token], x_.get() + static_cast<int64_t>(token) * hidden_stride_);
    for (int at = 0; at < half; ++at) {
      const float angle = static_cast<float>(token_position_[static_cast<size_t>(token)]) * model_.inv_freq[at];
      cos_[static_cast<size_t>(token * half + at)] = std::cos(angle);
      sin_[static_cast<size_t>(token * half + at)] = std::sin(angle);
    }
  });
  timed(step, kRest);
  for (int index = 0; index < model_.layers; ++index) layer(step, index);
  for (int first = 0; first < step.num_logits; first += kLogitRows)
    logits_block(step, first, std::min(kLogitRows, step.num_logits - first), model_.layers > 0);
  pool_.end();
}

// y_ holds what the layer before adds to x_.
void Decoder::layer(const EbbStep& step, int index) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int rows = step.num_tokens;
  each_row(rows, [&](int row) { add_norm_quantize(row, index > 0, layer.attn_norm.get(), layer.qkv); });
  timed(step, kRest);
  multiply(layer.qkv, activations(rows, normed_.get(), hidden_stride_, layer.qkv), y_.get(), out_stride_);
  timed(step, kMatmul);
  rotate_and_store(step, index);
  timed(step, kRest);
  attend(step, index);
  timed(step, kAttention);
  each_row(rows, [&](int row) { quantize(row, attn_.get() + static_cast<int64_t>(row) * attn_stride_, layer.o); });
  timed(step, kRest);
  multiply(layer.o, activations(rows, attn_.get(), attn_stride_, layer.o), y_.get(), out_stride_);
  timed(step, kMatmul);
  each_row(rows, [&](int row) { add_norm_quantize(row, true, layer.mlp_norm.get(), layer.gate_up); });
  timed(step, kRest);
  multiply(layer.gate_up, activations(rows, normed_.get(), hidden_stride_, layer.gate_up), y_.get(), out_stride_);
  timed(step, kMatmul);
  each_row(rows, [&](int row) {
    const float* gate = y_.get() + static_cast<int64_t>(row) * out_stride_;
    float* out = wide_.get() + static_cast<int64_t>(row) * wide_stride_;
    backend_.silu_mul(gate, gate + model_.intermediate, model_.intermediate, out);
    quantize(row, out, layer.down);
  });
  timed(step, kRest);
  multiply(layer.down, activations(rows, wide_.get(), wide_stride_, layer.down), y_.get(), out_stride_);
  timed(step, kMatmul);
}

void Decoder::add_norm_quantize(int row, bool add, const float* norm, const Matrix& next) {
  float* x = x_.get() + static_cast<int64_t>(row) * hidden_stride_;
  if (add) {
    const float* y = y_.get() + static_cast<int64_t>(row) * out_stride_;
    for (int at = 0; at < model_.hidden; ++at) x[at] += y[at];
  }
  float* normed = normed_.get() + static_cast<int64_t>(row) * hidden_stride_;
  backend_.rms_norm(x, norm, model_.hidden, model_.eps, normed);
  quantize(row, normed, next);
}

void Decoder::quantize(int row, const float* values, const Matrix& next) {
  if (next.m.kind != EBB_INT8 && next.m.kind != EBB_INT4) return;
  const int stride = round_up(next.m.k, 64);
  backend_.quantize(values, next.m.k, stride, next.m.kind == EBB_INT4, codes_.get() + static_cast<int64_t>(row) * stride,
                    scales_.get() + static_cast<int64_t>(row) * max_groups_, sums_.get() + static_cast<int64_t>(row) * max_groups_);
}

Activations Decoder::activations(int rows, const float* values, int stride, const Matrix& next) const {
  const bool coded = next.m.kind == EBB_INT8 || next.m.kind == EBB_INT4;
  return {values, codes_.get(), scales_.get(), sums_.get(), coded ? round_up(next.m.k, 64) : stride, max_groups_, rows};
}

void Decoder::multiply(const Matrix& matrix, const Activations& a, float* out, int out_stride) {
  const int tiles = matrix.tiles();
  const int per_task = std::max(1, tiles / (pool_.size() * 8));
  pool_.run((tiles + per_task - 1) / per_task, [&](int task, int thread) {
    const int first = task * per_task, last = std::min(tiles, first + per_task);
    backend_.multiply(matrix.m, matrix.compensation.data(), a, first, last, out + 16 * first, out_stride, multiply_scratch_[static_cast<size_t>(thread)].get());
  });
}

void Decoder::rotate_and_store(const EbbStep& step, int index) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int dim = model_.head_dim, half = dim / 2, heads = model_.heads, kv_heads = model_.kv_heads;
  const int64_t block_size = static_cast<int64_t>(kv_heads) * 2 * kBlock * dim;
  const size_t element = model_.kv_is_f32 ? 4 : 2;
  char* cache = static_cast<char*>(model_.kv) + static_cast<int64_t>(index) * model_.num_blocks * block_size * static_cast<int64_t>(element);
  each_row(step.num_tokens, [&](int token) {
    float* qkv = y_.get() + static_cast<int64_t>(token) * out_stride_;
    if (layer.qkv.m.bias != nullptr)
      for (int at = 0; at < layer.qkv.m.n; ++at) qkv[at] += layer.qkv.m.bias[at];
    const float *cos = cos_.get() + static_cast<int64_t>(token) * half, *sin = sin_.get() + static_cast<int64_t>(token) * half;
    for (int head = 0; head < heads + kv_heads; ++head) {
      float* x = qkv + head * dim;
      const float* norm = head < heads ? layer.q_norm : layer.k_norm;
      if (norm != nullptr) backend_.rms_norm(x, norm, dim, model_.eps, x);
      for (int at = 0; at < half; ++at) {
        const float first = x[at], second = x[at + half];
        x[at] = first * cos[at] - second * sin[at];
        x[at + half] = second * cos[at] + first * sin[at];
      }
    }
    const int position = token_position_[static_cast<size_t>(token)], lane = position % kBlock;
    const int64_t block = step.blocks[token_table_[static_cast<size_t>(token)] + position / kBlock];
    for (int head = 0; head < kv_heads; ++head) {
      const float *key = qkv + (heads + head) * dim, *value = qkv + (heads + kv_heads + head) * dim;
      char* to = cache + (block * block_size + static_cast<int64_t>(head) * 2 * kBlock * dim) * static_cast<int64_t>(element);
      if (model_.kv_is_f32) {
        float* wide = reinterpret_cast<float*>(to);
        for (int d = 0; d < dim; ++d) wide[d * kBlock + lane] = key[d];
        std::memcpy(wide + kBlock * dim + lane * dim, value, sizeof(float) * static_cast<size_t>(dim));
      } else {
        uint16_t* narrow = reinterpret_cast<uint16_t*>(to);
        uint16_t codes[512];
        backend_.narrow(key, dim, codes);
        for (int d = 0; d < dim; ++d) narrow[d / 2 * 32 + lane * 2 + d % 2] = codes[d];
        backend_.narrow(value, dim, codes);
        uint16_t* pair = narrow + kBlock * dim + lane / 2 * 2 * dim + lane % 2;
        for (int d = 0; d < dim; ++d) pair[2 * d] = codes[d];
      }
    }
  });
}

void Decoder::attend(const EbbStep& step, int index) {
  struct Piece {
    int row, first, count;
  };
  std::vector<Piece> pieces;
  for (int at = 0; at < step.num_rows; ++at) {
    // the last piece sees the most keys: it comes first, so that no thread begins it when the others are done
    for (int first = (step.rows[at].count - 1) / kAttentionTokens * kAttentionTokens; first >= 0; first -= kAttentionTokens)
      pieces.push_back({at, first, std::min(kAttentionTokens, step.rows[at].count - first)});
  }
  const int dim = model_.head_dim, group = model_.heads / model_.kv_heads, kv_heads = model_.kv_heads;
  const int64_t block_size = static_cast<int64_t>(kv_heads) * 2 * kBlock * dim;
  const int64_t layer_bytes = model_.num_blocks * block_size * (model_.kv_is_f32 ? 4 : 2);
  const char* cache = static_cast<const char*>(model_.kv) + index * layer_bytes;
  pool_.run(static_cast<int>(pieces.size()) * kv_heads, [&](int task, int thread) {
    const Piece& piece = pieces[static_cast<size_t>(task / kv_heads)];
    const EbbRow& row = step.rows[piece.row];
    const int head = task % kv_heads;
    const int64_t token = row.first + piece.first;
    const AttentionTask work{cache, step.blocks + row.table, static_cast<int>(block_size), head, group, dim, row.start + piece.first, piece.count,
                             y_.get() + token * out_stride_ + head * group * dim, out_stride_,
                             attn_.get() + token * attn_stride_ + head * group * dim, attn_stride_, 1.0f / std::sqrt(static_cast<float>(dim))};
    (model_.kv_is_f32 ? backend_.attend_f32 : backend_.attend_bf16)(work, attention_scratch_[static_cast<size_t>(thread)].get());
  });
}

// Norm, product and choice for some of the step's rows. A greedy row that asks for nothing else is decided while its
// logits are still in the cache; the others' are kept.
void Decoder::logits_block(const EbbStep& step, int first, int count, bool add) {
  std::vector<int> kept_at(static_cast<size_t>(count), -1);
  int kept = 0;
  for (int at = 0; at < count; ++at) {
    const EbbChoice& choice = step.choices[first + at];
    const bool is_plain = choice.temperature <= 0 && choice.num_logprobs < 0 && choice.target < 0 && choice.num_changes == 0 && choice.num_seen == 0;
    if (!is_plain || step.logits != nullptr) kept_at[static_cast<size_t>(at)] = kept++;
  }
  const int vocab = model_.vocab, padded_vocab = round_up(vocab, 16);
  if (kept > 0 && !logits_) logits_ = check(make_buffer<float>(static_cast<size_t>(kLogitRows) * static_cast<size_t>(padded_vocab)));
  each_row(count, [&](int at) {
    const int64_t token = step.logit_tokens[first + at];
    const float *x = x_.get() + token * hidden_stride_, *y = y_.get() + token * out_stride_;
    float* normed = normed_.get() + static_cast<int64_t>(at) * hidden_stride_;
    for (int d = 0; d < model_.hidden; ++d) normed[d] = add ? x[d] + y[d] : x[d];
    backend_.rms_norm(normed, norm_.get(), model_.hidden, model_.eps, normed);
    quantize(at, normed, lm_head_);
  });
  timed(step, kRest);
  struct Best {
    float value = -INFINITY;
    int token = 0;
    bool finite = true;
  };
  std::vector<Best> best(static_cast<size_t>(count * pool_.size()));
  const Activations a = activations(count, normed_.get(), hidden_stride_, lm_head_);
  const int tiles = lm_head_.tiles();
  pool_.run((tiles + kLogitTiles - 1) / kLogitTiles, [&](int task, int thread) {
    const int begin = task * kLogitTiles, end = std::min(tiles, begin + kLogitTiles);
    float* scratch = logit_scratch_[static_cast<size_t>(thread)].get();
    backend_.multiply(lm_head_.m, lm_head_.compensation.data(), a, begin, end, scratch, kLogitTiles * 16, multiply_scratch_[static_cast<size_t>(thread)].get());
    const int size = std::min(vocab, end * 16) - begin * 16;
    for (int at = 0; at < count; ++at) {
      const float* row = scratch + at * kLogitTiles * 16;
      if (const int to = kept_at[static_cast<size_t>(at)]; to >= 0) {
        std::memcpy(logits_.get() + static_cast<int64_t>(to) * padded_vocab + begin * 16, row, sizeof(float) * static_cast<size_t>(size));
        continue;
      }
      Best& held = best[static_cast<size_t>(at * pool_.size() + thread)];
      bool finite = true;
      const float top = backend_.largest(row, size, &finite);
      held.finite = held.finite && finite;
      if (top < held.value) continue;
      const int token = begin * 16 + static_cast<int>(std::find(row, row + size, top) - row);
      if (top > held.value || token < held.token) held = {top, token, held.finite};
    }
  });
  timed(step, kMatmul);
  pool_.run(count, [&](int at, int thread) {
    if (const int from = kept_at[static_cast<size_t>(at)]; from >= 0) {
      float* row = logits_.get() + static_cast<int64_t>(from) * padded_vocab;
      if (step.logits != nullptr) std::memcpy(step.logits + static_cast<int64_t>(first + at) * vocab, row, sizeof(float) * static_cast<size_t>(vocab));
      sampler_.choose(step, first + at, row, thread);
      return;
    }
    Best chosen = best[static_cast<size_t>(at * pool_.size())];
    for (int other = 1; other < pool_.size(); ++other) {
      const Best& next = best[static_cast<size_t>(at * pool_.size() + other)];
      const bool finite = chosen.finite && next.finite;
      if (next.value > chosen.value || (next.value == chosen.value && next.token < chosen.token)) chosen = next;
      chosen.finite = finite;
    }
    step.chosen[first + at] = chosen.finite ? chosen.token : -1;
  });
  timed(step, kSampling);
}

void Decoder::embed_row(int token, float* out) const {
  const EbbMatrix& m = model_.embed;
  const int tile = token / 16, lane = token % 16;
  const auto half = [](uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  };
  const auto brain = [](uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  };
  const int pairs = round_up(m.k, 2), stride = round_up(m.k, 64);
  for (int k = 0; k < m.k; ++k) {
    if (m.kind == EBB_BF16) {
      out[k] = brain(static_cast<const uint16_t*>(m.weight)[static_cast<int64_t>(tile) * 16 * pairs + (k / 2) * 32 + lane * 2 + k % 2]);
    } else if (m.kind == EBB_F32) {
      out[k] = static_cast<const float*>(m.weight)[static_cast<int64_t>(tile) * 16 * m.k + k * 16 + lane];
    } else if (m.kind == EBB_INT8) {
      const int8_t code = static_cast<const int8_t*>(m.weight)[static_cast<int64_t>(tile) * 16 * stride + (k / 4) * 64 + lane * 4 + k % 4];
      out[k] = static_cast<float>(code) * static_cast<const float*>(m.scale)[token];
    } else {
      const int within = k % 8;
      const uint8_t both = static_cast<const uint8_t*>(m.weight)[static_cast<int64_t>(tile) * m.k * 8 + (k / 32) * 256 + (k % 32) / 8 * 64 + lane * 4 + within % 4];
      const int code = within < 4 ? both & 15 : both >> 4;
      const int64_t at = (static_cast<int64_t>(tile) * (m.k / m.group) + k / m.group) * 16 + lane;
      out[k] = static_cast<float>(code) * half(static_cast<const uint16_t*>(m.scale)[at]) + half(static_cast<const uint16_t*>(m.min)[at]);
    }
  }
}

}  // namespace ebb
