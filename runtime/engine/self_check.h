// Does the engine answer here as it did where the bundle was made?
#ifndef MINICPMV_ENGINE_SELF_CHECK_H_
#define MINICPMV_ENGINE_SELF_CHECK_H_

#include <string>
#include <vector>

#include "runtime/engine/model.h"

namespace minicpmv {

// One golden prompt and what became of it.
struct Check {
  std::string question;  // the last turn
  std::string expected;  // answer
  std::string text;      // the answer
  bool passed;           // ids and logits are the expected ones, within the tolerance
};

// Answers the prompts of the bundle's `golden.json` greedily, each from an empty cache. The cache
// is empty afterwards; remembered pictures stay.
// hooks: progress counts prompts.
// Throws EngineError: no_golden (the bundle has none), invalid_bundle, cancelled, and what
// encoding and answering throw.
std::vector<Check> RunSelfCheck(Model* model, const WorkHooks& hooks);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SELF_CHECK_H_
