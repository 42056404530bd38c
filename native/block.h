// A block of queries, and its scores against a few keys.
//
// Queries lie in the lanes: a block is a few strips of L queries, packed once as Q^T [D][L], and everything about a query
// (its mask, its maximum, its sums) is a lane of some vector. Keys are rows. So a softmax needs no sum across lanes, keys
// and values are read where they lie, and an edge of a mask is exact in keys and at most a strip wide in queries.
#pragma once

#include "abi.h"
#include "products.h"

namespace SACCADE_VARIANT {

using saccade::Problem;
using saccade::Task;

constexpr int kMaxRows = 128;
constexpr int kMaxStrips = kMaxRows / L;

// Keys of a tile: a strip's scores against them stay in the first cache, keys and values in the second.
constexpr int kTileKeys = 96;

// Keys and values of a head that are larger than this are far away.
constexpr int64_t kFarBytes = 3 << 20;

struct Range {
  int64_t start, stop;
  bool edge;  // some query of the strip does not see some key of the range
};

// Rows of keys or values as the products read them.
struct Operand {
  const float *data;
  int64_t row;
};

// Which (head, query) pairs are computed together. All share one key head.
struct Rows {
  int64_t batch, key_head;
  int64_t first;  // of the group's Nq * group pairs, counted head by head
  int count;
};

class Block {
 public:
  const Problem &p;
  int64_t batch, key_head;
  int count, strips;
  int64_t head[kMaxRows], query[kMaxRows];  // lanes beyond `count` repeat the last row; their results are not used
  bool pairs;                               // bfloat16 pairs instead of floats
  bool natural;                             // scores are in units of 1, not of ln 2: a bias may be as low as -3.4e38
  float unit;                               // what turns a score's unit into ln 2
  float *scores;                            // [strips][kTileKeys][L]

  // Whether tiles of keys and values are copied first: halves, to be converted, and floats that come from beyond the second
  // cache. Products read a few numbers here and there, which memory serves slowly; a copy reads on and on.
  static bool copies(const Problem &p) {
    return p.dtype != saccade::kFloat32 || p.keys * (p.width + p.value_width) * 4 > kFarBytes;
  }

  // The most rows of one block.
  static int rows_of(const Problem &p) {
    // What is copied is copied once for each block: the larger it is, the less that costs.
    const int most = copies(p) ? kMaxRows : 64;
    return (int)larger<int64_t>(L, smaller<int64_t>(most, round_up(p.queries * (p.heads / p.key_heads), L)));
  }

  Block(const Problem &problem, Arena &arena, bool pairs_allowed = true) : p(problem) {
    const int most = rows_of(p);
    pairs = kPairs && p.dtype == saccade::kBFloat16 && pairs_allowed;
    natural = p.bias_kind != saccade::kNoBias;
    unit = natural ? kLog2E : 1.0f;
    packed_ = arena.take<float>(most * p.width + L);
    scores = arena.take<float>(kTileKeys * most);
    keys_ = arena.take<float>(kTileKeys * p.width + W);
    values_ = arena.take<float>(kTileKeys * p.value_width + W);
    starts_ = arena.take<int32_t>(p.runs * kMaxRows);
    stops_ = arena.take<int32_t>(p.runs * kMaxRows);
    slopes_ = arena.take<float>(kMaxRows);
    positions_ = arena.take<float>(kMaxRows);
    reversed_ = p.bias_kind == saccade::kRelativeBias ? arena.take<float>(p.bias_count + 2 * L) : nullptr;
    reversed_head_ = -1;
  }

  // Turn to other queries; `packed`, if not null, holds them as an earlier start() packed them.
  void start(const Rows &rows, float *packed = nullptr) {
    batch = rows.batch;
    key_head = rows.key_head;
    count = rows.count;
    strips = (count + L - 1) / L;
    const int64_t group = p.heads / p.key_heads;
    int64_t h = key_head * group + rows.first / p.queries, i = rows.first % p.queries;
    for (int r = 0; r < strips * L; r++) {
      head[r] = h;
      query[r] = i;
      if (r + 1 >= count) continue;
      if (++i == p.queries) i = 0, h++;
    }
    queries_ = packed ? packed : packed_;
    if (!packed) pack(packed_);
    if (p.starts) take_intervals();
    if (p.bias_kind == saccade::kALiBi) take_slopes();
  }

