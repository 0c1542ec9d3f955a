// Resolves output paths and writes whole files; only regular files are ever replaced.
#ifndef MINICPMV_ENGINE_OUTPUT_PATH_H_
#define MINICPMV_ENGINE_OUTPUT_PATH_H_

#include <sys/types.h>

#include <optional>
#include <string>

namespace minicpmv {

struct OutputPath {
  std::string path;            // with symbolic links resolved
  std::optional<mode_t> mode;  // permissions of an existing file
};

// Returns the file that writing to a path creates or replaces.
// Throws EngineError (file_error): the path is a device, a pipe, a socket, a folder or a dangling
// link.
OutputPath FindOutput(const std::string& path);

// Writes a file that appears atomically. One that it replaces keeps its permissions; a new one is
// its owner's alone.
// Throws EngineError (file_error): see `FindOutput`, or the file cannot be written.
void ReplaceFile(const std::string& path, const std::string& content);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_OUTPUT_PATH_H_
