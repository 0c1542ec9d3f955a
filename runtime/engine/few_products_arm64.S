// Products of a tile of 4-bit weights with a few int8 tokens by Arm's dot products, and by its int8
// matrix products; dot_products.h declares them, products_arm64.h holds what others share. Unlike
// dot_products_arm64.S, codes become bytes in registers, which costs a block of tokens 8 instructions
// for a group of 32 inputs and four rows (12 with matrix products), and memory nothing: few tokens
// do not pay for a tile that is written and read again.
//
// A group's weights and first tokens and what its sums begin with are loaded while the one before is
// finished; after a run's last group, those of this group again. Codes are not signed: what the zero
// point subtracts is in what a sum begins with. Each pass fetches a line of the next run's weights,
// so that memory works through the whole run.
//
// Beside products_arm64.h's registers: v14 a byte's low half   v15 kWhole
//
//   x17 and, of matrix products, x29 and x30 tokens   x28 starts
//   x0 bytes to the next group's weights              x2 weights to fetch
#include "runtime/engine/products_arm64.h"
#if defined(__aarch64__)

.set kCodes, 256  // bytes: of a group

.macro arguments
  str x9, [sp, #kLast]
  mov x9, #kUnit
  mov x20, #1
  movi v14.16b, #15
.endm

// Nine are 4 and 5: a block of one token takes nearly as long as one of 4. With dot products one and
// two are a kind of their own.
.macro begin_block kind, shift
  cmp x14, #9
  mov x15, #4
  csel x14, x15, x14, eq
  .ifc \kind, dot
    cmp x14, #2
    b.gt 7f
    block two, \shift, 2
    mov x12, #2
    b 8f
7:
  .endif
.endm

.macro weights_address shift
  ldr x14, [sp, #kWeights]
  add x14, x14, x11, lsl #8
  add x2, x14, #(kRun * kCodes)
  add x2, x2, x13, lsl #8
  add x14, x14, x13, lsl #2
  ldr x28, [sp, #kLast]
  mov x0, #kCodes
.endm

.macro low to, from
  and v\to\().16b, v\from\().16b, v14.16b
.endm

.macro high to, from
  ushr v\to\().16b, v\from\().16b, #4
.endm

// Goes to the next group, unless this is the last.
.macro next_group
  subs x7, x7, #1
  csel x0, x0, xzr, ne
  add x14, x14, x0
.endm

.macro fetch
  prfm pldl1keep, [x2]
  add x2, x2, #64
.endm

.macro load_start sum, register
  ldr q\sum, [x28, #(16 * \register)]
.endm

// Dot products: v0 to v3 hold 4 inputs of 4 rows each, v4 to v7 those 16 further; v8 and v9 tokens of
// one quad, v10 and v11 those of the next.

.macro dot_load_starts first, count
  .irp i, 0, 1, 2, 3
    .if \i < \count
      load_start %(24 + \first + \i), %(\first + \i)
    .endif
  .endr
.endm

// Adds the products of a quad; loads the next one's tokens between them, and after them the next
// group's weights, if there are indices.
.macro dot_quad count, buffer, quad, index, weights
  load %(10 - 2 * \buffer), x16, \index
  .irp i, 0, 1, 2, 3
    .if \i < \count
      dot %(24 + \i), \quad, %(8 + 2 * \buffer), \i
    .endif
  .endr
  .if \count > 4
    load %(11 - 2 * \buffer), x17, \index
    .irp i, 4, 5, 6, 7
      .if \i < \count
        dot %(24 + \i), \quad, %(9 + 2 * \buffer), %(\i - 4)
      .endif
    .endr
  .endif
  .ifnb \weights
    load \quad, x14, \weights
  .endif
.endm

.macro dot_factor to, scales, lane
  fmul v\to\().4s, v12.4s, v\scales\().s[\lane]
.endm

// Adds a group's products to the float sums of up to 4 tokens.
.macro dot_add_scaled first, count, scales
  .irp i, 0, 1, 2, 3
    .if \i < \count
      dot_factor %(4 + \i), \scales, \i
    .endif
  .endr
  .irp i, 0, 1, 2, 3
    .if \i < \count
      add_scaled %(16 + \first + \i), %(24 + \first + \i), %(4 + \i)
      load_start %(24 + \first + \i), %(\first + \i)
    .endif
  .endr
.endm

.macro dot_run count
  load 0, x14, xzr
  load 1, x14, x21
  load 2, x14, x22
  load 3, x14, x23
  load 8, x16, xzr
  dot_load_starts 0, \count
  .if \count > 4
    load 9, x17, xzr
    dot_load_starts 4, %(\count - 4)
  .endif
3:
  .irp i, 0, 1, 2, 3
    high %(4 + \i), \i
    low \i, \i
  .endr
  next_group
  dot_quad \count, 0, 0, x24, xzr
  dot_quad \count, 1, 4, x21
  dot_quad \count, 0, 1, x25, x21
  dot_quad \count, 1, 5, x22
  dot_quad \count, 0, 2, x26, x22
  dot_quad \count, 1, 6, x23
  dot_quad \count, 0, 3, x27, x23
  ldr d12, [x15]
  load 13, x19, xzr
  add x15, x15, #32
  add x16, x16, x0, lsl #1
  .if \count > 4
    add x17, x17, x0, lsl #1
  .endif
  add x28, x28, x0
  dot_quad \count, 1, 7, xzr
  .if \count > 4
    ldr q11, [x19, #16]
  .endif
  add x19, x19, #64
  fcvtl v12.4s, v12.4h
  each convert, 24, \count
  dot_add_scaled 0, \count, 13
  .if \count > 4
    dot_add_scaled 4, %(\count - 4), 11
  .endif
  fetch
  b.ne 3b
.endm

.macro dot_addresses
  add x17, x16, #16
  add x28, x28, x10, lsl #4
  add x28, x28, x11, lsl #8
.endm

// Two tokens take eight rows at a time, so that there are four sums, and none waits for itself: v20 to
// v23 hold inputs of the other rows, v28 to v31 those 16 further. x17 is their weights.

.set two_rows, 8

// The products of a quad, as those of more tokens; `other` holds the other rows' inputs.
.macro two_quad buffer, quad, other, index, weights
  load %(10 - 2 * \buffer), x16, \index
  dot 24, \quad, %(8 + 2 * \buffer), 0
  dot 25, \quad, %(8 + 2 * \buffer), 1
  .ifnb \weights
    load \quad, x14, \weights
  .endif
  dot 26, \other, %(8 + 2 * \buffer), 0
  dot 27, \other, %(8 + 2 * \buffer), 1
  .ifnb \weights
    load \other, x17, \weights
  .endif
.endm

.macro two_split quad
  high %(4 + \quad), \quad
  low \quad, \quad
  high %(28 + \quad), %(20 + \quad)
  low %(20 + \quad), %(20 + \quad)
.endm

.macro two_weights quad, index
  load \quad, x14, \index
  load %(20 + \quad), x17, \index
.endm

.macro two_factor to, steps, lane
  fmul v\to\().4s, v\steps\().4s, v13.s[\lane]
.endm

.macro two_add_scaled i
  add_scaled %(16 + \i), %(24 + \i), %(4 + \i)
  load_start %(24 + \i), %(\i % 2)
.endm

.macro two_run count
  two_weights 0, xzr
  two_weights 1, x21
  two_weights 2, x22
  two_weights 3, x23
  load 8, x16, xzr
  .irp i, 0, 1, 2, 3
    load_start %(24 + \i), %(\i % 2)
  .endr
3:
  .irp i, 0, 1, 2, 3
    two_split \i
  .endr
  next_group
  add x17, x17, x0
  two_quad 0, 0, 20, x24, xzr
  two_quad 1, 4, 28, x21
  two_quad 0, 1, 21, x25, x21
  two_quad 1, 5, 29, x22
  two_quad 0, 2, 22, x26, x22
  two_quad 1, 6, 30, x23
  two_quad 0, 3, 23, x27, x23
  load 12, x15, xzr
  ldr d13, [x19]
  add x15, x15, #32
  add x16, x16, x0, lsl #1
  add x28, x28, x0
  two_quad 1, 7, 31, xzr
  add x19, x19, #64
  fcvtl2 v11.4s, v12.8h
  fcvtl v12.4s, v12.4h
  each convert, 24, 4
  .irp lane, 0, 1
    two_factor %(4 + \lane), 12, \lane
  .endr
  .irp lane, 0, 1
    two_factor %(6 + \lane), 11, \lane
  .endr
  .irp i, 0, 1, 2, 3
    two_add_scaled \i
  .endr
  fetch
  fetch
  b.ne 3b
.endm

.macro two_addresses
  add x17, x14, #16
  add x28, x28, x10, lsl #4
  add x28, x28, x11, lsl #8
.endm

.macro two_load_sums count, at
  ldr q16, [\at, #kSums]
  ldr q17, [\at, #(kSums + 64)]
  ldr q18, [\at, #(kSums + 16)]
  ldr q19, [\at, #(kSums + 80)]
.endm

.macro two_store_sums count, at
  str q16, [\at, #kSums]
  str q17, [\at, #(kSums + 64)]
  str q18, [\at, #(kSums + 16)]
  str q19, [\at, #(kSums + 80)]
.endm

// Matrix products: v0 and v1, v2 and v3 hold 8 inputs of 2 and 2 rows, v4 to v7 those 16 further; v8
// to v11 8 inputs of tokens. Of up to 4 tokens v8 and v9 do, and v10 and v11 hold the next 8.

.macro pair_weights to, next, from, with
  zip1 v\to\().4s, v\from\().4s, v\with\().4s
  zip2 v\next\().4s, v\from\().4s, v\with\().4s
.endm

.macro pair_tokens count, first, index
  load \first, x16, \index
  .if \count > 2
    load %(\first + 1), x17, \index
  .endif
  .if \count > 4
    load %(\first + 2), x29, \index
  .endif
  .if \count > 6
    load %(\first + 3), x30, \index
  .endif
.endm

.macro pair_both sums, tokens, rows
  pair \sums, \tokens, \rows
  pair %(\sums + 1), \tokens, %(\rows + 1)
.endm

.macro pair_all count, rows, tokens
  .irp i, 0, 1, 2, 3
    .if 2 * \i < \count
      pair_both %(24 + 2 * \i), %(\tokens + \i), \rows
    .endif
  .endr
.endm

// Adds the products of 8 inputs; loads the next tokens, if there is an index.
.macro pair_quads count, rows, buffer, index
  .if \count > 4
    pair_all \count, \rows, 8
    .ifnb \index
      pair_tokens \count, 8, \index
    .endif
  .else
    .ifnb \index
      pair_tokens \count, %(10 - 2 * \buffer), \index
    .endif
    pair_all \count, \rows, %(8 + 2 * \buffer)
  .endif
.endm

.macro pair_factor to, next, scales
  fmul v\to\().4s, v12.4s, v\scales\().4s
  fmul v\next\().4s, v13.4s, v\scales\().4s
.endm

.macro pair_add_scaled i
  add_scaled %(16 + \i), %(24 + \i), %(8 + \i - \i / 4 * 4)
  load_start %(24 + \i), %(\i / 2)
.endm

// Adds a group's products to the float sums of up to 4 tokens.
.macro pair_add_all first, count, scales, next
  pair_factor 8, 9, \scales
  .if \count > 2
    pair_factor 10, 11, \next
  .endif
  .irp i, 0, 1, 2, 3
    .if \i < \count
      pair_add_scaled %(\first + \i)
    .endif
  .endr
.endm

.macro pair_run count
  load 0, x14, xzr
  load 1, x14, x21
  load 2, x14, x22
  load 3, x14, x23
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      load_start %(24 + \i), %(\i / 2)
    .endif
  .endr
  pair_tokens \count, 8, xzr
3:
  pair_weights 4, 5, 0, 1
  pair_weights 6, 7, 2, 3
  .irp i, 0, 1, 2, 3
    low \i, %(4 + \i)
  .endr
  .irp i, 4, 5, 6, 7
    high \i, \i
  .endr
  next_group
  pair_quads \count, 0, 0, x22
  load 0, x14, xzr
  load 1, x14, x21
  pair_quads \count, 2, 1, x24
  load 2, x14, x22
  load 3, x14, x23
  pair_quads \count, 4, 0, x26
  ldr d12, [x15]
  load 4, x19, xzr
  .if \count > 4
    ldr q5, [x19, #16]
  .endif
  add x16, x16, x0, lsl #1
  .if \count > 2
    add x17, x17, x0, lsl #1
  .endif
  .if \count > 4
    add x29, x29, x0, lsl #1
  .endif
  .if \count > 6
    add x30, x30, x0, lsl #1
  .endif
  add x28, x28, x0, lsr #1
  add x15, x15, #32
  add x19, x19, #64
  pair_quads \count, 6, 1
  fcvtl v12.4s, v12.4h
  twice 4, 6
  .if \count > 4
    twice 5, 7
  .endif
  dup v13.2d, v12.d[1]
  dup v12.2d, v12.d[0]
  each convert, 24, \count
  pair_add_all 0, \count, 4, 6
  .if \count > 4
    pair_add_all 4, %(\count - 4), 5, 7
  .endif
  pair_tokens \count, 8, xzr
  fetch
  b.ne 3b
.endm

.macro pair_addresses
  add x17, x16, #16
  add x29, x16, #32
  add x30, x16, #48
  add x28, x28, x10, lsl #3
  add x28, x28, x11, lsl #7
.endm

kernel minicpmv_few_dot_products, dot, 2, <3, 4, 5, 6, 7>
kernel minicpmv_few_matrix_products, pair, 3, <2, 4, 6>

#endif

.section .note.GNU-stack, "", %progbits
