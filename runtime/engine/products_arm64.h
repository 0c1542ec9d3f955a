// What the products of a tile of weights in assembly share, for arm64: dot_products_arm64.S and
// few_products_arm64.S. Macros of the assembler, and no C.
//
// A block of at most 8 tokens goes through the groups in runs of 512 inputs, whose weights and tokens
// stay in the nearest cache, and through a run some rows at a time. Float sums are in v16 to v23
// during a run, and on the stack between runs: 8 tokens of 16 rows. The integer sums v24 to v31 begin
// with kWhole, as a float 1.5 * 2^23: a whole number below 2^22 that is added to it is the float's
// last bits, so one exact subtraction (of v15) converts it. Processors convert fewer numbers in a
// cycle.
//
// Loads have a register as their offset even where a number would do: on Cortex-A55 they then take
// as long as a product, so that neither waits for the other to write its result.
//
//   x0 weights   x1 steps   x2 tokens   x3 scales   x4 out   x5 its stride, bytes   x6 L
//   x7 columns; groups of a run to go
//   x8 G         x9 bytes of a group's tokens         x10 the first token    x11 groups done
//   x12 groups of this run   x13 the tile's rows done   x14 weights   x15 steps   x16 tokens
//   x19 scales   x20 units of 32 inputs in a group
//   x21 to x27 bytes from a unit's start   (x18 is the system's)
#if !defined(MINICPMV_ENGINE_PRODUCTS_ARM64_H_) && defined(__aarch64__)
#define MINICPMV_ENGINE_PRODUCTS_ARM64_H_

.arch_extension dotprod
.arch_extension i8mm
.altmacro
.text

.set kRun, 16       // units
.set kUnit, 512     // bytes: 32 inputs of 16 rows or tokens
.set kWhole, 0x4b400000
// On the stack: what lends its register, where the block's tokens and scales begin, and the sums.
.set kWeights, 0  // and all tokens
.set kColumns, 16
.set kLast, 24    // the last argument
.set kBlock, 32   // tokens and scales
.set kSums, 64
.set kFrame, kSums + 512

.macro load to, from, index
  ldr q\to, [\from, \index]
.endm

.macro convert sum
  fsub v\sum\().4s, v\sum\().4s, v15.4s
.endm

.macro add_scaled to, sum, factor
  fmla v\to\().4s, v\sum\().4s, v\factor\().4s
.endm

// Calls a macro with each number from `first` on.
.macro each operation, first, count
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      \operation %(\first + \i)
    .endif
  .endr
.endm

.macro add_all_scaled count, factors
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      add_scaled %(16 + \i), %(24 + \i), %(\factors + \i)
    .endif
  .endr
.endm

// Dot products. A register holds 4 inputs of 4 rows or of 4 tokens.

.set dot_rows, 4

.macro dot sum, weights, tokens, lane
  sdot v\sum\().4s, v\weights\().16b, v\tokens\().4b[\lane]
.endm

