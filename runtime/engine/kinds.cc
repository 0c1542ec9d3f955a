#include "runtime/engine/kinds.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>

#include "runtime/engine/blocks.h"
#include "runtime/engine/bundle.h"
#include "runtime/engine/kv_cache.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 4;  // each measures all kinds in turn; the least time counts
// The first round reads the weights from the disk; after it, what takes so much longer than the
// fastest kind is out.
constexpr double kOut = 1.5;
constexpr double kClearly = 0.9;  // of the time of an earlier kind
constexpr int64_t kTokens = 64;   // of a prompt; enough for every kind's tiles
constexpr int64_t kShare = 4;     // of a picture's patches: its attention takes the square of them

struct Candidate {
  Kind kind;
  std::unique_ptr<Blocks> blocks;
  double least;  // seconds that a pass took
};

// Rows of numbers between -1 and 1, as a layer gets them from the one before.
class Rows {
 public:
  Rows(int64_t rows, int64_t width)
      : width_(width), buffer_(static_cast<size_t>(rows * width) * sizeof(float)) {
    uint32_t state = 1;
    for (int64_t i = 0; i < rows * width; ++i) {
      state = state * 1664525 + 1013904223;  // constants of Numerical Recipes
      buffer_.floats()[i] = static_cast<float>(state >> 8) / (1 << 23) - 1;
    }
  }

  // The first rows.
  Tensor First(int64_t rows) const { return Borrow(buffer_.data(), {rows, width_}, kFloat32); }

 private:
  const int64_t width_;
  const AlignedBuffer buffer_;
};

// Measures a kind of work with each candidate; returns the fastest.
const Kind& Fastest(std::vector<Candidate>* candidates,
                           const std::function<void(const Blocks&)>& work) {
  const auto is_faster = [](const Candidate& a, const Candidate& b) { return a.least < b.least; };
  for (Candidate& one : *candidates) one.least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    const double least =
        std::min_element(candidates->begin(), candidates->end(), is_faster)->least;
    for (Candidate& one : *candidates) {
      if (round > 1 && one.least > kOut * least) continue;
      const auto started = Clock::now();
      work(*one.blocks);
      const std::chrono::duration<double> passed = Clock::now() - started;
      if (round > 0) one.least = std::min(one.least, passed.count());
    }
  }
  const Candidate* fastest = &candidates->front();
  for (const Candidate& one : *candidates) {
    if (one.least < kClearly * fastest->least) fastest = &one;
  }
  return fastest->kind;
}

}  // namespace

std::vector<Kind> Choices::All() const {
  std::vector<Kind> all;
  for (const int number : threads) {
    for (const std::string& prefix : prefixes) all.push_back({prefix, number});
  }
  return all;
}

Kinds MeasureKinds(const Choices& choices, const Bundle& bundle) {
  const std::vector<Kind> all = choices.All();
  Kinds kinds(all.at(0));
  if (all.size() == 1) return kinds;
  std::vector<Candidate> candidates;
  for (const Kind& kind : all) {
    candidates.push_back({kind, std::make_unique<Blocks>(Kinds(kind), bundle), 0});
  }
  const ModelConfig& config = bundle.config();
  const Rows tokens(kTokens, config.decoder.hidden_size);
  KVCache cache(config.decoder, 2 * kTokens);
  cache.Reset(1);
  const auto layer = [&](int64_t rows) {
    const Tensor x = tokens.First(rows);
    return Fastest(&candidates, [&](const Blocks& blocks) {
      blocks.DecoderLayer(0, x, cache.Layer(0, rows));
    });
  };
  kinds.prefill = layer(kTokens);
  kinds.decode = layer(1);
  if (config.vision) {
    const int64_t patches = std::max<int64_t>(1, config.vision->most_patches() / kShare);
    const Rows picture(patches, config.vision->embed_dim);
    const Tensor x = picture.First(patches);
    kinds.picture = Fastest(&candidates, [&](const Blocks& blocks) { blocks.VisionBlock(0, x); });
  }
  Blocks::ReleaseMemory();
  return kinds;
}

}  // namespace minicpmv
