#include "runtime/engine/thread_pool.h"

#include <sched.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdlib>

namespace minicpmv {
namespace {

// How often a worker looks for the next launch before it sleeps: a decoder step launches hundreds
// of kernels, and waking a thread takes longer than many of them.
constexpr int kSpins = 300'000;

thread_local ThreadPool* this_threads_pool = nullptr;

int Spins() {
  const char* text = std::getenv("TVM_THREAD_POOL_SPIN_COUNT");  // tests read a log of all yields
  return text == nullptr ? kSpins : std::atoi(text);
}

// Binds this thread to some cores.
void Bind(const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(static_cast<size_t>(core), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

}  // namespace

ThreadPool::ThreadPool(const ThreadPlan& plan) : plan_(plan), spins_(Spins()) {
  try {
    for (int number = 1; number < plan_.threads; ++number) {
      workers_.push_back(std::make_unique<Thread>([this, number] { Work(number); }));
    }
  } catch (...) {
    End();
    throw;
  }
  Bind(plan_.cores);  // this thread may move among the cores of all
  this_threads_pool = this;
}

ThreadPool::~ThreadPool() {
  this_threads_pool = nullptr;
  End();
}

ThreadPool* ThreadPool::OfThisThread() { return this_threads_pool; }

int ThreadPool::Launch(FTVMParallelLambda task, void* argument, int num_task) {
  task_ = task;
  argument_ = argument;
  tasks_.num_task = num_task > 0 ? std::min(num_task, plan_.threads) : plan_.threads;
  running_ = static_cast<int>(workers_.size());
  ++launches_;
  if (sleeping_ > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  RunTask(0);
  while (running_ > 0) sched_yield();
  if (!error_) return 0;
  tvm::ffi::detail::SetSafeCallRaised(*error_);
  error_.reset();
  return -1;
}

void ThreadPool::Work(int number) {
  if (!plan_.cores.empty()) Bind({plan_.cores.at(static_cast<size_t>(number))});
  for (uint32_t seen = 0; AwaitLaunch(seen); ++seen) {
    if (number < tasks_.num_task) RunTask(number);
    --running_;
  }
}

void ThreadPool::RunTask(int number) {
  if (task_(number, &tasks_, argument_) == 0) return;
  tvm::ffi::Error error = tvm::ffi::detail::MoveFromSafeCallRaised();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_) error_ = std::move(error);
}

// Waits for a launch that a worker has not seen; returns false at the end.
bool ThreadPool::AwaitLaunch(uint32_t seen) {
  for (int i = 0; i < spins_ && launches_ == seen && !ended_; ++i) sched_yield();
  if (launches_ == seen && !ended_) {
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleeping_;  // before the last look, so that either this or the launch sees the other
    changed_.wait(lock, [&] { return launches_ != seen || ended_; });
    --sleeping_;
  }
  return !ended_;
}

void ThreadPool::End() {
  ended_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  workers_.clear();
}

}  // namespace minicpmv

// What TVM's compiled code calls.
int TVMBackendParallelLaunch(FTVMParallelLambda task, void* argument, int num_task) {
  if (minicpmv::ThreadPool* pool = minicpmv::ThreadPool::OfThisThread()) {
    return pool->Launch(task, argument, num_task);
  }
  TVMParallelGroupEnv one{nullptr, 1};
  return task(0, &one, argument);
}

// TVM lists it among the functions that compiled code may call; our blocks do not.
int TVMBackendParallelBarrier(int /*task*/, TVMParallelGroupEnv* /*tasks*/) {
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "the engine's threads have no barrier");
  return -1;
}
