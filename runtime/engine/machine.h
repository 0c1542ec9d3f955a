// What the system says of the machine and of this process.
#ifndef MINICPMV_ENGINE_MACHINE_H_
#define MINICPMV_ENGINE_MACHINE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace minicpmv {

// Returns the processor's name, as /proc/cpuinfo has it; empty where it has none.
std::string CpuName();

// Returns how many cores this process may use, on x86-64, where the system shows two logical
// processors for a core that has two; 0 elsewhere, where TVM tells fast cores from slow ones.
int DefaultThreads();

// Returns the machine's memory, bytes.
int64_t MemoryBytes();

// Returns how much memory this process had at most so far, mapped files included, bytes.
int64_t PeakRssBytes();

// Reads a buffer of this many bytes, at least 8, from memory with all threads of TVM's pool.
// cancelled: asked before every pass.
// Returns the milliseconds of the median pass; nothing if cancelled.
// Throws EngineError (out_of_memory).
std::optional<double> MeasureReadMs(int64_t bytes, const std::function<bool()>& cancelled);

// Returns the microseconds that it takes to hand a task of nothing to all threads of TVM's pool and
// to wait for them, which every kernel pays: the median of many times in a row.
double MeasureLaunchUs();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_MACHINE_H_
