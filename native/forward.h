// The forward pass: one block of queries after another, an online softmax over tiles of keys (Milakov and Gimelshein,
// arXiv 1805.02867; Dao et al., arXiv 2205.14135), and what is asked of the weights read off in the same pass.
//
// What a row gathers follows its maximum as the output does. What a key receives cannot: it is a sum over rows, each to be
// divided by a sum that is known only when the row's last key has been seen. So there a block's exponentials are kept,
// [keys][L] for each strip: the panel. A panel is bounded; tiles beyond it are computed again.
#pragma once

#include "statistics.h"

namespace SACCADE_VARIANT {

// From this magnitude on, half of the last digit of an lse in float32 is more than 2e-6 of every weight.
constexpr float kFarLse = 64.0f;

// How far exponents may rise above 0, in powers of two, before the sums so far are scaled down: e <= 256.
constexpr float kAbove = 8.0f;

// Most numbers a panel holds: 8 MiB.
constexpr int64_t kPanel = 1 << 21;

// The blocks into which queries are cut.
struct Blocks {
  int64_t rows, per_key_head;
  bool by_head;  // no block holds queries of two heads

  Blocks(const Problem &p, bool by_head_wanted) {
    const int64_t group = p.heads / p.key_heads;
    rows = Block::rows_of(p);
    by_head = by_head_wanted || p.queries >= rows || group == 1;
    per_key_head = by_head ? group * ((p.queries + rows - 1) / rows) : (group * p.queries + rows - 1) / rows;
  }

  Rows at(const Problem &p, int64_t batch, int64_t key_head, int64_t index) const {
    if (!by_head) {
      const int64_t pairs = p.heads / p.key_heads * p.queries;
      return {batch, key_head, index * rows, (int)smaller(rows, pairs - index * rows)};
    }
    const int64_t of_head = (p.queries + rows - 1) / rows, g = index / of_head, i = index % of_head;
    return {batch, key_head, g * p.queries + i * rows, (int)smaller(rows, p.queries - i * rows)};
  }
};

// What a row adds up, in lanes: exp(s - top) v, exp(s - top), and log2 of the latter weighted by it.
struct Sums {
  float *output;           // [strips][Dv][L]
  float *top, *total, *bits;  // [kMaxRows]; top in the scores' unit
};

class Attention {
  Task &task_;
  const Problem &p_;

 public:
  // `answering`: `finish` or `observe` will be asked for the task's statistics.
  Attention(Task &task, Arena &arena, bool answering)
      : task_(task), p_(task.problem), block(task.problem, arena), answers(task, block, arena) {
    const int rows = Block::rows_of(p_);
    sums.output = arena.take<float>(rows * p_.value_width);
    sums.top = arena.take<float>(kMaxRows);
    sums.total = arena.take<float>(kMaxRows);
    sums.bits = arena.take<float>(kMaxRows);
    row_ = arena.take<float>(L * larger(p_.value_width, p_.width) + L * W);
    pairs_ = arena.take<int32_t>(block.pairs ? (kTileKeys / 2 + 1) * L : 0);
    held_ = arena.take<float>(kMaxRows);  // what the keys add to a row's total, a sink left out
    entropy_ = arena.take<float>(kMaxRows);
    scales_ = arena.take<float>(kMaxRows);
    rows_wanted_ = answering && Answers::by_row(task);
    received_wanted_ = answering && Answers::received(task);
    panel_keys_ = received_wanted_ ? smaller(kPanel / rows, round_up(p_.keys, kTileKeys)) : 0;
    panel_ = arena.take<float>(panel_keys_ * rows);
    tiles_ = arena.take<Tile>(panel_keys_ ? panel_keys_ + 1 : 0);
    entropy_wanted_ = false;
    for (int64_t i = 0; i < p_.statistics_count; i++) entropy_wanted_ |= task.statistics[i].kind == kEntropy;
  }

  Block block;
  Answers answers;
  Sums sums;

