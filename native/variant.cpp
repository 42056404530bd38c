// The kernels for one instruction set. This file is compiled once for each, with its own flags and SACCADE_VARIANT, the name
// of the variant and of its namespace. Nothing here may come from a std container: the linker keeps one copy of a template,
// and it could be the one compiled for another machine.

#include "backward.h"
#include "decode.h"

namespace SACCADE_VARIANT {

// Work is cut into at least this many items, whatever the number of threads, so that results do not depend on it.
constexpr int64_t kItems = 16;

// More rows than these are decoded against many keys only: against few, blocks of queries are as fast and read no partials.
constexpr int64_t kFewRows = 8, kManyKeys = 1024;

static int64_t parts_for(int64_t items, int64_t most) {
  return larger<int64_t>(1, smaller((kItems + items - 1) / larger<int64_t>(items, 1), most));
}

// ---------------------------------------------------------------------------------------- checks

// Whether the keys and values of a head are finite, looked at by the first item that uses them. `seen` has one byte a head.
static bool finite_keys(Task &task, int64_t batch, int64_t key_head, char *seen) {
  const Problem &p = task.problem;
  char &done = seen[batch * p.key_heads + key_head];
  if (__atomic_load_n(&done, __ATOMIC_RELAXED)) return true;
  bool fine = true;
  const int64_t page_size = p.pages ? p.page_size : p.keys, pages = p.pages && p.keys ? p.keys / p.page_size : 1;
  for (int64_t i = 0; i < pages && fine; i++) {
    const int64_t page = p.pages ? ((const int32_t *)p.pages)[batch * p.pages_batch + i] : batch;
    const char *key = element(p.key, p.dtype, page * p.key_batch + key_head * p.key_head);
    const char *value = element(p.value, p.dtype, page * p.value_batch + key_head * p.value_head);
    fine = finite_rows(key, p.dtype, page_size, p.key_row, p.width) &&
           (p.value == nullptr || finite_rows(value, p.dtype, page_size, p.value_row, p.value_width));
  }
  if (!fine) __atomic_store_n(&task.not_finite, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&done, 1, __ATOMIC_RELAXED);
  return fine;
}

static bool given_up(Task &task) { return task.stopped(task) || __atomic_load_n(&task.not_finite, __ATOMIC_RELAXED); }

// ---------------------------------------------------------------------------------------- forward

static bool has_by_key(const Task &task) {
  for (int64_t i = 0; i < task.problem.statistics_count; i++)
    if (by_key(task.statistics[i])) return true;
  return false;
}

static bool over_heads(const Task &task) {
  for (int64_t i = 0; i < task.problem.statistics_count; i++)
    if (task.statistics[i].over_heads) return true;
  return false;
}

// What a by-key statistic has its own result for, and an item of work to itself: a head, or a batch element.
static int64_t units_of(const Task &task) { return task.problem.batch * (over_heads(task) ? 1 : task.problem.heads); }

// One byte a key head behind the partial results: whether it was checked.
static char *checked(Task &task) { return task.shared + task.shared_bytes - task.problem.batch * task.problem.key_heads; }

static bool start(Task &task, Attention &attention, const Rows &rows) {
  if (given_up(task) || !finite_keys(task, rows.batch, rows.key_head, checked(task))) return false;
  attention.block.start(rows);
  if (attention.block.finite_queries()) return true;
  __atomic_store_n(&task.not_finite, 1, __ATOMIC_RELAXED);
  return false;
}

// One block of queries.
static void attend_block(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const Blocks blocks(p, false);
  // The last blocks first: under a causal mask they are the longest.
  const int64_t index = blocks.per_key_head - 1 - item % blocks.per_key_head, head = item / blocks.per_key_head;
  Arena arena = {workspace};
  Attention attention(task, arena, true);
  if (!start(task, attention, blocks.at(p, head / p.key_heads, head % p.key_heads, index))) return;
  attention.attend(0, p.keys, true);
  attention.finish(0);
}

// A split's blocks of a head, or of all heads of a batch element where a statistic sums over heads. Under a causal mask the
// last blocks are the longest: those splits come first.
template <class Each>
static void each_block(Task &task, int64_t item, Each each) {
  const Problem &p = task.problem;
  const Blocks blocks(p, true);
  const int64_t units = units_of(task), group = p.heads / p.key_heads;
  const int64_t split = task.splits - 1 - item / units, unit = item % units;
  const bool together = over_heads(task);
  const int64_t batch = together ? unit : unit / p.heads, first = together ? 0 : unit % p.heads;
  for (int64_t h = first; h < (together ? p.heads : first + 1); h++)
    for (int64_t i = first_block(task, split); i < first_block(task, split + 1); i++)
      if (!each(blocks.at(p, batch, h / group, h % group * blocks_of(p) + i), split)) return;
}

static void attend_blocks(Task &task, int64_t item, char *workspace) {
  Arena arena = {workspace};
  Attention attention(task, arena, true);
  each_block(task, item, [&](const Rows &rows, int64_t split) {
    if (!start(task, attention, rows)) return false;
    attention.attend(0, task.problem.keys, true);
    attention.finish(split);
    return true;
  });
}

// Keys of one split: a multiple of a tile.
static int64_t split_keys(const Task &task) {
  return round_up((task.problem.keys + task.splits - 1) / task.splits, kTileKeys);
}

static float *partial(Task &task, int64_t row, int64_t split) {
  return (float *)task.shared + (row * task.splits + split) * (task.problem.value_width + 2);
}

// Some of the keys for one block of queries. Partial sums lie [row][split][Dv + 2]; rows count (B, Hk, group, Nq).
static void attend_split(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const Blocks blocks(p, false);
  const int64_t split = item % task.splits, index = item / task.splits % blocks.per_key_head;
  const int64_t head = item / task.splits / blocks.per_key_head, width = p.value_width + 2;
  Arena arena = {workspace};
  Attention attention(task, arena, false);
  float *rows = arena.take<float>(kMaxRows * width);
  if (!start(task, attention, blocks.at(p, head / p.key_heads, head % p.key_heads, index))) return;
  attention.attend(split * split_keys(task), smaller(p.keys, (split + 1) * split_keys(task)), false);
  attention.write_partial(rows);
  for (int r = 0; r < attention.block.count; r++) {
    const int64_t row = (attention.block.batch * p.heads + attention.block.head[r]) * p.queries + attention.block.query[r];
    __builtin_memcpy(partial(task, row, split), rows + r * width, (size_t)width * 4);
  }
}

static void decode_split(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t split = item % task.splits, head = item / task.splits, width = p.value_width + 2;
  if (given_up(task)) return;
  Arena arena = {workspace};
  Decoder decoder(task, arena);
  float *rows = arena.take<float>(kDecodeRows * width), *joined = arena.take<float>(width);
  decoder.start(head / p.key_heads, head % p.key_heads);
  decoder.attend(split * split_keys(task), smaller(p.keys, (split + 1) * split_keys(task)));
  decoder.write_partial(rows);
  for (int r = 0; r < decoder.rows(); r++) {
    const int64_t row = head * decoder.rows() + r;  // rows of a key head follow one another, as (B, H, Nq) do
    if (task.splits == 1) join_row(task, rows + r * width, width, row, joined);
    else __builtin_memcpy(partial(task, row, split), rows + r * width, (size_t)width * 4);
  }
}

static void join(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  if (given_up(task)) return;
  for (int64_t row = item * p.queries; row < (item + 1) * p.queries; row++)
    join_row(task, partial(task, row, 0), p.value_width + 2, row, (float *)workspace);
}

template <class Make>
static int64_t workspace_of(Make make) {
  Arena arena = {nullptr};
  make(arena);
  return arena.used + 64;
}

static void forward(Task &task) {
  const Problem &p = task.problem;
  const Blocks blocks(p, false);
  const int64_t heads = p.batch * p.key_heads, items = heads * blocks.per_key_head;
  const int64_t rows = p.heads / p.key_heads * p.queries;
  task.phase_count = 1;
  if (p.statistics_count > 0) {
    const bool keys = has_by_key(task);
    const int64_t units = units_of(task);
    task.splits = keys ? parts_for(units, blocks_of(p)) : 1;
    task.shared_bytes = Answers::partial_bytes(task, task.splits) + heads;
    const int64_t workspace = workspace_of([&](Arena &arena) { Attention(task, arena, true); });
    task.phases[0] = {keys ? units * task.splits : items, workspace, keys ? attend_blocks : attend_block};
    if (task.splits > 1) task.phases[task.phase_count++] = {Answers::merges(task), 0, Answers::merge};
    return;
  }
  const bool decode = rows <= kDecodeRows && rows > 0 && (rows <= kFewRows || p.keys >= kManyKeys);
  const int64_t splits = parts_for(decode ? heads : items, larger<int64_t>(1, p.keys / 512));
  if (decode || (splits > 1 && p.keys >= 2048)) {
    task.splits = splits;
    task.shared_bytes = p.batch * p.heads * p.queries * splits * (p.value_width + 2) * 4 + heads;
    const int64_t width = (p.value_width + 2) * 4 * (kMaxRows + 1) + 64;
    const int64_t workspace =
        width + workspace_of([&](Arena &arena) { decode ? (void)Decoder(task, arena) : (void)Attention(task, arena, false); });
    task.phases[0] = {(decode ? heads : items) * splits, workspace, decode ? decode_split : attend_split};
    if (splits > 1) task.phases[task.phase_count++] = {p.batch * p.heads, p.value_width * 4, join};
    return;
  }
  task.splits = 1;
  task.shared_bytes = heads;
  task.phases[0] = {items, workspace_of([&](Arena &arena) { Attention(task, arena, false); }), attend_block};
}

// ---------------------------------------------------------------------------------------- given the lse

static void observe_blocks(Task &task, int64_t item, char *workspace) {
  Arena arena = {workspace};
  Attention attention(task, arena, false);
  each_block(task, item, [&](const Rows &rows, int64_t split) {
    if (!start(task, attention, rows)) return false;
    attention.take_lse();
    attention.observe(split);
    return true;
  });
}

static void observe(Task &task) {
  const Problem &p = task.problem;
  const Blocks blocks(p, true);
  const int64_t units = units_of(task);
  task.splits = parts_for(units, blocks_of(p));
  task.shared_bytes = Answers::partial_bytes(task, task.splits) + p.batch * p.key_heads;
  const int64_t workspace = workspace_of([&](Arena &arena) { Attention(task, arena, false); });
  task.phases[0] = {units * task.splits, workspace, observe_blocks};
  task.phase_count = 1;
  if (task.splits > 1) task.phases[task.phase_count++] = {Answers::merges(task), 0, Answers::merge};
}

static int64_t window_blocks(const Problem &p) {
  return (p.row_stop - p.row_start + Block::rows_of(p) - 1) / Block::rows_of(p);
}

// A[i:j, k:l] of one block of rows: float32 into output (B, H, j - i, l - k), which is 0.
static void window_block(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t head = item / window_blocks(p), rows = Block::rows_of(p), group = p.heads / p.key_heads;
  const int64_t first = p.row_start + item % window_blocks(p) * rows, columns = p.key_stop - p.key_start;
  Arena arena = {workspace};
  Attention attention(task, arena, false);
  Block &block = attention.block;
  if (given_up(task)) return;
  block.start({head / p.heads, head % p.heads / group, head % group * p.queries + first, (int)smaller(rows, p.row_stop - first)});
  attention.take_lse();
  float *to = (float *)p.output + (head * (p.row_stop - p.row_start) + first - p.row_start) * columns - p.key_start;
  for (int64_t key = block.next(p.key_start); key < p.key_stop;) {
    const int64_t stop = smaller(p.key_stop, block.tile_stop(key));
    const Operand keys = block.keys(key, stop);
    for (int strip = 0; strip < block.strips; strip++) {
      const Range range = block.range(strip, key, stop);
      if (range.start < range.stop) attention.weigh(strip, keys, key, range, to, columns);
    }
    key = stop < p.key_stop ? block.next(stop) : stop;
  }
}

static void window(Task &task) {
  const Problem &p = task.problem;
  task.splits = 1;
  task.shared_bytes = 0;
  task.phase_count = 1;
  task.phases[0] = {p.batch * p.heads * window_blocks(p), workspace_of([&](Arena &arena) { Attention(task, arena, false); }),
                    window_block};
}

// ---------------------------------------------------------------------------------------- key by key

// The terms of one block of rows.
static void row_terms(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t head = item / head_blocks(p), batch = head / p.heads, h = head % p.heads;
  const RowTerms terms(task);
  Arena arena = {workspace};
  Attention attention(task, arena, false);
  float *grad = arena.take<float>(p.value_width), *output = arena.take<float>(p.value_width);
  if (given_up(task)) return;
  Block &block = attention.block;
  block.start(head_rows(p, batch, h, item % head_blocks(p)));
  attention.take_lse();
  for (int r = 0; r < block.count; r++) {
    const int64_t i = block.query[r], row = head * p.queries + i;
    const float top = attention.sums.top[r], total = attention.sums.total[r];
    terms.top[row] = top == -kInfinity ? 0.0f : top;
    terms.inverse[row] = total == 0.0f ? 0.0f : 1.0f / total;
    const int64_t at = batch * p.rows_grad_batch + h * p.rows_grad_head + i * p.rows_grad_row;
    to_floats(grad, element(p.rows_grad, p.dtype, at), p.dtype, p.value_width);
    if (!finite(grad, saccade::kFloat32, p.value_width)) __atomic_store_n(&task.not_finite, 1, __ATOMIC_RELAXED);
    if (!p.output) continue;
    const int64_t o = batch * p.output_batch + h * p.output_head + i * p.output_row;
    to_floats(output, element(p.output, p.dtype, o), p.dtype, p.value_width);
    double delta = p.lse_grad ? -(double)((const float *)p.lse_grad)[row] : 0.0;
    for (int64_t d = 0; d < p.value_width; d++) delta += (double)grad[d] * output[d];
    terms.delta[row] = (float)delta;
  }
}

static saccade::Phase row_terms_phase(Task &task) {
  const Problem &p = task.problem;
  return {p.batch * p.heads * head_blocks(p),
          p.value_width * 8 + 128 + workspace_of([&](Arena &arena) { Attention(task, arena, false); }), row_terms};
}

static void backward_tiles(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t split = item % task.splits, heads = p.batch * p.key_heads;
  Arena arena = {workspace};
  KeyMajor work(task, arena, true);
  // A bias has one gradient for many heads: there an item goes through all of them.
  const int64_t first = p.bias_grad ? 0 : item / task.splits, last = p.bias_grad ? heads : first + 1;
  for (int64_t head = first; head < last; head++) {
    if (given_up(task)) return;
    work.key_head(head / p.key_heads, head % p.key_heads, split);
  }
}

// The gradient of one block of queries from all splits; behind them, one item for the bias.
static void join_queries(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t rows = Block::rows_of(p), blocks = head_blocks(p);
  if (item == p.batch * p.heads * blocks) {
    const double *shared = KeyMajor::shared_bias(p, task);
    for (int64_t i = 0; i < p.bias_grad_size; i++) {
      double total = 0.0;
      for (int64_t split = 0; split < task.splits; split++) total += shared[split * p.bias_grad_size + i];
      ((float *)p.bias_grad)[i] = (float)total;
    }
    return;
  }
  const int64_t size = KeyMajor::query_grads(p), block = item % blocks, head = item / blocks;
  const float *from = (const float *)(task.shared + RowTerms::bytes(p)) + item * rows * p.width;
  float *row = (float *)workspace;
  for (int64_t i = block * rows; i < smaller(p.queries, (block + 1) * rows); i++) {
    const float *lane = from + i % rows / L * L * p.width + i % rows % L;
    for (int64_t d = 0; d < p.width; d++) {
      float total = 0.0f;
      for (int64_t split = 0; split < task.splits; split++) total += lane[split * size + d * L];
      row[d] = total * (float)p.scale;
    }
    from_floats((void *)element(p.query_grad, p.dtype, (head * p.queries + i) * p.width), row, p.dtype, p.width);
  }
}

static void backward(Task &task) {
  const Problem &p = task.problem;
  const int64_t heads = p.bias_grad ? 1 : p.batch * p.key_heads;
  // Here the number of threads counts: each split holds a gradient of all queries.
  const int64_t wanted = p.threads > 1 ? (2 * p.threads + heads - 1) / larger<int64_t>(heads, 1) : 1;
  task.splits = larger<int64_t>(1, smaller(wanted, tile_count(p)));
  task.shared_bytes = RowTerms::bytes(p) + round_up(task.splits * KeyMajor::query_grads(p) * 4, 64) +
                      task.splits * KeyMajor::bias_size(p) * 8;
  task.phase_count = 3;
  task.phases[0] = row_terms_phase(task);
  task.phases[1] = {heads * task.splits, workspace_of([&](Arena &arena) { KeyMajor(task, arena, true); }), backward_tiles};
  task.phases[2] = {p.batch * p.heads * head_blocks(p) + (KeyMajor::shares_bias(p) ? 1 : 0), p.width * 4, join_queries};
}

static void transposed_tiles(Task &task, int64_t item, char *workspace) {
  const Problem &p = task.problem;
  const int64_t head = item / task.splits;
  Arena arena = {workspace};
  KeyMajor work(task, arena, false);
  if (!given_up(task)) work.transposed(head / p.heads, head % p.heads, item % task.splits);
}

static void transposed(Task &task) {
  const Problem &p = task.problem;
  task.splits = parts_for(p.batch * p.heads, larger<int64_t>(1, tile_count(p)));
  task.shared_bytes = RowTerms::bytes(p);
  task.phase_count = 2;
  task.phases[0] = row_terms_phase(task);
  task.phases[1] = {p.batch * p.heads * task.splits, workspace_of([&](Arena &arena) { KeyMajor(task, arena, false); }),
                    transposed_tiles};
}

// Multiply-adds that wait for nothing: what this core can do at most.
static int64_t multiply_adds(int64_t rounds) {
  constexpr int kChains = V * R;
  vf sums[kChains];
  for (vf &x : sums) x = splat(1.0f);
  const vf a = pinned(0.999f), b = pinned(0.001f);
  for (int64_t i = 0; i < rounds; i++)
    for (vf &x : sums) x = x * a + b;
  vf total = splat(0.0f);
  for (vf &x : sums) total += x;
  return rounds * kChains * 2 * W + (sum(total) == 0.0f);
}

#define SACCADE_TEXT_OF(x) #x
#define SACCADE_TEXT(x) SACCADE_TEXT_OF(x)

extern const saccade::Variant variant;
const saccade::Variant variant = {SACCADE_TEXT(SACCADE_VARIANT), forward, backward, observe, transposed, window, multiply_adds};

}  // namespace SACCADE_VARIANT
