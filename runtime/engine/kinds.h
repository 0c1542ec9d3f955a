// The blocks and threads that compute each kind of work, and their choice by measurement.
#ifndef MINICPMV_ENGINE_KINDS_H_
#define MINICPMV_ENGINE_KINDS_H_

#include <string>
#include <vector>

namespace minicpmv {

class Bundle;

// Which blocks compute a kind of work, and on how many threads.
struct Kind {
  std::string prefix;  // of the blocks' names in the system library
  int threads;
};

// What computes what.
struct Kinds {
  Kind decode;   // one token, embeddings and logits
  Kind prefill;  // several tokens
  Kind picture;

  // One kind for all.
  explicit Kinds(const Kind& all) : decode(all), prefill(all), picture(all) {}
};

// What there is to choose from, at least one of each: what should be faster comes first.
struct Choices {
  std::vector<std::string> prefixes;  // of blocks that this processor runs
  std::vector<int> threads;

  // Each prefix with each number of threads. What comes first is chosen without a measurement.
  std::vector<Kind> All() const;
};

// Measures which choice computes a layer of a bundle fastest: for one token, for some of a prompt
// and for a part of a picture. Takes up to four passes through a layer for each; nothing if there
// is only one. An earlier one is kept unless a later one is clearly faster.
// Throws EngineError: internal (the blocks do not fit the bundle), out_of_memory.
Kinds MeasureKinds(const Choices& choices, const Bundle& bundle);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_KINDS_H_
