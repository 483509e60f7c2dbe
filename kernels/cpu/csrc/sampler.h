// Chooses a token from one row of logits. The rules are those of data_plane/execution/sampler.py, its twin.
#pragma once
#include <vector>

#include "abi.h"
#include "backend.h"

namespace ebb {

constexpr int kMaxTop = 20;

class Sampler {
 public:
  Sampler(const Backend& backend, int vocab, int threads);

  // `logits` [vocab, padded to 16] is changed. Writes results of row `at` of the step.
  void choose(const EbbStep& step, int at, float* logits, int thread);

 private:
  struct Scratch {
    std::vector<float> weights, sorted;
    std::vector<double> chunks;
    std::vector<std::pair<int, float>> before;  // logits as they were, where something was changed
  };

  void describe(const EbbChoice& choice, const float* logits, float largest, Scratch& scratch, float* normalizer, int32_t* ids, float* values);
  void adjust(const EbbStep& step, const EbbChoice& choice, float* logits, Scratch& scratch);
  int draw(const EbbChoice& choice, const float* logits, Scratch& scratch);
  float threshold(const EbbChoice& choice, Scratch& scratch, double total);

  const Backend& backend_;
  int vocab_;
  std::vector<Scratch> scratch_;
};

}  // namespace ebb
