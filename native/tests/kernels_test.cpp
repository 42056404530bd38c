// The kernels against the formulas, on problems drawn at random; meant to be built with sanitizers (`make sanitize`).
//
//     kernels_test [problems] [first seed]
//
// Every problem is computed by every variant that runs on this machine. What can be wrong there: a number, a byte beside a
// result, an access beyond a tensor (for the sanitizer to see), or bits that depend on the number of threads.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>

#include "draw.h"

extern "C" {
int saccade_forward(const void *problem);
int saccade_backward(const void *problem);
int saccade_observe(const void *problem);
int saccade_transposed(const void *problem);
int saccade_window(const void *problem);
const char *saccade_variants();
const char *saccade_use(const char *name);
void saccade_python(void *lock, void *unlock, void *check_signals, void *fetch, void *restore);
void saccade_raise();

#define EXPORT __attribute__((visibility("default")))

// New memory is all ones, NaN to a kernel that reads what it has not written.
EXPORT const char *__asan_default_options() { return "max_malloc_fill_size=1000000000:malloc_fill_byte=255:exitcode=1"; }
EXPORT const char *__ubsan_default_options() { return "print_stacktrace=1"; }
EXPORT const char *__tsan_default_options() { return "halt_on_error=1:exitcode=1"; }
}

namespace test {

using saccade::Problem;
using saccade::Statistic;

// ---------------------------------------------------------------------------------------- verdicts

struct Report {
  int64_t passed = 0, failed = 0;
  std::string name;
  int complaints = 0;
  std::map<std::string, double> worst;  // error as a share of what is allowed

  void begin(const std::string &what) {
    name = what;
    complaints = 0;
  }
  void end() { complaints ? failed++ : passed++; }
} report;

constexpr int kMostComplaints = 5;  // printed of one test

__attribute__((format(printf, 2, 3))) void expect(bool fine, const char *format, ...) {
  if (fine) return;
  if (report.complaints++ == 0) printf("FAILED %s\n", report.name.c_str());
  if (report.complaints > kMostComplaints) return;
  va_list arguments;
  va_start(arguments, format);
  printf("    ");
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
  fflush(stdout);
}

std::string place_of(const Shape &shape, size_t index) {
  Shape at;
  for (int i = 3; i >= 0; i--) {
    at[i] = (int64_t)index % shape[i];
    index /= (size_t)shape[i];
  }
  return text(at);
}

// Whether every number is as near as `share` of the sizes of its terms and the rounding of its dtype allow.
void close(const char *what, const Array &got, const Expected &want, double share, int64_t dtype) {
  double &worst = report.worst[what];
  for (size_t i = 0; i < got.x.size(); i++) {
    const double value = want.value.x[i], size = want.size.x[i], error = std::fabs(got.x[i] - value);
    if (got.x[i] == value) continue;
    const double rounding = half_digit(dtype) * std::fabs(value) + (size > 0.0 ? smallest(dtype) + 1e-36 : 0.0);
    const double allowed = share * size + 1.01 * rounding;
    if (size > 0.0 && error > rounding) worst = std::max(worst, (error - rounding) / (share * size));
    expect(error <= allowed, "%s%s is %.9g, expected %.9g +- %.2g", what, place_of(got.shape, i).c_str(), got.x[i], value,
           allowed);
  }
}

void same_bits(const char *what, const Tensor &a, const Tensor &b) {
  expect(a.same_as(b), "%s differs in bits", what);
}

// ---------------------------------------------------------------------------------------- calls

// A call's problem and the memory it points to.
class Call {
  std::vector<std::unique_ptr<Tensor>> kept_;
  std::vector<Statistic> records_;

 public:
  Problem p = {};