  // Q^T [strips][D][L] of the block's queries, times packed_factor().
  void pack(float *to) const {
    if (pairs) return pack_pairs((int32_t *)to);
    const float factor = packed_factor();
    for (int strip = 0; strip < strips; strip++)
      for (int v = 0; v < V; v++) pack_lanes(strip * L + v * W, to + strip * p.width * L + v * W, factor);
  }

  bool finite_queries() const {
    bool fine = true;
    for (int r = 0; r < count; r++) fine = fine && finite(query_row(r), p.dtype, p.width);
    return fine;
  }

  const char *query_row(int r) const {
    return element(p.query, p.dtype, batch * p.query_batch + head[r] * p.query_head + query[r] * p.query_row);
  }

  // ------------------------------------------------------------------------------------ which keys

  // The first key at or after `key` that some row sees, or Nk.
  int64_t next(int64_t key) const {
    if (p.starts) {
      const vi here = splat((int32_t)key), none = splat((int32_t)p.keys);
      vi first = none;
      for (int64_t r = 0; r < p.runs; r++)
        for (int lane = 0; lane < strips * L; lane += W) {
          const vi start = load_as<vi>(starts_ + r * kMaxRows + lane), stop = load_as<vi>(stops_ + r * kMaxRows + lane);
          first = min(first, stop > max(here, start) ? max(here, start) : none);
        }
      return smallest(first);
    }
    if (p.visible) {
      int64_t first = p.keys;
      for (int r = 0; r < count; r++) {
        const void *seen = first > key ? __builtin_memchr(visible(r) + key, 1, (size_t)(first - key)) : nullptr;
        if (seen) first = (const uint8_t *)seen - visible(r);
      }
      return first;
    }
    return key;
  }

  // Where a tile that starts at `key` stops at the latest.
  int64_t tile_stop(int64_t key) const {
    int64_t stop = smaller<int64_t>(p.keys, key + kTileKeys);
    if (p.pages) stop = smaller(stop, (key / p.page_size + 1) * p.page_size);
    return stop;
  }

  // The keys of a tile that some query of a strip sees.
  Range range(int strip, int64_t start, int64_t stop) const {
    if (p.starts) {
      Range found = interval_range(strip, (int32_t)start, (int32_t)stop);
      if (pairs && (found.start - start) % 2 != 0) found = {found.start - 1, found.stop, true};  // values come in pairs
      return found;
    }
    if (p.visible) return {start, stop, true};
    return {start, stop, false};
  }

  // Whether a row sees a key: -1 or 0 in each lane.
  vi sees(int lane, int64_t key) const {
    if (p.visible) {
      vi seen;
      for (int i = 0; i < W; i++) seen[i] = visible(lane + i)[key] ? -1 : 0;
      return seen;
    }
    const vi here = splat((int32_t)key);
    vi seen = splat(0);
    for (int64_t r = 0; r < p.runs; r++)
      seen |= (here >= load_as<vi>(starts_ + r * kMaxRows + lane)) & (here < load_as<vi>(stops_ + r * kMaxRows + lane));
    return seen;
  }

  // ------------------------------------------------------------------------------------ operands

  int64_t key_index(int64_t key, int64_t batch_stride, int64_t head_stride, int64_t row_stride) const {
    if (!p.pages) return batch * batch_stride + key_head * head_stride + key * row_stride;
    const int32_t page = ((const int32_t *)p.pages)[batch * p.pages_batch + key / p.page_size];
    return page * batch_stride + key_head * head_stride + key % p.page_size * row_stride;
  }

  // Keys `start` to `stop` of one tile: where they lie if they are floats, else converted.
  Operand keys(int64_t start, int64_t stop) {
    const int64_t index = key_index(start, p.key_batch, p.key_head, p.key_row);
    if (pairs) return paired_keys(index, stop - start);
    return floats(p.key, index, p.key_row, stop - start, p.width, keys_);
  }

  Operand values(int64_t start, int64_t stop) {
    const int64_t index = key_index(start, p.value_batch, p.value_head, p.value_row);
    if (pairs) return paired_values(index, stop - start);
    return floats(p.value, index, p.value_row, stop - start, p.value_width, values_);
  }

