// A pseudo-random generator with the same sequence on every machine.
#ifndef MINICPMV_ENGINE_RANDOM_H_
#define MINICPMV_ENGINE_RANDOM_H_

#include <cstdint>

namespace minicpmv {

// xoshiro256** (Blackman, Vigna 2018), seeded with splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9E3779B97F4A7C15;
      uint64_t mixed = seed;
      mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
      mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
      word = mixed ^ mixed >> 31;
    }
  }

  uint64_t Next() {
    const uint64_t result = Rotate(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = Rotate(state_[3], 45);
    return result;
  }

  // Returns a number from [0, 1): the upper 53 bits of Next(), times 2^-53.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

 private:
  static uint64_t Rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

  uint64_t state_[4];
};

// Returns an unpredictable seed from the system's random source.
uint64_t RandomSeed();

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_RANDOM_H_
