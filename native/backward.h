// The backward pass, and A^T Y: key by key instead of query by query.
//
// With P the weights and dO the output's gradient (Dao et al., arXiv 2205.14135, appendix B.2):
//
//     dV = P^T dO     dP = dO V^T     dS = P * (dP - delta)     dQ = scale dS K     dK = scale dS^T Q
//
// delta = sum(dO * O) less the gradient of the lse. An item owns some tiles of keys for all queries that share them, so
// gradients of keys and values have one writer. Gradients of queries are summed by split, and a last phase adds the splits
// in order: the same bits each time.
#pragma once

#include "forward.h"

namespace SACCADE_VARIANT {

// What is known of every row before keys are walked through: [3][B * H * Nq].
struct RowTerms {
  float *top, *inverse, *delta;

  RowTerms(const Task &task) {
    const int64_t rows = task.problem.batch * task.problem.heads * task.problem.queries;
    top = (float *)task.shared;
    inverse = top + rows;
    delta = inverse + rows;
  }
  static int64_t bytes(const Problem &p) { return round_up(3 * p.batch * p.heads * p.queries * 4, 64); }
};

// Rows of one block of queries, always of one head.
inline Rows head_rows(const Problem &p, int64_t batch, int64_t head, int64_t block) {
  const int64_t group = p.heads / p.key_heads, rows = Block::rows_of(p);
  return {batch, head / group, head % group * p.queries + block * rows, (int)smaller(rows, p.queries - block * rows)};
}
inline int64_t head_blocks(const Problem &p) { return (p.queries + Block::rows_of(p) - 1) / Block::rows_of(p); }
inline int64_t tile_count(const Problem &p) { return (p.keys + kTileKeys - 1) / kTileKeys; }

class KeyMajor {
 public:
  KeyMajor(Task &task, Arena &arena, bool gradients)
      : task_(task), p_(task.problem), terms_(task), block_(task.problem, arena, false), gradients_(gradients) {
    rows_ = Block::rows_of(p_);
    blocks_ = head_blocks(p_);
    width_ = round_up(p_.width, L);
    value_width_ = round_up(p_.value_width, L);
    queries_ = arena.take<float>(blocks_ * rows_ * p_.width);
    grads_ = arena.take<float>(gradients ? blocks_ * rows_ * p_.value_width : 0);
    natural_queries_ = arena.take<float>(gradients ? p_.queries * width_ : 0);
    natural_grads_ = arena.take<float>(p_.queries * value_width_);
    weights_ = arena.take<float>(kTileKeys * rows_);
    score_grads_ = arena.take<float>(gradients ? kTileKeys * rows_ : 0);
    tanhs_ = arena.take<float>(gradients && p_.softcap != 0.0 ? kTileKeys * rows_ : 0);
    const int64_t owned = (tile_count(p_) + task.splits - 1) / task.splits * kTileKeys;
    key_grads_ = arena.take<float>(gradients ? owned * width_ : 0);
    value_grads_ = arena.take<float>(owned * value_width_);
    row_ = arena.take<float>(larger(p_.width, p_.value_width));
  }

  // Everything that the tiles of `split` give for one key head: all heads of its group.
  void key_head(int64_t batch, int64_t key_head, int64_t split) {
    const int64_t group = p_.heads / p_.key_heads;
    clear(split);
    for (int64_t g = 0; g < group; g++) head(batch, key_head * group + g, split);
    write(batch * p_.key_heads + key_head, split, p_.key_grad, key_grads_, width_, p_.width, key_factor());
    write(batch * p_.key_heads + key_head, split, p_.value_grad, value_grads_, value_width_, p_.value_width, 1.0f);
  }

