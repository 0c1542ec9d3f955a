// Stand-ins that any processor runs for tile_products.h and dot_products.h: what the kernels promise,
// in plain C++.
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

// The arguments of every kernel but its last one or two, and how tokens lie.
struct Product {
  const int8_t* weights;
  const uint16_t* steps;
  const int8_t* tokens;
  const float* scales;
  float* out;
  int64_t stride, length, columns, groups, quads;

  int64_t Inputs() const { return 4 * quads; }
  // Of an input of a row of weights or of a token, in tiles of 16 with `beside` inputs side by side.
  int64_t InTile(int64_t group, int64_t row, int64_t input, int64_t beside) const {
    return ((group * Inputs() + input / beside * beside) * 16) + row * beside + input % beside;
  }
};

// Tokens are packed in tiles as weights are if `packed`.
void Multiply(const Product& p, int64_t beside, bool packed) {
  for (int64_t token = 0; token < p.length; ++token) {
    const int64_t tile = token / 16, in_tile = token % 16;
    const int8_t* of_tile = p.tokens + tile * 16 * p.groups * p.Inputs();
    for (int64_t row = 0; row < p.columns; ++row) {
      float total = 0;
      for (int64_t group = 0; group < p.groups; ++group) {
        int32_t sum = 0;
        for (int64_t i = 0; i < p.Inputs(); ++i) {
          const int8_t code = packed ? of_tile[p.InTile(group, in_tile, i, beside)]
                                     : p.tokens[(token * p.groups + group) * p.Inputs() + i];
          sum += p.weights[p.InTile(group, row, i, beside)] * code;
        }
        const int64_t at = packed ? (tile * p.groups + group) * 16 + in_tile : token * p.groups + group;
        const float factor = Half(p.steps[group * 16 + row]) * p.scales[at];
        total = std::fmaf(static_cast<float>(sum), factor, total);
      }
      std::memcpy(reinterpret_cast<char*>(p.out) + token * p.stride + 4 * row, &total,
                  sizeof(total));
    }
  }
}

}  // namespace

#define STAND_IN(name, beside, packed)                                                            \
  extern "C" __attribute__((visibility("default"))) void name(                                    \
      const int8_t* weights, const uint16_t* steps, const int8_t* tokens, const float* scales,    \
      float* out, int64_t stride, int64_t length, int64_t columns, int64_t groups, int64_t quads) { \
    Multiply({weights, steps, tokens, scales, out, stride, length, columns, groups, quads}, beside, \
             packed);                                                                             \
  }

STAND_IN(model_tile_products, 4, false)
STAND_IN(model_dot_products, 4, true)
STAND_IN(model_matrix_products, 8, true)
