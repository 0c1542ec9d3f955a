// The cores that this process may use, and how many threads to run on them.
#ifndef MINICPMV_ENGINE_CORES_H_
#define MINICPMV_ENGINE_CORES_H_

#include <string>
#include <vector>

namespace minicpmv {

// Returns the first value in /proc/cpuinfo under one of two keys; empty if there is none.
std::string CpuInfo(const std::string& name, const std::string& other = "");

// The threads of an engine, its own included.
struct ThreadPlan {
  int threads;             // that usually compute, at least 1
  int most;                // with those for the slowest cores, which may help
  std::vector<int> cores;  // a core for each of the most threads; empty: the system chooses
};

// Plans the threads by TVM_NUM_THREADS and TVM_BIND_THREADS; see PROTOCOL.md.
ThreadPlan PlanThreads();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_CORES_H_
