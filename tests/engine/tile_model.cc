// A stand-in for tile_products.h that any processor runs: what the kernel promises, in plain C++.
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Of a number that is neither denormal, infinite nor none.
float Half(uint16_t half) {
  if ((half & 0x7fff) == 0) return 0;
  const uint32_t magnitude = (static_cast<uint32_t>(half & 0x7fff) << 13) + (uint32_t{112} << 23);
  const uint32_t bits = static_cast<uint32_t>(half & 0x8000) << 16 | magnitude;
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void model_tile_products(const int8_t* weights, const uint16_t* steps,
                                  const int8_t* tokens, const float* scales, float* out,
                                  int64_t stride, int64_t length, int64_t columns, int64_t groups,
                                  int64_t quads) {
  for (int64_t token = 0; token < length; ++token) {
    for (int64_t row = 0; row < columns; ++row) {
      float total = 0;
      for (int64_t group = 0; group < groups; ++group) {
        int32_t sum = 0;
        for (int64_t quad = 0; quad < quads; ++quad) {
          for (int64_t i = 0; i < 4; ++i) {
            sum += weights[((group * quads + quad) * 16 + row) * 4 + i] *
                   tokens[(token * groups + group) * 4 * quads + 4 * quad + i];
          }
        }
        const float factor = Half(steps[group * 16 + row]) * scales[token * groups + group];
        total = std::fmaf(static_cast<float>(sum), factor, total);
      }
      std::memcpy(reinterpret_cast<char*>(out) + token * stride + 4 * row, &total, sizeof(total));
    }
  }
}
