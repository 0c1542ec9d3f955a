// Opens untrusted paths for reading, and only if they are regular files; see also output_path.h.
#ifndef MINICPMV_ENGINE_REGULAR_FILE_H_
#define MINICPMV_ENGINE_REGULAR_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/engine/descriptor.h"

namespace minicpmv {

// Anything but a regular file is rejected at once: opening a named pipe would block until the other
// end opens, and reading a device might never end.
class RegularFile {
 public:
  explicit RegularFile(const std::string& path);
  // An open descriptor, which stays the caller's. It is duplicated, not opened again by its name in
  // /proc: the file may be one that this process may read, but not open.
  explicit RegularFile(int fd);

  // Why the file cannot be read; empty if it can.
  const std::string& problem() const { return problem_; }

  int fd() const { return file_.get(); }
  int64_t size() const { return size_; }  // bytes

  // Reads the next `size` bytes. Returns false if the file has fewer.
  bool Read(void* data, size_t size) const;

 private:
  void Check();

  const Descriptor file_;
  std::string problem_;
  int64_t size_ = 0;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_REGULAR_FILE_H_
