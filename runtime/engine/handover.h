// Takes a descriptor from another process: for files that this one may read, but not open.
#ifndef MINICPMV_ENGINE_HANDOVER_H_
#define MINICPMV_ENGINE_HANDOVER_H_

#include <functional>
#include <string>

#include "runtime/engine/descriptor.h"

namespace minicpmv {

// A Unix socket to which the client connects once, to send one descriptor (SCM_RIGHTS).
//
// The socket has an abstract name that the kernel chooses, so it leaves no file and no other
// process can have taken the name. Whoever connects must have this process's user.
class Handover {
 public:
  // Throws EngineError (file_error): the system has no such socket, or no descriptor is left.
  Handover();

  // The socket's name, without the zero byte before it.
  const std::string& name() const { return name_; }

  // Waits for the descriptor, which is the caller's to close. cancelled: polled meanwhile.
  // Throws EngineError: file_error (none came in time, or something else), cancelled.
  int Receive(const std::function<bool()>& cancelled) const;

 private:
  int Accept(const std::function<bool()>& cancelled) const;

  const Descriptor listening_;
  std::string name_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_HANDOVER_H_
