// Decoding: a few query rows against many keys, bound by how fast keys and values can be read.
//
// Width lies in the lanes here. All rows of a key head (its queries times its group of heads) go together, four at a time, so
// keys and values are read once from memory; while a sub-tile of keys is computed, the next one is brought into the first
// cache, evenly, line by line: a burst would fill the core's queue of misses and then leave memory idle. Keys are split into
// items, whose sums are joined by their maxima.
#pragma once

#include "forward.h"

namespace SACCADE_VARIANT {

constexpr int kDecodeRows = 16;  // of one key head
constexpr int kDecodeKeys = 32;  // of a sub-tile
constexpr int kTogether = 4;     // rows that share one reading of keys and values

// How W numbers of a cache become floats.
struct Floats {
  typedef float Number;
  static INLINE vf load(const float *p) { return load_as<vf>(p); }
};
struct BFloats {
  typedef uint16_t Number;
  static INLINE vf load(const uint16_t *p) { return from_bf16(load_as<vh>(p)); }
};
struct Halves {
  typedef uint16_t Number;
  static INLINE vf load(const uint16_t *p) { return from_fp16(p); }
};

class Decoder {
 public:
  Decoder(Task &task, Arena &arena) : task_(task), p_(task.problem) {
    width_ = round_up(p_.width, W);
    value_width_ = round_up(p_.value_width, W);
    queries_ = arena.take<float>(kDecodeRows * width_);
    keys_ = arena.take<float>(kDecodeKeys * width_);
    values_ = arena.take<float>(kDecodeKeys * value_width_);
    scores_ = arena.take<float>(kTogether * kDecodeKeys);
    output_ = arena.take<float>(kDecodeRows * value_width_);
    alibi_ = arena.take<float>(kDecodeRows);
    top_ = arena.take<float>(kDecodeRows / kTogether * W);
    total_ = arena.take<float>(kDecodeRows / kTogether * W);
  }

  void start(int64_t batch, int64_t key_head) {
    batch_ = batch;
    key_head_ = key_head;
    const int64_t group = p_.heads / p_.key_heads;
    rows_ = (int)(group * p_.queries);
    const int padded = (int)round_up(rows_, kTogether);
    __builtin_memset(queries_, 0, (size_t)(padded * width_) * 4);
    __builtin_memset(output_, 0, (size_t)(padded * value_width_) * 4);
    const float factor = (float)(p_.softcap != 0.0 ? p_.scale / p_.softcap : p_.scale * unit());
    for (int r = 0; r < rows_; r++) {
      head_[r] = key_head * group + r / p_.queries;
      query_[r] = r % p_.queries;
      float *q = queries_ + r * width_;
      to_floats(q, element(p_.query, p_.dtype, batch * p_.query_batch + head_[r] * p_.query_head + query_[r] * p_.query_row),
                p_.dtype, p_.width);
      for (int64_t d = 0; d < p_.width; d++) q[d] *= factor;
      if (p_.bias_kind == saccade::kALiBi)
        alibi_[r] = to_float(element(p_.bias, p_.bias_dtype, batch * p_.bias_batch + head_[r] * p_.bias_head), p_.bias_dtype);
    }
    for (int i = 0; i < kDecodeRows / kTogether * W; i++) top_[i] = -kInfinity, total_[i] = 0.0f;
  }

  void attend(int64_t first, int64_t last) {
    // What lies behind the last visible key may be memory that nobody has written yet.
    if (p_.starts) last = smaller(last, visible_stop());
    for (int64_t start = next(first); start < last;) {
      int64_t stop = smaller(last, start + kDecodeKeys);
      if (p_.pages) stop = smaller(stop, (start / p_.page_size + 1) * p_.page_size);
      tile(start, (int)(stop - start));
      start = next(stop);
    }
  }

