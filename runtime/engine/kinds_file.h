// A file that remembers which blocks and threads are fastest on a processor.
#ifndef MINICPMV_ENGINE_KINDS_FILE_H_
#define MINICPMV_ENGINE_KINDS_FILE_H_

#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/kinds.h"

namespace minicpmv {

// What a measurement holds for.
struct KindsIdentity {
  std::string program_id;
  std::string cpu;  // its name
  Choices choices;
};

// Returns the kinds that a file remembers; nullopt if it is missing, damaged, or about another
// program, another processor or other choices.
std::optional<Kinds> ReadKinds(const std::string& path, const KindsIdentity& identity);

// Writes such a file. Throws EngineError (file_error): see `ReplaceFile`.
void WriteKinds(const std::string& path, const KindsIdentity& identity, const Kinds& kinds);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_KINDS_FILE_H_
