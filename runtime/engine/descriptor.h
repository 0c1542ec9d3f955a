// File descriptors that close themselves.
#ifndef MINICPMV_ENGINE_DESCRIPTOR_H_
#define MINICPMV_ENGINE_DESCRIPTOR_H_

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "runtime/engine/error.h"

namespace minicpmv {

class Descriptor {
 public:
  // fd: the return value of `open`; a negative one is not closed.
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }

  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }

 private:
  const int fd_;
};

// Wakes a thread that polls.
class WakePipe {
 public:
  // Throws EngineError (out_of_memory): no descriptor is left.
  WakePipe() : WakePipe(Open()) {}

  // Makes `readable` readable, for ever.
  void Signal() const {
    while (write(writable_.get(), "", 1) < 0 && errno == EINTR) {
    }
  }

  int readable() const { return readable_.get(); }

 private:
  explicit WakePipe(const std::array<int, 2>& ends) : readable_(ends[0]), writable_(ends[1]) {}

  static std::array<int, 2> Open() {
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw EngineError(error_code::kOutOfMemory,
                        std::string("a pipe cannot be opened: ") + std::strerror(errno));
    }
    return ends;
  }

  const Descriptor readable_, writable_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_DESCRIPTOR_H_
