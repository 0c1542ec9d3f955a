// Products of int8 codes by the tiles of x86's matrix unit (AMX): tile_products_x86.cc.
#ifndef MINICPMV_ENGINE_TILE_PRODUCTS_H_
#define MINICPMV_ENGINE_TILE_PRODUCTS_H_

#include <cstdint>

extern "C" {

// Multiplies a tile of weights (G groups of 4 * Q inputs for 16 rows; quantize/layout.py) with L
// tokens, at least one. For each group, in order, out += float(sum of products) * (step * scale),
// the product and the addition rounded once: as the compiled kernels do, so the bits are the same.
// The processor must have AMX-INT8 and AVX-512, and the process the permission to use its tiles.
// The thread's tiles are configured here and released at the end.
//
//   weights (G, Q, 16 rows, 4)    steps (G, 16) float16, the rows' scales
//   tokens  (L, G, 4 * Q)         scales (L, G), the tokens'
//   out     (L, columns), rows `stride` bytes apart; columns: how many rows to compute, 1 to 16
void minicpmv_tile_products(const int8_t* weights, const uint16_t* steps, const int8_t* tokens,
                            const float* scales, float* out, int64_t stride, int64_t length,
                            int64_t columns, int64_t groups, int64_t quads);
}

#endif  // MINICPMV_ENGINE_TILE_PRODUCTS_H_
