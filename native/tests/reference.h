// Attention by its formulas, in double, an entry of the pattern at a time.
//
// Beside every number stands the sum of the sizes of the terms it was added up from: float32 sums are off by a share of
// that, not of the number, which may be the little left over when large terms cancel.
#pragma once

#include "arrays.h"

namespace test {

enum Kind : int64_t { kEntropy, kMaxWeight, kTopKeys, kDistance, kMass, kReceived, kMap };

// A statistic, its fields as in abi.h.
struct Asked {
  int64_t kind = 0, first = 0, second = 0, third = 0, over_heads = 0;
  Array groups;  // (B|1, 1, 1, N)
};

// A problem in numbers. An empty array: there is none.
struct Case {
  uint64_t seed = 0;
  int64_t batch = 1, key_heads = 1, group = 1, queries = 1, keys = 1, width = 1, value_width = 1;
  int64_t dtype = saccade::kFloat32, threads = 1;
  double scale = 1.0, softcap = 0.0;
  Array query, key, value;  // (B, H, Nq, D), (B, Hk, Nk, D), (B, Hk, Nk, Dv)
  Array starts, stops;      // (B|1, H|1, Nq, runs)
  Array visible;            // (B|1, H|1, Nq, Nk)
  int64_t bias_kind = saccade::kNoBias, bias_dtype = saccade::kFloat32, bias_offset = 0, bias_first = 0;
  Array bias;   // dense (B|1, H|1, Nq|1, Nk|1), slopes (B|1, H|1, 1, 1), relative (B|1, H|1, 1, count)
  Array sinks;  // (B|1, H, 1, 1)
  int64_t page_size = 0;
  Array pages;  // (B|1, 1, 1, pages of a sequence)
  int64_t row_start = 0, row_stop = 0, key_start = 0, key_stop = 0;  // of a window
  std::vector<Asked> statistics;

  int64_t heads() const { return key_heads * group; }
  Shape rows(int64_t columns) const { return {batch, heads(), queries, columns}; }
};

inline bool sees(const Case &c, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (!c.visible.empty()) return c.visible.at(b, h, i, j) != 0.0;
  if (c.starts.empty()) return true;
  for (int64_t run = 0; run < c.starts.shape[3]; run++)
    if (c.starts.at(b, h, i, run) <= (double)j && (double)j < c.stops.at(b, h, i, run)) return true;
  return false;
}

inline double distance(int64_t i, int64_t offset, int64_t j) { return std::fabs((double)(i + offset - j)); }

// Where in the bias an entry reads its value, and what is done with it.
inline size_t bias_index(const Case &c, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (c.bias_kind != saccade::kRelativeBias) return c.bias.index(b, h, i, j);
  const int64_t position = j - (i + c.bias_offset) - c.bias_first;
  return c.bias.index(b, h, 0, std::min(std::max<int64_t>(position, 0), c.bias.shape[3] - 1));
}
inline double bias_factor(const Case &c, int64_t i, int64_t j) {
  return c.bias_kind == saccade::kALiBi ? -distance(i, c.bias_offset, j) : 1.0;
}

// ---------------------------------------------------------------------------------------- the pattern

struct Pattern {
  Array weight, tanhs;  // (B, H, Nq, Nk)
  Array lse;            // (B, H, Nq, 1)
  double reach = 0.0;   // the largest sum of sizes in a score
};

inline double score(const Case &c, int64_t b, int64_t h, int64_t i, int64_t j, Pattern &pattern) {
  const double *q = &c.query.x[c.query.index(b, h, i, 0)], *k = &c.key.x[c.key.index(b, h / c.group, j, 0)];
  double s = 0.0, reach = 0.0;
  for (int64_t d = 0; d < c.width; d++) {
    s += q[d] * k[d];
    reach += std::fabs(q[d] * k[d]);
  }
  s *= c.scale;
  reach *= std::fabs(c.scale);
  if (c.softcap != 0.0) s = c.softcap * (pattern.tanhs.at(b, h, i, j) = std::tanh(s / c.softcap));
  if (c.bias_kind != saccade::kNoBias) {
    const double bias = c.bias.x[bias_index(c, b, h, i, j)] * bias_factor(c, i, j);
    s += bias;
    if (bias > -kInfinity) reach += std::fabs(bias);
  }
  pattern.reach = std::max(pattern.reach, reach);
  return s;
}

inline void row(const Case &c, int64_t b, int64_t h, int64_t i, Pattern &pattern) {
  const double sink = c.sinks.empty() ? -kInfinity : c.sinks.at(b, h, 0, 0);
  double top = sink, total = 0.0;
  double *p = c.keys ? &pattern.weight.x[pattern.weight.index(b, h, i, 0)] : nullptr;
  for (int64_t j = 0; j < c.keys; j++) {
    p[j] = sees(c, b, h, i, j) ? score(c, b, h, i, j, pattern) : -kInfinity;
    top = std::max(top, p[j]);
  }
  if (top == -kInfinity) {
    for (int64_t j = 0; j < c.keys; j++) p[j] = 0.0;
    return;
  }
  for (int64_t j = 0; j < c.keys; j++) total += std::exp(p[j] - top);
  total += std::exp(sink - top);
  for (int64_t j = 0; j < c.keys; j++) p[j] = std::exp(p[j] - top) / total;
  pattern.lse.at(b, h, i, 0) = top + std::log(total);
}

template <class Each>
void each_row(const Case &c, Each each) {
  for (int64_t b = 0; b < c.batch; b++)
    for (int64_t h = 0; h < c.heads(); h++)
      for (int64_t i = 0; i < c.queries; i++) each(b, h, i);
}

inline Pattern pattern_of(const Case &c) {
  Pattern pattern;
  pattern.weight = Array(c.rows(c.keys));
  if (c.softcap != 0.0) pattern.tanhs = Array(c.rows(c.keys));
  pattern.lse = Array(c.rows(1), -kInfinity);
  each_row(c, [&](int64_t b, int64_t h, int64_t i) { row(c, b, h, i, pattern); });
  return pattern;
}

template <class Each>
void each_weight(const Case &c, const Pattern &pattern, Each each) {
  each_row(c, [&](int64_t b, int64_t h, int64_t i) {
    for (int64_t j = 0; j < c.keys; j++)
      if (const double p = pattern.weight.at(b, h, i, j); p > 0.0) each(b, h, i, j, p);
  });
}

// ---------------------------------------------------------------------------------------- what is made of it

struct Expected {
  Array value, size;