  // A^T Y of one query head, float32 into value_grad (B, H, Nk, Dy).
  void transposed(int64_t batch, int64_t h, int64_t split) {
    clear(split);
    head(batch, h, split);
    for (int64_t t = split, i = 0; t < tile_count(p_); t += task_.splits, i++)
      for (int64_t key = t * kTileKeys; key < smaller(p_.keys, (t + 1) * kTileKeys); key++)
        __builtin_memcpy((float *)p_.value_grad + ((batch * p_.heads + h) * p_.keys + key) * p_.value_width,
                         value_grads_ + (i * kTileKeys + key % kTileKeys) * value_width_, (size_t)p_.value_width * 4);
  }

  // Numbers in one split's gradient of all queries, transposed: [B * H][blocks][rows * D].
  static int64_t query_grads(const Problem &p) { return p.batch * p.heads * head_blocks(p) * Block::rows_of(p) * p.width; }

 private:
  Task &task_;
  const Problem &p_;
  RowTerms terms_;
  Block block_;
  bool gradients_;
  int64_t rows_, blocks_, width_, value_width_, split_;
  float *queries_, *grads_, *natural_queries_, *natural_grads_, *weights_, *score_grads_, *tanhs_, *key_grads_,
      *value_grads_, *row_;

  // dS is in the scores' natural unit and packed queries are not used for dK: the factor is scale (and 1 for the softcap).
  float key_factor() const { return (float)p_.scale; }

  void clear(int64_t split) {
    const int64_t owned = (tile_count(p_) - split + task_.splits - 1) / task_.splits * kTileKeys;
    if (gradients_) __builtin_memset(key_grads_, 0, (size_t)(owned * width_) * 4);
    __builtin_memset(value_grads_, 0, (size_t)(owned * value_width_) * 4);
  }

  void head(int64_t batch, int64_t h, int64_t split) {
    split_ = split;
    prepare(batch, h);
    for (int64_t t = split, i = 0; t < tile_count(p_) && !task_.stopped(task_); t += task_.splits, i++)
      for (int64_t b = 0; b < blocks_; b++) {
        block_.start(head_rows(p_, batch, h, b), queries_ + b * rows_ * p_.width);
        tile(h, b, t * kTileKeys, smaller(p_.keys, (t + 1) * kTileKeys), i);
      }
  }

  // The head's queries and gradients as floats, as rows and transposed.
  void prepare(int64_t batch, int64_t h) {
    for (int64_t b = 0; b < blocks_; b++) {
      block_.start(head_rows(p_, batch, h, b));
      block_.pack(queries_ + b * rows_ * p_.width);
    }
    for (int64_t i = 0; i < p_.queries; i++) {
      const int64_t at = batch * p_.rows_grad_batch + h * p_.rows_grad_head + i * p_.rows_grad_row;
      widen(natural_grads_ + i * value_width_, element(p_.rows_grad, p_.dtype, at), p_.value_width, value_width_);
      const int64_t q = batch * p_.query_batch + h * p_.query_head + i * p_.query_row;
      if (gradients_) widen(natural_queries_ + i * width_, element(p_.query, p_.dtype, q), p_.width, width_);
    }
    for (int64_t b = 0; gradients_ && b < blocks_; b++) pack_grads(b);
  }

  void widen(float *to, const void *from, int64_t width, int64_t padded) const {
    to_floats(to, from, p_.dtype, width);
    for (int64_t d = width; d < padded; d++) to[d] = 0.0f;
  }

  void pack_grads(int64_t b) {
    const int64_t last = p_.queries - 1, width = p_.value_width;
    for (int64_t first = 0; first < rows_; first += W) {
      float *to = grads_ + b * rows_ * width + first / L * L * width + first % L;
      int64_t d = 0;
      for (; d + W <= width; d += W) {
        vf square[W];
        for (int i = 0; i < W; i++) square[i] = load(natural_grads_ + smaller(b * rows_ + first + i, last) * value_width_ + d);
        transpose(square);
        for (int j = 0; j < W; j++) store(to + (d + j) * L, square[j]);
      }
      for (; d < width; d++)
        for (int i = 0; i < W; i++) to[d * L + i] = natural_grads_[smaller(b * rows_ + first + i, last) * value_width_ + d];
    }
  }

