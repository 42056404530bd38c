// What crosses the border between Python and the kernels: one flat description of a call.
//
// The library has a C interface and knows nothing of Python or PyTorch, so one build serves every version of both. Each
// field is 64 bits wide, in the order of the lists below; Python reads the names with saccade_problem_fields() when it
// loads the library and refuses one whose names differ from its own.
//
// Strides count elements. A tensor's last dimension is contiguous. B batch, H query heads, Hk key heads, Nq queries, Nk
// keys, D query and key width, Dv value width.
#pragma once

#include <cstdint>

// clang-format off
#define SACCADE_PROBLEM(P, I, D)                                                                                        \
  P(query) P(key) P(value) P(output)           /* in front: what changes from call to call of the same kind */          \
  I(query_batch) I(query_head) I(query_row) I(key_batch) I(key_head) I(key_row)                                         \
  I(value_batch) I(value_head) I(value_row) I(output_batch) I(output_head) I(output_row)                                \
  P(lse)                                       /* float32 (B, H, Nq), contiguous; may be null in the forward pass */    \
  I(batch) I(heads) I(key_heads) I(queries) I(keys) I(width) I(value_width) I(dtype)                                    \
  D(scale) D(softcap)                          /* softcap 0: none */                                                    \
  P(starts) P(stops) I(runs) I(mask_batch) I(mask_head)           /* int32 (B|1, H|1, Nq, runs) */                      \
  P(visible) I(visible_batch) I(visible_head) I(visible_row)      /* one byte for each entry, (B|1, H|1, Nq, Nk) */     \
  I(bias_kind) I(bias_dtype) P(bias) I(bias_batch) I(bias_head) I(bias_row) I(bias_key)                                 \
  I(bias_offset) I(bias_first) I(bias_count)                                                                            \
  P(sinks) I(sinks_batch)                      /* float32 */                                                            \
  P(pages) I(pages_batch) I(page_size)         /* int32: which page holds keys n * page_size ...; null: no pages */     \
  P(statistics) I(statistics_count)                                                                                     \
  P(rows_grad) I(rows_grad_batch) I(rows_grad_head) I(rows_grad_row) /* gradient of the output, or Y of A^T Y */        \
  P(lse_grad)                                  /* float32 (B, H, Nq); may be null */                                    \
  P(query_grad) P(key_grad) P(value_grad)      /* contiguous, in the inputs' dtype */                                   \
  P(bias_grad)                                 /* float32, contiguous, in the bias's shape; null: not wanted */         \
  I(bias_grad_batch) I(bias_grad_head) I(bias_grad_row) I(bias_grad_key) I(bias_grad_size)                              \
  I(row_start) I(row_stop) I(key_start) I(key_stop)               /* of a window */                                     \
  I(partial)                                   /* 1: the lse is of more keys than these, and taken as it is */          \
  I(threads)

#define SACCADE_STATISTIC(P, I, D)                                                                                      \
  I(kind) I(first) I(second) I(third)          /* see the kinds in statistics.h */                                      \
  I(over_heads)                                /* by-key statistics: 1 sums over heads */                               \
  P(result) P(indices)                         /* indices: int64, of top keys */                                        \
  P(groups) I(groups_batch)                    /* int64 */
// clang-format on

namespace saccade {

#define SACCADE_POINTER(name) void *name;
#define SACCADE_INTEGER(name) int64_t name;
#define SACCADE_DOUBLE(name) double name;

struct Problem {
  SACCADE_PROBLEM(SACCADE_POINTER, SACCADE_INTEGER, SACCADE_DOUBLE)
};

struct Statistic {
  SACCADE_STATISTIC(SACCADE_POINTER, SACCADE_INTEGER, SACCADE_DOUBLE)
};

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum BiasKind : int64_t { kNoBias = 0, kDenseBias = 1, kALiBi = 2, kRelativeBias = 3 };

// What a call returns. Results are valid only after kDone.
enum Status : int {
  kDone = 0,
  kOutOfMemory = 1,
  kInterrupted = 2,
  kNotFinite = 3,  // an input, or a row's log-sum-exp, is NaN or infinite: these kernels do not serve such a call
  kNoVariant = 4,
};

// One parallel loop of a call: `run` is called once for each item, in any order, from several threads.
struct Phase {
  int64_t items;
  int64_t workspace;  // bytes for each thread
  void (*run)(struct Task &, int64_t item, char *workspace);
};

// A call on its way. `shared` is memory for all threads, `shared_bytes` long, zeroed.
struct Task {
  Problem problem;
  const Statistic *statistics;
  char *shared;
  int64_t shared_bytes;
  Phase phases[3];
  int phase_count;
  int64_t splits;  // parts into which work is cut so that all cores have some; see the plans
  bool (*stopped)(Task &);  // whether the call was interrupted: long items ask now and then
  int not_finite;           // set by any thread
  int interrupted;
  double last_look;
};

// The plans of one instruction set: fill in the phases and the shared bytes of a call.
struct Variant {
  const char *name;
  void (*forward)(Task &);
  void (*backward)(Task &);
  void (*observe)(Task &);    // statistics, given the lse
  void (*transposed)(Task &); // A^T Y, given the lse
  void (*window)(Task &);     // A[i:j, k:l], given the lse
  int64_t (*multiply_adds)(int64_t rounds);  // does nothing else; returns how many floating-point operations they were
};

}  // namespace saccade
