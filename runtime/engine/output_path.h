// Where a file is written: only a regular file is ever replaced.
#ifndef MINICPMV_ENGINE_OUTPUT_PATH_H_
#define MINICPMV_ENGINE_OUTPUT_PATH_H_

#include <sys/types.h>

#include <optional>
#include <string>

namespace minicpmv {

struct OutputPath {
  std::string path;            // of the file itself, where a link leads to it
  std::optional<mode_t> mode;  // permissions of the file that is there
};

// Finds the file that writing a path makes or replaces. Throws `file_error` where a device, a pipe,
// a socket or a folder stands, or a link that leads nowhere.
OutputPath FindOutput(const std::string& path);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_OUTPUT_PATH_H_