  Tensor &keep(Tensor tensor) {
    kept_.emplace_back(new Tensor(std::move(tensor)));
    return *kept_.back();
  }
  void ask(const std::vector<Statistic> &records) {
    records_ = records;
    p.statistics = records_.data();
    p.statistics_count = (int64_t)records_.size();
  }
  // On a thread of its own: there the library has no workspace left from an earlier call.
  int run(int (*function)(const void *)) const {
    int status = -1;
    std::thread([&] { status = function(&p); }).join();
    return status;
  }
};

#define BIND(p, name, tensor)              \
  do {                                     \
    const Tensor &placed = (tensor);       \
    (p).name = placed.pointer();           \
    (p).name##_batch = placed.stride(0);   \
    (p).name##_head = placed.stride(1);    \
    (p).name##_row = placed.stride(2);     \
  } while (0)

// Keys or values as they lie in pages (pages, Hk, page size, D); what no key uses stays NaN.
Array in_pages(const Case &c, const Array &x) {
  int64_t most = 0;
  for (double page : c.pages.x) most = std::max(most, (int64_t)page);
  Array paged({most + 1, c.key_heads, c.page_size, x.shape[3]}, NAN);
  for (int64_t b = 0; b < c.batch; b++)
    for (int64_t h = 0; h < c.key_heads; h++)
      for (int64_t j = 0; j < c.keys; j++)
        for (int64_t d = 0; d < x.shape[3]; d++)
          paged.at((int64_t)c.pages.at(b, 0, 0, j / c.page_size), h, j % c.page_size, d) = x.at(b, h, j, d);
  return paged;
}

Tensor &scatter(Call &call, const Array &array, int64_t dtype, Random &random) {
  return call.keep(Tensor(array, dtype, scattered(array.shape, random)));
}

void bind_inputs(Call &call, const Case &c, Random &random, bool paged) {
  BIND(call.p, query, scatter(call, c.query, c.dtype, random));
  BIND(call.p, key, scatter(call, paged ? in_pages(c, c.key) : c.key, c.dtype, random));
  BIND(call.p, value, scatter(call, paged ? in_pages(c, c.value) : c.value, c.dtype, random));
  if (paged) {
    const Tensor &pages = call.keep(Tensor(c.pages, kInt32));
    call.p.pages = pages.pointer(), call.p.pages_batch = pages.stride(0), call.p.page_size = c.page_size;
  }
  if (!c.sinks.empty()) {
    const Tensor &sinks = call.keep(Tensor(c.sinks, saccade::kFloat32));
    call.p.sinks = sinks.pointer(), call.p.sinks_batch = sinks.stride(0);
  }
}

void bind_mask(Call &call, const Case &c, Random &random) {
  Problem &p = call.p;
  if (!c.starts.empty()) {
    const Tensor &starts = call.keep(Tensor(c.starts, kInt32)), &stops = call.keep(Tensor(c.stops, kInt32));
    p.starts = starts.pointer(), p.stops = stops.pointer(), p.runs = c.starts.shape[3];
    p.mask_batch = starts.stride(0), p.mask_head = starts.stride(1);
  }
  if (!c.visible.empty()) BIND(p, visible, scatter(call, c.visible, kByte, random));
}

void bind_bias(Call &call, const Case &c, Random &random) {
  Problem &p = call.p;
  if (c.bias_kind == saccade::kNoBias) return;
  const bool dense = c.bias_kind == saccade::kDenseBias;
  const Layout layout = dense ? scattered(c.bias.shape, random, random.chance(0.8) ? 1 : 2) : contiguous(c.bias.shape);
  const Tensor &bias = call.keep(Tensor(c.bias, c.bias_dtype, layout));
  p.bias_kind = c.bias_kind, p.bias_dtype = c.bias_dtype, p.bias = bias.pointer();
  p.bias_batch = bias.stride(0), p.bias_head = bias.stride(1);
  if (dense) p.bias_row = bias.stride(2), p.bias_key = bias.stride(3);
  p.bias_offset = c.bias_offset, p.bias_first = c.bias_first, p.bias_count = c.bias.shape[3];
}

// Everything that a call says of a problem; each time laid out in memory alike.
void describe_to(Call &call, const Case &c, int64_t threads, bool paged) {
  Random random(c.seed + 1);
  Problem &p = call.p;
  p.batch = c.batch, p.heads = c.heads(), p.key_heads = c.key_heads, p.queries = c.queries, p.keys = c.keys;
  p.width = c.width, p.value_width = c.value_width, p.dtype = c.dtype, p.scale = c.scale, p.softcap = c.softcap;
  p.row_start = c.row_start, p.row_stop = c.row_stop, p.key_start = c.key_start, p.key_stop = c.key_stop;
  p.threads = threads;
  bind_inputs(call, c, random, paged && c.page_size > 0);
  bind_mask(call, c, random);
  bind_bias(call, c, random);
}

// ---------------------------------------------------------------------------------------- results

struct Results {
  int status = -1;
  Tensor output, lse;
  std::vector<Tensor> values, indices;  // of statistics; indices only of top keys
};

bool by_key(const Asked &asked) { return asked.kind >= kReceived; }

Statistic record_of(Call &call, const Case &c, const Asked &asked, Results &results) {
  const Shape shape = shape_of(c, asked);
  results.values.emplace_back(shape, saccade::kFloat32, contiguous(shape));
  if (by_key(asked)) results.values.back().write(Array(shape));  // is added to
  const bool top = asked.kind == kTopKeys;
  results.indices.push_back(top ? Tensor(shape, kInt64, contiguous(shape)) : Tensor());
  Statistic record = {};
  record.kind = asked.kind, record.first = asked.first, record.second = asked.second, record.third = asked.third;
  record.over_heads = asked.over_heads;
  record.result = results.values.back().pointer();
  record.indices = results.indices.back().pointer();
  if (asked.kind == kMass || asked.groups.shape[3] > 0) {
    const Tensor &groups = call.keep(Tensor(asked.groups, kInt64));
    record.groups = groups.pointer(), record.groups_batch = groups.stride(0);
  }
  return record;
}

void bind_statistics(Call &call, const Case &c, Results &results) {
  std::vector<Statistic> records;
  for (const Asked &asked : c.statistics) records.push_back(record_of(call, c, asked, results));
  call.ask(records);
}

void bind_output(Call &call, const Case &c, Results &results, bool want_lse) {
  Random random(c.seed + 2);
  const Shape rows = c.rows(1), shape = c.rows(c.value_width);
  results.output = Tensor(shape, c.dtype, scattered(shape, random));
  BIND(call.p, output, results.output);
  if (!want_lse) return;
  results.lse = Tensor(rows, saccade::kFloat32, contiguous(rows));
  call.p.lse = results.lse.pointer();
}

Results forward(const Case &c, int64_t threads, bool statistics, bool want_lse = true) {
  Call call;
  Results results;
  describe_to(call, c, threads, true);
  bind_output(call, c, results, want_lse);
  if (statistics) bind_statistics(call, c, results);
  results.status = call.run(saccade_forward);
  return results;
}

// A call after the forward pass: the lse is known.
void bind_lse(Call &call, const Array &lse) {
  call.p.lse = call.keep(Tensor(lse, saccade::kFloat32)).pointer();
}

Results observe(const Case &c, const Array &lse, int64_t threads) {
  Call call;
  Results results;
  describe_to(call, c, threads, true);
  bind_lse(call, lse);
  bind_statistics(call, c, results);
  if (c.seed % 2) call.p.value = nullptr;
  results.status = call.run(saccade_observe);
  return results;
}

// ---------------------------------------------------------------------------------------- what is expected

struct Wanted {
  Pattern pattern;
  Expected output, lse, window, transposed;
  std::vector<Expected> statistics;  // empty for top keys
  Array rows_grad, lse_grad, rounded_output;
  Gradients gradients;
};

Array rounded_to(Array array, int64_t dtype) {
  for (double &x : array.x) x = rounded(x, dtype);
  return array;
}

Wanted wanted_of(const Case &c) {
  Random random(c.seed + 3);
  Wanted w;
  w.pattern = pattern_of(c);
  w.output = output_of(c, w.pattern);
  w.lse.value = w.pattern.lse, w.lse.size = Array(w.pattern.lse.shape, 1.0);
  w.window = window_of(c, w.pattern);
  for (const Asked &asked : c.statistics)
    w.statistics.push_back(asked.kind == kTopKeys ? Expected() : statistic_of(c, w.pattern, asked));
  w.rows_grad = normals(c.rows(c.value_width), 1.0, c.dtype, random);
  w.lse_grad = normals(c.rows(1), 1.0, saccade::kFloat32, random);
  w.rounded_output = rounded_to(w.output.value, c.dtype);
  w.transposed = transposed_of(c, w.pattern, w.rows_grad);
  w.gradients = gradients_of(c, w.pattern, w.rounded_output, w.rows_grad, w.lse_grad);
  return w;
}

// By what share a weight may be off: float32 scores are off by a few last digits of the terms they are added up from.
double weight_error(const Wanted &w) { return 3e-6 + 2e-7 * w.pattern.reach; }

// Some variants round the weights of bfloat16 problems before they multiply values.
double rounded_weights(const Case &c, const std::string &variant) {
  const bool pairs = variant.find("bf16") != std::string::npos && c.dtype == saccade::kBFloat16;
  return pairs ? half_digit(saccade::kBFloat16) : 0.0;
}

// ---------------------------------------------------------------------------------------- checks of one problem

void check_top_row(const double *p, int64_t keys, const Array &indices, const Array &weights, size_t at, double share) {
  const int64_t k = weights.shape[3];
  std::vector<double> sorted(p, p + keys);
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<bool> taken((size_t)keys);
  for (int64_t n = 0; n < k; n++) {
    const double weight = weights.x[at + (size_t)n], best = n < keys ? sorted[(size_t)n] : 0.0;
    const int64_t index = (int64_t)indices.x[at + (size_t)n];
    expect(std::fabs(weight - best) <= share * best + 1e-36, "top weight %ld is %g, expected %g", (long)n, weight, best);
    if (index == -1) {
      expect(weight == 0.0, "top key %ld is -1 with weight %g", (long)n, weight);
      continue;
    }
    const bool known = index >= 0 && index < keys && !taken[(size_t)index];
    expect(known, "top key %ld is %ld: out of range or named twice", (long)n, (long)index);
    if (!known) return;
    taken[(size_t)index] = true;
    expect(weight > 0.0 && std::fabs(weight - p[index]) <= share * p[index], "top key %ld is %ld with weight %g; it has %g",
           (long)n, (long)index, weight, p[index]);
  }
}

void check_top_keys(const Case &c, const Array &weight, const Array &indices, const Array &weights, double share) {
  each_row(c, [&](int64_t b, int64_t h, int64_t i) {
    check_top_row(weight.x.data() + weight.index(b, h, i, 0), c.keys, indices, weights, weights.index(b, h, i, 0), share);
  });
}

void check_statistics(const Case &c, const Wanted &w, const Results &results, const char *from) {
  const char *names[] = {"entropy", "max", "top", "distance", "mass", "received", "map"};
  for (size_t n = 0; n < c.statistics.size(); n++) {
    const Asked &asked = c.statistics[n];
    const Array got = results.values[n].read();
    const std::string name = std::string(from) + " " + names[asked.kind];
    if (asked.kind == kTopKeys)
      check_top_keys(c, w.pattern.weight, results.indices[n].read(), got, weight_error(w));
    else
      close(name.c_str(), got, w.statistics[n], weight_error(w), saccade::kFloat32);
  }
}

void check_output(const Case &c, const Wanted &w, const Results &results, const std::string &variant) {
  expect(results.status == saccade::kDone, "forward returned %d", results.status);
  close("output", results.output.read(), w.output, weight_error(w) + rounded_weights(c, variant), c.dtype);
  expect(results.output.gaps_untouched(), "forward wrote between the rows of the output");
  if (results.lse.pointer()) close("lse", results.lse.read(), w.lse, weight_error(w), saccade::kFloat32);
}

void check_same_results(const Results &a, const Results &b) {
  same_bits("output", a.output, b.output);
  same_bits("lse", a.lse, b.lse);
  for (size_t n = 0; n < a.values.size(); n++) {
    same_bits("statistic", a.values[n], b.values[n]);
    same_bits("top keys", a.indices[n], b.indices[n]);
  }
}

void check_forward(const Case &c, const Wanted &w, const std::string &variant) {
  for (bool statistics : {false, true}) {
    const bool lse = statistics || c.seed % 3;
    const Results results = forward(c, c.threads, statistics, lse);
    check_output(c, w, results, variant);
    if (statistics) check_statistics(c, w, results, "forward");
    check_same_results(results, forward(c, c.threads == 1 ? 4 : 1, statistics, lse));
  }
}

void check_observe(const Case &c, const Wanted &w) {
  const Results results = observe(c, w.pattern.lse, c.threads);
  expect(results.status == saccade::kDone, "observe returned %d", results.status);
  check_statistics(c, w, results, "observe");
  check_same_results(results, observe(c, w.pattern.lse, c.threads == 1 ? 4 : 1));
}

void check_window(const Case &c, const Wanted &w) {
  Call call;
  describe_to(call, c, c.threads, true);
  bind_lse(call, w.pattern.lse);
  const Tensor output(Array(w.window.value.shape), saccade::kFloat32);
  call.p.output = output.pointer();
  const int status = call.run(saccade_window);
  expect(status == saccade::kDone, "window returned %d", status);
  close("window", output.read(), w.window, weight_error(w), saccade::kFloat32);
}

void bind_rows_grad(Call &call, const Case &c, const Wanted &w) {
  Random random(c.seed + 4);
  BIND(call.p, rows_grad, scatter(call, w.rows_grad, c.dtype, random));
}

void check_transposed(const Case &c, const Wanted &w) {
  Call call;
  describe_to(call, c, c.threads, false);
  bind_lse(call, w.pattern.lse);
  bind_rows_grad(call, c, w);
  call.p.value = nullptr;
  const Shape shape = w.transposed.value.shape;
  const Tensor result(shape, saccade::kFloat32, contiguous(shape));
  call.p.value_grad = result.pointer();
  const int status = call.run(saccade_transposed);
  expect(status == saccade::kDone, "transposed returned %d", status);
  close("transposed", result.read(), w.transposed, weight_error(w), saccade::kFloat32);
}

struct GradientTensors {
  int status = -1;
  Tensor query, key, value, bias;
};

void *blank(Tensor &tensor, const Shape &shape, int64_t dtype) {
  tensor = Tensor(shape, dtype, contiguous(shape));
  return tensor.pointer();
}

void bind_bias_gradient(Call &call, const Case &c, GradientTensors &g) {
  g.bias = Tensor(Array(c.bias.shape), saccade::kFloat32);  // is added to
  Problem &p = call.p;
  p.bias_grad = g.bias.pointer();
  p.bias_grad_size = count_of(c.bias.shape);
  p.bias_grad_batch = g.bias.stride(0), p.bias_grad_head = g.bias.stride(1);
  if (c.bias_kind == saccade::kDenseBias) p.bias_grad_row = g.bias.stride(2), p.bias_grad_key = g.bias.stride(3);
}

GradientTensors backward(const Case &c, const Wanted &w, bool want_bias) {
  Random random(c.seed + 5);
  Call call;
  GradientTensors g;
  describe_to(call, c, c.threads, false);
  bind_lse(call, w.pattern.lse);
  bind_rows_grad(call, c, w);
  BIND(call.p, output, scatter(call, w.rounded_output, c.dtype, random));
  call.p.lse_grad = call.keep(Tensor(w.lse_grad, saccade::kFloat32)).pointer();
  call.p.query_grad = blank(g.query, c.query.shape, c.dtype);
  call.p.key_grad = blank(g.key, c.key.shape, c.dtype);
  call.p.value_grad = blank(g.value, c.value.shape, c.dtype);
  if (want_bias) bind_bias_gradient(call, c, g);
  g.status = call.run(saccade_backward);
  return g;
}

void check_backward(const Case &c, const Wanted &w) {
  const bool bias = c.bias_kind != saccade::kNoBias && c.seed % 4;
  const GradientTensors g = backward(c, w, bias), again = backward(c, w, bias);
  const double share = weight_error(w);
  expect(g.status == saccade::kDone, "backward returned %d", g.status);
  close("query gradient", g.query.read(), w.gradients.query, share, c.dtype);
  close("key gradient", g.key.read(), w.gradients.key, share, c.dtype);
  close("value gradient", g.value.read(), w.gradients.value, share, c.dtype);
  if (bias) close("bias gradient", g.bias.read(), w.gradients.bias, share, saccade::kFloat32);
  same_bits("query gradient", g.query, again.query);
  same_bits("key gradient", g.key, again.key);
  same_bits("value gradient", g.value, again.value);
  same_bits("bias gradient", g.bias, again.bias);
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  const std::string all = saccade_variants();
  for (size_t from = 0; from < all.size();) {
    const size_t to = std::min(all.find(' ', from), all.size());
    names.push_back(all.substr(from, to - from));
    from = to + 1;
  }
  return names;
}

template <class Body>
void for_each_variant(const std::string &what, Body body) {
  for (const std::string &variant : variants()) {
    report.begin(variant + ": " + what);
    const char *used = saccade_use(variant.c_str());
    expect(used && variant == used, "the variant cannot be chosen");
    body(variant);
    report.end();
  }
}

void check_problem(const Case &c) {
  const Wanted w = wanted_of(c);
  for_each_variant(describe(c), [&](const std::string &variant) {
    check_forward(c, w, variant);
    check_observe(c, w);
    check_window(c, w);
    check_transposed(c, w);
    check_backward(c, w);
  });
}

// ---------------------------------------------------------------------------------------- chosen problems

Case sized(uint64_t seed, int64_t queries, int64_t keys, int64_t width, int64_t value_width) {
  Case c;
  c.seed = seed;
  c.queries = queries, c.keys = keys, c.width = width, c.value_width = value_width;
  c.dtype = (int64_t)(seed % 3);
  c.threads = 2;
  return c;
}

void check_sized(Case c) {
  Random random(c.seed);
  draw_rest(c, random);
  check_problem(c);
}

// Paths that only long problems take: keys split among items, a panel that is full, more blocks than splits.
void check_long(uint64_t seed) {
  check_sized(sized(seed, 21, 2500, 6, 5));
  check_sized(sized(seed + 1, 2, 1700, 9, 16));
  check_sized(sized(seed + 2, 3, 33000, 2, 3));
  check_sized(sized(seed + 3, 2200, 40, 5, 4));
}

Case plain(int64_t queries, int64_t keys, int64_t dtype) {
  Case c = keys > 1000 ? sized(7, queries, keys, 3, 2) : sized(7, queries, keys, 11, 13);
  Random random(c.seed);
  c.dtype = dtype, c.key_heads = 2, c.threads = 2;
  c.scale = 0.2;
  c.query = normals(c.rows(c.width), 1.0, dtype, random);
  c.key = normals({c.batch, c.key_heads, keys, c.width}, 1.0, dtype, random);
  c.value = normals({c.batch, c.key_heads, keys, c.value_width}, 1.0, dtype, random);
  c.sinks = normals({c.batch, c.heads(), 1, 1}, 1.0, saccade::kFloat32, random);
  c.bias_kind = saccade::kDenseBias;
  c.bias = normals({1, c.heads(), 1, keys}, 1.0, saccade::kFloat32, random);
  c.statistics = {draw_statistic(c, kEntropy, random), draw_statistic(c, kReceived, random)};
  return c;
}

// The last element, the last key of a tile, is where a running maximum ends; the first is where it begins.
void expect_not_finite(const Case &c, Array Case::*input, double bad, const char *name) {
  const size_t last = (c.*input).x.size() - 1;
  struct {
    bool statistics, lse;
    size_t at;
  } const calls[] = {{false, false, last}, {false, true, last / 2}, {true, true, 0}};
  for (const auto &[statistics, lse, at] : calls) {
    Case spoilt = c;
    (spoilt.*input).x[at] = bad;
    if (input != &Case::sinks) spoilt.sinks = Array();  // a sum begins with nothing
    const int status = forward(spoilt, c.threads, statistics, lse).status;
    expect(status == saccade::kNotFinite,
           "forward with %g in %s[%ld] (Nq %ld, Nk %ld, dtype %ld, statistics %d, lse %d) returned %d", bad, name, (long)at,
           (long)c.queries, (long)c.keys, (long)c.dtype, statistics, lse, status);
  }
}

void check_not_finite(const Case &c) {
  for (double bad : {(double)NAN, kInfinity, -kInfinity}) {
    expect_not_finite(c, &Case::query, bad, "query");
    expect_not_finite(c, &Case::key, bad, "key");
    expect_not_finite(c, &Case::value, bad, "value");
    if (bad == -kInfinity) continue;  // hides a key, or means no sink
    expect_not_finite(c, &Case::bias, bad, "bias");
    expect_not_finite(c, &Case::sinks, bad, "sinks");
  }
  Wanted w = wanted_of(c);
  w.rows_grad.x[w.rows_grad.x.size() / 2] = NAN;
  expect(backward(c, w, false).status == saccade::kNotFinite, "backward with NaN in the gradient of the output is done");
}

void check_not_finite_everywhere() {
  for_each_variant("inputs that are not finite", [](const std::string &) {
    for (int64_t dtype : {saccade::kFloat32, saccade::kBFloat16, saccade::kFloat16}) {
      check_not_finite(plain(41, 70, dtype));    // blocks
      check_not_finite(plain(1, 1100, dtype));   // decoding
      check_not_finite(plain(17, 2100, dtype));  // keys split among items
    }
  });
}

void check_blind_rows() {
  for_each_variant("rows that see nothing", [](const std::string &) {
    for (int64_t queries : {1, 40}) {
      Case c = plain(queries, 60, saccade::kFloat32);
      c.sinks = Array();
      c.starts = Array({1, 1, queries, 1}), c.stops = Array({1, 1, queries, 1});
      const Results results = forward(c, 2, true);
      for (double x : results.output.read().x) expect(x == 0.0, "output is %g, expected 0", x);
      for (double x : results.lse.read().x) expect(x == -kInfinity, "lse is %g, expected -inf", x);
      for (const Tensor &values : results.values)
        for (double x : values.read().x) expect(x == 0.0, "a statistic is %g, expected 0", x);
    }
  });
}

void check_called_at_once() {
  for_each_variant("four calls at once", [](const std::string &) {
    const Case c = plain(70, 130, saccade::kBFloat16);
    const Results alone = forward(c, 2, true);
    Results results[4];
    std::vector<std::thread> callers;
    for (Results &mine : results) callers.emplace_back([&] { mine = forward(c, 2, true); });
    for (std::thread &caller : callers) caller.join();
    for (const Results &mine : results) check_same_results(mine, alone);
  });
}

// A child of fork() has no threads but its own, and computes the same.
void check_forked() {
  for_each_variant("in a forked child", [](const std::string &) {
    const Case c = plain(70, 130, saccade::kFloat32);
    const Results before = forward(c, 4, false);
    Call call;
    Results results;
    describe_to(call, c, 4, true);
    bind_output(call, c, results, true);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // to wait for threads that are not there is to wait forever
      _exit(saccade_forward(&call.p) == saccade::kDone && results.output.same_as(before.output) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %d", status);
  });
}

// Python's part in an interrupt, played: a signal has come as soon as someone asks.
int lock() { return 1; }
void unlock(int) {}
int check_signals() { return -1; }
int raised = 0;
void fetch(void **type, void **, void **) { *type = &raised; }
void restore(void *type, void *, void *) { raised = type == &raised; }

void check_interrupted() {
  for_each_variant("interrupted", [](const std::string &) {
    int status = saccade::kDone;
    saccade_python((void *)lock, (void *)unlock, (void *)check_signals, (void *)fetch, (void *)restore);
    for (int64_t queries = 500; status == saccade::kDone && queries < 20000; queries *= 2) {
      Case c = plain(1, 1, saccade::kFloat32);
      Random random(1);
      c.sinks = c.bias = Array(), c.bias_kind = saccade::kNoBias;
      c.queries = c.keys = queries;
      c.query = normals(c.rows(c.width), 1.0, c.dtype, random);
      c.key = normals({1, 2, queries, c.width}, 1.0, c.dtype, random);
      c.value = normals({1, 2, queries, c.value_width}, 1.0, c.dtype, random);
      Call call;
      Results results;
      describe_to(call, c, 2, false);
      bind_output(call, c, results, true);
      bind_statistics(call, c, results);
      status = saccade_forward(&call.p);  // on this thread: an exception waits on the one that called
    }
    saccade_python(nullptr, nullptr, nullptr, nullptr, (void *)restore);
    expect(status == saccade::kInterrupted, "forward returned %d", status);
    saccade_raise();
    expect(raised == 1, "the exception did not come back");
    saccade_python(nullptr, nullptr, nullptr, nullptr, nullptr);
  });
}

void check_unknown_variant() {
  report.begin("a variant that does not exist");
  expect(saccade_use("abacus") == nullptr, "it was chosen");
  report.end();
}

int run(int64_t problems, uint64_t first_seed) {
  printf("variants: %s\n", saccade_variants());
  check_unknown_variant();
  check_blind_rows();
  check_not_finite_everywhere();
  check_called_at_once();
  check_interrupted();
  for (uint64_t seed : {100, 200}) check_long(first_seed + seed);
  for (int64_t n = 0; n < problems; n++) check_problem(draw(first_seed + 1000 + (uint64_t)n));
  check_forked();
  for (const auto &[what, share] : report.worst) printf("%-20s at most %.2f of the error allowed\n", what.c_str(), share);
  printf("%ld passed, %ld failed\n", (long)report.passed, (long)report.failed);
  return report.failed ? 1 : 0;
}

}  // namespace test

int main(int count, char **words) {
  setenv("OMP_WAIT_POLICY", "passive", 0);  // read when the library loads OpenMP: waiting threads spin otherwise
  const int64_t problems = count > 1 ? atoll(words[1]) : 100;
  return test::run(problems, count > 2 ? (uint64_t)atoll(words[2]) : 0);
}
