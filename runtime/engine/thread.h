// A thread that is joined when it goes out of scope.
#ifndef MINICPMV_ENGINE_THREAD_H_
#define MINICPMV_ENGINE_THREAD_H_

#include <pthread.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "runtime/engine/error.h"

namespace minicpmv {

// Its stack has a size of our own: in a library, musl gives a std::thread only 128 KiB.
class Thread {
 public:
  // work: must not throw.
  // Throws EngineError (out_of_memory): the system has no thread left.
  explicit Thread(std::function<void()> work) : work_(std::move(work)) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    const int error = pthread_create(&thread_, &attributes, Run, this);
    pthread_attr_destroy(&attributes);
    if (error != 0) {
      throw EngineError(error_code::kOutOfMemory,
                        std::string("a thread cannot be started: ") + std::strerror(error));
    }
  }
  // Waits for the end of the work.
  ~Thread() { pthread_join(thread_, nullptr); }

  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

 private:
  static constexpr size_t kStackBytes = 8 << 20;  // committed when used

  static void* Run(void* thread) {
    static_cast<Thread*>(thread)->work_();
    return nullptr;
  }

  const std::function<void()> work_;
  pthread_t thread_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_THREAD_H_
