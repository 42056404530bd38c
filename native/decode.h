// Decoding: a few query rows against many keys, bound by how fast keys and values can be read.
//
// Width lies in the lanes here. All rows of a key head (its queries times its group of heads) go together, so keys and
// values are read once; while a sub-tile of keys is computed, the next one is brought into the first cache. Keys are split
// into items, whose sums are joined by their maxima.
#pragma once

#include "forward.h"

namespace SACCADE_VARIANT {

constexpr int kDecodeRows = 16;  // of one key head
constexpr int kDecodeKeys = 32;  // of a sub-tile

class Decoder {
 public:
  Decoder(Task &task, Arena &arena) : task_(task), p_(task.problem) {
    width_ = round_up(p_.width, W);
    value_width_ = round_up(p_.value_width, W);
    queries_ = arena.take<float>(kDecodeRows * width_);
    keys_ = arena.take<float>(kDecodeKeys * width_);
    values_ = arena.take<float>(kDecodeKeys * value_width_);
    scores_ = arena.take<float>(kDecodeRows * kDecodeKeys);
    output_ = arena.take<float>(kDecodeRows * value_width_);
    alibi_ = arena.take<float>(kDecodeRows);
  }

  void start(int64_t batch, int64_t key_head) {
    batch_ = batch;
    key_head_ = key_head;
    const int64_t group = p_.heads / p_.key_heads;
    rows_ = (int)(group * p_.queries);
    __builtin_memset(queries_, 0, (size_t)(rows_ * width_) * 4);
    __builtin_memset(output_, 0, (size_t)(rows_ * value_width_) * 4);
    const float factor = (float)(p_.softcap != 0.0 ? p_.scale / p_.softcap : p_.scale * unit());
    for (int r = 0; r < rows_; r++) {
      head_[r] = key_head * group + r / p_.queries;
      query_[r] = r % p_.queries;
      float *q = queries_ + r * width_;
      to_floats(q, element(p_.query, p_.dtype, batch * p_.query_batch + head_[r] * p_.query_head + query_[r] * p_.query_row),
                p_.dtype, p_.width);
      for (int64_t d = 0; d < p_.width; d++) q[d] *= factor;
      top_[r] = -kInfinity;
      total_[r] = 0.0f;
      if (p_.bias_kind == saccade::kALiBi)
        alibi_[r] = to_float(element(p_.bias, p_.bias_dtype, batch * p_.bias_batch + head_[r] * p_.bias_head), p_.bias_dtype);
    }
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
      to[p_.value_width] = top_[r];
      to[p_.value_width + 1] = total_[r];
    }
  }

  int rows() const { return rows_; }

 private:
  Task &task_;
  const Problem &p_;
  int64_t batch_, key_head_, width_, value_width_;
  int rows_;
  int64_t head_[kDecodeRows], query_[kDecodeRows];
  float top_[kDecodeRows], total_[kDecodeRows];
  float *queries_, *keys_, *values_, *scores_, *output_, *alibi_;

  bool natural() const { return p_.bias_kind != saccade::kNoBias; }
  double unit() const { return natural() ? 1.0 : kLog2E; }

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

  // Rows as floats, as wide as whole vectors: where they lie if they are so, else copied.
  Operand rows_of(const void *base, int64_t index, int64_t row, int count, int64_t width, int64_t padded, float *copy) const {
    if (p_.dtype == saccade::kFloat32 && width == padded) return {(const float *)base + index, row};
    for (int i = 0; i < count; i++) {
      const char *from = element(base, p_.dtype, index + i * row), *ahead = from + kDecodeKeys * row * size_of(p_.dtype);
      for (int64_t at = 0; at < width * size_of(p_.dtype); at += 64) __builtin_prefetch(ahead + at);
      to_floats(copy + i * padded, from, p_.dtype, width);
      for (int64_t d = width; d < padded; d++) copy[i * padded + d] = 0.0f;
    }
    return {copy, padded};
  }

