#include "runtime/engine/machine.h"

#include <tvm/runtime/c_backend_api.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "runtime/engine/cores.h"
#include "runtime/engine/tensors.h"

namespace minicpmv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPasses = 5;
constexpr int kLaunches = 1000;
// Memory is fetched in whole cache lines: reading one word of each keeps the most of them in
// flight.
constexpr size_t kLineWords = 64 / sizeof(uint64_t);

// A buffer, and the sum of what the threads read. The sum keeps the compiler from removing the
// reads.
struct Pass {
  uint64_t* words;
  size_t count;
  std::atomic<uint64_t> sum{0};

  // Returns the start of a task's share.
  uint64_t* Share(int task, const TVMParallelGroupEnv& tasks) const {
    const auto all = static_cast<size_t>(tasks.num_task);
    return words + count / all * static_cast<size_t>(task) +
           std::min(static_cast<size_t>(task), count % all);
  }
};

int Fill(int task, TVMParallelGroupEnv* tasks, void* argument) {
  const auto* pass = static_cast<Pass*>(argument);
  std::fill(pass->Share(task, *tasks), pass->Share(task + 1, *tasks), uint64_t{1});
  return 0;
}

int Read(int task, TVMParallelGroupEnv* tasks, void* argument) {
  auto* pass = static_cast<Pass*>(argument);
  const uint64_t* const end = pass->Share(task + 1, *tasks);
  uint64_t sum = 0;
  for (const uint64_t* word = pass->Share(task, *tasks); word < end; word += kLineWords) {
    sum += *word;
  }
  pass->sum += sum;
  return 0;
}

int EmptyTask(int /*task*/, TVMParallelGroupEnv* /*tasks*/, void* /*argument*/) { return 0; }

double Median(std::vector<double>* values) {
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2);
  std::nth_element(values->begin(), middle, values->end());
  return *middle;
}

}  // namespace

// The first key on x86-64 and some phones, the second on others.
std::string CpuName() { return CpuInfo("model name", "Hardware"); }

int64_t MemoryBytes() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

int64_t PeakRssBytes() {
  // Not getrusage: its maximum includes the parent's peak from before exec.
  std::ifstream file("/proc/self/status");
  const std::string key = "VmHWM:";
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    return std::strtoll(line.c_str() + key.size(), nullptr, 10) * 1024;  // the file counts KiB
  }
  return 0;
}

std::optional<double> MeasureReadMs(int64_t bytes, const std::function<bool()>& cancelled) {
  const AlignedBuffer buffer(static_cast<size_t>(bytes));
  Pass pass{reinterpret_cast<uint64_t*>(buffer.data()), buffer.size() / sizeof(uint64_t)};
  if (cancelled()) return std::nullopt;
  // Write first: pages that were never written all map to one page of zeros.
  TVMBackendParallelLaunch(Fill, &pass, 0);
  std::vector<double> times;  // ms
  for (int i = 0; i < kPasses; ++i) {
    if (cancelled()) return std::nullopt;
    const auto start = Clock::now();
    TVMBackendParallelLaunch(Read, &pass, 0);
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return Median(&times);
}

double MeasureLaunchUs() {
  std::vector<double> times;
  for (int i = 0; i < kLaunches; ++i) {
    const auto start = Clock::now();
    TVMBackendParallelLaunch(EmptyTask, nullptr, 0);
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  return Median(&times);
}

}  // namespace minicpmv
