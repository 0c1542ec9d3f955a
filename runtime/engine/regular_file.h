// A file from outside, opened to be read if it is a regular one.
#ifndef MINICPMV_ENGINE_REGULAR_FILE_H_
#define MINICPMV_ENGINE_REGULAR_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/engine/descriptor.h"

namespace minicpmv {

// Anything else than a regular file is refused at once: opening a named pipe would wait for its
// other end, and reading a device might never end.
class RegularFile {
 public:
  explicit RegularFile(const std::string& path);

  // Why there is nothing to read; empty if all is well.
  const std::string& problem() const { return problem_; }

  int fd() const { return file_.get(); }
  int64_t size() const { return size_; }  // bytes

  // Reads the next bytes. Returns false if the file has not so many.
  bool Read(void* data, size_t size) const;

 private:
  const Descriptor file_;
  std::string problem_;
  int64_t size_ = 0;
};

// Opens a regular file to be written from its start, or makes one; anything else is refused.
// Returns the descriptor, or a negative number and sets `problem`.
int CreateRegularFile(const std::string& path, std::string* problem);

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_REGULAR_FILE_H_
