// Products of a tile of int8 weights with int8 tokens, by the outer products of Arm's matrix unit
// (SME1's SMOPA); outer_products.h declares them. In assembly: TVM has no such products, and zig
// lacks the library that a compiler's code for "streaming" functions needs.
//
// A streaming vector has 16, 32 or 64 bytes. It holds 4 inputs of 4, 8 or 16 tokens or rows, so
// that the weights' blocks of 64 bytes are 4, 2 or 1 vectors: "parts". The four 32-bit tiles of ZA
// take the parts of 1, 2 or 4 groups, and consecutive SMOPAs add to different sums. The float sums
// of all groups are in z16 to z31, one for each token and part: 4, 8 or 16 tokens at a time.
//
//   x0 weights   x1 steps   x2 tokens   x3 scales   x4 out   x5 its stride, bytes   x6 L
//   x7 columns
//   x8 G         x9 bytes of a group            x10 the first token     x11 groups left
//   w12 to w15   0, 4, 8, 12: ZA's slices       x16 scales of a group   x17 byte within a group
//   x19 to x22   tokens of 1 to 4 groups        x23 to x26 weights of 4 parts
//   x27 steps of a group                        x28 bytes of a vector   (x18 is the system's)
//   p0 all       p4 to p7 the columns of each part
#if defined(__aarch64__)

.arch_extension sme
.altmacro
.text

.macro address to, from, more
  add x\to, x\from, \more
.endm

.macro load_block to, from
  ld1b {z\to\().b}, p0/z, [x\from, x17]
.endm

.macro outer_product tile, tokens, weights
  smopa za\tile\().s, p0/m, p0/m, z\tokens\().b, z\weights\().b
.endm

.macro load_step to, part
  ld1h {z\to\().s}, p0/z, [x27, #\part, mul vl]
  fcvt z\to\().s, p0/m, z\to\().h
.endm

// Adds a token's sums of a part, the slice w`index` + `at` of a tile, to the float sums `to`.
.macro add_slice tile, index, at, to, step
  mova z1.s, p0/m, za\tile\()h.s[w\index, \at]
  scvtf z1.s, p0/m, z1.s
  fmul z2.s, z\step\().s, z0.s[\at]
  fmla z\to\().s, p0/m, z1.s, z2.s
.endm

// Adds the sums of four tokens, from `first` on, of a group that has the tiles from `tile` on.
.macro add_tokens tile, parts, index, first
  ld1rqw {z0.s}, p0/z, [x16, #(\first * 4)]
  .irp at, 0, 1, 2, 3
    .irp part, 0, 1, 2, 3
      .if \part < \parts
        add_slice %(\tile + \part), \index, \at, \
          %(16 + (\first + \at) * \parts + \part), %(4 + \part)
      .endif
    .endr
  .endr
.endm

// Adds the products of so many groups with so many parts, and steps behind them.
.macro add_groups words, parts, count
  .irp group, 0, 1, 2, 3
    .if \group < \count
      .if \group > 0
        address %(19 + \group), %(18 + \group), x9
        address %(23 + \group * \parts), %(23 + (\group - 1) * \parts), x9
      .endif
      .irp part, 1, 2, 3
        .if \part < \parts
          address %(23 + \group * \parts + \part), %(22 + \group * \parts + \part), x28
        .endif
      .endr
    .endif
  .endr
  zero {za}
  mov x17, #0
7:
  .irp group, 0, 1, 2, 3
    .if \group < \count
      load_block %(8 + \group), %(19 + \group)
      .irp part, 0, 1, 2, 3
        .if \part < \parts
          load_block %(12 + \group * \parts + \part), %(23 + \group * \parts + \part)
        .endif
      .endr
    .endif
  .endr
  .irp group, 0, 1, 2, 3
    .if \group < \count
      .irp part, 0, 1, 2, 3
        .if \part < \parts
          outer_product %(\group * \parts + \part), %(8 + \group), %(12 + \group * \parts + \part)
        .endif
      .endr
    .endif
  .endr
  add x17, x17, #64
  cmp x17, x9
  b.lt 7b
  .irp group, 0, 1, 2, 3
    .if \group < \count
      .irp part, 0, 1, 2, 3
        .if \part < \parts
          load_step %(4 + \part), \part
        .endif
      .endr
      add_tokens %(\group * \parts), \parts, 12, 0
      .if \words > 4
        add_tokens %(\group * \parts), \parts, 13, 4
      .endif
      .if \words > 8
        add_tokens %(\group * \parts), \parts, 14, 8
        add_tokens %(\group * \parts), \parts, 15, 12
      .endif
      add x27, x27, #32
      add x16, x16, #64
      add x19, x19, x9
      add x23, x23, x9
    .endif
  .endr
  sub x11, x11, #\count
.endm

.macro clear to
  mov z\to\().s, #0
.endm

.macro columns predicate
  whilelt p\predicate\().s, x17, x7
.endm

.macro store_part from, predicate, part
  st1w {z\from\().s}, p\predicate, [x19, #\part, mul vl]
.endm

.macro kernel words, parts, groups
  .irp part, 0, 1, 2, 3
    .if \part < \parts
      mov x17, #(\part * \words)
      columns %(4 + \part)
    .endif
  .endr
  mov x10, #0
1:
  // Of the tile of 16 tokens that holds them; a word of a block is a token's.
  lsr x17, x10, #4
  mul x17, x17, x8
  and x19, x10, #15
  lsl x19, x19, #2
  add x16, x3, x19
  add x16, x16, x17, lsl #6
  add x19, x2, x19
  madd x19, x17, x9, x19
  mov x23, x0
  mov x27, x1
  mov x11, x8
  .irp at, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    clear %(16 + \at)
  .endr
2:
  cmp x11, #\groups
  b.lt 3f
  add_groups \words, \parts, \groups
  b 2b
3:
  .if \groups > 1
4:
    cbz x11, 5f
    add_groups \words, \parts, 1
    b 4b
  .endif
5:
  madd x19, x10, x5, x4
  sub x17, x6, x10
  .irp at, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .if \at < \words
      cmp x17, #\at
      b.le 6f
      .irp part, 0, 1, 2, 3
        .if \part < \parts
          store_part %(16 + \at * \parts + \part), %(4 + \part), \part
        .endif
      .endr
      add x19, x19, x5
    .endif
  .endr
  add x10, x10, #\words
  cmp x10, x6
  b.lt 1b
6:
.endm

.globl minicpmv_outer_products
.hidden minicpmv_outer_products
.type minicpmv_outer_products, %function
.p2align 4
minicpmv_outer_products:
  stp x29, x30, [sp, #-160]!
  mov x29, sp
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
  lsl x9, x9, #6
  rdsvl x28, #1
  mov w12, #0
  mov w13, #4
  mov w14, #8
  mov w15, #12
  smstart
  ptrue p0.b
  cmp x28, #32
  b.eq 32f
  b.gt 64f
  kernel 4, 4, 1
  b 99f
32:
  kernel 8, 2, 2
  b 99f
64:
  kernel 16, 1, 4
99:
  smstop
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
.size minicpmv_outer_products, . - minicpmv_outer_products

.globl minicpmv_streaming_bytes
.hidden minicpmv_streaming_bytes
.type minicpmv_streaming_bytes, %function
minicpmv_streaming_bytes:
  rdsvl x0, #1
  ret
.size minicpmv_streaming_bytes, . - minicpmv_streaming_bytes

#endif

.section .note.GNU-stack, "", %progbits
