// Products of a tile of int8 weights with int8 tokens by Arm's dot products, and by its int8 matrix
// products; dot_products.h declares them, products_arm64.h holds what others share. In assembly: LLVM
// loads all activations of a group at once, runs out of registers and keeps sums in memory.
//
// Blocks have 8 or 4 tokens. Beside products_arm64.h's registers:
//
//   x17 and, of matrix products, x0 and x2 tokens, x28 weights   x29 units to go   x30 kWhole
#include "runtime/engine/products_arm64.h"
#if defined(__aarch64__)

.macro arguments
  lsr x20, x9, #3
  lsl x9, x9, #6
.endm

.macro begin_block kind, shift
.endm

.macro weights_address shift
  ldr x14, [sp, #kWeights]
  madd x14, x11, x9, x14
  add x14, x14, x13, lsl #\shift
.endm

.macro begin sum
  dup v\sum\().4s, w30
.endm

// Dot products: v0, v2 and v3 hold the 4 inputs of one quad, v1, v4 and v5 those of the next.

.macro dot_load count, buffer, index
  load \buffer, x14, \index
  load %(2 + 2 * \buffer), x16, \index
  .if \count > 4
    load %(3 + 2 * \buffer), x17, \index
  .endif
.endm

// Adds the products of the quad in `buffer`; loads the other buffer between them, if there is an
// index.
.macro dot_quad count, buffer, index
  .ifnb \index
    load %(1 - \buffer), x14, \index
  .endif
  dot 24, \buffer, %(2 + 2 * \buffer), 0
  .if \count > 4
    dot 25, \buffer, %(2 + 2 * \buffer), 1
  .endif
  .ifnb \index
    load %(4 - 2 * \buffer), x16, \index
  .endif
  .if \count == 4
    dot 25, \buffer, %(2 + 2 * \buffer), 1
  .endif
  dot 26, \buffer, %(2 + 2 * \buffer), 2
  dot 27, \buffer, %(2 + 2 * \buffer), 3
  .if \count > 4
    .ifnb \index
      load %(5 - 2 * \buffer), x17, \index
    .endif
    .irp i, 0, 1, 2, 3
      dot %(28 + \i), \buffer, %(3 + 2 * \buffer), \i
    .endr
  .endif
.endm

.macro dot_unit count
  dot_quad \count, 0, x21
  dot_quad \count, 1, x22
  dot_quad \count, 0, x23
  dot_quad \count, 1, x24
  dot_quad \count, 0, x25
  dot_quad \count, 1, x26
  dot_quad \count, 0, x27
.endm

.macro dot_step
  .irp pointer, x14, x16, x17
    add \pointer, \pointer, #kUnit
  .endr
.endm

.macro dot_factor to, scales, lane
  fmul v\to\().4s, v0.4s, v\scales\().s[\lane]
.endm

// Adds the products of a run's groups to the float sums of four rows.
.macro dot_run count
3:
  each begin, 24, \count
  dot_load \count, 0, xzr
  subs x29, x20, #1
  b.eq 5f
4:
  dot_unit \count
  dot_step
  dot_quad \count, 1, xzr
  subs x29, x29, #1
  b.ne 4b
5:
  dot_unit \count
  ldr d0, [x15]
  load 2, x19, xzr
  .if \count > 4
    ldr q3, [x19, #16]
  .endif
  dot_step
  add x15, x15, #32
  add x19, x19, #64
  dot_quad \count, 1
  each convert, 24, \count
  fcvtl v0.4s, v0.4h
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      dot_factor %(4 + \i), %(2 + \i / 4), %(\i - \i / 4 * 4)
    .endif
  .endr
  add_all_scaled \count, 4
  subs x7, x7, #1
  b.ne 3b
.endm

.macro dot_addresses
  add x17, x16, #16
.endm

// Matrix products: v0 and v1, v2 to v5 hold 8 inputs, v6 and v7, v8 to v11 the next.

.macro pair_load count, buffer, index
  load %(6 * \buffer), x14, \index
  load %(2 + 6 * \buffer), x16, \index
  load %(1 + 6 * \buffer), x28, \index
  load %(3 + 6 * \buffer), x17, \index
  .if \count > 4
    load %(4 + 6 * \buffer), x0, \index
    load %(5 + 6 * \buffer), x2, \index
  .endif
.endm

.macro pair_both sums, buffer, tokens
  pair \sums, %(\tokens + 6 * \buffer), %(6 * \buffer)
  pair %(\sums + 1), %(\tokens + 6 * \buffer), %(1 + 6 * \buffer)
.endm

// Adds the products of 8 inputs in `buffer`; loads the other buffer, if there is an index.
.macro pair_quads count, buffer, index
  .ifnb \index
    pair_load \count, %(1 - \buffer), \index
  .endif
  pair_both 24, \buffer, 2
  pair_both 26, \buffer, 3
  .if \count > 4
    pair_both 28, \buffer, 4
    pair_both 30, \buffer, 5
  .endif
.endm

.macro pair_unit count
  pair_quads \count, 0, x22
  pair_quads \count, 1, x24
  pair_quads \count, 0, x26
.endm

.macro pair_step
  .irp pointer, x14, x28, x16, x17, x0, x2
    add \pointer, \pointer, #kUnit
  .endr
.endm

.macro pair_factor to, next, scales
  fmul v\to\().4s, v0.4s, v\scales\().4s
  fmul v\next\().4s, v1.4s, v\scales\().4s
.endm

.macro pair_factors count
  .irp i, 0, 1, 2, 3
    .if 2 * \i < \count
      pair_factor %(6 + 2 * \i), %(7 + 2 * \i), %(2 + \i)
    .endif
  .endr
.endm

.macro pair_run count
3:
  each begin, 24, \count
  pair_load \count, 0, xzr
  subs x29, x20, #1
  b.eq 5f
4:
  pair_unit \count
  pair_step
  pair_quads \count, 1, xzr
  subs x29, x29, #1
  b.ne 4b
5:
  pair_unit \count
  ldr d0, [x15]
  load 2, x19, xzr
  .if \count > 4
    ldr q4, [x19, #16]
  .endif
  pair_step
  add x15, x15, #32
  add x19, x19, #64
  pair_quads \count, 1
  fcvtl v0.4s, v0.4h
  twice 2, 3
  .if \count > 4
    twice 4, 5
  .endif
  dup v1.2d, v0.d[1]
  dup v0.2d, v0.d[0]
  each convert, 24, \count
  pair_factors \count
  add_all_scaled \count, 6
  subs x7, x7, #1
  b.ne 3b
.endm

.macro pair_addresses
  add x28, x14, #16
  add x17, x16, #16
  add x0, x16, #32
  add x2, x16, #48
.endm

kernel minicpmv_dot_products, dot, 2, 4
kernel minicpmv_matrix_products, pair, 3, 4

#endif

.section .note.GNU-stack, "", %progbits
