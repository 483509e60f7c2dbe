#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace ebb {

namespace {

constexpr float kNothing = 2e-38f;  // all that is far below the likeliest weighs e^-87, forbidden tokens too

int first_largest(const float* x, int size, float largest) {
  for (int at = 0; at < size; ++at)
    if (x[at] == largest) return at;
  return 0;
}

}  // namespace

Sampler::Sampler(const Backend& backend, int vocab, int threads) : backend_(backend), vocab_(vocab), scratch_(static_cast<size_t>(threads)) {}

void Sampler::choose(const EbbStep& step, int at, float* logits, int thread) {
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const EbbChoice& choice = step.choices[at];
  bool finite = false;
  const float largest = backend_.largest(logits, vocab_, &finite);
  step.chosen[at] = -1;
  if (!finite) return;
  float normalizer = 0;
  if (choice.num_logprobs >= 0)
    describe(choice, logits, largest, scratch, &normalizer, step.top_ids + at * kMaxTop, step.top_logprobs + at * kMaxTop);
  if (choice.target >= 0) {
    step.chosen[at] = choice.target;
    step.logprob[at] = logits[choice.target] - normalizer;
    return;
  }
  scratch.before.clear();
  adjust(step, choice, logits, scratch);
  int token;
  if (choice.temperature > 0) {
    token = draw(choice, logits, scratch);
  } else {
    const float best = scratch.before.empty() ? largest : *std::max_element(logits, logits + vocab_);
    token = first_largest(logits, vocab_, best);
  }
  step.chosen[at] = token;
  if (choice.num_logprobs < 0) return;
  float raw = logits[token];
  // the first entry is the oldest: a token may have been changed twice
  for (auto entry = scratch.before.rbegin(); entry != scratch.before.rend(); ++entry)
    if (entry->first == token) raw = entry->second;
  step.logprob[at] = raw - normalizer;
}

// The log of the sum of all exponentials, and the likeliest tokens; equals in the order of their ids.
void Sampler::describe(const EbbChoice& choice, const float* logits, float largest, Scratch& scratch, float* normalizer, int32_t* ids,
                       float* values) {
  scratch.weights.resize(static_cast<size_t>((vocab_ + 15) / 16 * 16));
  scratch.chunks.resize(static_cast<size_t>((vocab_ + kChunk - 1) / kChunk));
  backend_.weigh_tokens(logits, vocab_, largest, 1.0f, scratch.weights.data(), scratch.chunks.data());
  double total = 0;
  for (double chunk : scratch.chunks) total += chunk;
  *normalizer = static_cast<float>(static_cast<double>(largest) + std::log(total));
  const int wanted = std::min({choice.num_logprobs, kMaxTop, vocab_});
  int held = 0;
  for (int token = 0; token < vocab_ && wanted > 0; ++token) {
    if (held == wanted && !(logits[token] > values[held - 1])) continue;
    int place = held < wanted ? held++ : held - 1;
    for (; place > 0 && values[place - 1] < logits[token]; --place) {
      values[place] = values[place - 1];
      ids[place] = ids[place - 1];
    }
    values[place] = logits[token];
    ids[place] = token;
  }
  for (int place = 0; place < held; ++place) values[place] -= *normalizer;
}

void Sampler::adjust(const EbbStep& step, const EbbChoice& choice, float* logits, Scratch& scratch) {
  for (int at = choice.first_seen; at < choice.first_seen + choice.num_seen; ++at) {
    float& value = logits[step.seen_ids[at]];
    scratch.before.emplace_back(step.seen_ids[at], value);
    value = value > 0 ? value / choice.repetition : value * choice.repetition;
  }
  for (int at = choice.first_change; at < choice.first_change + choice.num_changes; ++at) {
    scratch.before.emplace_back(step.change_ids[at], logits[step.change_ids[at]]);
    logits[step.change_ids[at]] += step.changes[at];
  }
}

int Sampler::draw(const EbbChoice& choice, const float* logits, Scratch& scratch) {
  scratch.weights.resize(static_cast<size_t>((vocab_ + 15) / 16 * 16));
  scratch.chunks.resize(static_cast<size_t>((vocab_ + kChunk - 1) / kChunk));
  float* weights = scratch.weights.data();
  const float largest = *std::max_element(logits, logits + vocab_);
  backend_.weigh_tokens(logits, vocab_, largest, choice.temperature, weights, scratch.chunks.data());
  double total = 0;
  for (double chunk : scratch.chunks) total += chunk;
  const bool is_limited = (choice.top_k > 0 && choice.top_k < vocab_) || choice.top_p < 1;
  float least = is_limited ? threshold(choice, scratch, total) : 0.0f;
  least = std::max(least, choice.min_p);  // the likeliest weighs 1
  if (least > 0) {
    total = 0;
    for (size_t chunk = 0; chunk < scratch.chunks.size(); ++chunk) {
      double kept = 0;
      const int stop = std::min(vocab_, static_cast<int>(chunk + 1) * kChunk);
      for (int token = static_cast<int>(chunk) * kChunk; token < stop; ++token) {
        if (weights[token] < least) weights[token] = 0;
        kept += static_cast<double>(weights[token]);
      }
      scratch.chunks[chunk] = kept;
      total += kept;
    }
  }
  // the first token whose cumulative weight exceeds the point, in the vocabulary's order
  const double goal = choice.point * total;
  double passed = 0;
  size_t chunk = 0;
  while (chunk + 1 < scratch.chunks.size() && passed + scratch.chunks[chunk] <= goal) passed += scratch.chunks[chunk++];
  int last = static_cast<int>(first_largest(logits, vocab_, largest));
  for (int token = static_cast<int>(chunk) * kChunk; token < vocab_; ++token) {
    if (weights[token] <= kNothing) continue;
    last = token;
    passed += static_cast<double>(weights[token]);
    if (passed > goal) return token;
  }
  return last;  // rounding left the goal a hair behind the end
}

// The least weight that top_k and then top_p keep.
float Sampler::threshold(const EbbChoice& choice, Scratch& scratch, double total) {
  const size_t vocab = static_cast<size_t>(vocab_);
  const bool by_count = choice.top_k > 0 && choice.top_k < vocab_;
  const size_t count = by_count ? static_cast<size_t>(choice.top_k) : vocab;
  // few tokens carry nearly all of the weight: sorting them is enough, unless it turns out not to be
  for (const float cut : {1e-3f, 1e-6f, 0.0f}) {
    scratch.sorted.clear();
    for (size_t token = 0; token < vocab; ++token)
      if (scratch.weights[token] >= cut) scratch.sorted.push_back(scratch.weights[token]);
    std::sort(scratch.sorted.begin(), scratch.sorted.end(), std::greater<float>());
    const size_t have = scratch.sorted.size();
    if (by_count && have < count && cut > 0) continue;
    const size_t limit = std::min(count, have);
    double all = total;
    if (by_count) {
      all = 0;
      for (size_t at = 0; at < limit; ++at) all += static_cast<double>(scratch.sorted[at]);
    }
    const double goal = static_cast<double>(choice.top_p) * all;
    double passed = 0;
    for (size_t at = 0; at < limit; ++at) {
      passed += static_cast<double>(scratch.sorted[at]);
      if (passed >= goal) return scratch.sorted[at];
    }
    if (cut == 0.0f || by_count) return scratch.sorted[limit - 1];
  }
  return 0.0f;
}

}  // namespace ebb