  // [row][Dv + 2], top and total last; top in units of 1.
  void write_partial(float *to) const {
    for (int r = 0; r < rows_; r++, to += p_.value_width + 2) {
      __builtin_memcpy(to, output_ + r * value_width_, (size_t)p_.value_width * 4);
      const int together = together_at(r - r % kTogether), lane = r / kTogether * W + r % kTogether;
      to[p_.value_width] = top_[lane];
      to[p_.value_width + 1] = 0.0f;
      for (int i = 0; i < W; i += together) to[p_.value_width + 1] += total_[lane + i];
    }
  }

  int rows() const { return rows_; }

 private:
  Task &task_;
  const Problem &p_;
  int64_t batch_, key_head_, width_, value_width_;
  int rows_;
  int64_t head_[kDecodeRows], query_[kDecodeRows];
  float *queries_, *keys_, *values_, *output_, *alibi_;
  float *scores_;         // [kDecodeKeys][rows together]
  float *top_, *total_;  // a vector for each kTogether rows, whose lanes lie as those of the scores

  bool natural() const { return p_.bias_kind != saccade::kNoBias; }
  double unit() const { return natural() ? 1.0 : kLog2E; }

  // How many rows are computed together from row `first` on: a power of 2, the last ones may be padding.
  int together_at(int first) const { return rows_ - first == 1 ? 1 : rows_ - first == 2 ? 2 : kTogether; }

  const int32_t *runs(const void *base, int r) const {
    return (const int32_t *)base + batch_ * p_.mask_batch + head_[r] * p_.mask_head + query_[r] * p_.runs;
  }

  int64_t next(int64_t key) const {
    if (!p_.starts) return key;
    int64_t first = p_.keys;
    for (int r = 0; r < rows_; r++)
      for (int64_t i = 0; i < p_.runs; i++) {
        const int64_t start = larger<int64_t>(runs(p_.starts, r)[i], key);
        if (runs(p_.stops, r)[i] > start) first = smaller(first, start);
      }
    return first;
  }

  int64_t visible_stop() const {
    int64_t stop = 0;
    for (int r = 0; r < rows_; r++)
      for (int64_t i = 0; i < p_.runs; i++)
        if (runs(p_.stops, r)[i] > runs(p_.starts, r)[i]) stop = larger<int64_t>(stop, runs(p_.stops, r)[i]);
    return stop;
  }

  int64_t index(int64_t key, int64_t batch_stride, int64_t head_stride, int64_t row_stride) const {
    if (!p_.pages) return batch_ * batch_stride + key_head_ * head_stride + key * row_stride;
    const int32_t page = ((const int32_t *)p_.pages)[batch_ * p_.pages_batch + key / p_.page_size];
    return page * batch_stride + key_head_ * head_stride + key % p_.page_size * row_stride;
  }

  // ------------------------------------------------------------------------------------ a sub-tile

  void tile(int64_t start, int count) {
    const int64_t key = index(start, p_.key_batch, p_.key_head, p_.key_row);
    const int64_t value = index(start, p_.value_batch, p_.value_head, p_.value_row);
    if (p_.width != width_ || p_.value_width != value_width_) {  // rows are to be as wide as whole vectors
      pad(keys_, p_.key, key, p_.key_row, count, p_.width, width_);
      pad(values_, p_.value, value, p_.value_row, count, p_.value_width, value_width_);
      return tile_of<Floats>(start, count, keys_, width_, values_, value_width_);
    }
    const char *k = element(p_.key, p_.dtype, key), *v = element(p_.value, p_.dtype, value);
    if (p_.dtype == saccade::kFloat32) tile_of<Floats>(start, count, k, p_.key_row, v, p_.value_row);
    else if (p_.dtype == saccade::kBFloat16) tile_of<BFloats>(start, count, k, p_.key_row, v, p_.value_row);
    else tile_of<Halves>(start, count, k, p_.key_row, v, p_.value_row);
  }

