// What is read off the weights of a block while they are at hand.
//
// Exponentials arrive a strip and a tile at a time, relative to a maximum that may still rise: then what a row has gathered is
// scaled down, as its output is, and only at the end divided by the row's sum. What a key or a cell receives is summed over
// the block's queries and added to the result. `Task::splits` items share the queries of a head, each a stretch of blocks;
// what two of them would write goes to partial results that a last phase adds up in order: the same bits however many
// threads there are.
#pragma once

#include "block.h"

namespace SACCADE_VARIANT {

using saccade::Statistic;

//                                first      second     third
// kEntropy, kMaxWeight
// kTopKeys                       k
// kDistance                      offset
// kMass                          groups
// kReceived                      groups, or 0 for the sum over all queries
// kMap                           cells_q    cells_k    0 mean (the caller divides), 1 max, 2 sum
enum Kind : int64_t { kEntropy, kMaxWeight, kTopKeys, kDistance, kMass, kReceived, kMap };

inline bool by_key(const Statistic &s) { return s.kind == kReceived || s.kind == kMap; }

// Numbers in one by-key result of one head.
inline int64_t size_of(const Statistic &s, const Problem &p) {
  return s.kind == kMap ? s.first * s.second : larger<int64_t>(s.first, 1) * p.keys;
}

// Numbers that a split keeps for itself of one by-key result: of a map, the one row of cells that it may share with the
// split before it.
inline int64_t partial_size(const Statistic &s, const Problem &p) { return s.kind == kMap ? s.second : size_of(s, p); }

// Blocks of one head, and the first one of a split.
inline int64_t blocks_of(const Problem &p) { return (p.queries + Block::rows_of(p) - 1) / Block::rows_of(p); }
inline int64_t first_block(const Task &task, int64_t split) { return split * blocks_of(task.problem) / task.splits; }

// The cell that holds an index of `count`, of `cells`.
inline int64_t cell_of(int64_t index, int64_t cells, int64_t count) { return ((index + 1) * cells - 1) / count; }

// The first row of a map's cells that a split adds to.
inline int64_t first_row(const Statistic &s, const Task &task, int64_t split) {
  return cell_of(first_block(task, split) * Block::rows_of(task.problem), s.first, task.problem.queries);
}

// The number of results a by-key statistic has: one for each head, or for each batch element.
inline int64_t results_of(const Statistic &s, const Problem &p) { return p.batch * (s.over_heads ? 1 : p.heads); }

class Answers {
 public:
  Answers(const Task &task, const Block &block, Arena &arena) : task_(task), p_(task.problem), block_(block) {
    states_ = arena.take<State>(p_.statistics_count);
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task.statistics[i];
      State state = {};
      if (s.kind == kMaxWeight || s.kind == kDistance) state.rows = arena.take<float>(kMaxRows);
      if (s.kind == kMass) state.rows = arena.take<float>(s.first * kMaxRows);
      if (s.kind == kTopKeys) {
        state.rows = arena.take<float>(s.first * kMaxRows);
        state.keys = arena.take<int32_t>(s.first * kMaxRows);
      }
      if (s.kind == kReceived) {
        state.members = arena.take<float>(larger<int64_t>(s.first, 1) * kMaxRows);
        state.columns = arena.take<float>(larger<int64_t>(s.first, 1) * kTileKeys * W);
      }
      if (s.kind == kMap) {
        state.cells = arena.take<float>(s.second * kMaxRows);
        state.bounds = arena.take<int64_t>(s.second + 1);
        for (int64_t c = 0; arena.base && c <= s.second; c++) state.bounds[c] = c * p_.keys / larger<int64_t>(s.second, 1);
      }
      if (arena.base) states_[i] = state;
    }
  }

  // Whether something but the entropy is gathered row by row, or is received by keys.
  static bool by_row(const Task &task) {
    for (int64_t i = 0; i < task.problem.statistics_count; i++)
      if (task.statistics[i].kind != kEntropy && task.statistics[i].kind != kReceived) return true;
    return false;
  }
  static bool received(const Task &task) {
    for (int64_t i = 0; i < task.problem.statistics_count; i++)
      if (task.statistics[i].kind == kReceived) return true;
    return false;
  }

