// What is read off the weights of a block while they are at hand.
//
// Weights arrive a strip and a tile at a time, exact, 0 where hidden. What a row answers stays in the lanes until the block
// is done; what a key or a cell receives is summed over the block's queries and added to the result, or to a partial result
// that `Task::splits` blocks share out among themselves and a last phase adds up in order: the same bits however many
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

// The number of results a by-key statistic has: one for each head, or for each batch element.
inline int64_t results_of(const Statistic &s, const Problem &p) { return p.batch * (s.over_heads ? 1 : p.heads); }

class Answers {
 public:
  Answers(const Task &task, const Block &block, Arena &arena) : task_(task), p_(task.problem), block_(block) {
    weights_ = arena.take<float>(kTileKeys * L);
    states_ = arena.take<State>(p_.statistics_count);
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task.statistics[i];
      State state = {};
      if (s.kind == kDistance) state.rows = arena.take<float>(kMaxRows);
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

  float *weights() { return weights_; }

  void start() {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kDistance) clear(state.rows, kMaxRows);
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

  // A new tile of keys begins at `key`.
  void start_tile() {
    for (int64_t i = 0; i < p_.statistics_count; i++)
      if (task_.statistics[i].kind == kReceived)
        clear(states_[i].columns, larger<int64_t>(task_.statistics[i].first, 1) * kTileKeys * W);
  }

  // Weights [keys of range][L] of a strip; `start` is where the tile begins.
  void add(int strip, int64_t start, Range range, const float *weights) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kDistance) add_distance(s, state, strip, range, weights);
      if (s.kind == kMass) add_mass(s, state, strip, range, weights);
      if (s.kind == kTopKeys) add_top_keys(s, state, strip, range, weights);
      if (s.kind == kReceived) add_received(s, state, strip, start, range, weights);
      if (s.kind == kMap) add_map(s, state, strip, range, weights);
    }
  }

  void finish_tile(int64_t start, int64_t stop, int64_t split) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      if (s.kind != kReceived) continue;
      for (int64_t g = 0; g < larger<int64_t>(s.first, 1); g++) {
        float *to = target(i, split) + g * p_.keys + start;
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

  // The block is done: `entropy` and `largest` are its rows'.
  void finish(const float *entropy, const float *largest, int64_t split) {
    for (int64_t i = 0; i < p_.statistics_count; i++) {
      const Statistic &s = task_.statistics[i];
      State &state = states_[i];
      if (s.kind == kMap) {
        finish_map(s, state, target(i, split));
        continue;
      }
      for (int r = 0; r < block_.count; r++) {
        const int64_t row = (block_.batch * p_.heads + block_.head[r]) * p_.queries + block_.query[r];
        float *result = (float *)s.result;
        if (s.kind == kEntropy) result[row] = entropy[r];
        if (s.kind == kMaxWeight) result[row] = largest[r];
        if (s.kind == kDistance) result[row] = state.rows[r];
        if (s.kind == kMass)
          for (int64_t g = 0; g < s.first; g++) result[row * s.first + g] = state.rows[g * kMaxRows + r];
        if (s.kind == kTopKeys)
          for (int64_t j = 0; j < s.first; j++) {
            result[row * s.first + j] = state.rows[j * kMaxRows + r];
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
        count += splits * results_of(task.statistics[i], task.problem) * size_of(task.statistics[i], task.problem);
    return count * 4;
  }

  // Add up the partial results of one by-key result, in the order of the splits.
  static void merge(Task &task, int64_t item, char *) {
    const Problem &p = task.problem;
    const float *partial = (const float *)task.shared;
    for (int64_t i = 0; i < p.statistics_count; i++) {
      const Statistic &s = task.statistics[i];
      if (!by_key(s)) continue;
      const int64_t results = results_of(s, p), size = size_of(s, p);
      if (item < results) {
        float *to = (float *)s.result + item * size;
        for (int64_t split = 0; split < task.splits; split++) {
          const float *from = partial + (split * results + item) * size;
          for (int64_t j = 0; j < size; j++)
            to[j] = s.kind == kMap && s.third == 1 ? larger(to[j], from[j]) : to[j] + from[j];
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
  float *weights_;
  State *states_;

  static void clear(float *x, int64_t count) { __builtin_memset(x, 0, (size_t)count * 4); }

  float *target(int64_t index, int64_t split) const {
    const Statistic &s = task_.statistics[index];
    const int64_t result = s.over_heads ? block_.batch : block_.batch * p_.heads + block_.head[0];
    const int64_t size = size_of(s, p_);
    if (task_.splits <= 1) return (float *)s.result + result * size;
    float *partial = (float *)task_.shared;
    for (int64_t i = 0; i < index; i++)
      if (by_key(task_.statistics[i]))
        partial += task_.splits * results_of(task_.statistics[i], p_) * size_of(task_.statistics[i], p_);
    return partial + (split * results_of(s, p_) + result) * size;
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

  void add_distance(const Statistic &s, State &state, int strip, Range range, const float *w) const {
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      vf position, total = splat(0.0f);
      for (int i = 0; i < W; i++) position[i] = (float)(block_.query[lane + i] + s.first);
      for (int64_t key = range.start; key < range.stop; key++)
        total += load(w + (key - range.start) * L + v * W) * abs(position - splat((float)key));
      store(state.rows + lane, load(state.rows + lane) + total);
    }
  }

  void add_mass(const Statistic &s, State &state, int strip, Range range, const float *w) const {
    for (int64_t key = range.start; key < range.stop; key++, w += L) {
      const int64_t g = group_of(s, block_.batch, key);
      if (g < 0 || g >= s.first) continue;
      float *to = state.rows + g * kMaxRows + strip * L;
      for (int v = 0; v < V; v++) store(to + v * W, load(to + v * W) + load(w + v * W));
    }
  }

  // The k best so far are sorted in each lane; a better one sinks to its place, in all lanes at once.
  void add_top_keys(const Statistic &s, State &state, int strip, Range range, const float *w) const {
    for (int v = 0; v < V; v++) {
      const int lane = strip * L + v * W;
      float *best = state.rows + lane;
      int32_t *keys = state.keys + lane;
      vf least = load(best + (s.first - 1) * kMaxRows);
      for (int64_t key = range.start; key < range.stop; key++) {
        vf weight = load(w + (key - range.start) * L + v * W);
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

  void add_received(const Statistic &s, State &state, int strip, int64_t start, Range range, const float *w) const {
    for (int64_t g = 0; g < larger<int64_t>(s.first, 1); g++) {
      const float *members = state.members + g * kMaxRows + strip * L;
      float *columns = state.columns + (g * kTileKeys + range.start - start) * W;
      const float *from = w;
      for (int64_t key = range.start; key < range.stop; key++, from += L, columns += W) {
        vf total = load(columns);
        for (int v = 0; v < V; v++) total += load(from + v * W) * load(members + v * W);
        store(columns, total);
      }
    }
  }

  static INLINE vf join(const Statistic &s, vf a, vf b) { return s.third == 1 ? max(a, b) : a + b; }

  void add_map(const Statistic &s, State &state, int strip, Range range, const float *w) const {
    int64_t cell = ((range.start + 1) * s.second - 1) / p_.keys;
    for (int64_t key = range.start; key < range.stop; cell++) {
      const int64_t stop = smaller(range.stop, state.bounds[cell + 1]);
      touch(state, cell);
      float *to = state.cells + cell * kMaxRows + strip * L;
      vf joined[V];
      for (int v = 0; v < V; v++) joined[v] = load(to + v * W);
      for (; key < stop; key++, w += L)
        for (int v = 0; v < V; v++) joined[v] = join(s, joined[v], load(w + v * W));
      for (int v = 0; v < V; v++) store(to + v * W, joined[v]);
    }
  }

  // Cells are cleared when first reached. Keys come in ascending order, so those between are cleared as well.
  void touch(State &state, int64_t cell) const {
    if (state.last_cell < 0) state.first_cell = state.last_cell = cell, clear(state.cells + cell * kMaxRows, kMaxRows);
    for (; state.last_cell < cell; state.last_cell++) clear(state.cells + (state.last_cell + 1) * kMaxRows, kMaxRows);
    for (; state.first_cell > cell; state.first_cell--) clear(state.cells + (state.first_cell - 1) * kMaxRows, kMaxRows);
  }

  // Lanes are queries: each is joined to its row of cells, W cells at once where there are as many.
  void finish_map(const Statistic &s, const State &state, float *map) const {
    int64_t cell = state.first_cell, rows[kMaxRows];
    for (int r = 0; r < block_.count; r++) rows[r] = ((block_.query[r] + 1) * s.first - 1) / p_.queries;
    for (; cell + W - 1 <= state.last_cell; cell += W)
      for (int first = 0; first < block_.count; first += W) {
        vf square[W];
        for (int i = 0; i < W; i++) square[i] = load(state.cells + (cell + i) * kMaxRows + first);
        transpose(square);
        for (int i = 0; i < W && first + i < block_.count; i++) {
          float *to = map + rows[first + i] * s.second + cell;
          store(to, join(s, load(to), square[i]));
        }
      }
    for (; cell <= state.last_cell; cell++)
      for (int r = 0; r < block_.count; r++) {
        float &to = map[rows[r] * s.second + cell];
        const float from = state.cells[cell * kMaxRows + r];
        to = s.third == 1 ? larger(to, from) : to + from;
      }
  }
};

}  // namespace SACCADE_VARIANT