  void pad(float *to, const void *base, int64_t index, int64_t row, int count, int64_t width, int64_t padded) const {
    for (int i = 0; i < count; i++, to += padded) {
      to_floats(to, element(base, p_.dtype, index + i * row), p_.dtype, width);
      for (int64_t d = width; d < padded; d++) to[d] = 0.0f;
    }
  }

  template <class From>
  void tile_of(int64_t start, int count, const void *keys, int64_t key_row, const void *values, int64_t value_row) {
    typedef const typename From::Number *Numbers;
    for (int first = 0; first < rows_; first += kTogether) {
      const int rows = together_at(first);
      if (rows == 1) some_rows<From, 1>(first, start, count, (Numbers)keys, key_row, (Numbers)values, value_row);
      else if (rows == 2) some_rows<From, 2>(first, start, count, (Numbers)keys, key_row, (Numbers)values, value_row);
      else some_rows<From, kTogether>(first, start, count, (Numbers)keys, key_row, (Numbers)values, value_row);
    }
  }

  template <class From, int Rows, class Numbers>
  INLINE void some_rows(int first, int64_t start, int count, Numbers keys, int64_t key_row, Numbers values, int64_t value_row) {
    score<From, Rows>(first, keys, key_row, count);
    shape<Rows>(first, start, count);
    softmax<Rows>(first);
    add_values<From, Rows>(first, values, value_row, count);
  }

  // Ask for the line at `here`, if one begins there.
  template <class Number>
  static INLINE void ahead(const Number *here, int64_t d) {
    if (d * sizeof(Number) % 64 == 0) __builtin_prefetch(here + d);
  }

  // W sums over width at a time, for W / Rows keys, then one vector of scores.
  template <class From, int Rows>
  void score(int first, const typename From::Number *keys, int64_t row, int count) {
    constexpr int Keys = W / Rows;
    const float *q = queries_ + first * width_;
    for (int key = 0; key < count; key += Keys) {
      vf sums[W];
      const typename From::Number *at[Keys];
      for (int i = 0; i < W; i++) sums[i] = splat(0.0f);
      for (int i = 0; i < Keys; i++) at[i] = keys + smaller(key + i, count - 1) * row;
      for (int64_t d = 0; d < width_; d += W) {
#pragma GCC unroll 16
        for (int i = 0; i < Keys; i++) {
          ahead(at[i] + kDecodeKeys * row, d);
          const vf k = From::load(at[i] + d);
#pragma GCC unroll 4
          for (int r = 0; r < Rows; r++) sums[i * Rows + r] += load(q + r * width_ + d) * k;
        }
      }
      const vf s = sums_of(sums);
      // Keys are not read twice to look for what is not finite: it shows in the scores, and in values' sums at the end.
      if (any(s * splat(0.0f) != splat(0.0f))) __atomic_store_n(&task_.not_finite, 1, __ATOMIC_RELAXED);
      store(scores_ + key * Rows, s);
    }
  }

  // Softcap, bias and mask; keys beyond `count` are hidden.
  template <int Rows>
  void shape(int first, int64_t start, int count) {
    const int rows = smaller(Rows, rows_ - first);
    if (p_.softcap != 0.0)
      for (int i = 0; i < kDecodeKeys * Rows; i += W)
        store(scores_ + i, tanh(load(scores_ + i)) * splat((float)(p_.softcap * unit())));
    if (natural())
      for (int i = 0; i < count; i++)
        for (int r = 0; r < rows; r++) scores_[i * Rows + r] += bias(first + r, start + i);
    for (int i = count * Rows; i < kDecodeKeys * Rows; i++) scores_[i] = -kInfinity;
    if (p_.starts) hide<Rows>(first, start);
    if (p_.visible)
      for (int r = 0; r < rows; r++) {
        const uint8_t *visible = (const uint8_t *)p_.visible + batch_ * p_.visible_batch +
                                 head_[first + r] * p_.visible_head + query_[first + r] * p_.visible_row + start;
        for (int i = 0; i < count; i++)
          if (!visible[i]) scores_[i * Rows + r] = -kInfinity;
      }
  }