  // All keys from `first` to `last` for the block's rows. Without values only the denominators are summed.
  void attend(int64_t first, int64_t last, bool with_sinks, bool with_values = true) {
    clear(with_sinks);
    const bool answering = rows_wanted_ && with_values;
    if (with_values && p_.statistics_count) answers.start();
    int64_t position = 0;
    bool keeping = with_values;
    tile_count_ = 0;
    for (int64_t start = block.next(first); start < last;) {
      const int64_t stop = smaller(last, block.tile_stop(start));
      const Operand keys = block.keys(start, stop), values = with_values ? block.values(start, stop) : Operand{};
      Tile *tile = nullptr;
      // What is kept is all tiles up to one: the rest is found again from where that ends.
      keeping = keeping && position + stop - start <= panel_keys_;
      if (keeping) {
        tile = &tiles_[tile_count_++];
        tile->start = start;
        tile->stop = stop;
        tile->panel = panel_ + position * block.strips * L;
        position += stop - start;
      }
      // Strip after strip does the same step, so that keys, and then values, stay in the first cache meanwhile.
      Range ranges[kMaxStrips];
      float *e = tile ? tile->panel : block.scores;
      for (int strip = 0; strip < block.strips; strip++) {
        ranges[strip] = block.range(strip, start, stop);
        if (!empty(ranges[strip])) block.score(strip, keys, start, ranges[strip], e + strip * (stop - start) * L);
      }
      for (int strip = 0; strip < block.strips; strip++) {
        if (empty(ranges[strip])) continue;
        softmax(strip, e + strip * (stop - start) * L, ranges[strip].stop - ranges[strip].start, answering);
        if (answering) answers.add(strip, ranges[strip], e + strip * (stop - start) * L);
      }
      for (int strip = 0; strip < block.strips && with_values; strip++)
        if (!empty(ranges[strip])) add_values(strip, e + strip * (stop - start) * L, values, start, ranges[strip]);
      if (tile) {
        __builtin_memcpy(tile->ranges, ranges, sizeof ranges);
        __builtin_memcpy(tile->tops, sums.top, (size_t)(block.strips * L) * 4);
      }
      start = stop < last ? block.next(stop) : last;
    }
    beyond_panel_ = tile_count_ ? tiles_[tile_count_ - 1].stop : first;
    for (int r = 0; r < block.strips * L; r++) {
      held_[r] = sums.total[r];
      if (with_sinks && p_.sinks) sums.total[r] += exp2(splat((block.sink(r) - subtracted(r)) * block.unit))[0];
    }
  }

  // The sums of rows whose lse is known. Far from 0 an lse in float32 has lost digits: there they are added up again.
  void take_lse() {
    bool far = false;
    for (int r = 0; r < block.strips * L; r++) {
      const float lse = ((const float *)p_.lse)[(block.batch * p_.heads + block.head[r]) * p_.queries + block.query[r]];
      if (lse != lse || lse == kInfinity) __atomic_store_n(&task_.not_finite, 1, __ATOMIC_RELAXED);
      far = far || (lse > -kInfinity && __builtin_fabsf(lse) > kFarLse);
      sums.top[r] = lse * (block.natural ? 1.0f : kLog2E);
      sums.total[r] = lse == -kInfinity ? 0.0f : 1.0f;
    }
    if (far && !p_.partial) attend(0, p_.keys, true, false);
    tile_count_ = beyond_panel_ = 0;
  }

  // Weights of a strip whose sums are known, each row's side by side: row r at `to` + r * columns, indexed by key.
  void weigh(int strip, Operand keys, int64_t start, Range range, float *to, int64_t columns) {
    float *s = block.scores;
    block.score(strip, keys, start, range, s);
    for (int lane = 0; lane < L && strip * L + lane < block.count; lane++) {
      const int r = strip * L + lane;
      const float top = subtracted(r);
      const float scale = sums.total[r] == 0.0f ? 0.0f : 1.0f / sums.total[r];
      for (int64_t key = range.start; key < range.stop; key += W) {
        vf x = splat(-kInfinity);
        const int here = (int)smaller<int64_t>(W, range.stop - key);
        for (int i = 0; i < here; i++) x[i] = s[(key - range.start + i) * L + lane];
        const vf w = exp2((x - top) * block.unit) * scale;
        __builtin_memcpy(to + r * columns + key, &w, (size_t)here * 4);
      }
    }
  }

