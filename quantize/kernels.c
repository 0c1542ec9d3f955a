// Searching a group's scale, and rounding columns of weights in order: see quantize/kernels.py.
//
// LANES groups at a time, one in each lane, so that compilers find whole vectors. Sums run in the
// order of quantize/search.py and are not contracted, so that they have the same bits.

#include <stdint.h>

enum { GROUP = 32, LANES = 16, BLOCK = 128 };

typedef struct {
  const float *divisors;  // of the largest magnitude: the first scales that are tried
  int64_t count;          // of them
  float lowest, highest;  // codes, less the zero point
  int32_t symmetric;      // whether both sides have as many codes
} Search;

static inline float smaller(float a, float b) { return a < b ? a : b; }
static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float to_float16(float x) { return (float)(_Float16)x; }
static inline float divisor_of(float scale) { return scale == 0 ? __builtin_inff() : scale; }

static inline float code_of(float value, float divisor, const Search *s) {
  return smaller(larger(__builtin_rintf(value / divisor), s->lowest), s->highest);
}

// Adds up half to half.
static inline void tree_sum(float (*x)[LANES]) {
  for (int half = GROUP / 2; half; half /= 2)
    for (int g = 0; g < half; g++)
      for (int l = 0; l < LANES; l++) x[g][l] += x[g + half][l];
}

// Finds the scales of LANES groups. `importance` of value g in lane l: [g * step + l * across].
static inline void search(const float (*values)[LANES], const float *importance, int64_t step,
                          int64_t across, const Search *s, float *scale) {
  float largest[LANES], least[LANES], best[LANES];
  for (int l = 0; l < LANES; l++) largest[l] = least[l] = values[0][l];
  for (int g = 1; g < GROUP; g++)
    for (int l = 0; l < LANES; l++) {
      largest[l] = larger(values[g][l], largest[l]);
      least[l] = smaller(values[g][l], least[l]);
    }
  for (int l = 0; l < LANES; l++) {
    largest[l] = largest[l] >= -least[l] ? largest[l] : least[l];
    if (s->symmetric) largest[l] = __builtin_fabsf(largest[l]);
    best[l] = -__builtin_inff();
    scale[l] = 0;
  }
  for (int64_t d = 0; d < s->count; d++) {
    float divisor[LANES], shared[GROUP][LANES], power[GROUP][LANES];
    for (int l = 0; l < LANES; l++) divisor[l] = divisor_of(to_float16(largest[l] / s->divisors[d]));
    for (int g = 0; g < GROUP; g++)
      for (int l = 0; l < LANES; l++) {
        float code = code_of(values[g][l], divisor[l], s);
        float weighted = importance[g * step + l * across] * code;
        shared[g][l] = weighted * values[g][l];
        power[g][l] = weighted * code;
      }
    tree_sum(shared);
    tree_sum(power);
    for (int l = 0; l < LANES; l++) {
      float of = power[0][l], with = shared[0][l];
      float fitted = to_float16(with / (of > 0 ? of : 1.0f));
      float gain = fitted * ((with + with) - fitted * of);
      scale[l] = gain > best[l] ? fitted : scale[l];
      best[l] = gain > best[l] ? gain : best[l];
    }
  }
}

// Copies `rows` rows of up to LANES values; the lanes that are left get zeros.
static inline void load(float (*to)[LANES], const float *from, int64_t stride, int64_t rows,
                        int64_t lanes) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t l = 0; l < LANES; l++) to[r][l] = l < lanes ? from[r * stride + l] : 0.0f;
}

// Finds the scales of groups first..last: values and importance (GROUP, stride), scale (stride,).
void search_scales(const float *values, const float *importance, int64_t stride, int64_t first,
                   int64_t last, const Search *s, float *scale) {
  for (int64_t at = first; at < last; at += LANES) {
    int64_t lanes = last - at < LANES ? last - at : LANES;
    float group[GROUP][LANES], weight[GROUP][LANES], found[LANES];
    load(group, values + at, stride, GROUP, lanes);
    load(weight, importance + at, stride, GROUP, lanes);
    search(group, weight[0], LANES, 1, s, found);
    for (int64_t l = 0; l < lanes; l++) scale[at + l] = found[l];
  }
}

// Takes a column's error from the columns after it.
static inline void compensate(float (*values)[LANES], const float *factor, int64_t at, int64_t last,
                              const float *loss) {
#pragma clang fp contract(fast)
  for (int64_t j = at + 1; j < last; j++)
    for (int l = 0; l < LANES; l++) values[j][l] -= factor[j] * loss[l];
}

// Rounds a block of at most BLOCK inputs, of the rows first..last of a linear.
//
//   weight (inputs, rows): those of the block; stride: rows.
//   factor (inputs, width): the block's square of GPTQ's factor, upper; width: of a row.
//   importance (inputs,): of a squared error.
//   codes (inputs, rows), scale (inputs / GROUP, rows), losses (inputs, rows): results.
void round_block(const float *weight, int64_t stride, int64_t inputs, const float *factor,
                 int64_t width, const float *importance, int64_t first, int64_t last,
                 const Search *s, float zero_point, uint8_t *codes, _Float16 *scale,
                 float *losses) {
  for (int64_t row = first; row < last; row += LANES) {
    int64_t lanes = last - row < LANES ? last - row : LANES;
    float values[BLOCK][LANES], steps[LANES], divisor[LANES];
    load(values, weight + row, stride, inputs, lanes);
    for (int64_t at = 0; at < inputs; at++) {
      if (at % GROUP == 0) {
        search(values + at, importance + at, 1, 0, s, steps);
        for (int l = 0; l < LANES; l++) divisor[l] = divisor_of(steps[l]);
        for (int64_t l = 0; l < lanes; l++)
          scale[at / GROUP * stride + row + l] = (_Float16)steps[l];
      }
      float loss[LANES], code[LANES];
      for (int l = 0; l < LANES; l++) {
        code[l] = code_of(values[at][l], divisor[l], s);
        loss[l] = (values[at][l] - code[l] * steps[l]) / factor[at * width + at];
      }
      compensate(values, factor + at * width, at, inputs, loss);
      for (int64_t l = 0; l < lanes; l++) {
        codes[at * stride + row + l] = (uint8_t)(code[l] + zero_point);
        losses[at * stride + row + l] = loss[l];
      }
    }
  }
}
