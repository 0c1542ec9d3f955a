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
// Pieces of each thread: with fewer, all wait longer for a slow one's last; each costs a call.
constexpr int kPieces = 12;
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
    : plan_(plan),
      used_(plan.threads),
      team_(plan.threads),
      parts_(static_cast<size_t>(plan.most)),
      workers_(static_cast<size_t>(plan.most - 1)) {
  try {
    for (int number = 1; number < plan_.most; ++number) {
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

ThreadPool::Team::Team(int threads) : pool_(OfThisThread()) {
  if (pool_ != nullptr) pool_->team_ = threads;
}

ThreadPool::Team::~Team() {
  if (pool_ != nullptr) pool_->team_ = pool_->plan_.threads;
}

int ThreadPool::Launch(FTVMParallelLambda task, void* argument, int num_task) {
  task_ = task;
  argument_ = argument;
  Cut(num_task);
  const auto others = static_cast<size_t>(sharing_ - 1);
  unfinished_ = sharing_ - 1;
  for (size_t i = 0; i < others; ++i) Tell(&workers_[i], State::kTask);
  RunPart(0);
  for (size_t i = 0; i < others; ++i) {
    // One that has not begun lacks a core, and if it got one for a moment, all would wait for it.
    State state = State::kTask;
    if (workers_[i].state.compare_exchange_strong(state, State::kIdle)) --unfinished_;
  }
  RunOtherParts(0);
  AwaitWorkers();
  if (!error_) return 0;
  tvm::ffi::detail::SetSafeCallRaised(*error_);
  error_.reset();
  return -1;
}

// Gives each thread that shares in the work its part.
void ThreadPool::Cut(int num_task) {
  const int used = used_;
  const int team = used < plan_.threads ? std::min(used, team_) : team_;
  sharing_ = num_task > 0 ? std::min(num_task, team) : team;
  const int each = num_task > 0 || sharing_ == 1 ? 1 : kPieces;
  tasks_.num_task = sharing_ * each;
  for (int i = 0; i < sharing_; ++i) {
    Part& part = parts_[static_cast<size_t>(i)];
    part.next = i * each;
    part.end = (i + 1) * each;
  }
}

void ThreadPool::Work(int number) {
  if (!plan_.cores.empty()) Bind({plan_.cores.at(static_cast<size_t>(number))});
  Worker& worker = workers_[static_cast<size_t>(number - 1)];
  while (AwaitTask(&worker)) {
    RunPart(number);
    RunOtherParts(number);
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

// Runs what is left of a thread's part, in the order in which it lies in memory.
void ThreadPool::RunPart(int number) {
  Part& part = parts_[static_cast<size_t>(number)];
  while (part.next < part.end) {  // looks first, because writing takes the line from others
    const int piece = part.next++;
    if (piece < part.end) RunPiece(piece);
  }
}

void ThreadPool::RunOtherParts(int number) {
  for (int i = 1; i < sharing_; ++i) RunPart((number + i) % sharing_);
}

void ThreadPool::RunPiece(int piece) {
  if (task_(piece, &tasks_, argument_) == 0) return;
  tvm::ffi::Error error = tvm::ffi::detail::MoveFromSafeCallRaised();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_) error_ = std::move(error);
}

// Waits until no worker runs a piece.
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
