// The threads that share the work of a kernel.
#ifndef MINICPMV_ENGINE_THREAD_POOL_H_
#define MINICPMV_ENGINE_THREAD_POOL_H_

#include <tvm/ffi/error.h>
#include <tvm/runtime/c_backend_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "runtime/engine/cores.h"
#include "runtime/engine/thread.h"

namespace minicpmv {

// Takes the place of TVM's pool, which is configured by the environment and ends with the process.
// While it exists, TVMBackendParallelLaunch runs tasks on it, if called on the thread that made it;
// on any other thread it runs one task on that thread.
class ThreadPool {
 public:
  // Throws EngineError (out_of_memory): a thread cannot be started.
  explicit ThreadPool(const ThreadPlan& plan);
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The pool of this thread; null if it made none.
  static ThreadPool* OfThisThread();

  int threads() const { return plan_.threads; }

  // Runs a task on each thread and waits for all. num_task: how many; 0 takes all threads.
  // Returns 0, or -1 if a task failed; TVM's error is then set on this thread.
  int Launch(FTVMParallelLambda task, void* argument, int num_task);

 private:
  void Work(int number);
  void RunTask(int number);
  bool AwaitLaunch(uint32_t seen);
  void End();

  const ThreadPlan plan_;
  const int spins_;
  // The launch. Written only while no worker reads it.
  FTVMParallelLambda task_ = nullptr;
  void* argument_ = nullptr;
  TVMParallelGroupEnv tasks_{};
  std::optional<tvm::ffi::Error> error_;  // the first of this launch
  std::atomic<uint32_t> launches_{0};
  std::atomic<int> running_{0};   // workers that have not finished this launch
  std::atomic<int> sleeping_{0};  // workers that wait for `changed_`
  std::atomic<bool> ended_{false};
  std::mutex mutex_;  // of `error_` and `changed_`
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Thread>> workers_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_THREAD_POOL_H_
