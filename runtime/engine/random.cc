#include "runtime/engine/random.h"

#include <chrono>
#include <fstream>

namespace minicpmv {

uint64_t RandomSeed() {
  // Not std::random_device: it calls getrandom, and Android 8 kills a process for that.
  uint64_t seed = 0;
  std::ifstream system("/dev/urandom", std::ios::binary);
  if (system.read(reinterpret_cast<char*>(&seed), sizeof(seed))) return seed;
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

}  // namespace minicpmv
