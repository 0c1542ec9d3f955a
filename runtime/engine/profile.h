#ifndef MINICPMV_ENGINE_PROFILE_H_
#define MINICPMV_ENGINE_PROFILE_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace minicpmv {

// Where the time of compiled blocks goes: what each kernel took since the last look.
class Profile {
 public:
  struct Time {
    int64_t calls = 0;
    int64_t rows = 0;  // tokens or patches that it worked on, all calls together
    double ms = 0;
  };

  // Kernels run one after the other, none within another.
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