  // Statistics of rows whose sums are known, from their scores alone.
  void observe(int64_t split) {
    answers.start();
    for (int r = 0; r < kMaxRows; r++) sums.bits[r] = 0.0f;
    take_scales();
    again(0, true, split);
    answers.finish(take_entropy(), scales_, split);
  }

  // Write the block's output and lse; hand its weights to the statistics.
  void finish(int64_t split) {
    for (int strip = 0; strip < block.strips; strip++) write_output(strip);
    write_lse();
    if (p_.statistics_count) answer(split);
  }

  // Only the sums, for another to join: [row][Dv + 2] with top and total last.
  void write_partial(float *to) {
    const int64_t width = p_.value_width;
    for (int r = 0; r < block.count; r++, to += width + 2) {
      const float *lane = sums.output + r / L * width * L + r % L;
      for (int64_t d = 0; d < width; d++) to[d] = lane[d * L];
      to[width] = sums.top[r];
      to[width + 1] = sums.total[r];
    }
  }

 private:
  struct Tile {
    int64_t start, stop;
    float *panel;  // [strips][keys][L], only the keys of each strip's range
    Range ranges[kMaxStrips];
    float tops[kMaxRows];
  };

  float *row_, *held_, *entropy_, *panel_;
  float *scales_;  // what turns a row's exponentials, relative to its last maximum, into weights; 0 in unused lanes
  int32_t *pairs_;
  Tile *tiles_;
  int64_t panel_keys_, tile_count_, beyond_panel_;
  bool entropy_wanted_, rows_wanted_, received_wanted_;

  void clear(bool with_sinks) {
    __builtin_memset(sums.output, 0, (size_t)(block.strips * L * p_.value_width) * 4);
    for (int r = 0; r < block.strips * L; r++) {
      sums.top[r] = with_sinks && p_.sinks ? block.sink(r) : -kInfinity;
      sums.total[r] = 0.0f;
      sums.bits[r] = 0.0f;
    }
  }

  // Scores to exponentials, in place; sums so far are scaled down where a larger score came.
  void softmax(int strip, float *s, int64_t rows, bool answering) {
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      const vf before = load(sums.top + lane);
      vf top = before;
      for (int64_t r = 0; r < rows; r++) top = max(top, load(s + r * L + v * W));
      // A little above what is subtracted does no harm, and most tiles need no scaling then.
      top = top > before + splat(kAbove / block.unit) ? top : before;
      const vf subtract = top == splat(-kInfinity) ? splat(0.0f) : top;
      if (any(before != top)) scale_down(strip, v, before, subtract, answering);
      store(sums.top + lane, top);
      exponentials(s + v * W, rows, subtract, lane);
    }
  }

  void scale_down(int strip, int v, vf before, vf top, bool answering) {
    const int lane = strip * L + v * W;
    const vf step = before == splat(-kInfinity) ? splat(0.0f) : (before - top) * splat(block.unit);
    const vf factor = before == splat(-kInfinity) ? splat(0.0f) : exp2(step);
    const vf total = load(sums.total + lane);
    store(sums.bits + lane, (load(sums.bits + lane) + step * total) * factor);
    store(sums.total + lane, total * factor);
    float *out = sums.output + strip * p_.value_width * L + v * W;
    for (int64_t d = 0; d < p_.value_width; d++) store(out + d * L, load(out + d * L) * factor);
    if (answering) answers.scale(lane, factor);
  }

  void exponentials(float *s, int64_t rows, vf top, int lane) {
    if (entropy_wanted_) block.natural ? exponentials_of<true, true>(s, rows, top, lane)
                                       : exponentials_of<false, true>(s, rows, top, lane);
    else block.natural ? exponentials_of<true, false>(s, rows, top, lane)
                       : exponentials_of<false, false>(s, rows, top, lane);
  }

