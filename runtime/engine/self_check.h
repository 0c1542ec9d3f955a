// Compares the engine's answers on this machine with those recorded when the bundle was made.
#ifndef MINICPMV_ENGINE_SELF_CHECK_H_
#define MINICPMV_ENGINE_SELF_CHECK_H_

#include <string>
#include <vector>

#include "runtime/engine/model.h"

namespace minicpmv {

// The result of one golden prompt.
struct Check {
  std::string question;  // the last turn
  std::string expected;  // the expected answer
  std::string text;      // the actual answer
  bool passed;           // ids and logits match, within the tolerance
};

// Answers the prompts of the bundle's `golden.json` greedily, each with an empty KV cache. The KV
// cache is empty afterwards; encoded pictures stay.
// hooks: progress counts prompts.
// Throws EngineError: no_golden (the bundle has none), invalid_bundle, cancelled, and the errors of
// encoding and generation.
std::vector<Check> RunSelfCheck(Model* model, const WorkHooks& hooks);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_SELF_CHECK_H_