.macro dot_sum to, token, at
  ldr q\to, [\at, #(kSums + 64 * \token)]
.endm

.macro dot_load_sums count, at
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      dot_sum %(16 + \i), \i, \at
    .endif
  .endr
.endm

.macro dot_store_sum from, token, at
  str q\from, [\at, #(kSums + 64 * \token)]
.endm

.macro dot_store_sums count, at
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      dot_store_sum %(16 + \i), \i, \at
    .endif
  .endr
.endm

// Matrix products. A register holds 8 inputs of 2 rows or of 2 tokens, a sum is of both rows and
// both tokens.

.set pair_rows, 4

.macro pair sum, tokens, rows
  smmla v\sum\().4s, v\tokens\().16b, v\rows\().16b
.endm

// Writes each of four numbers twice.
.macro twice from, high
  zip2 v\high\().4s, v\from\().4s, v\from\().4s
  zip1 v\from\().4s, v\from\().4s, v\from\().4s
.endm

.macro pair_load_sum to, next, token, at
  ldr q0, [\at, #(kSums + 64 * \token)]
  ldr q1, [\at, #(kSums + 64 * \token + 64)]
  zip1 v\to\().2d, v0.2d, v1.2d
  zip2 v\next\().2d, v0.2d, v1.2d
.endm

.macro pair_load_sums count, at
  .irp i, 0, 2, 4, 6
    .if \i < \count
      pair_load_sum %(16 + \i), %(17 + \i), \i, \at
    .endif
  .endr
.endm

.macro pair_store_sum from, next, token, at
  zip1 v0.2d, v\from\().2d, v\next\().2d
  zip2 v1.2d, v\from\().2d, v\next\().2d
  str q0, [\at, #(kSums + 64 * \token)]
  str q1, [\at, #(kSums + 64 * \token + 64)]
.endm

.macro pair_store_sums count, at
  .irp i, 0, 2, 4, 6
    .if \i < \count
      pair_store_sum %(16 + \i), %(17 + \i), \i, \at
    .endif
  .endr
.endm

// Multiplies a block of tokens: the sums are then on the stack. `kind` begins names: `_rows` that it
// multiplies at a time, `_load_sums`, `_store_sums`, and in the file that includes this one `_run` and
// `_addresses` of what else a run needs, after `weights_address`. 1 << `shift` inputs of a token lie
// together.
.macro block kind, shift, count
  movi v0.4s, #0
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    .if \i < \count
      stp q0, q0, [sp, #(kSums + 64 * \i)]
      stp q0, q0, [sp, #(kSums + 64 * \i + 32)]
    .endif
  .endr
  // Of the tile of 16 tokens that holds them.
  lsr x17, x10, #4
  mul x17, x17, x8
  and x14, x10, #15
  ldr x16, [sp, #(kWeights + 8)]
  madd x16, x17, x9, x16
  add x16, x16, x14, lsl #\shift
  add x19, x3, x17, lsl #6
  add x19, x19, x14, lsl #2
  stp x16, x19, [sp, #kBlock]
  mov x11, #0
1:
  mov x12, #kRun
  udiv x12, x12, x20
  cmp x12, #1
  csinc x12, x12, xzr, hi
  sub x14, x8, x11
  cmp x12, x14
  csel x12, x12, x14, lo
  mov x13, #0
2:
  add x15, x1, x11, lsl #5
  add x15, x15, x13, lsl #1
  ldp x16, x19, [sp, #kBlock]
  madd x16, x11, x9, x16
  add x19, x19, x11, lsl #6
  mov x7, x12
  add x29, sp, x13, lsl #2
  \kind\()_load_sums \count, x29
  weights_address \shift
  \kind\()_addresses
  \kind\()_run \count
  add x29, sp, x13, lsl #2
  \kind\()_store_sums \count, x29
  add x13, x13, #\kind\()_rows
  cmp x13, #16
  b.lt 2b
  add x11, x11, x12
  cmp x11, x8
  b.lt 1b
.endm

// Makes a function of blocks of 8 tokens, and of `counts` where fewer are left. The file defines
// `arguments`, which sets x9 and x20 by the last one, and `begin_block`, which may lower x14, how many
// are left, for the next block, or multiply a block of x12 itself and go to 8.
.macro kernel name, kind, shift, counts
.globl \name
.hidden \name
.type \name, %function
.p2align 4
\name:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  ldp x8, x9, [sp, #160]
  sub sp, sp, #kFrame
  stp x0, x2, [sp, #kWeights]
  str x7, [sp, #kColumns]
  arguments
  mov x21, #64
  mov x22, #128
  mov x23, #192
  mov x24, #256
  mov x25, #320
  mov x26, #384
  mov x27, #448
  mov w30, #kWhole
  dup v15.4s, w30
  mov x10, #0
6:
  sub x14, x6, x10
  begin_block \kind, \shift
  .irp some, \counts
    cmp x14, #\some
    b.gt 7f
    block \kind, \shift, \some
    mov x12, #\some
    b 8f
7:
  .endr
  block \kind, \shift, 8
  mov x12, #8
8:
  sub x14, x6, x10
  cmp x12, x14
  csel x12, x12, x14, lt
  add x10, x10, x12
  add x13, sp, #kSums
  ldr x7, [sp, #kColumns]
9:
  mov x14, x4
  mov x15, x13
  mov x16, x7
  cmp x7, #16
  b.lt 10f
  ldp q0, q1, [x13]
  ldp q2, q3, [x13, #32]
  stp q0, q1, [x4]
  stp q2, q3, [x4, #32]
  b 11f
10:
  ldr s0, [x15], #4
  str s0, [x14], #4
  subs x16, x16, #1
  b.ne 10b
11:
  add x13, x13, #64
  add x4, x4, x5
  subs x12, x12, #1
  b.ne 9b
  cmp x10, x6
  b.lt 6b
  add sp, sp, #kFrame
  ldp d14, d15, [sp, #144]
  ldp d12, d13, [sp, #128]
  ldp d10, d11, [sp, #112]
  ldp d8, d9, [sp, #96]
  ldp x27, x28, [sp, #80]
  ldp x25, x26, [sp, #64]
  ldp x23, x24, [sp, #48]
  ldp x21, x22, [sp, #32]
  ldp x19, x20, [sp, #16]
  ldp x29, x30, [sp], #160
  ret
.size \name, . - \name
.endm

#endif
