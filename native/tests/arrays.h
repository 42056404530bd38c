// Numbers for the tests: as doubles in plain order for the formulas, and as bytes in memory for the kernels.
//
// Every tensor that a kernel gets is one heap allocation that ends with its last element, so that a sanitizer sees an access
// one element beyond it. What lies between its rows, heads and batches is all ones: NaN to whoever reads it, and for whoever
// writes there a mark that it then lacks.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../abi.h"

namespace test {

constexpr double kInfinity = INFINITY;

class Random {
  std::mt19937_64 engine_;

 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t whole(int64_t low, int64_t high) { return low + (int64_t)(engine_() % (uint64_t)(high - low + 1)); }
  double fraction() { return (double)(engine_() >> 11) * 0x1p-53; }
  bool chance(double probability) { return fraction() < probability; }
  double normal() { return std::sqrt(-2.0 * std::log(1.0 - fraction())) * std::cos(6.283185307179586 * fraction()); }
  template <class T>
  T one_of(std::initializer_list<T> list) { return list.begin()[whole(0, (int64_t)list.size() - 1)]; }
};

// ---------------------------------------------------------------------------------------- number formats

// The dtypes of abi.h, and what else crosses the border.
enum : int64_t { kInt32 = 3, kInt64 = 4, kByte = 5 };

inline int64_t bytes_of(int64_t dtype) { return (int64_t[]){4, 2, 2, 4, 8, 1}[dtype]; }

// Half a unit in the last digit, relative, and the smallest number.
inline double half_digit(int64_t dtype) { return (double[]){0x1p-24, 0x1p-8, 0x1p-11}[dtype]; }
inline double smallest(int64_t dtype) { return (double[]){0x1p-149, 0x1p-133, 0x1p-24}[dtype]; }

// To the nearest number of the dtype, ties to even.
inline double rounded(double x, int64_t dtype) {
  if (dtype == saccade::kFloat32) return (double)(float)x;
  if (!std::isfinite(x) || x == 0.0) return x;
  const int digits = dtype == saccade::kBFloat16 ? 8 : 11, lowest = dtype == saccade::kBFloat16 ? -133 : -24;
  int exponent;
  std::frexp(x, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - digits, lowest));
  const double near = std::nearbyint(x / step) * step;
  return dtype == saccade::kFloat16 && std::fabs(near) > 65504.0 ? std::copysign(kInfinity, x) : near;
}

inline uint16_t fp16_bits(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(x);
  if (std::isnan(x)) return 0x7e00;
  if (std::isinf(x)) return sign | 0x7c00;
  if (size < 0x1p-14) return sign | (uint16_t)(size * 0x1p24);
  int exponent;
  const double fraction = std::frexp(size, &exponent) * 2.0 - 1.0;
  return (uint16_t)(sign | (exponent + 14) << 10 | (int)(fraction * 1024.0));
}

inline double fp16_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 0 ? fraction * 0x1p-24 : std::ldexp(1.0 + fraction / 1024.0, exponent - 15);
  if (exponent == 31) size = fraction ? NAN : kInfinity;
  return bits & 0x8000 ? -size : size;
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
void put(char *to, T x) { memcpy(to, &x, sizeof x); }
template <class T>
double get(const char *from) {
  T x;
  memcpy(&x, from, sizeof x);
  return (double)x;
}

inline void put_number(char *to, int64_t dtype, double x) {
  switch (dtype) {
    case saccade::kFloat32: return put(to, (float)x);
    case saccade::kBFloat16: return put(to, (uint16_t)(same_bits<uint32_t>((float)rounded(x, dtype)) >> 16));
    case saccade::kFloat16: return put(to, fp16_bits(rounded(x, dtype)));
    case kInt32: return put(to, (int32_t)x);
    case kInt64: return put(to, (int64_t)x);
    default: return put(to, (uint8_t)x);
  }
}

inline double get_number(const char *from, int64_t dtype) {
  switch (dtype) {
    case saccade::kFloat32: return get<float>(from);
    case saccade::kBFloat16: return same_bits<float>((uint32_t)get<uint16_t>(from) << 16);
    case saccade::kFloat16: return fp16_value((uint16_t)get<uint16_t>(from));
    case kInt32: return get<int32_t>(from);
    case kInt64: return get<int64_t>(from);
    default: return get<uint8_t>(from);
  }
}

// ---------------------------------------------------------------------------------------- arrays

using Shape = std::array<int64_t, 4>;

inline int64_t count_of(const Shape &shape) { return shape[0] * shape[1] * shape[2] * shape[3]; }

// Doubles in plain order. A dimension of size 1 serves every index.
struct Array {
  Shape shape = {0, 0, 0, 0};
  std::vector<double> x;

