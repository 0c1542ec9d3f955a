// Products of int8 codes by the outer products of Arm's matrix unit: outer_products_arm64.S.
#ifndef MINICPMV_ENGINE_OUTER_PRODUCTS_H_
#define MINICPMV_ENGINE_OUTER_PRODUCTS_H_

#include <cstdint>

extern "C" {

// Returns the size of a streaming vector, bytes. The processor must have SME.
int64_t minicpmv_streaming_bytes();

// Multiplies a tile of weights (G groups of 4 * Q inputs for 16 rows; quantize/layout.py) with L
// tokens, at least one. For each group, in order, out += float(sum of products) * (step * scale),
// the product and the addition rounded once: as the compiled kernels do, so the bits are the same.
// Streaming vectors must have 16, 32 or 64 bytes. The thread must not use the state ZA itself.
//
//   weights (G, Q, 16 rows, 4)              steps (G, 16) float16, the rows' scales
//   tokens  (ceil(L/16), G, Q, 16, 4)       scales (ceil(L/16), G, 16), the tokens'
//   out     (L, columns), rows `stride` bytes apart; columns: how many rows to compute, 1 to 16
void minicpmv_outer_products(const int8_t* weights, const uint16_t* steps, const int8_t* tokens,
                             const float* scales, float* out, int64_t stride, int64_t length,
                             int64_t columns, int64_t groups, int64_t quads);
}

#endif  // MINICPMV_ENGINE_OUTER_PRODUCTS_H_
