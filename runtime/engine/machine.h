// Facts and measurements of the machine and of this process.
#ifndef MINICPMV_ENGINE_MACHINE_H_
#define MINICPMV_ENGINE_MACHINE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace minicpmv {

// Returns the processor's name from /proc/cpuinfo; empty if it has none.
std::string CpuName();

// Returns the machine's memory, bytes.
int64_t MemoryBytes();

// Returns the peak resident memory of this process so far, mapped files included, bytes.
int64_t PeakRssBytes();

// Measures reading a buffer of this many bytes, at least 8, with all threads of the pool.
// cancelled: polled before every pass.
// Returns the milliseconds of the median pass; nullopt if cancelled.
// Throws EngineError (out_of_memory).
std::optional<double> MeasureReadMs(int64_t bytes, const std::function<bool()>& cancelled);

// Returns the microseconds to launch an empty task on all threads of the pool and wait for it, an
// overhead that every kernel pays: the median of many back-to-back launches.
double MeasureLaunchUs();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_MACHINE_H_