  void start() {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kMaxWeight || s.kind == kDistance) clear(state.rows, kMaxRows);
      if (s.kind == kMass) clear(state.rows, s.first * kMaxRows);
      if (s.kind == kTopKeys) {
        clear(state.rows, s.first * kMaxRows);
        for (int64_t j = 0; j < s.first * kMaxRows; j++) state.keys[j] = -1;
      }
      if (s.kind == kReceived) take_members(s, state);
      state.first_cell = s.second;
      state.last_cell = -1;
    }
  }

  // Exponentials [keys of range][L] of a strip, to be gathered row by row.
  void add(int strip, Range range, const float *e) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kMaxWeight) add_max(state, strip, range, e);
      if (s.kind == kDistance) add_distance(s, state, strip, range, e);
      if (s.kind == kMass) add_mass(s, state, strip, range, e);
      if (s.kind == kTopKeys) add_top_keys(s, state, strip, range, e);
      if (s.kind == kMap) add_map(s, state, strip, range, e);
    }
  }

  // What the W rows from `lane` on have gathered is to be multiplied by `factor`.
  void scale(int lane, vf factor) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kMaxWeight || s.kind == kDistance) scale(state.rows + lane, 1, factor);
      if (s.kind == kMass || s.kind == kTopKeys) scale(state.rows + lane, s.first, factor);
      if (s.kind == kMap && state.last_cell >= 0)
        scale(state.cells + state.first_cell * kMaxRows + lane, state.last_cell - state.first_cell + 1, factor);
    }
  }

  // A new tile of keys is received.
  void start_tile() {
    for (int64_t i = 0; i < p_.statistics_count; i++)
      if (task_.statistics[i].kind == kReceived)
        clear(states_[i].columns, larger<int64_t>(task_.statistics[i].first, 1) * kTileKeys * W);
  }

  // Exponentials of a strip that give weights if multiplied by `scales`, for each of L lanes, 0 in unused ones. `start` is
  // where the tile begins.
  void receive(int strip, int64_t start, Range range, const float *e, const vf (&scales)[V]) {
    for (int64_t i = 0; i < p_.statistics_count; i++)
      if (task_.statistics[i].kind == kReceived) add_received(task_.statistics[i], states_[i], strip, start, range, e, scales);
  }

  void finish_tile(int64_t start, int64_t stop, int64_t split) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      if (s.kind != kReceived) continue;
      for (int64_t g = 0; g < larger<int64_t>(s.first, 1); g++) {
        float *to = (task_.splits > 1 ? partial(i, split) : result(s)) + g * p_.keys + start;
        const float *columns = states_[i].columns + g * kTileKeys * W;
        int64_t key = 0;
        for (; key + W <= stop - start; key += W) {  // W sums over lanes at once
          vf square[W];
          for (int i = 0; i < W; i++) square[i] = load(columns + (key + i) * W);
          transpose(square);
          for (int i = 1; i < W; i++) square[0] += square[i];
          store(to + key, load(to + key) + square[0]);
        }
        for (; key < stop - start; key++) to[key] += sum(load(columns + key * W));
      }
    }
  }

  // The block is done: `entropy` is its rows', and what they have gathered is to be multiplied by `scales`.
  void finish(const float *entropy, const float *scales, int64_t split) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kMap) {
        finish_map(i, scales, split);
        continue;
      }
      for (int r = 0; r < block_.count; r++) {
        const int64_t row = (block_.batch * p_.heads + block_.head[r]) * p_.queries + block_.query[r];
        float *result = (float *)s.result;
        if (s.kind == kEntropy) result[row] = entropy[r];
        if (s.kind == kMaxWeight || s.kind == kDistance) result[row] = state.rows[r] * scales[r];
        if (s.kind == kMass)
          for (int64_t g = 0; g < s.first; g++) result[row * s.first + g] = state.rows[g * kMaxRows + r] * scales[r];
        if (s.kind == kTopKeys)
          for (int64_t j = 0; j < s.first; j++) {
            result[row * s.first + j] = state.rows[j * kMaxRows + r] * scales[r];
            ((int64_t *)s.indices)[row * s.first + j] = state.keys[j * kMaxRows + r];
          }
      }
    }
  }

  // Bytes of partial results, and how one is found: statistic by statistic, split by split.
  static int64_t partial_bytes(const Task &task, int64_t splits) {
    int64_t count = 0;
    for (int64_t i = 0; splits > 1 && i < task.problem.statistics_count; i++)
      if (by_key(task.statistics[i]))
        count += splits * results_of(task.statistics[i], task.problem) * partial_size(task.statistics[i], task.problem);
    return count * 4;
  }

  // Add up the partial results of one by-key result, in the order of the splits.
  static void merge(Task &task, int64_t item, char *) {
    const Problem &p = task.problem;
    const float *partial = (const float *)task.shared;
    for (int64_t i = 0; i < p.statistics_count; i++) {
      const Statistic &s = task.statistics[i];
      if (!by_key(s)) continue;
      const int64_t results = results_of(s, p), size = partial_size(s, p);
      if (item < results) {
        for (int64_t split = 0; split < task.splits; split++) {
          const float *from = partial + (split * results + item) * size;
          float *to = (float *)s.result + item * size_of(s, p) + (s.kind == kMap ? first_row(s, task, split) * size : 0);
          for (int64_t j = 0; j < size; j++) to[j] = s.kind == kMap ? join(s, to[j], from[j]) : to[j] + from[j];
        }
        return;
      }
      item -= results;
      partial += task.splits * results * size;
    }
  }

  static int64_t merges(const Task &task) {
    int64_t count = 0;
    for (int64_t i = 0; i < task.problem.statistics_count; i++)
      if (by_key(task.statistics[i])) count += results_of(task.statistics[i], task.problem);
    return count;
  }

 private:
  struct State {
    float *rows;            // [...][kMaxRows]
    int32_t *keys;          // [k][kMaxRows]
    float *members;         // [groups][kMaxRows]: 1 for the rows of a group
    float *columns;         // [groups][kTileKeys][W]: what the keys of a tile received, not yet summed over lanes
    float *cells;           // [cells_k][kMaxRows]
    int64_t *bounds;        // where the cells of keys begin: a division for each would take as long as the sums
    int64_t first_cell, last_cell;  // of those touched by the block
  };

  const Task &task_;
  const Problem &p_;
  const Block &block_;
  State *states_;

  static void scale(float *rows, int64_t count, vf factor) {
    for (int64_t i = 0; i < count; i++) store(rows + i * kMaxRows, load(rows + i * kMaxRows) * factor);
  }

  static void clear(float *x, int64_t count) { __builtin_memset(x, 0, (size_t)count * 4); }

  // Where the block's share of a by-key result is added to.
  float *result(const Statistic &s) const { return (float *)s.result + result_index(s) * size_of(s, p_); }
  int64_t result_index(const Statistic &s) const {
    return s.over_heads ? block_.batch : block_.batch * p_.heads + block_.head[0];
  }

  // The same of what a split keeps for itself.
  float *partial(int64_t index, int64_t split) const {
    float *partial = (float *)task_.shared;
    for (int64_t i = 0; i < index; i++)
      if (by_key(task_.statistics[i]))
        partial += task_.splits * results_of(task_.statistics[i], p_) * partial_size(task_.statistics[i], p_);
    const Statistic &s = task_.statistics[index];
    return partial + (split * results_of(s, p_) + result_index(s)) * partial_size(s, p_);
  }

  static int64_t group_of(const Statistic &s, int64_t batch, int64_t index) {
    return ((const int64_t *)s.groups)[batch * s.groups_batch + index];
  }

  void take_members(const Statistic &s, State &state) const {
    for (int64_t g = 0; g < larger<int64_t>(s.first, 1); g++)
      for (int r = 0; r < kMaxRows; r++) {
        const bool member = r < block_.count && (s.first == 0 || group_of(s, block_.batch, block_.query[r]) == g);
        state.members[g * kMaxRows + r] = member ? 1.0f : 0.0f;
      }
  }

  void add_max(State &state, int strip, Range range, const float *e) const {
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      vf top = load(state.rows + lane);
      for (int64_t i = 0; i < (range.stop - range.start) * L; i += L) top = max(top, load(e + i + v * W));
      store(state.rows + lane, top);
    }
  }

  void add_distance(const Statistic &s, State &state, int strip, Range range, const float *e) const {
    vf position[V], total[V], here = splat((float)range.start);
    for (int v = 0; v < V; v++) {
      for (int i = 0; i < W; i++) position[v][i] = (float)(block_.query[strip * L + v * W + i] + s.first);
      total[v] = splat(0.0f);
    }
    for (int64_t key = range.start; key < range.stop; key++, e += L, here += splat(1.0f))
      for (int v = 0; v < V; v++) total[v] += load(e + v * W) * abs(position[v] - here);
    for (int v = 0; v < V; v++) {
      float *to = state.rows + strip * L + v * W;
      store(to, load(to) + total[v]);
    }
  }

  // Neighbouring keys are often of one group: they are summed in registers.
  void add_mass(const Statistic &s, State &state, int strip, Range range, const float *e) const {
    const int64_t *groups = (const int64_t *)s.groups + block_.batch * s.groups_batch;
    for (int64_t key = range.start; key < range.stop;) {
      const int64_t g = groups[key];
      vf total[V] = {};
      for (; key < range.stop && groups[key] == g; key++, e += L)
        for (int v = 0; v < V; v++) total[v] += load(e + v * W);
      if (g < 0 || g >= s.first) continue;
      float *to = state.rows + g * kMaxRows + strip * L;
      for (int v = 0; v < V; v++) store(to + v * W, load(to + v * W) + total[v]);
    }
  }

  // The k best so far are sorted in each lane; a better one sinks to its place, in all lanes at once.
  void add_top_keys(const Statistic &s, State &state, int strip, Range range, const float *e) const {
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      float *best = state.rows + lane;
      int32_t *keys = state.keys + lane;
      vf least = load(best + (s.first - 1) * kMaxRows);
      for (int64_t key = range.start; key < range.stop; key++) {
        vf weight = load(e + (key - range.start) * L + v * W);
        if (!any(weight > least)) continue;
        vi index = splat((int32_t)key);
        for (int64_t j = 0; j < s.first; j++) {
          const vf held = load(best + j * kMaxRows);
          const vi held_key = load_as<vi>(keys + j * kMaxRows), better = weight > held;
          store(best + j * kMaxRows, better ? weight : held);
          store(keys + j * kMaxRows, better ? index : held_key);
          weight = better ? held : weight;
          index = better ? held_key : index;
        }
        least = load(best + (s.first - 1) * kMaxRows);
      }
    }
  }

  void add_received(const Statistic &s, State &state, int strip, int64_t start, Range range, const float *e,
                    const vf (&scales)[V]) const {
    for (int64_t g = 0; g < larger<int64_t>(s.first, 1); g++) {
      float *columns = state.columns + (g * kTileKeys + range.start - start) * W;
      const float *from = e;
      vf factors[V];
      for (int v = 0; v < V; v++) factors[v] = scales[v] * load(state.members + g * kMaxRows + strip * L + v * W);
      for (int64_t key = range.start; key < range.stop; key++, from += L, columns += W) {
        vf total = load(columns);
        for (int v = 0; v < V; v++) total += load(from + v * W) * factors[v];
        store(columns, total);
      }
    }
  }

  static INLINE vf join(const Statistic &s, vf a, vf b) { return s.third == 1 ? max(a, b) : a + b; }
  static INLINE float join(const Statistic &s, float a, float b) { return s.third == 1 ? larger(a, b) : a + b; }

  void add_map(const Statistic &s, State &state, int strip, Range range, const float *e) const {
    int64_t cell = cell_of(range.start, s.second, p_.keys);
    for (int64_t key = range.start; key < range.stop; cell++) {
      const int64_t stop = smaller(range.stop, state.bounds[cell + 1]);
      touch(state, cell);
      float *to = state.cells + cell * kMaxRows + strip * L;
      vf joined[V];
      for (int v = 0; v < V; v++) joined[v] = load(to + v * W);
      for (; key < stop; key++, e += L)
        for (int v = 0; v < V; v++) joined[v] = join(s, joined[v], load(e + v * W));
      for (int v = 0; v < V; v++) store(to + v * W, joined[v]);
    }
  }

  // Cells are cleared when first reached. Keys come in ascending order, so those between are cleared as well.
  void touch(State &state, int64_t cell) const {
    if (state.last_cell < 0) state.first_cell = state.last_cell = cell, clear_cell(state, cell);
    while (state.last_cell < cell) clear_cell(state, ++state.last_cell);
    while (state.first_cell > cell) clear_cell(state, --state.first_cell);
  }

  void clear_cell(const State &state, int64_t cell) const {
    for (int lane = 0; lane < block_.strips * L; lane += W) store(state.cells + cell * kMaxRows + lane, splat(0.0f));
  }

  // Lanes are queries: each is joined to its row of cells, W cells at once where there are as many.
  void finish_map(int64_t index, const float *scales, int64_t split) {
    const Statistic &s = task_.statistics[index];
    const State &state = states_[index];
    const int64_t shared = task_.splits > 1 ? first_row(s, task_, split) : -1;
    float *rows[kMaxRows];
    for (int r = 0; r < block_.count; r++) {
      const int64_t row = cell_of(block_.query[r], s.first, p_.queries);
      rows[r] = row == shared ? partial(index, split) : result(s) + row * s.second;
    }
    int64_t cell = state.first_cell;
    for (; cell + W - 1 <= state.last_cell; cell += W)
      for (int first = 0; first < block_.count; first += W) {
        vf square[W];
        for (int i = 0; i < W; i++) square[i] = load(state.cells + (cell + i) * kMaxRows + first) * load(scales + first);
        transpose(square);
        for (int i = 0; i < W && first + i < block_.count; i++) {
          float *to = rows[first + i] + cell;
          store(to, join(s, load(to), square[i]));
        }
      }
    for (; cell <= state.last_cell; cell++)
      for (int r = 0; r < block_.count; r++) {
        float &to = rows[r][cell];
        to = join(s, to, state.cells[cell * kMaxRows + r] * scales[r]);
      }
  }
};

}  // namespace SACCADE_VARIANT