  template <int Rows>
  void hide(int first, int64_t start) {
    const int last = rows_ - 1;
    bool whole = true;
    for (int r = 0; r < Rows; r++) {
      const int row = smaller(first + r, last);
      whole = whole && runs(p_.starts, row)[0] <= start && runs(p_.stops, row)[0] >= start + kDecodeKeys;
    }
    if (whole) return;
    for (int i = 0; i < kDecodeKeys * Rows; i += W) {
      const vi key = iota() / Rows + (int32_t)(start + i / Rows);
      vi seen = splat(0);
      for (int64_t run = 0; run < p_.runs; run++) {
        vi from, to;
        for (int lane = 0; lane < W; lane++) {
          const int row = smaller(first + lane % Rows, last);
          from[lane] = runs(p_.starts, row)[run];
          to[lane] = runs(p_.stops, row)[run];
        }
        seen |= (key >= from) & (key < to);
      }
      store(scores_ + i, seen ? load(scores_ + i) : splat(-kInfinity));
    }
  }

  float bias(int r, int64_t key) const {
    const int64_t position = query_[r] + p_.bias_offset;
    if (p_.bias_kind == saccade::kALiBi) return -alibi_[r] * __builtin_fabsf((float)(position - key));
    int64_t at = batch_ * p_.bias_batch + head_[r] * p_.bias_head;
    if (p_.bias_kind == saccade::kRelativeBias)
      at += smaller(larger<int64_t>(key - position - p_.bias_first, 0), p_.bias_count - 1);
    else
      at += query_[r] * p_.bias_row + key * p_.bias_key;
    return to_float(element(p_.bias, p_.bias_dtype, at), p_.bias_dtype);
  }

  // Each row's maximum in all of its lanes.
  template <int Rows>
  static INLINE vf over_keys(vf x) {
    if constexpr (Rows <= 1) x = max(x, swapped<1>(x));
    if constexpr (Rows <= 2) x = max(x, swapped<2>(x));
    if constexpr (W > 4) x = max(x, swapped<4>(x));
    if constexpr (W > 8) x = max(x, swapped<8>(x));
    return x;
  }

  template <int Rows>
  void softmax(int first) {
    const Exponential exponential;
    const int lane = first / kTogether * W;
    vf most = load(scores_);
    for (int i = W; i < kDecodeKeys * Rows; i += W) most = max(most, load(scores_ + i));
    most = over_keys<Rows>(most);
    const float to_bits = natural() ? kLog2E : 1.0f;
    const vf before = load(top_ + lane), top = most > before + splat(kAbove / to_bits) ? most : before;
    const vf subtract = top == splat(-kInfinity) ? splat(0.0f) : top;
    vf total = load(total_ + lane);
    if (any(before != top)) {
      const vf factor = exponential(exponential.clamp((before - subtract) * splat(to_bits)));
      total *= factor;
      for (int r = 0; r < Rows; r++) {
        float *out = output_ + (first + r) * value_width_;
        for (int64_t d = 0; d < value_width_; d += W) store(out + d, load(out + d) * splat(factor[r]));
      }
      store(top_ + lane, top);
    }
    constexpr int N = smaller(4, kDecodeKeys * Rows / W);
    for (int i = 0; i < kDecodeKeys * Rows; i += N * W) {
      vf e[N];
      for (int j = 0; j < N; j++) e[j] = exponential.clamp((load(scores_ + i + j * W) - subtract) * splat(to_bits));
      exponential.of_clamped(e);
      for (int j = 0; j < N; j++) total += e[j];
      for (int j = 0; j < N; j++) store(scores_ + i + j * W, e[j]);
    }
    store(total_ + lane, total);
  }

