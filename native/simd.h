// The thin layer under every kernel: vectors of W floats, written with the vector extensions of GCC and Clang so that one
// source serves AVX-512, AVX2, NEON and SSE2. Only what the extensions cannot say is written with intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace SACCADE_VARIANT {

// W floats in a vector, V vectors side by side, R rows: V * R accumulators, V operands and a broadcast fill the registers.
// Latency 4 x 2 units = 8 accumulators are the least that keep the multipliers busy.
#if defined(__AVX512F__) || defined(SACCADE_EMULATE_BF16)
constexpr int W = 16, V = 2, R = 12;
#elif defined(__AVX2__)
constexpr int W = 8, V = 2, R = 6;
#elif defined(__aarch64__)
constexpr int W = 4, V = 4, R = 5;
#else
constexpr int W = 4, V = 2, R = 4;
#endif

// A strip: this many queries side by side in the lanes.
constexpr int L = V * W;

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

#define INLINE inline __attribute__((always_inline))

template <class T>
INLINE T load_as(const void *p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

INLINE vf load(const float *p) { return load_as<vf>(p); }
INLINE void store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store(int32_t *p, vi v) { __builtin_memcpy(p, &v, sizeof v); }

// An initializer list with one number is one broadcast instruction in both compilers; a loop is not.
#define SACCADE_4(x, step) x, x + 1 * step, x + 2 * step, x + 3 * step
#if defined(__AVX512F__) || defined(SACCADE_EMULATE_BF16)
#define SACCADE_LANES(x, step) \
  SACCADE_4(x, step), SACCADE_4(x + 4 * step, step), SACCADE_4(x + 8 * step, step), SACCADE_4(x + 12 * step, step)
#define SACCADE_SAME(x) x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x
#elif defined(__AVX2__)
#define SACCADE_LANES(x, step) SACCADE_4(x, step), SACCADE_4(x + 4 * step, step)
#define SACCADE_SAME(x) x, x, x, x, x, x, x, x
#else
#define SACCADE_LANES(x, step) SACCADE_4(x, step)
#define SACCADE_SAME(x) x, x, x, x
#endif

INLINE vf splat(float x) { return vf{SACCADE_SAME(x)}; }
INLINE vi splat(int32_t x) { return vi{SACCADE_SAME(x)}; }
INLINE vi iota() { return vi{SACCADE_LANES(0, 1)}; }

// a > b ? a : b, so NaN in `b` comes through. GCC makes a comparison and a blend of that where one instruction does it.
#if defined(__AVX512F__)
INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__) && !defined(SACCADE_EMULATE_BF16)
INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE vf max(vf a, vf b) { return a > b ? a : b; }
INLINE vf min(vf a, vf b) { return a < b ? a : b; }
#endif
INLINE vi max(vi a, vi b) { return a > b ? a : b; }
INLINE vi min(vi a, vi b) { return a < b ? a : b; }
INLINE vf abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__) && !defined(SACCADE_EMULATE_BF16)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  int32_t seen = 0;
  for (int i = 0; i < W; i++) seen |= mask[i];
  return seen != 0;
#endif
}
INLINE bool all(vi mask) { return !any(~mask); }

INLINE float sum(vf x) {
  float total[W];
  __builtin_memcpy(total, &x, sizeof x);
  for (int width = W / 2; width; width /= 2)
    for (int i = 0; i < width; i++) total[i] += total[i + width];
  return total[0];
}
INLINE int32_t smallest(vi x) {
  int32_t low = x[0];
  for (int i = 1; i < W; i++) low = x[i] < low ? x[i] : low;
  return low;
}
INLINE int32_t largest(vi x) {
  int32_t top = x[0];
  for (int i = 1; i < W; i++) top = x[i] > top ? x[i] : top;
  return top;
}

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kInfinity = __builtin_inff();

// Below this 2**x is 0: exponents are clamped to it, so that -inf gives exactly 0.
constexpr float kLowestExponent = -127.0f;

// A constant that the compiler keeps in a register; otherwise it reads constants from memory at each use, and a loop over
// exponentials is then bound by its loads.
INLINE vf pinned(float x) {
  vf v = splat(x);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__) && !defined(SACCADE_EMULATE_BF16)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// 2**x for x < 128, 0 below -126.5; NaN gives NaN. With x = n + r, |r| <= 1/2, the polynomial is the one of degree 5 with