  // One tile of keys against one block of queries; `owned` counts this split's tiles.
  void tile(int64_t h, int64_t b, int64_t start, int64_t stop, int64_t owned) {
    int64_t first = stop, last = start;
    Range ranges[kMaxStrips];
    for (int strip = 0; strip < block_.strips; strip++) {
      ranges[strip] = block_.range(strip, start, stop);
      if (ranges[strip].start >= ranges[strip].stop) continue;
      first = smaller(first, ranges[strip].start);
      last = larger(last, ranges[strip].stop);
    }
    if (first >= last) return;
    const Operand keys = block_.keys(start, stop), values = gradients_ ? block_.values(start, stop) : Operand{};
    for (int strip = 0; strip < block_.strips; strip++) {
      float *weights = weights_ + strip * L, *grads = score_grads_ + strip * L;
      const Range range = ranges[strip];
      blank(weights, first - start, range.start - start, range.stop - start, last - start);
      if (gradients_) blank(grads, first - start, range.start - start, range.stop - start, last - start);
      if (range.start >= range.stop) continue;
      const int64_t at = (range.start - start) * rows_;
      block_.score(strip, keys, start, range, weights + at, rows_, p_.softcap != 0.0 && gradients_ ? tanhs_ + at + strip * L : nullptr);
      normalise(h, strip, weights + at, range.stop - range.start);
      if (gradients_) score_gradients(h, b, strip, values, start, range, weights + at, grads + at, tanhs_ + at + strip * L);
      if (gradients_) query_gradients(h, b, strip, keys, start, range, grads + at);
    }
    const int64_t at = owned * kTileKeys + first - start;
    add(value_grads_ + at * value_width_, weights_ + (first - start) * rows_, natural_grads_, b, value_width_, last - first);
    if (gradients_)
      add(key_grads_ + at * width_, score_grads_ + (first - start) * rows_, natural_queries_, b, width_, last - first);
  }

  // Zeros where a strip sees nothing between the first and the last key that the block sees.
  void blank(float *x, int64_t first, int64_t start, int64_t stop, int64_t last) const {
    for (int64_t key = first; key < last; key++)
      if (key < start || key >= stop || start >= stop) __builtin_memset(x + key * rows_, 0, L * 4);
  }

  int64_t row_index(int64_t h, int lane) const { return (block_.batch * p_.heads + h) * p_.queries + block_.query[lane]; }

  vf of_rows(const float *terms, int64_t h, int lane) const {
    vf x;
    for (int i = 0; i < W; i++) x[i] = terms[row_index(h, lane + i)];
    return x;
  }