  Array() = default;
  explicit Array(Shape wanted, double value = 0.0) : shape(wanted), x((size_t)count_of(wanted), value) {}

  bool empty() const { return x.empty(); }
  size_t index(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const int64_t at[] = {a, b, c, d};
    int64_t index = 0;
    for (int i = 0; i < 4; i++) index = index * shape[i] + (shape[i] == 1 ? 0 : at[i]);
    return (size_t)index;
  }
  double &at(int64_t a, int64_t b, int64_t c, int64_t d) { return x[index(a, b, c, d)]; }
  double at(int64_t a, int64_t b, int64_t c, int64_t d) const { return x[index(a, b, c, d)]; }
};

// ---------------------------------------------------------------------------------------- memory

// How an array lies in memory; strides count elements.
struct Layout {
  Shape stride = {0, 0, 0, 0};
  int64_t lead = 0;  // elements in front of the first
};

inline Layout contiguous(const Shape &shape) {
  return {{shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}, 0};
}

// The first three dimensions in any order, with gaps; the last one `step` apart.
inline Layout scattered(const Shape &shape, Random &random, int64_t step = 1) {
  Layout layout;
  layout.lead = random.chance(0.5) ? 0 : random.whole(1, 9);
  layout.stride[3] = step;
  std::vector<int> order = {2, 1, 0};
  if (random.chance(0.5)) std::swap(order[0], order[1]);
  if (random.chance(0.2)) std::swap(order[1], order[2]);
  int64_t extent = step * std::max<int64_t>(shape[3], 1);
  for (int dim : order) {
    layout.stride[dim] = extent + (random.chance(0.5) ? 0 : random.whole(1, 7));
    extent = layout.stride[dim] * std::max<int64_t>(shape[dim], 1);
  }
  return layout;
}

class Tensor {
  int64_t dtype_ = 0, elements_ = 0;
  Shape shape_ = {0, 0, 0, 0};
  Layout layout_;
  std::unique_ptr<char[]> memory_;

  template <class Each>
  void each(Each visit) const {
    size_t index = 0;
    for (int64_t a = 0; a < shape_[0]; a++)
      for (int64_t b = 0; b < shape_[1]; b++)
        for (int64_t c = 0; c < shape_[2]; c++)
          for (int64_t d = 0; d < shape_[3]; d++) visit(index++, offset(a, b, c, d));
  }
  int64_t offset(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const Shape &s = layout_.stride;
    return (layout_.lead + a * s[0] + b * s[1] + c * s[2] + d * s[3]) * bytes_of(dtype_);
  }

 public:
  Tensor() = default;

  // All ones.
  Tensor(const Shape &shape, int64_t dtype, const Layout &layout) : dtype_(dtype), shape_(shape), layout_(layout) {
    elements_ = layout.lead;
    if (count_of(shape)) elements_ += 1;
    for (int i = 0; i < 4 && count_of(shape); i++) elements_ += (shape[i] - 1) * layout.stride[i];
    memory_.reset(new char[(size_t)bytes()]);
    memset(memory_.get(), 0xff, (size_t)bytes());
  }

  Tensor(const Array &array, int64_t dtype, const Layout &layout) : Tensor(array.shape, dtype, layout) { write(array); }
  Tensor(const Array &array, int64_t dtype) : Tensor(array, dtype, contiguous(array.shape)) {}

  int64_t bytes() const { return elements_ * bytes_of(dtype_); }
  void *pointer() const { return memory_ ? memory_.get() + layout_.lead * bytes_of(dtype_) : nullptr; }
  const char *start() const { return memory_.get(); }

  // The stride of a dimension; 0 where it has size 1 and serves every index.
  int64_t stride(int dim) const { return shape_[dim] == 1 ? 0 : layout_.stride[dim]; }

  void write(const Array &array) {
    each([&](size_t index, int64_t offset) { put_number(memory_.get() + offset, dtype_, array.x[index]); });
  }

  Array read() const {
    Array array(shape_);
    each([&](size_t index, int64_t offset) { array.x[index] = get_number(memory_.get() + offset, dtype_); });
    return array;
  }

  // Whether all bytes that belong to no element are as they were.
  bool gaps_untouched() const {
    std::vector<char> bytes_left(memory_.get(), memory_.get() + bytes());
    each([&](size_t, int64_t offset) { memset(&bytes_left[(size_t)offset], 0xff, (size_t)bytes_of(dtype_)); });
    for (char byte : bytes_left)
      if (byte != (char)0xff) return false;
    return true;
  }

  bool same_as(const Tensor &other) const {
    return bytes() == other.bytes() && (!bytes() || !memcmp(memory_.get(), other.memory_.get(), (size_t)bytes()));
  }
};

}  // namespace test
