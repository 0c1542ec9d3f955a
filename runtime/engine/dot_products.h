// Products of int8 codes by Arm's dot products and int8 matrix products: dot_products_arm64.S,
// few_products_arm64.S.
#ifndef MINICPMV_ENGINE_DOT_PRODUCTS_H_
#define MINICPMV_ENGINE_DOT_PRODUCTS_H_

#include <cstdint>

extern "C" {

// As minicpmv_outer_products of outer_products.h, to the bit, of groups of 8 to 64 quads, in eights:
// their sums are below 2^22.
void minicpmv_dot_products(const int8_t* weights, const uint16_t* steps, const int8_t* tokens,
                           const float* scales, float* out, int64_t stride, int64_t length,
                           int64_t columns, int64_t groups, int64_t quads);

// The same with 8 inputs side by side: weights (G, Q / 2, 16 rows, 8), tokens (ceil(L/16), G, Q / 2,
// 16, 8).
void minicpmv_matrix_products(const int8_t* weights, const uint16_t* steps, const int8_t* tokens,
                              const float* scales, float* out, int64_t stride, int64_t length,
                              int64_t columns, int64_t groups, int64_t quads);

// The same of at most 16 tokens and of 4-bit codes in groups of 32, which are unpacked in registers:
//
//   weights (G, 4, 16 rows, 4), two codes in a byte (quantize/layout.py), without sign
//   tokens  (G, 8, 16, 4)   scales (G, 16)
//   starts  (G, 16, 4) what a token's sums begin with, the same for each of 4 rows: the bits of the
//           float 1.5 * 2^23, plus the whole number that the zero point makes of the codes' sum
void minicpmv_few_dot_products(const uint8_t* weights, const uint16_t* steps, const int8_t* tokens,
                               const float* scales, float* out, int64_t stride, int64_t length,
                               int64_t columns, int64_t groups, const int32_t* starts);

// The same with 8 inputs of a token side by side, tokens (G, 4, 16, 8), and starts (G, 16, 2).
void minicpmv_few_matrix_products(const uint8_t* weights, const uint16_t* steps,
                                  const int8_t* tokens, const float* scales, float* out,
                                  int64_t stride, int64_t length, int64_t columns, int64_t groups,
                                  const int32_t* starts);
}

#endif  // MINICPMV_ENGINE_DOT_PRODUCTS_H_
