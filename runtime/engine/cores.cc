#include "runtime/engine/cores.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>

namespace minicpmv {
namespace {

struct Core {
  int number;
  int64_t max_khz;  // 0 if the system does not tell
};

int EnvironmentNumber(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

// Returns the cores that this process may use, fastest first.
std::vector<Core> UsableCores() {
  cpu_set_t usable;
  std::vector<Core> cores;
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0) return cores;
  for (int number = 0; number < CPU_SETSIZE; ++number) {
    if (!CPU_ISSET(static_cast<size_t>(number), &usable)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(number) +
                       "/cpufreq/cpuinfo_max_freq");
    int64_t max_khz = 0;
    file >> max_khz;
    cores.push_back({number, max_khz});
  }
  std::stable_sort(cores.begin(), cores.end(),
                   [](const Core& a, const Core& b) { return a.max_khz > b.max_khz; });
  return cores;
}

// Returns how many threads to run without a request for a number.
ThreadPlan DefaultPlan(const std::vector<Core>& cores) {
  const int count = std::max(1, static_cast<int>(cores.size()));
  // x86-64 lists each hardware thread as a core; only this architecture has these keys.
  const int siblings = std::atoi(CpuInfo("siblings").c_str());
  const int physical = std::atoi(CpuInfo("cpu cores").c_str());
  if (siblings > 0 && physical > 0) {
    const int threads = std::max(1, count * physical / siblings);
    return {threads, threads, {}};
  }
  // Whether phones' slowest cores help depends on what is computed, so it is measured.
  const auto fast = std::count_if(cores.begin(), cores.end(), [&cores](const Core& core) {
    return core.max_khz > cores.back().max_khz;
  });
  return {fast > 0 ? static_cast<int>(fast) : count, count, {}};
}

}  // namespace

std::string CpuInfo(const std::string& name, const std::string& other) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    if (key == name || key == other) return line.substr(colon + 2);
  }
  return "";
}

ThreadPlan PlanThreads() {
  const std::vector<Core> cores = UsableCores();
  const int wanted = EnvironmentNumber("TVM_NUM_THREADS");
  ThreadPlan plan = wanted > 0 ? ThreadPlan{wanted, wanted, {}} : DefaultPlan(cores);
  const auto count = static_cast<size_t>(plan.most);
  if (EnvironmentNumber("TVM_BIND_THREADS") == 1 && count <= cores.size()) {
    for (size_t i = 0; i < count; ++i) plan.cores.push_back(cores[i].number);
  }
  return plan;
}

}  // namespace minicpmv
