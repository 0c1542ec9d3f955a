#include "runtime/engine/thread_pool.h"

#include <sched.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread spins before it sleeps. A decoder step launches hundreds of kernels, and waking
// a thread takes longer than many of them.
constexpr auto kSpinTime = std::chrono::milliseconds(5);
constexpr int kPausesPerYield = 32;  // two threads may share a core, even if another one is idle

thread_local ThreadPool* this_threads_pool = nullptr;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until a condition holds, but not for long.
template <typename Condition>
void SpinUntil(const Condition& holds) {
  const auto end = Clock::now() + kSpinTime;
  for (int i = 1; !holds(); ++i) {
    Pause();
    if (i % kPausesPerYield != 0) continue;
    sched_yield();
    if (Clock::now() > end) return;
  }
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

ThreadPool::ThreadPool(const ThreadPlan& plan)
    : plan_(plan), used_(plan.threads), workers_(static_cast<size_t>(plan.threads - 1)) {
  try {
    for (int number = 1; number < plan_.threads; ++number) {
      running_.push_back(std::make_unique<Thread>([this, number] { Work(number); }));
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
  const int used = used_;
  tasks_.num_task = num_task > 0 ? std::min(num_task, used) : used;
  const auto others = static_cast<size_t>(tasks_.num_task - 1);
  unfinished_ = tasks_.num_task - 1;
  for (size_t i = 0; i < others; ++i) Tell(&workers_[i], State::kTask);
  RunTask(0);
  for (size_t i = others; i > 0; --i) {  // those told last are the likeliest to be late
    State state = State::kTask;
    if (!workers_[i - 1].state.compare_exchange_strong(state, State::kIdle)) continue;
    RunTask(static_cast<int>(i));
    --unfinished_;
  }
  AwaitWorkers();
  if (!error_) return 0;
  tvm::ffi::detail::SetSafeCallRaised(*error_);
  error_.reset();
  return -1;
}

void ThreadPool::Work(int number) {
  if (!plan_.cores.empty()) Bind({plan_.cores.at(static_cast<size_t>(number))});
  Worker& worker = workers_[static_cast<size_t>(number - 1)];
  while (AwaitTask(&worker)) {
    RunTask(number);
    if (--unfinished_ > 0 || !asleep_) continue;
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_.notify_one();
  }
}

// Waits for a task and takes it; returns false at the end.
bool ThreadPool::AwaitTask(Worker* worker) {
  for (;;) {
    SpinUntil([worker] { return worker->state != State::kIdle; });
    State state = State::kTask;
    if (worker->state.compare_exchange_strong(state, State::kIdle)) return true;
    if (state == State::kEnded) return false;
    std::unique_lock<std::mutex> lock(mutex_);
    state = State::kIdle;
    if (!worker->state.compare_exchange_strong(state, State::kAsleep)) continue;
    worker->woken.wait(lock, [worker] { return worker->state != State::kAsleep; });
  }
}

void ThreadPool::RunTask(int number) {
  if (task_(number, &tasks_, argument_) == 0) return;
  tvm::ffi::Error error = tvm::ffi::detail::MoveFromSafeCallRaised();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_) error_ = std::move(error);
}

// Waits until all tasks are finished.
void ThreadPool::AwaitWorkers() {
  const auto is_finished = [this] { return unfinished_ == 0; };
  SpinUntil(is_finished);
  if (is_finished()) return;
  std::unique_lock<std::mutex> lock(mutex_);
  asleep_ = true;  // before the last look, so that either this or a worker sees the other
  finished_.wait(lock, is_finished);
  asleep_ = false;
}

void ThreadPool::Tell(Worker* worker, State state) {
  if (worker->state.exchange(state) != State::kAsleep) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  worker->woken.notify_one();
}

void ThreadPool::End() {
  for (Worker& worker : workers_) Tell(&worker, State::kEnded);
  running_.clear();
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