  Expected() = default;
  explicit Expected(const Shape &shape) : value(shape), size(shape) {}
  void add(size_t at, double term, double reach) {
    value.x[at] += term;
    size.x[at] += reach;
  }
  void add(size_t at, double term) { add(at, term, std::fabs(term)); }
  void raise(size_t at, double term) { value.x[at] = size.x[at] = std::max(value.x[at], term); }
  // += factor * numbers
  void add_row(size_t at, double factor, double reach, const double *numbers, int64_t count) {
    for (int64_t d = 0; d < count; d++) add(at + (size_t)d, factor * numbers[d], reach * std::fabs(numbers[d]));
  }
};

inline Expected output_of(const Case &c, const Pattern &pattern) {
  Expected output(c.rows(c.value_width));
  each_weight(c, pattern, [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
    const double *v = &c.value.x[c.value.index(b, h / c.group, j, 0)];
    output.add_row(output.value.index(b, h, i, 0), p, p, v, c.value_width);
  });
  return output;
}

// A^T Y.
inline Expected transposed_of(const Case &c, const Pattern &pattern, const Array &y) {
  const int64_t width = y.shape[3];
  Expected result({c.batch, c.heads(), c.keys, width});
  each_weight(c, pattern, [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
    result.add_row(result.value.index(b, h, j, 0), p, p, &y.x[y.index(b, h, i, 0)], width);
  });
  return result;
}

inline Expected window_of(const Case &c, const Pattern &pattern) {
  Expected result({c.batch, c.heads(), c.row_stop - c.row_start, c.key_stop - c.key_start});
  each_weight(c, pattern, [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
    if (i >= c.row_start && i < c.row_stop && j >= c.key_start && j < c.key_stop)
      result.add(result.value.index(b, h, i - c.row_start, j - c.key_start), p);
  });
  return result;
}

struct Gradients {
  Expected query, key, value, bias;
};

struct Sum {
  double value = 0.0, size = 0.0;
};
inline Sum dot(const double *a, const double *b, int64_t count) {
  Sum sum;
  for (int64_t d = 0; d < count; d++) {
    sum.value += a[d] * b[d];
    sum.size += std::fabs(a[d] * b[d]);
  }
  return sum;
}

// dV = P^T dO, dP = dO V^T, dS = P (dP - delta) with delta = sum(dO * O) less the gradient of the lse; then through the
// bias, the softcap and the product.
inline Gradients gradients_of(const Case &c, const Pattern &pattern, const Array &output, const Array &grad,
                              const Array &lse_grad) {
  Gradients g;
  g.query = Expected(c.query.shape), g.key = Expected(c.key.shape), g.value = Expected(c.value.shape);
  g.bias = Expected(c.bias.shape);
  each_weight(c, pattern, [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
    const double *dy = &grad.x[grad.index(b, h, i, 0)];
    const size_t query = c.query.index(b, h, i, 0), key = c.key.index(b, h / c.group, j, 0);
    const size_t value = c.value.index(b, h / c.group, j, 0);
    const Sum dp = dot(dy, &c.value.x[value], c.value_width);
    const Sum delta = dot(dy, &output.x[output.index(b, h, i, 0)], c.value_width);
    const double lse = lse_grad.at(b, h, i, 0);
    double ds = p * (dp.value - delta.value + lse), reach = p * (dp.size + delta.size + std::fabs(lse));
    if (!c.bias.empty()) {
      const double factor = bias_factor(c, i, j);
      g.bias.add(bias_index(c, b, h, i, j), ds * factor, reach * std::fabs(factor));
    }
    if (c.softcap != 0.0) {
      const double t = pattern.tanhs.at(b, h, i, j), slope = 1.0 - t * t;
      ds *= slope;
      reach *= slope + 0.1;  // of a slope near 0 few digits are left
    }
    g.value.add_row(value, p, p, dy, c.value_width);
    g.query.add_row(query, c.scale * ds, c.scale * reach, &c.key.x[key], c.width);
    g.key.add_row(key, c.scale * ds, c.scale * reach, &c.query.x[query], c.width);
  });
  return g;
}

// ---------------------------------------------------------------------------------------- statistics

// The cell of `cells` in which an index of `count` lies: cell a begins at floor(a * count / cells).
inline int64_t cell_of(int64_t index, int64_t cells, int64_t count) {
  int64_t cell = 0;
  while ((cell + 1) * count / cells <= index) cell++;
  return cell;
}

inline Shape shape_of(const Case &c, const Asked &asked) {
  const int64_t heads = asked.over_heads ? 1 : c.heads();
  switch (asked.kind) {
    case kTopKeys:
    case kMass: return c.rows(asked.first);
    case kReceived: return {c.batch, heads, std::max<int64_t>(asked.first, 1), c.keys};
    case kMap: return {c.batch, heads, asked.first, asked.second};
    default: return c.rows(1);
  }
}

inline void add_weight(const Case &c, const Asked &asked, Expected &to, int64_t b, int64_t h, int64_t i, int64_t j, double p) {
  const Array &at = to.value;
  const bool grouped = !asked.groups.empty();
  switch (asked.kind) {
    case kEntropy: return to.add(at.index(b, h, i, 0), -p * std::log(p), p * (2.0 + std::fabs(std::log(p))));
    case kMaxWeight: return to.raise(at.index(b, h, i, 0), p);
    case kDistance: return to.add(at.index(b, h, i, 0), p * distance(i, asked.first, j));
    case kMass:
      if (asked.groups.at(b, 0, 0, j) >= 0.0) to.add(at.index(b, h, i, (int64_t)asked.groups.at(b, 0, 0, j)), p);
      return;
    case kReceived: {
      const int64_t group = grouped ? (int64_t)asked.groups.at(b, 0, 0, i) : 0;
      if (group >= 0) to.add(at.index(b, h, group, j), p);
      return;
    }
    case kMap: {
      const size_t cell = at.index(b, h, cell_of(i, asked.first, c.queries), cell_of(j, asked.second, c.keys));
      return asked.third == 1 ? to.raise(cell, p) : to.add(cell, p);
    }
  }
}

// Any but the top keys, which are checked against the weights.
inline Expected statistic_of(const Case &c, const Pattern &pattern, const Asked &asked) {
  Expected result(shape_of(c, asked));
  each_weight(c, pattern, [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
    add_weight(c, asked, result, b, h, i, j, p);
  });
  return result;
}

}  // namespace test
