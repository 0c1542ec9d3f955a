#ifndef MINICPMV_ENGINE_PROFILE_H_
#define MINICPMV_ENGINE_PROFILE_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace minicpmv {

// Accumulates the time of each kernel since the last Take.
class Profile {
 public:
  struct Time {
    int64_t calls = 0;
    int64_t rows = 0;  // tokens or patches, summed over all calls
    double ms = 0;
  };

  // Kernels run one at a time and do not nest.
  void Begin() { started_ = Clock::now(); }
  void End(const std::string& kernel, int64_t rows) {
    const std::chrono::duration<double, std::milli> passed = Clock::now() - started_;
    Time& time = times_[kernel];
    ++time.calls;
    time.rows += rows;
    time.ms += passed.count();
  }

  std::map<std::string, Time> Take() { return std::exchange(times_, {}); }

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point started_;
  std::map<std::string, Time> times_;
};

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PROFILE_H_