  Operand floats(const void *base, int64_t index, int64_t row, int64_t rows, int64_t width, float *copy) const {
    if (!copies(p)) return {(const float *)base + index, row};
    for (int64_t r = 0; r < rows; r++) to_floats(copy + r * width, element(base, p.dtype, index + r * row), p.dtype, width);
    return {copy, width};
  }

  // ------------------------------------------------------------------------------------ scores

  // The scores of a strip against `range`, -inf where hidden, in `to`: L lanes for each key, `row` apart. `keys` begins at
  // tile key `start`. `tanhs`, if not null, takes tanh(score / softcap), laid out likewise.
  void score(int strip, Operand keys, int64_t start, Range range, float *to, int64_t row = L, float *tanhs = nullptr) const {
    const int64_t rows = range.stop - range.start;
    if (pairs) {
      const int64_t half = (p.width + 1) / 2;
      product<Pairs, false>(to, row, (const int32_t *)keys.data + (range.start - start) * keys.row, keys.row, 1,
                            (const vi *)(queries_ + strip * half * L), L, rows, half);
    } else {
      product<Single, false>(to, row, keys.data + (range.start - start) * keys.row, keys.row, 1,
                             (const vf *)(queries_ + strip * p.width * L), L, rows, p.width);
    }
    if (p.softcap != 0.0) bound(to, row, rows, tanhs);
    if (pairs && p.softcap == 0.0) rescale(to, row, rows);
    if (natural) add_bias(strip, range, to, row);
    if (range.edge) hide(strip, range, to, row);
  }

  // What multiplies a raw product in `packed queries . keys` to give s before softcap: 1 / this is in the packed queries.
  float packed_factor() const { return p.softcap != 0.0 ? (float)(p.scale / p.softcap) : (float)(p.scale * (natural ? 1.0 : kLog2E)); }

  float slope(int lane) const { return slopes_[lane]; }
  float distance(int lane, int64_t key) const { return __builtin_fabsf((float)(query[lane] + p.bias_offset - key)); }

  // The bias of one entry where it lies.
  float bias_at(int lane, int64_t key) const {
    const int64_t h = head[lane], i = query[lane];
    const int64_t base = batch * p.bias_batch + h * p.bias_head;
    if (p.bias_kind == saccade::kALiBi) return -slopes_[lane] * distance(lane, key);
    return to_float(element(p.bias, p.bias_dtype, base + bias_offset(i, key)), p.bias_dtype);
  }

  // Where in a head's bias an entry reads its value.
  int64_t bias_offset(int64_t i, int64_t key) const {
    if (p.bias_kind == saccade::kRelativeBias)
      return smaller(larger<int64_t>(key - i - p.bias_offset - p.bias_first, 0), p.bias_count - 1);
    return i * p.bias_row + key * p.bias_key;
  }

  float sink(int lane) const {  // in the scores' unit
    return ((const float *)p.sinks)[batch * p.sinks_batch + head[lane]] * (natural ? 1.0f : kLog2E);
  }

 private:
  float *packed_, *queries_, *keys_, *values_, *slopes_, *positions_, *reversed_;
  int32_t *starts_, *stops_;
  mutable int64_t reversed_head_;

  const uint8_t *visible(int r) const {
    return (const uint8_t *)p.visible + batch * p.visible_batch + head[r] * p.visible_head + query[r] * p.visible_row;
  }

  void pack_lanes(int first, float *to, float factor) const {
    const char *rows[W];
    for (int i = 0; i < W; i++) rows[i] = query_row(first + i);
    int64_t d = 0;
    for (; d + W <= p.width; d += W) {
      vf square[W];
      for (int i = 0; i < W; i++) square[i] = load_floats(rows[i], d);
      transpose(square);
      for (int j = 0; j < W; j++) store(to + (d + j) * L, square[j] * splat(factor));
    }
    for (; d < p.width; d++)
      for (int i = 0; i < W; i++) to[d * L + i] = to_float(element(rows[i], p.dtype, d), p.dtype) * factor;
  }

  INLINE vf load_floats(const char *row, int64_t d) const {
    if (p.dtype == saccade::kFloat32) return load((const float *)row + d);
    const uint16_t *halves = (const uint16_t *)row + d;
    return p.dtype == saccade::kBFloat16 ? from_bf16(load_as<vh>(halves)) : from_fp16(halves);
  }

  // ---- bfloat16 pairs

