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
// The work of a launch is cut into equal pieces, some for each thread in a row. A thread that has
// finished its own takes pieces of others: a slow core delays all by one piece. A thread that has
// not begun when the launching one is through with its own takes none.
//
// Threads spin for a moment while they wait, then sleep.
class ThreadPool {
 public:
  // Throws EngineError (out_of_memory): a thread cannot be started.
  explicit ThreadPool(const ThreadPlan& plan);
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The pool of this thread; null if it made none.
  static ThreadPool* OfThisThread();

  // How many threads compute: usually, and at most.
  int threads() const { return plan_.threads; }
  int most() const { return plan_.most; }

  // Sets how many threads compute from now on, 1 to `threads()`. From any thread.
  void Use(int threads) { used_ = threads; }
  // Whether fewer compute than usually.
  bool spares() const { return used_ < plan_.threads; }

  // While it exists, so many threads compute what this thread launches, 1 to `most()`; fewer if
  // `Use` asked for fewer than usually. Without a pool it does nothing.
  class Team {
   public:
    explicit Team(int threads);
    ~Team();

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

   private:
    ThreadPool* const pool_;
  };

  // Runs tasks on the threads in use and waits for all. num_task: how many, at most one for each
  // thread; 0: as many pieces as the pool likes.
  // Returns 0, or -1 if a task failed; TVM's error is then set on this thread.
  int Launch(FTVMParallelLambda task, void* argument, int num_task);

 private:
  enum class State { kIdle, kTask, kAsleep, kEnded };

  // What the launching thread tells a worker, and the worker it.
  struct alignas(64) Worker {  // cache lines of their own
    std::atomic<State> state{State::kIdle};
    std::condition_variable woken;
  };

  // The pieces of a thread that nobody took yet.
  struct alignas(64) Part {
    std::atomic<int> next;
    int end;
  };

  void Cut(int num_task);
  void Work(int number);
  bool AwaitTask(Worker* worker);
  void RunPart(int number);
  void RunOtherParts(int number);
  void RunPiece(int piece);
  void AwaitWorkers();
  void Tell(Worker* worker, State state);
  void End();

  const ThreadPlan plan_;
  std::atomic<int> used_;  // threads, as `Use` set them
  int team_;               // threads
  // The launch. Written only while no worker runs a task.
  FTVMParallelLambda task_ = nullptr;
  void* argument_ = nullptr;
  TVMParallelGroupEnv tasks_{};
  std::optional<tvm::ffi::Error> error_;  // the first of this launch
  int sharing_ = 1;                       // threads
  std::deque<Part> parts_;                // of each thread
  std::atomic<int> unfinished_{0};        // workers that may still run pieces of this launch
  std::atomic<bool> asleep_{false};       // the launching thread
  std::mutex mutex_;                      // of `error_` and of all who sleep
  std::condition_variable finished_;
  std::deque<Worker> workers_;  // the threads from the second on
  std::vector<std::unique_ptr<Thread>> running_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_THREAD_POOL_H_
