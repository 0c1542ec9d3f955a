// The cores that this process may use, and how many threads to run on them.
#ifndef MINICPMV_ENGINE_CORES_H_
#define MINICPMV_ENGINE_CORES_H_

#include <string>
#include <vector>

namespace minicpmv {

// Returns the first value in /proc/cpuinfo under one of two keys; empty if there is none.
std::string CpuInfo(const std::string& name, const std::string& other = "");

// The threads of an engine.
struct ThreadPlan {
  int threads;             // at least 1, the engine's own thread included
  std::vector<int> cores;  // a core for each thread; empty: the system chooses
};

// Plans the threads by TVM_NUM_THREADS and TVM_BIND_THREADS; see PROTOCOL.md.
ThreadPlan PlanThreads();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_CORES_H_
