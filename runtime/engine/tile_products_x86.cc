// Products of a tile of int8 weights with int8 tokens, by the tiles of x86's matrix unit (AMX):
// AMX-INT8's TDPBSSD; tile_products.h declares them.
//
// The unit multiplies (tokens, 4 * Q inputs) with (Q, 16 rows, 4): tokens are read where they lie,
// and so are weights, whose blocks of 64 bytes are the second factor's rows.
#include "runtime/engine/tile_products.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#pragma clang attribute push( \
    __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,f16c,fma"))), \
    apply_to = function)

namespace {

constexpr int64_t kTokens = 16, kRows = 16, kQuads = 16;  // the unit's largest tile
constexpr int64_t kBlock = 4 * kRows;                     // bytes of a quad of weights

// What LDTILECFG reads: tiles 0 to 3 for sums, 4 and 5 for tokens, 6 and 7 for weights.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  Shapes(int64_t tokens, int64_t quads) {
    for (int tile = 0; tile < 8; ++tile) {
      const bool of_tokens = tile == 4 || tile == 5, of_weights = tile > 5;
      rows[tile] = static_cast<uint8_t>(of_weights ? quads : tokens);
      row_bytes[tile] = static_cast<uint16_t>(of_tokens ? 4 * quads : kBlock);
    }
  }
};
static_assert(sizeof(Shapes) == 64);

// One call's arguments, and how they are cut.
struct Product {
  const int8_t* weights;
  const uint16_t* steps;
  const int8_t* tokens;
  const float* scales;
  float* out;
  int64_t stride, columns, groups, quads;
  int64_t at_once;  // tokens of a tile
  int64_t part;     // quads of a tile; divides `quads`

  const int8_t* Weights(int64_t group) const { return weights + group * quads * kBlock; }
  const int8_t* Tokens(int64_t first, int64_t group) const {
    return tokens + (first * groups + group) * 4 * quads;
  }
  float* Out(int64_t token) const {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(out) + token * stride);
  }
};

// Sums of up to four groups for up to 16 tokens.
struct alignas(64) Sums {
  int32_t of[4][kTokens][kRows];
};

// Tiles are named by constants.
template <int kSums, int kOfTokens, int kOfWeights>
inline void SumGroup(const Product& p, int64_t first, int64_t group, Sums* sums) {
  const int8_t *weights = p.Weights(group), *tokens = p.Tokens(first, group);
  const int64_t stride = p.groups * 4 * p.quads;
  _tile_zero(kSums);
  for (int64_t quad = 0; quad < p.quads; quad += p.part) {
    _tile_loadd(kOfTokens, tokens + 4 * quad, stride);
    _tile_loadd(kOfWeights, weights + quad * kBlock, kBlock);
    _tile_dpbssd(kSums, kOfTokens, kOfWeights);
  }
  _tile_stored(kSums, sums->of[kSums], kBlock);
}

#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"  // checked builds do not unroll

// Adds a group's sums, scaled, to the float sums. kCount: tokens, 0 if known only when it runs.
template <int kCount>
inline void AddGroup(const Product& p, int64_t first, int64_t group,
                     const int32_t (*sums)[kRows], __m512* totals) {
  const int64_t count = kCount ? kCount : p.at_once;
  const __m512 step = _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.steps + group * kRows)));
  const float* scale = p.scales + first * p.groups + group;
#pragma unroll
  for (int64_t m = 0; m < count; ++m) {
    const __m512 factor = _mm512_mul_ps(step, _mm512_set1_ps(scale[m * p.groups]));
    totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[m])), factor, totals[m]);
  }
}

#pragma clang diagnostic pop

template <int kCount>
inline void MultiplyTokens(const Product& p, int64_t first) {
  Sums sums;
  __m512 totals[kTokens];
  for (__m512& total : totals) total = _mm512_setzero_ps();
  int64_t group = 0;
  for (; group + 4 <= p.groups; group += 4) {  // side by side: the unit takes long for one sum
    SumGroup<0, 4, 6>(p, first, group, &sums);
    SumGroup<1, 5, 7>(p, first, group + 1, &sums);
    SumGroup<2, 4, 6>(p, first, group + 2, &sums);
    SumGroup<3, 5, 7>(p, first, group + 3, &sums);
    for (int64_t i = 0; i < 4; ++i) AddGroup<kCount>(p, first, group + i, sums.of[i], totals);
  }
  for (; group < p.groups; ++group) {
    SumGroup<0, 4, 6>(p, first, group, &sums);
    AddGroup<kCount>(p, first, group, sums.of[0], totals);
  }
  const auto columns = static_cast<__mmask16>((1u << p.columns) - 1);
  for (int64_t m = 0; m < (kCount ? kCount : p.at_once); ++m) {
    _mm512_mask_storeu_ps(p.Out(first + m), columns, totals[m]);
  }
}

// Returns the most quads that a tile holds and that divide `quads`.
int64_t Part(int64_t quads) {
  int64_t part = std::min(quads, kQuads);
  while (quads % part != 0) --part;
  return part;
}

}  // namespace

void minicpmv_tile_products(const int8_t* weights, const uint16_t* steps, const int8_t* tokens,
                            const float* scales, float* out, int64_t stride, int64_t length,
                            int64_t columns, int64_t groups, int64_t quads) {
  const int64_t at_once = std::min(length, kTokens), part = Part(quads);
  const Product p{weights, steps,  tokens, scales,  out,  stride,
                  columns, groups, quads,  at_once, part};
  const Shapes shapes(at_once, part);
  _tile_loadconfig(&shapes);
  for (int64_t token = 0; token < length; token += at_once) {
    // The last tile is whole: it computes tokens of the one before again, to the same bits.
    const int64_t first = std::min(token, length - at_once);
    if (at_once == kTokens) {
      MultiplyTokens<kTokens>(p, first);
    } else {
      MultiplyTokens<0>(p, first);
    }
  }
  _tile_release();  // a thread without tiles costs nothing more when the system switches to another
}

#pragma clang attribute pop

#endif