  // Two vectors of width at a time: eight sums, as many as the multipliers' latency asks for.
  template <class From, int Rows>
  void add_values(int first, const typename From::Number *values, int64_t row, int count) {
    int64_t d = 0;
    for (; d + 2 * W <= value_width_; d += 2 * W) add<From, Rows, 2>(first, values + d, row, count, d);
    if (d < value_width_) add<From, Rows, 1>(first, values + d, row, count, d);
  }

  template <class From, int Rows, int Vectors>
  INLINE void add(int first, const typename From::Number *values, int64_t row, int count, int64_t d) {
    constexpr int Chains = kTogether / Rows;  // independent sums for each output
    vf sums[Chains][Rows][Vectors];
    for (auto &chain : sums)
      for (auto &x : chain)
        for (vf &y : x) y = splat(0.0f);
    int key = 0;
    for (; key + Chains <= count; key += Chains)
#pragma GCC unroll 4
      for (int c = 0; c < Chains; c++) {
        ahead(values + (key + c + kDecodeKeys) * row - d, d);
        step<From, Rows, Vectors>(sums[c], scores_ + (key + c) * Rows, values + (key + c) * row);
      }
    for (; key < count; key++) step<From, Rows, Vectors>(sums[0], scores_ + key * Rows, values + key * row);
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) {
        float *to = output_ + (first + r) * value_width_ + d + v * W;
        vf total = sums[0][r][v];
        for (int c = 1; c < Chains; c++) total += sums[c][r][v];
        store(to, load(to) + total);
      }
  }

  template <class From, int Rows, int Vectors>
  static INLINE void step(vf (&sums)[Rows][Vectors], const float *e, const typename From::Number *value) {
    vf operand[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; v++) operand[v] = From::load(value + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; v++) sums[r][v] += splat(e[r]) * operand[v];
  }
};

// ---------------------------------------------------------------------------------------- joining partial sums

// Row `index` of (B, H, Nq) from its splits' [Dv + 2]: the output and the lse. `row` is room for Dv floats.
inline void join_row(Task &task, const float *partial, int64_t stride, int64_t index, float *row) {
  const Problem &p = task.problem;
  const int64_t batch = index / p.queries / p.heads, head = index / p.queries % p.heads, query = index % p.queries;
  const int64_t width = p.value_width;
  const bool natural = p.bias_kind != saccade::kNoBias;
  const float to_bits = natural ? kLog2E : 1.0f;
  float sink = -kInfinity;
  if (p.sinks) sink = ((const float *)p.sinks)[batch * p.sinks_batch + head] * (natural ? 1.0f : kLog2E);
  float top = sink, total = 0.0f;
  for (int64_t s = 0; s < task.splits; s++) top = larger(top, partial[s * stride + width]);
  const float subtract = top == -kInfinity ? 0.0f : top;
  if (sink != -kInfinity) total = exp2(splat((sink - subtract) * to_bits))[0];
  for (int64_t d = 0; d < width; d++) row[d] = 0.0f;
  for (int64_t s = 0; s < task.splits; s++, partial += stride) {
    const float factor = exp2(splat((partial[width] - subtract) * to_bits))[0];
    total += partial[width + 1] * factor;
    for (int64_t d = 0; d < width; d++) row[d] += partial[d] * factor;
  }
  const bool fine = finite(row, saccade::kFloat32, width);
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t d = 0; d < width; d++) row[d] *= inverse;
  const float lse = total == 0.0f ? -kInfinity : top * (natural ? 1.0f : kLn2) + __builtin_logf(total);
  if (!fine || lse != lse || lse == kInfinity) __atomic_store_n(&task.not_finite, 1, __ATOMIC_RELAXED);
  if (p.lse) ((float *)p.lse)[index] = lse;
  const int64_t at = batch * p.output_batch + head * p.output_head + query * p.output_row;
  from_floats((void *)element(p.output, p.dtype, at), row, p.dtype, width);
}

}  // namespace SACCADE_VARIANT
