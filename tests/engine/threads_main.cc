// Runs the engine's pool of threads, for tests and `tests.bench.sharing`. Commands print numbers.
//
//   patience THREADS            pieces of a worker whose first piece waits for all others, and all
//   counts THREADS              pieces of the launching thread, each of which lasts until each
//                               of the others could do two, and all
//   error THREADS PIECE         what a launch returns and says whose piece fails, then what the
//                               next returns
//   use THREADS MOST USED TEAM  pieces of a launch, in many launches how many ran exactly once,
//                               and how many threads ran any
//   time THREADS ITEMS STEPS SLOW PINNED
//                               µs of a launch in equal parts, the median and the mean, and of one
//                               with sharing, in turn; SLOW: threads that are not the launching
//                               one do all twice
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/c_backend_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine/thread_pool.h"

namespace minicpmv {
namespace {

using Work = std::function<int(int piece, int pieces)>;

int Call(int piece, TVMParallelGroupEnv* tasks, void* work) {
  return (*static_cast<Work*>(work))(piece, tasks->num_task);
}

int Launch(Work work, int num_task = 0) { return TVMBackendParallelLaunch(Call, &work, num_task); }

void Await(const std::function<bool()>& holds) {
  while (!holds()) std::this_thread::yield();
}

void Patience(int threads) {
  const ThreadPool pool({threads, threads, {}});
  const std::thread::id own = std::this_thread::get_id();
  std::atomic<int> all{0}, done{0}, of_patient{0};
  std::atomic<bool> waits{false};
  std::atomic<std::thread::id> patient{own};
  Launch([&](int, int pieces) {
    const std::thread::id self = std::this_thread::get_id();
    all = pieces;
    std::thread::id nobody = own;
    if (self == own) {
      Await([&] { return waits.load(); });  // or it might leave nothing to the workers
    } else if (patient.compare_exchange_strong(nobody, self)) {
      waits = true;
      Await([&] { return done == pieces - 1; });
    }
    if (self == patient) ++of_patient;
    ++done;
    return 0;
  });
  std::printf("%d %d\n", of_patient.load(), all.load());
}

void Counts(int threads) {
  const ThreadPool pool({threads, threads, {}});
  const std::thread::id own = std::this_thread::get_id();
  std::atomic<int> slow{0}, others{0}, begun{0}, all{0};
  Launch([&](int, int pieces) {
    all = pieces;
    ++begun;
    if (std::this_thread::get_id() == own) {
      const int until = others + 2 * (threads - 1);
      Await([&] { return others >= until || begun == pieces; });  // or there is no work for others
      ++slow;
    } else {
      ++others;
    }
    return 0;
  });
  std::printf("%d %d\n", slow.load(), all.load());
}

void Fail(int threads, int failing) {
  const ThreadPool pool({threads, threads, {}});
  const int failed = Launch([&](int piece, int) {
    if (piece != failing) return 0;
    TVMFFIErrorSetRaisedFromCStr("ValueError", "no such piece");
    return -1;
  });
  const tvm::ffi::Error error = tvm::ffi::detail::MoveFromSafeCallRaised();
  std::printf("%d %s %d\n", failed, error.kind().c_str(), Launch([](int, int) { return 0; }));
}

void Use(int threads, int most, int used, int team) {
  constexpr int kLaunches = 2000, kMost = 4096;
  ThreadPool pool({threads, most, {}});
  pool.Use(used);
  const ThreadPool::Team computing(team);
  std::vector<std::atomic<int>> runs(kMost);
  std::mutex mutex;
  std::set<std::thread::id> seen;
  int all = 0, once = 0;
  for (int i = 0; i < kLaunches; ++i) {
    int count = 0;
    for (std::atomic<int>& of_piece : runs) of_piece = 0;
    Launch([&](int piece, int pieces) {
      if (piece == 0) count = pieces;
      ++runs.at(static_cast<size_t>(piece));
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
      return 0;
    });
    all = count;
    once += static_cast<int>(std::count(runs.begin(), runs.end(), 1));
  }
  std::printf("%d %d %zu\n", all, once / kLaunches, seen.size());
}

// Computes for a while; the compiler cannot leave it out.
void Compute(int steps) {
  uint32_t value = 1;
  for (int i = 0; i < steps; ++i) {
    value = value * 1664525 + 1013904223;
    asm volatile("" : "+r"(value));
  }
}

void Time(int threads, int items, int steps, bool slow, bool pinned) {
  ThreadPlan plan{threads, threads, {}};
  for (int i = 0; pinned && i < threads; ++i) plan.cores.push_back(i);
  const ThreadPool pool(plan);
  const std::thread::id own = std::this_thread::get_id();
  const Work work = [&](int piece, int pieces) {  // as TVM cuts a loop
    const int step = (items + pieces - 1) / pieces;
    const bool twice = slow && std::this_thread::get_id() != own;
    for (int i = piece * step; i < std::min((piece + 1) * step, items); ++i) {
      Compute(twice ? 2 * steps : steps);
    }
    return 0;
  };
  const auto timed = [&](int num_task) {
    const auto start = std::chrono::steady_clock::now();
    Launch(work, num_task);
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
        .count();
  };
  constexpr double kMicroseconds = 1e6;
  std::vector<double> equal, shared;
  for (double all = 0; all < kMicroseconds; all += equal.back() + shared.back()) {
    equal.push_back(timed(threads));
    shared.push_back(timed(0));
  }
  for (std::vector<double>* times : {&equal, &shared}) {
    const auto count = times->size();
    std::sort(times->begin(), times->end());
    const double sum = std::accumulate(times->begin(), times->end(), 0.0);
    std::printf("%.2f %.2f\n", times->at(count / 2), sum / static_cast<double>(count));
  }
}

}  // namespace
}  // namespace minicpmv

int main(int count, char** words) {
  const std::string command = words[1];
  std::vector<int> n;
  for (int i = 2; i < count; ++i) n.push_back(std::atoi(words[i]));
  if (command == "patience") minicpmv::Patience(n.at(0));
  if (command == "counts") minicpmv::Counts(n.at(0));
  if (command == "error") minicpmv::Fail(n.at(0), n.at(1));
  if (command == "use") minicpmv::Use(n.at(0), n.at(1), n.at(2), n.at(3));
  if (command == "time") minicpmv::Time(n.at(0), n.at(1), n.at(2), n.at(3) != 0, n.at(4) != 0);
}