  // Queries as they are (a scale would have to be rounded), two of a row's numbers in each lane; an odd last one with 0.
  void pack_pairs(int32_t *to) const {
    const int64_t half = (p.width + 1) / 2;
    for (int r = 0; r < strips * L; r++) {
      const uint16_t *row = (const uint16_t *)query_row(r);
      int32_t *lane = to + (r / L) * half * L + r % L;
      for (int64_t d = 0; d < half; d++) lane[d * L] = pair(row[2 * d], 2 * d + 1 < p.width ? row[2 * d + 1] : 0);
    }
  }

  static INLINE int32_t pair(uint16_t low, uint16_t high) { return (int32_t)(low | (uint32_t)high << 16); }

  Operand paired_keys(int64_t index, int64_t rows) {
    const uint16_t *base = (const uint16_t *)p.key + index;
    if (p.width % 2 == 0 && p.key_row % 2 == 0) return {(const float *)base, p.key_row / 2};
    const int64_t half = (p.width + 1) / 2;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t d = 0; d < half; d++) {
        const uint16_t *row = base + r * p.key_row + 2 * d;
        ((int32_t *)keys_)[r * half + d] = pair(row[0], 2 * d + 1 < p.width ? row[1] : 0);
      }
    return {keys_, half};
  }

  // Two keys' values side by side, [ceil(keys / 2)][Dv].
  Operand paired_values(int64_t index, int64_t rows) {
    const uint16_t *base = (const uint16_t *)p.value + index;
    int32_t *to = (int32_t *)values_;
    for (int64_t r = 0; r < rows; r += 2, to += p.value_width) {
      const uint16_t *low = base + r * p.value_row, *high = low + p.value_row;
      const bool single = r + 1 == rows;
      int64_t d = 0;
      for (; !single && d + W <= p.value_width; d += W)
        store(to + d, __builtin_convertvector(load_as<vh>(low + d), vi) |
                          __builtin_convertvector(load_as<vh>(high + d), vi) << 16);
      for (; d < p.value_width; d++) to[d] = pair(low[d], single ? 0 : high[d]);
    }
    return {values_, p.value_width};
  }

  void rescale(float *s, int64_t row, int64_t rows) const {
    const vf factor = splat(packed_factor());
    for (int64_t r = 0; r < rows; r++, s += row)
      for (int v = 0; v < V; v++) store(s + v * W, load(s + v * W) * factor);
  }

  // ---- masks

  void take_intervals() {
    for (int r = 0; r < strips * L; r++) {
      const int64_t row = batch * p.mask_batch + head[r] * p.mask_head + query[r] * p.runs;
      for (int64_t run = 0; run < p.runs; run++) {
        starts_[run * kMaxRows + r] = ((const int32_t *)p.starts)[row + run];
        stops_[run * kMaxRows + r] = ((const int32_t *)p.stops)[row + run];
      }
    }
  }

  Range interval_range(int strip, int32_t start, int32_t stop) const {
    const vi tile_start = splat(start), tile_stop = splat(stop);
    vi low = tile_stop, high = tile_start;
    for (int64_t r = 0; r < p.runs; r++)
      for (int v = 0; v < V; v++) {
        const int lane = strip * L + v * W;
        const vi first = max(load_as<vi>(starts_ + r * kMaxRows + lane), tile_start);
        const vi last = min(load_as<vi>(stops_ + r * kMaxRows + lane), tile_stop);
        low = min(low, first < last ? first : tile_stop);
        high = max(high, first < last ? last : tile_start);
      }
    Range found = {smallest(low), largest(high), true};
    for (int64_t r = 0; r < p.runs && found.edge; r++) {
      vi whole = splat(-1);
      for (int v = 0; v < V; v++) {
        const int lane = strip * L + v * W;
        whole &= (load_as<vi>(starts_ + r * kMaxRows + lane) <= splat((int32_t)found.start)) &
                 (load_as<vi>(stops_ + r * kMaxRows + lane) >= splat((int32_t)found.stop));
      }
      found.edge = !all(whole);
    }
    return found;
  }

  void hide(int strip, Range range, float *s, int64_t row) const {
    for (int64_t key = range.start; key < range.stop; key++, s += row)
      for (int v = 0; v < V; v++)
        store(s + v * W, sees(strip * L + v * W, key) ? load(s + v * W) : splat(-kInfinity));
  }

