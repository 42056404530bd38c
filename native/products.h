// The one product that everything is made of, in registers:
//
//     C[row][lane] (+)= sum over t of A(row, t) * B[t][lane]
//
// A is read one number at a time and broadcast, wherever it lies (any strides), so keys and values need no packing. B's
// lanes are contiguous. Sums of one call start at 0 and are added to C at the end: long sums keep their digits.
#pragma once

#include "simd.h"

namespace SACCADE_VARIANT {

// Plain floats.
struct Single {
  typedef float A;
  typedef vf B;
  static INLINE vf broadcast(const float *p) { return splat(*p); }
  static INLINE vf multiply_add(vf sum, vf a, vf b) { return sum + a * b; }
};

// Pairs of bfloat16 in 32 bits: two steps at once, products exact and summed in float.
struct Pairs {
  typedef int32_t A;
  typedef vi B;
  static INLINE vi broadcast(const int32_t *p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return splat(pair);
  }
  static INLINE vf multiply_add(vf sum, vi a, vi b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const int32_t high = (int32_t)0xffff0000;
    sum += (vf)(a << 16) * (vf)(b << 16);
    return sum + (vf)(a & high) * (vf)(b & high);
#endif
  }
};

#if defined(__AVX512BF16__) || defined(SACCADE_EMULATE_BF16)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

// `SideBySide`: the rows' numbers lie side by side (a_row is 1), and steps are `a_stride` apart; else the other way round.
template <class Op, int Rows, bool Add, bool SideBySide>
void micro(float *c, ptrdiff_t c_row, const typename Op::A *a, ptrdiff_t a_stride, const typename Op::B *b,
           ptrdiff_t b_step, ptrdiff_t steps) {
  const ptrdiff_t a_row = SideBySide ? 1 : a_stride, a_step = SideBySide ? a_stride : 1;
  vf sums[Rows][V] = {};
  const char *lanes = (const char *)b;
  for (ptrdiff_t t = 0; t < steps; t++) {
    // A row of values is touched by a few numbers at each step: too little at a time for the hardware to run ahead.
    if (SideBySide) __builtin_prefetch(a + 8 * a_step);
    typename Op::B operand[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) operand[v] = load_as<typename Op::B>(lanes + v * 4 * W);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) {
      const auto x = Op::broadcast(a + r * a_row);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r][v] = Op::multiply_add(sums[r][v], x, operand[v]);
    }
    a += a_step;
    lanes += b_step * 4;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      float *target = c + r * c_row + v * W;
      store(target, Add ? load(target) + sums[r][v] : sums[r][v]);
    }
}

template <class Op, int Rows, bool Add>
INLINE void micro_of(float *c, ptrdiff_t c_row, const typename Op::A *a, ptrdiff_t a_row, ptrdiff_t a_step,
                     const typename Op::B *b, ptrdiff_t b_step, ptrdiff_t steps) {
  if (a_row == 1)
    micro<Op, Rows, Add, true>(c, c_row, a, a_step, b, b_step, steps);
  else
    micro<Op, Rows, Add, false>(c, c_row, a, a_row, b, b_step, steps);
}

template <class Op, int Rows, bool Add>
INLINE void micro_at_most(int rows, float *c, ptrdiff_t c_row, const typename Op::A *a, ptrdiff_t a_row,
                          ptrdiff_t a_step, const typename Op::B *b, ptrdiff_t b_step, ptrdiff_t steps) {
  if (rows == Rows)
    return micro_of<Op, Rows, Add>(c, c_row, a, a_row, a_step, b, b_step, steps);
  if constexpr (Rows > 1)
    return micro_at_most<Op, Rows - 1, Add>(rows, c, c_row, a, a_row, a_step, b, b_step, steps);
}

// `rows` rows of L lanes. One of a's strides is 1. b_step counts 32-bit lanes.
template <class Op, bool Add>
INLINE void product(float *c, ptrdiff_t c_row, const typename Op::A *a, ptrdiff_t a_row, ptrdiff_t a_step,
                    const typename Op::B *b, ptrdiff_t b_step, ptrdiff_t rows, ptrdiff_t steps) {
  // Rows are dealt evenly: 64 as 9 x 6 + 2 x 5 and not 10 x 6 + 4.
  for (ptrdiff_t blocks = (rows + R - 1) / R; blocks > 0; blocks--) {
    const int here = (int)((rows + blocks - 1) / blocks);
    micro_at_most<Op, R, Add>(here, c, c_row, a, a_row, a_step, b, b_step, steps);
    rows -= here;
    c += here * c_row;
    a += here * a_row;
  }
}

}  // namespace SACCADE_VARIANT
