// A file descriptor that closes itself.
#ifndef MINICPMV_ENGINE_DESCRIPTOR_H_
#define MINICPMV_ENGINE_DESCRIPTOR_H_

#include <unistd.h>

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

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_DESCRIPTOR_H_