  // ---- softcap and bias

  void bound(float *s, int64_t row, int64_t rows, float *tanhs) const {
    const vf factor = splat(pairs ? packed_factor() : 1.0f), cap = splat((float)(p.softcap * (natural ? 1.0 : kLog2E)));
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = r * row; i < r * row + L; i += W) {
        const vf bounded = tanh(load(s + i) * factor);
        if (tanhs) store(tanhs + i, bounded);
        store(s + i, bounded * cap);
      }
  }

  void take_slopes() {
    for (int r = 0; r < strips * L; r++) {
      slopes_[r] = to_float(element(p.bias, p.bias_dtype, batch * p.bias_batch + head[r] * p.bias_head), p.bias_dtype);
      positions_[r] = (float)(query[r] + p.bias_offset);
    }
  }

  void add_bias(int strip, Range range, float *s, int64_t row) const {
    if (p.bias_kind == saccade::kALiBi) return add_alibi(strip, range, s, row);
    if (p.bias_kind == saccade::kRelativeBias && one_run(strip)) return add_relative(strip, range, s, row);
    if (p.bias_kind == saccade::kDenseBias && p.bias_key == 1 && p.bias_dtype == saccade::kFloat32)
      return add_dense(strip, range, s, row);
    for (int64_t key = range.start; key < range.stop; key++, s += row)
      for (int lane = 0; lane < L; lane++) s[lane] += bias_at(strip * L + lane, key);
  }

  void add_alibi(int strip, Range range, float *s, int64_t row) const {
    for (int64_t key = range.start; key < range.stop; key++, s += row)
      for (int v = 0; v < V; v++) {
        const int lane = strip * L + v * W;
        const vf away = abs(load(positions_ + lane) - splat((float)key));
        store(s + v * W, load(s + v * W) - load(slopes_ + lane) * away);
      }
  }

  // Whether a strip's lanes are consecutive queries of one head.
  bool one_run(int strip) const {
    return query[strip * L + L - 1] == query[strip * L] + L - 1 && head[strip * L + L - 1] == head[strip * L];
  }

  // Queries ascend in the lanes, so positions relative to a key descend: the values, reversed, are read side by side.
  void add_relative(int strip, Range range, float *s, int64_t row) const {
    const int lane = strip * L;
    if (reversed_head_ != batch * p.heads + head[lane]) reverse(head[lane]);
    for (int64_t key = range.start; key < range.stop; key++, s += row) {
      const int64_t position = key - query[lane] - p.bias_offset - p.bias_first;
      const int64_t from = larger<int64_t>(0, smaller<int64_t>(p.bias_count + L, L + p.bias_count - 1 - position));
      for (int v = 0; v < V; v++) store(s + v * W, load(s + v * W) + load(reversed_ + from + v * W));
    }
  }

  // L times the last value, then all of them from the last to the first, then L times the first.
  void reverse(int64_t h) const {
    const int64_t base = batch * p.bias_batch + h * p.bias_head, last = p.bias_count - 1;
    for (int64_t i = 0; i < p.bias_count + 2 * L; i++) {
      const int64_t index = smaller(larger<int64_t>(last - (i - L), 0), last);
      reversed_[i] = to_float(element(p.bias, p.bias_dtype, base + index), p.bias_dtype);
    }
    reversed_head_ = batch * p.heads + h;
  }

  // A float bias whose rows are contiguous: squares of W keys x W queries are transposed.
  void add_dense(int strip, Range range, float *s, int64_t row) const {
    for (int v = 0; v < V; v++) {
      const float *rows[W];
      for (int i = 0; i < W; i++) {
        const int lane = strip * L + v * W + i;
        rows[i] = (const float *)p.bias + batch * p.bias_batch + head[lane] * p.bias_head + query[lane] * p.bias_row;
      }
      float *to = s + v * W;
      int64_t key = range.start;
      for (; key + W <= range.stop; key += W) {
        vf square[W];
        for (int i = 0; i < W; i++) square[i] = load(rows[i] + key);
        transpose(square);
        for (int j = 0; j < W; j++, to += row) store(to, load(to) + square[j]);
      }
      for (; key < range.stop; key++, to += row)
        for (int i = 0; i < W; i++) to[i] += rows[i][key];
    }
  }
};

}  // namespace SACCADE_VARIANT
