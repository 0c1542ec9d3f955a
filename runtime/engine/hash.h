// A fast, non-cryptographic hash of contents.
#ifndef MINICPMV_ENGINE_HASH_H_
#define MINICPMV_ENGINE_HASH_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace minicpmv {

// Returns a 64-bit hash, never 0. Not safe against deliberate collisions.
inline uint64_t HashBytes(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint64_t hash = size;
  const auto mix = [&hash](uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 32;
  };
  while (size > 0) {
    uint64_t word = 0;
    const size_t count = size < sizeof(word) ? size : sizeof(word);
    std::memcpy(&word, bytes, count);
    mix(word);
    bytes += count;
    size -= count;
  }
  mix(0);
  return hash == 0 ? 1 : hash;
}

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_HASH_H_