  void tile(int64_t start, int count) {
    const int64_t key = index(start, p_.key_batch, p_.key_head, p_.key_row);
    const int64_t value = index(start, p_.value_batch, p_.value_head, p_.value_row);
    const Operand keys = rows_of(p_.key, key, p_.key_row, count, p_.width, width_, keys_);
    for (int r = 0; r < rows_; r++) {
      if (r == 0 && keys.data != keys_) score<true>(r, keys, count);
      else score<false>(r, keys, count);
      shape(r, start, count);
      softmax(r);
    }
    const Operand values = rows_of(p_.value, value, p_.value_row, count, p_.value_width, value_width_, values_);
    for (int r = 0; r < rows_; r += 4) {
      if (r == 0 && values.data != values_) add_values<true>(r, smaller(4, rows_ - r), values, count);
      else add_values<false>(r, smaller(4, rows_ - r), values, count);
    }
  }

  // W keys at a time: W sums over width, then one transpose and W - 1 additions give W scores. `Ahead`: meanwhile the same
  // rows of the next sub-tile are asked for, a line at a time, as all of them at once would wait for each other.
  template <bool Ahead>
  void score(int r, Operand keys, int count) {
    const float *q = queries_ + r * width_;
    for (int first = 0; first < count; first += W) {
      vf sums[W];
      const float *rows[W];
      for (int i = 0; i < W; i++) {
        sums[i] = splat(0.0f);
        rows[i] = keys.data + smaller(first + i, count - 1) * keys.row;
      }
      for (int64_t d = 0; d < width_; d += W) {
        const vf operand = load(q + d);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) {
          if (Ahead && d % 16 == 0) __builtin_prefetch(rows[i] + kDecodeKeys * keys.row + d);
          sums[i] += operand * load(rows[i] + d);
        }
      }
      transpose(sums);
      for (int width = W / 2; width; width /= 2)
        for (int i = 0; i < width; i++) sums[i] += sums[i + width];
      // Keys are not read twice to look for what is not finite: it shows in the scores, and in values' sums at the end.
      if (any(sums[0] * splat(0.0f) != splat(0.0f))) __atomic_store_n(&task_.not_finite, 1, __ATOMIC_RELAXED);
      store(scores_ + r * kDecodeKeys + first, sums[0]);
    }
  }

  // Softcap, bias and mask; keys beyond `count` are hidden.
  void shape(int r, int64_t start, int count) {
    float *s = scores_ + r * kDecodeKeys;
    if (p_.softcap != 0.0)
      for (int i = 0; i < kDecodeKeys; i += W) store(s + i, tanh(load(s + i)) * splat((float)(p_.softcap * unit())));
    if (natural())
      for (int i = 0; i < count; i++) s[i] += bias(r, start + i);
    for (int i = count; i < kDecodeKeys; i++) s[i] = -kInfinity;
    if (p_.starts) hide(r, start, s);
    if (p_.visible) {
      const uint8_t *visible = (const uint8_t *)p_.visible + batch_ * p_.visible_batch + head_[r] * p_.visible_head +
                               query_[r] * p_.visible_row + start;
      for (int i = 0; i < count; i++)
        if (!visible[i]) s[i] = -kInfinity;
    }
  }

  void hide(int r, int64_t start, float *s) const {
    const int32_t *starts = runs(p_.starts, r), *stops = runs(p_.stops, r);
    if (starts[0] <= start && stops[0] >= start + kDecodeKeys) return;
    for (int i = 0; i < kDecodeKeys; i += W) {
      const vi key = iota() + (int32_t)(start + i);
      vi seen = splat(0);
      for (int64_t run = 0; run < p_.runs; run++) seen |= (key >= splat(starts[run])) & (key < splat(stops[run]));
      store(s + i, seen ? load(s + i) : splat(-kInfinity));
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

  void softmax(int r) {
    float *s = scores_ + r * kDecodeKeys;
    vf most = load(s);
    for (int i = W; i < kDecodeKeys; i += W) most = max(most, load(s + i));
    const float here = largest(most), before = top_[r], top = here > before ? here : before;
    const float subtract = top == -kInfinity ? 0.0f : top, to_bits = natural() ? kLog2E : 1.0f;
    if (top != before && total_[r] != 0.0f) {
      const vf factor = exp2(splat((before - subtract) * to_bits));
      total_[r] *= factor[0];
      float *out = output_ + r * value_width_;
      for (int64_t d = 0; d < value_width_; d += W) store(out + d, load(out + d) * factor);
    }
    top_[r] = top;
    vf total = splat(0.0f);
    for (int i = 0; i < kDecodeKeys; i += W) {
      const vf e = exp2((load(s + i) - splat(subtract)) * splat(to_bits));
      total += e;
      store(s + i, e);
    }
    total_[r] += sum(total);
  }

  // Four rows and two vectors of width at a time: eight sums, as many as the multipliers' latency asks for.
  template <bool Ahead>
  void add_values(int first, int rows, Operand values, int count) {
    for (int64_t d = 0; d < value_width_; d += 2 * W) {
      const bool two = d + W < value_width_;
      if (rows == 4) two ? add<4, 2, Ahead>(first, values, d, count) : add<4, 1, Ahead>(first, values, d, count);
      if (rows == 3) two ? add<3, 2, Ahead>(first, values, d, count) : add<3, 1, Ahead>(first, values, d, count);
      if (rows == 2) two ? add<2, 2, Ahead>(first, values, d, count) : add<2, 1, Ahead>(first, values, d, count);
      if (rows == 1) two ? add<1, 2, Ahead>(first, values, d, count) : add<1, 1, Ahead>(first, values, d, count);
    }
  }

  template <int Rows, int Vectors, bool Ahead>
  INLINE void add(int first, Operand values, int64_t d, int count) {
    constexpr int Chains = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;  // independent sums for each output
    vf sums[Chains][Rows][Vectors];
    for (auto &chain : sums)
      for (auto &row : chain)
        for (auto &x : row) x = splat(0.0f);
    const float *e = scores_ + first * kDecodeKeys;
    int key = 0;
    for (; key + Chains <= count; key += Chains)
#pragma GCC unroll 4
      for (int c = 0; c < Chains; c++) {
        const float *value = values.data + (key + c) * values.row + d;
        if (Ahead) __builtin_prefetch(value + kDecodeKeys * values.row);
        step<Rows, Vectors>(sums[c], e + key + c, value);
      }
    for (; key < count; key++) step<Rows, Vectors>(sums[0], e + key, values.data + key * values.row + d);
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) {
        float *to = output_ + (first + r) * value_width_ + d + v * W;
        vf total = sums[0][r][v];
        for (int c = 1; c < Chains; c++) total += sums[c][r][v];
        store(to, load(to) + total);
      }
  }

  template <int Rows, int Vectors>
  static INLINE void step(vf (&sums)[Rows][Vectors], const float *e, const float *value) {
    vf operand[Vectors];
    for (int v = 0; v < Vectors; v++) operand[v] = load(value + v * W);
    for (int r = 0; r < Rows; r++)
      for (int v = 0; v < Vectors; v++) sums[r][v] += splat(e[r * kDecodeKeys]) * operand[v];
  }
};

// ---------------------------------------------------------------------------------------- joining partial sums

// One row from its splits' [Dv + 2]: the output and the lse. `unit`: what tops are divided by to be natural logarithms.
inline void join_row(Task &task, const float *partial, int64_t stride, int64_t batch, int64_t head, int64_t query,
                     float *row) {
  const Problem &p = task.problem;
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
  bool fine = true;
  for (int64_t d = 0; d < width; d++) {
    fine = fine && row[d] * 0.0f == 0.0f;
    row[d] = total == 0.0f ? 0.0f : row[d] / total;
  }
  const float lse = total == 0.0f ? -kInfinity : top * (natural ? 1.0f : kLn2) + __builtin_logf(total);
  if (!fine || lse != lse || lse == kInfinity) __atomic_store_n(&task.not_finite, 1, __ATOMIC_RELAXED);
  if (p.lse) ((float *)p.lse)[(batch * p.heads + head) * p.queries + query] = lse;
  const int64_t at = batch * p.output_batch + head * p.output_head + query * p.output_row;
  from_floats((void *)element(p.output, p.dtype, at), row, p.dtype, width);
}

}  // namespace SACCADE_VARIANT