// constant term 1 that is nearest to 2**r in relative error (9.2e-8). Made once in front of a loop.
struct Exponential {
  vf lowest = pinned(kLowestExponent);
  vf shift = pinned(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer, which the low bits then hold
  vf c5 = pinned(0.0013264727f), c4 = pinned(0.0096715126f), c3 = pinned(0.0555073374f), c2 = pinned(0.2402224209f),
     c1 = pinned(0.6931469776f), one = pinned(1.0f);

  INLINE vf clamp(vf x) const { return max(lowest, x); }

  // x >= -127.
  INLINE vf of_clamped(vf x) const {
    const vf shifted = x + shift;
    const vf r = x - (shifted - shift);
    const vf y = ((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + one;
    return y * (vf)(((vi)shifted << 23) + (vi)one);  // the exponent n on top of 1.0's own
  }
  INLINE vf operator()(vf x) const { return of_clamped(clamp(x)); }

  // Several at once, step by step: one alone is a chain of 13 dependent operations, and a few such chains fill the scheduler.
  template <int N>
  INLINE void of_clamped(vf (&x)[N]) const {
    vf shifted[N], y[N];
    for (int i = 0; i < N; i++) shifted[i] = x[i] + shift;
    for (int i = 0; i < N; i++) x[i] -= shifted[i] - shift;
    for (int i = 0; i < N; i++) y[i] = c5 * x[i] + c4;
    for (int i = 0; i < N; i++) y[i] = y[i] * x[i] + c3;
    for (int i = 0; i < N; i++) y[i] = y[i] * x[i] + c2;
    for (int i = 0; i < N; i++) y[i] = y[i] * x[i] + c1;
    for (int i = 0; i < N; i++) y[i] = y[i] * x[i] + one;
    for (int i = 0; i < N; i++) x[i] = y[i] * (vf)(((vi)shifted[i] << 23) + (vi)one);
  }
};
INLINE vf exp2(vf x) { return Exponential()(x); }

// tanh by its Taylor series near 0, where the formula with the exponential would lose digits.
INLINE vf tanh(vf x) {
  const vf magnitude = abs(x), square = x * x;
  const vf e = Exponential().of_clamped(min(magnitude * splat(2 * kLog2E), splat(60.0f)));
  const vf far = splat(1.0f) - splat(2.0f) / (e + splat(1.0f));
  const vf signed_far = (vf)((vi)far | ((vi)x & (int32_t)0x80000000));
  vf near = splat(62.0f / 2835) * square - splat(17.0f / 315);
  near = near * square + splat(2.0f / 15);
  near = near * square - splat(1.0f / 3);
  near = near * square * x + x;
  return magnitude < splat(0.3f) ? near : signed_far;
}

// ---------------------------------------------------------------------------------------- half precision

INLINE vf from_bf16(vh x) { return (vf)(__builtin_convertvector(x, vi) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE vi to_bf16_bits(vf x) {  // finite x: the rounded number in the low half of each lane
  const vi bits = (vi)x;
  return (vi)(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff);
}

inline float from_fp16(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  uint32_t bits;
  float x;
  if (exponent == 0) {  // zero and subnormal: fraction * 2**-24, exact in float
    x = (float)fraction * 0x1p-24f;
    return sign ? -x : x;
  }
  bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | (fraction << 13);
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline uint16_t to_fp16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded fraction in the low bits
    float shifted;
    __builtin_memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    __builtin_memcpy(&bits, &shifted, 4);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

INLINE vf from_fp16(const uint16_t *p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__F16C__) && defined(__AVX2__) && !defined(SACCADE_EMULATE_BF16)
  return (vf)_mm256_cvtph_ps(load_as<__m128i>(p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(load_as<float16x4_t>(p));
#else
  vf x;
  for (int i = 0; i < W; i++) x[i] = from_fp16(p[i]);
  return x;
#endif
}

// `count` numbers of any dtype as floats.
inline void to_floats(float *to, const void *from, int64_t dtype, int64_t count) {
  int64_t i = 0;
  if (dtype == saccade::kFloat32) {
    __builtin_memcpy(to, from, (size_t)count * 4);
  } else if (dtype == saccade::kBFloat16) {
    const uint16_t *halves = (const uint16_t *)from;
    for (; i + W <= count; i += W) store(to + i, from_bf16(load_as<vh>(halves + i)));
    for (; i < count; i++) {
      const uint32_t bits = (uint32_t)halves[i] << 16;
      __builtin_memcpy(to + i, &bits, 4);
    }
  } else {
    const uint16_t *halves = (const uint16_t *)from;
    for (; i + W <= count; i += W) store(to + i, from_fp16(halves + i));
    for (; i < count; i++) to[i] = from_fp16(halves[i]);
  }
}

INLINE float to_float(const void *from, int64_t dtype) {
  float x;
  to_floats(&x, from, dtype, 1);
  return x;
}

inline void from_floats(void *to, const float *from, int64_t dtype, int64_t count) {
  uint16_t *halves = (uint16_t *)to;
  int64_t i = 0;
  if (dtype == saccade::kFloat32) {
    __builtin_memcpy(to, from, (size_t)count * 4);
  } else if (dtype == saccade::kBFloat16) {
    for (; i < count; i++) halves[i] = to_bf16(from[i]);
  } else {
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
      const __m128i rounded = _mm256_cvtps_ph(load_as<__m256>(from + i), _MM_FROUND_TO_NEAREST_INT);
      __builtin_memcpy(halves + i, &rounded, sizeof rounded);
    }
#endif
    for (; i < count; i++) halves[i] = to_fp16(from[i]);
  }
}

INLINE int64_t size_of(int64_t dtype) { return dtype == saccade::kFloat32 ? 4 : 2; }
INLINE const char *element(const void *base, int64_t dtype, int64_t index) {
  return (const char *)base + index * size_of(dtype);
}

// ---------------------------------------------------------------------------------------- transposes

// One stage of a butterfly: blocks of size B off the diagonal change places between rows i and i + B.
template <int B>
INLINE void exchange(vf &a, vf &b) {
  vi low = iota(), high = iota();
  const vi second = (iota() & B) != 0;
  low = second ? iota() - B + W : iota();
  high = second ? iota() + W : iota() + B;
#if defined(__clang__)
  vf x, y;
  for (int i = 0; i < W; i++) {
    x[i] = low[i] < W ? a[low[i]] : b[low[i] - W];
    y[i] = high[i] < W ? a[high[i]] : b[high[i] - W];
  }
#else
  const vf x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
#endif
  a = x;
  b = y;
}

// W x W floats, in place.
INLINE void transpose(vf (&rows)[W]) {
  for (int i = 0; i < W; i++)
    if (!(i & 1)) exchange<1>(rows[i], rows[i + 1]);
  for (int i = 0; i < W; i++)
    if (!(i & 2)) exchange<2>(rows[i], rows[i + 2]);
  if constexpr (W >= 8)
    for (int i = 0; i < W; i++)
      if (!(i & 4)) exchange<4>(rows[i], rows[i + 4]);
  if constexpr (W >= 16)
    for (int i = 0; i < W; i++)
      if (!(i & 8)) exchange<8>(rows[i], rows[i + 8]);
}

// Lane j: the sum of the j-th vector. Each stage adds halves of two vectors, so it takes half of what a transpose would.
INLINE vf sums_of(vf (&x)[W]) {
  for (int i = 0; i < W / 2; i++) exchange<1>(x[2 * i], x[2 * i + 1]), x[i] = x[2 * i] + x[2 * i + 1];
  for (int i = 0; i < W / 4; i++) exchange<2>(x[2 * i], x[2 * i + 1]), x[i] = x[2 * i] + x[2 * i + 1];
  if constexpr (W >= 8)
    for (int i = 0; i < W / 8; i++) exchange<4>(x[2 * i], x[2 * i + 1]), x[i] = x[2 * i] + x[2 * i + 1];
  if constexpr (W >= 16) exchange<8>(x[0], x[1]), x[0] += x[1];
  return x[0];
}

// Lanes i and i ^ B change places.
template <int B>
INLINE vf swapped(vf x) {
  vf y = x;
  exchange<B>(x, y);
  return (iota() & B) != 0 ? x : y;
}

// ---------------------------------------------------------------------------------------- bounds

// Whether all of `count` numbers are finite: x * 0 is NaN for what is not. Four sums, as one would wait for itself.
inline bool finite(const void *from, int64_t dtype, int64_t count) {
  int64_t i = 0;
  if (dtype != saccade::kFloat32) {
    // A 16-bit number is not finite where all bits of its exponent are 1.
    const uint16_t exponent = dtype == saccade::kBFloat16 ? 0x7f80 : 0x7c00;
    const uint16_t *halves = (const uint16_t *)from;
    uint16_t bad = 0;
    for (; i < count; i++) bad |= (uint16_t)((halves[i] & exponent) == exponent);
    return bad == 0;
  }
  const float *x = (const float *)from;
  vf zeros[4] = {};
  for (; i + 4 * W <= count; i += 4 * W)
    for (int j = 0; j < 4; j++) zeros[j] += load(x + i + j * W) * splat(0.0f);
  for (; i + W <= count; i += W) zeros[0] += load(x + i) * splat(0.0f);
  float rest = 0.0f;
  for (; i < count; i++) rest += x[i] * 0.0f;
  const vf zero = (zeros[0] + zeros[1]) + (zeros[2] + zeros[3]);
  return !any(zero != splat(0.0f)) && rest == 0.0f;
}

// The same of `rows` rows, `stride` apart.
inline bool finite_rows(const char *from, int64_t dtype, int64_t rows, int64_t stride, int64_t width) {
  if (stride == width) return finite(from, dtype, rows * width);
  for (int64_t r = 0; r < rows; r++)
    if (!finite(from + r * stride * size_of(dtype), dtype, width)) return false;
  return true;
}

constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
template <class T>
constexpr INLINE T smaller(T a, T b) { return a < b ? a : b; }
template <class T>
constexpr INLINE T larger(T a, T b) { return a > b ? a : b; }

// Memory for one thread's work, handed out piece by piece. With a null base it only counts.
struct Arena {
  char *base;
  int64_t used = 0;

  template <class T>
  T *take(int64_t count) {
    char *p = base ? base + used : nullptr;
    used += round_up(count * (int64_t)sizeof(T), 64);
    return (T *)p;
  }
};

}  // namespace SACCADE_VARIANT
