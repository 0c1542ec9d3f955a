// The threads that share the work of a kernel.
#ifndef MINICPMV_ENGINE_THREAD_POOL_H_
#define MINICPMV_ENGINE_THREAD_POOL_H_

#include <tvm/ffi/error.h>
#include <tvm/runtime/c_backend_api.h>

#include <atomic>
#include <condition_variable>
#include <deque>
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
//
// Threads spin for a moment while they wait, then sleep. A task whose worker does not get a core in
// time is run by the launching thread.
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

  // Sets how many threads take part in the following launches, 1 to `threads()`. From any thread.
  void Use(int threads) { used_ = threads; }

  // Runs tasks on the threads in use and waits for all. num_task: how many; 0: one on each thread.
  // Returns 0, or -1 if a task failed; TVM's error is then set on this thread.
  int Launch(FTVMParallelLambda task, void* argument, int num_task);

 private:
  enum class State { kIdle, kTask, kAsleep, kEnded };

  // What the launching thread tells a worker, and the worker it.
  struct alignas(64) Worker {  // cache lines of their own
    std::atomic<State> state{State::kIdle};
    std::condition_variable woken;
  };

  void Work(int number);
  bool AwaitTask(Worker* worker);
  void RunTask(int number);
  void AwaitWorkers();
  void Tell(Worker* worker, State state);
  void End();

  const ThreadPlan plan_;
  std::atomic<int> used_;  // threads
  // The launch. Written only while no worker runs a task.
  FTVMParallelLambda task_ = nullptr;
  void* argument_ = nullptr;
  TVMParallelGroupEnv tasks_{};
  std::optional<tvm::ffi::Error> error_;  // the first of this launch
  std::atomic<int> unfinished_{0};        // tasks of this launch that are not the first
  std::atomic<bool> asleep_{false};       // the launching thread
  std::mutex mutex_;                      // of `error_` and of all who sleep
  std::condition_variable finished_;
  std::deque<Worker> workers_;  // of the tasks from the second on
  std::vector<std::unique_ptr<Thread>> running_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_THREAD_POOL_H_