  template <bool Natural, bool Bits>
  void exponentials_of(float *s, int64_t rows, vf top, int lane) {
    const Exponential exponential;
    vf total = splat(0.0f), bits = splat(0.0f);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) some_exponentials<Natural, Bits, 4>(exponential, s + r * L, top, total, bits);
    for (; r < rows; r++) some_exponentials<Natural, Bits, 1>(exponential, s + r * L, top, total, bits);
    store(sums.total + lane, load(sums.total + lane) + total);
    if constexpr (Bits) store(sums.bits + lane, load(sums.bits + lane) + bits);
  }

  template <bool Natural, bool Bits, int N>
  INLINE void some_exponentials(const Exponential &exponential, float *s, vf top, vf &total, vf &bits) {
    vf e[N];
    for (int i = 0; i < N; i++) {
      e[i] = load(s + i * L) - top;
      if (Natural) e[i] *= splat(kLog2E);
      e[i] = exponential.clamp(e[i]);
    }
    if constexpr (Bits) {
      vf x[N];
      for (int i = 0; i < N; i++) x[i] = e[i];
      exponential.of_clamped(e);
      for (int i = 0; i < N; i++) bits += e[i] * x[i];
    } else {
      exponential.of_clamped(e);
    }
    for (int i = 0; i < N; i++) total += e[i];
    for (int i = 0; i < N; i++) store(s + i * L, e[i]);
  }

  void add_values(int strip, const float *e, Operand values, int64_t start, Range range) {
    float *out = sums.output + strip * p_.value_width * L;
    const int64_t rows = range.stop - range.start, first = range.start - start;
    if (block.pairs) {
      pair_up(e, rows);
      product<Pairs, true>(out, L, (const int32_t *)values.data + first / 2 * values.row, 1, values.row,
                           (const vi *)pairs_, L, p_.value_width, (rows + 1) / 2);
    } else {
      product<Single, true>(out, L, values.data + first * values.row, 1, values.row, (const vf *)e, L, p_.value_width,
                            rows);
    }
  }

  void pair_up(const float *e, int64_t rows) {
    for (int64_t r = 0; r < rows; r += 2)
      for (int v = 0; v < V; v++) {
        const vf low = load(e + r * L + v * W), high = r + 1 < rows ? load(e + (r + 1) * L + v * W) : splat(0.0f);
#if defined(__AVX512BF16__)
        const __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
        const __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
        store(pairs_ + r / 2 * L + v * W, (vi)a | (vi)b << 16);
#else
        store(pairs_ + r / 2 * L + v * W, to_bf16_bits(low) | to_bf16_bits(high) << 16);
#endif
      }
  }

  // ------------------------------------------------------------------------------------ results

  // What a row is divided by: at least a number that is not 0 where nothing was seen.
  vf inverse(int lane) const {
    const vf total = load(sums.total + lane);
    return total == splat(0.0f) ? splat(0.0f) : splat(1.0f) / total;
  }

  void write_output(int strip) {
    const int64_t width = p_.value_width;
    for (int v = 0; v < V; v++) {
      const int first = strip * L + v * W;
      const vf factor = inverse(first);
      const float *out = sums.output + strip * width * L + v * W;
      float *rows[W];  // floats are written where they belong, halves by way of row_
      for (int i = 0; i < W; i++) {
        const bool direct = p_.dtype == saccade::kFloat32 && first + i < block.count;
        rows[i] = direct ? (float *)output_row(first + i) : row_ + i * width;
      }
      int64_t d = 0;
      for (; d + W <= width; d += W) {
        vf square[W];
        for (int j = 0; j < W; j++) square[j] = load(out + (d + j) * L) * factor;
        transpose(square);
        for (int i = 0; i < W; i++) store(rows[i] + d, square[i]);
      }
      for (; d < width; d++)
        for (int i = 0; i < W; i++) rows[i][d] = out[d * L + i] * factor[i];
      for (int i = 0; i < W && first + i < block.count; i++)
        if (rows[i] != output_row(first + i)) from_floats(output_row(first + i), rows[i], p_.dtype, width);
    }
  }

  void *output_row(int r) const {
    const int64_t index = block.batch * p_.output_batch + block.head[r] * p_.output_head + block.query[r] * p_.output_row;
    return (void *)element(p_.output, p_.dtype, index);
  }

  void write_lse() {
    if (!p_.lse) {  // a logarithm of each row is much of a small call
      for (int r = 0; r < block.count; r++)
        if (sums.total[r] * 0.0f != 0.0f || (sums.top[r] * 0.0f != 0.0f && sums.top[r] != -kInfinity))
          __atomic_store_n(&task_.not_finite, 1, __ATOMIC_RELAXED);
      return;
    }
    for (int r = 0; r < block.count; r++) {
      const float lse = sums.total[r] == 0.0f ? -kInfinity : sums.top[r] * (block.natural ? 1.0f : kLn2) + __builtin_logf(sums.total[r]);
      if (lse != lse || lse == kInfinity) __atomic_store_n(&task_.not_finite, 1, __ATOMIC_RELAXED);
      ((float *)p_.lse)[(block.batch * p_.heads + block.head[r]) * p_.queries + block.query[r]] = lse;
    }
  }

  void answer(int64_t split) {
    take_scales();
    const float *entropy = take_entropy();
    for (int64_t t = 0; t < tile_count_ && !__atomic_load_n(&task_.interrupted, __ATOMIC_RELAXED); t++) kept(tiles_[t], split);
    if (received_wanted_) again(beyond_panel_, false, split);
    answers.finish(entropy, scales_, split);
  }

  void take_scales() {
    for (int lane = 0; lane < block.strips * L; lane += W)
      store(scales_ + lane, iota() + lane < splat(block.count) ? inverse(lane) : splat(0.0f));
  }

  // -sum p ln p with p = e / total: ln total times the weight that keys hold, less the exponents.
  const float *take_entropy() {
    for (int r = 0; r < block.count; r++) {
      const float total = sums.total[r];
      entropy_[r] = total == 0.0f ? 0.0f : (held_[r] * __builtin_logf(total) - kLn2 * sums.bits[r]) / total;
    }
    return entropy_;
  }

 public:
  static bool empty(Range range) { return range.start >= range.stop; }

 private:
  // What was subtracted from a row's scores: its maximum, or 0 where nothing is visible, as -inf - -inf would be NaN.
  float subtracted(int r) const { return sums.top[r] == -kInfinity ? 0.0f : sums.top[r]; }

  void kept(const Tile &tile, int64_t split) {
    answers.start_tile();
    for (int strip = 0; strip < block.strips; strip++) {
      if (empty(tile.ranges[strip])) continue;
      vf scales[V];
      for (int v = 0; v < V; v++) {
        const int lane = strip * L + v * W;
        const vf top = load(tile.tops + lane), step = (top - load(sums.top + lane)) * splat(block.unit);
        scales[v] = exp2(top == splat(-kInfinity) ? splat(kLowestExponent) : step) * load(scales_ + lane);
      }
      answers.receive(strip, tile.start, tile.ranges[strip], tile.panel + strip * (tile.stop - tile.start) * L, scales);
    }
    answers.finish_tile(tile.start, tile.stop, split);
  }

  // Keys from `first` on once more, with all maxima and sums known: what they receive and, if wanted, what rows gather.
  void again(int64_t first, bool rows, int64_t split) {
    float totals[kMaxRows];
    __builtin_memcpy(totals, sums.total, sizeof totals);
    if (rows) __builtin_memset(sums.total, 0, sizeof totals);
    for (int64_t start = block.next(first); start < p_.keys && !task_.stopped(task_);) {
      const int64_t stop = block.tile_stop(start);
      const Operand keys = block.keys(start, stop);
      answers.start_tile();
      for (int strip = 0; strip < block.strips; strip++) {
        const Range range = block.range(strip, start, stop);
        if (empty(range)) continue;
        float *e = block.scores;
        vf scales[V];
        block.score(strip, keys, start, range, e);
        for (int v = 0; v < V; v++) {
          const int lane = strip * L + v * W;
          const vf top = load(sums.top + lane);
          exponentials(e + v * W, range.stop - range.start, top == splat(-kInfinity) ? splat(0.0f) : top, lane);
          scales[v] = load(scales_ + lane);
        }
        if (rows) answers.add(strip, range, e);
        answers.receive(strip, start, range, e, scales);
      }
      answers.finish_tile(start, stop, split);
      start = stop < p_.keys ? block.next(stop) : stop;
    }
    if (rows) __builtin_memcpy(held_, sums.total, sizeof totals);
    __builtin_memcpy(sums.total, totals, sizeof totals);
  }
};

}  // namespace SACCADE_VARIANT