  // Scores to weights; 0 in the lanes beyond the block's rows.
  void normalise(int64_t h, int strip, float *s, int64_t rows) const {
    const Exponential exponential;
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      const vi used = iota() + lane < splat(block_.count);
      const vf top = of_rows(terms_.top, h, lane), scale = used ? of_rows(terms_.inverse, h, lane) : splat(0.0f);
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) normalise<4>(exponential, s + r * rows_ + v * W, top, scale);
      for (; r < rows; r++) normalise<1>(exponential, s + r * rows_ + v * W, top, scale);
    }
  }

  template <int N>
  INLINE void normalise(const Exponential &exponential, float *s, vf top, vf scale) const {
    vf e[N];
    for (int i = 0; i < N; i++) e[i] = exponential.clamp((load(s + i * rows_) - top) * splat(block_.unit));
    exponential.of_clamped(e);
    for (int i = 0; i < N; i++) store(s + i * rows_, e[i] * scale);
  }

  void score_gradients(int64_t h, int64_t b, int strip, Operand values, int64_t start, Range range, const float *weights,
                       float *grads, const float *tanhs) {
    const int64_t rows = range.stop - range.start;
    const float *packed = grads_ + b * rows_ * p_.value_width + strip * L * p_.value_width;
    product<Single, false>(grads, rows_, values.data + (range.start - start) * values.row, values.row, 1, (const vf *)packed,
                           L, rows, p_.value_width);
    for (int v = 0; v < V; v++) {
      const vf delta = of_rows(terms_.delta, h, strip * L + v * W);
      for (int64_t i = v * W; i < rows * rows_; i += rows_) store(grads + i, load(weights + i) * (load(grads + i) - delta));
    }
    if (p_.bias_grad) bias_gradients(h, strip, range, grads);
    if (p_.softcap == 0.0) return;
    for (int v = 0; v < V; v++)
      for (int64_t i = v * W; i < rows * rows_; i += rows_) {
        const vf t = load(tanhs + i);
        store(grads + i, load(grads + i) * (splat(1.0f) - t * t));
      }
  }

  void query_gradients(int64_t h, int64_t b, int strip, Operand keys, int64_t start, Range range, const float *grads) {
    float *to = (float *)(task_.shared + RowTerms::bytes(p_)) + split_ * query_grads(p_) +
                (((block_.batch * p_.heads + h) * blocks_ + b) * rows_ + strip * L) * p_.width;
    product<Single, true>(to, L, keys.data + (range.start - start) * keys.row, 1, keys.row, (const vf *)grads, rows_, p_.width,
                          range.stop - range.start);
  }

  // to [keys][width] += coefficients [keys][rows] * rows [Nq][width].
  void add(float *to, const float *coefficients, const float *rows, int64_t b, int64_t width, int64_t keys) const {
    for (int64_t d = 0; d < width; d += L)
      product<Single, true>(to + d, width, coefficients, rows_, 1, (const vf *)(rows + b * rows_ * width + d), width, keys,
                            block_.count);
  }

  void write(int64_t head, int64_t split, void *to, const float *from, int64_t padded, int64_t width, float factor) {
    for (int64_t t = split, i = 0; t < tile_count(p_); t += task_.splits, i++)
      for (int64_t key = t * kTileKeys; key < smaller(p_.keys, (t + 1) * kTileKeys); key++) {
        const float *row = from + (i * kTileKeys + key % kTileKeys) * padded;
        for (int64_t d = 0; d < width; d++) row_[d] = row[d] * factor;
        from_floats((void *)element(to, p_.dtype, (head * p_.keys + key) * width), row_, p_.dtype, width);
      }
  }

  // The gradient of a bias: its own entry, or in double for a value that many entries share (one copy for each split).
  void bias_gradients(int64_t h, int strip, Range range, const float *grads) {
    for (int i = 0; i < L && strip * L + i < block_.count; i++) {
      const int lane = strip * L + i;
      const int64_t base = block_.batch * p_.bias_grad_batch + h * p_.bias_grad_head;
      double *shared = shared_bias(p_, task_) + split_ * bias_size(p_);
      for (int64_t key = range.start; key < range.stop; key++) {
        const float grad = grads[(key - range.start) * rows_ + i];
        if (p_.bias_kind == saccade::kALiBi)
          shared[base] -= (double)grad * block_.distance(lane, key);
        else if (p_.bias_kind == saccade::kRelativeBias)
          shared[base + block_.bias_offset(block_.query[lane], key)] += (double)grad;
        else if (p_.bias_grad_key == 0)
          shared[base + block_.query[lane] * p_.bias_grad_row] += (double)grad;
        else
          ((float *)p_.bias_grad)[base + block_.query[lane] * p_.bias_grad_row + key] += grad;
      }
    }
  }

 public:
  // Whether entries of several keys share a bias value.
  static bool shares_bias(const Problem &p) {
    return p.bias_grad && (p.bias_kind != saccade::kDenseBias || p.bias_grad_key == 0);
  }
  static int64_t bias_size(const Problem &p) { return shares_bias(p) ? p.bias_grad_size : 0; }
  static double *shared_bias(const Problem &p, const Task &task) {
    return (double *)(task.shared + RowTerms::bytes(p) + round_up(task.splits * query_grads(p) * 4, 64));
  }
};

}  // namespace SACCADE_VARIANT
