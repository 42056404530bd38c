// Problems drawn at random over everything that a call may say, the same ones for the same seed.
#pragma once

#include <algorithm>
#include <string>

#include "reference.h"

namespace test {

inline Array normals(const Shape &shape, double size, int64_t dtype, Random &random) {
  Array array(shape);
  for (double &x : array.x) x = rounded(size * random.normal(), dtype);
  return array;
}

// Sizes at which blocks, strips and tiles end, and one to either side; or any.
inline int64_t draw_length(Random &random) {
  if (random.chance(0.04)) return 0;
  if (random.chance(0.5)) return random.whole(1, 200);
  return random.one_of<int64_t>({1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 200});
}

inline int64_t draw_width(Random &random) {
  if (random.chance(0.4)) return random.whole(1, 130);
  return random.one_of<int64_t>({1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 130});
}

inline int64_t work(const Case &c) { return c.batch * c.heads() * c.queries * c.keys * (c.width + c.value_width); }

// A problem too large for the time that a test has loses some of one dimension after the other.
inline void shrink(Case &c, int64_t most, Random &random) {
  int64_t *const sizes[] = {&c.batch, &c.key_heads, &c.group, &c.width, &c.value_width, &c.queries, &c.keys};
  while (work(c) > most) {
    int64_t &size = *sizes[random.whole(0, 6)];
    size = std::max<int64_t>(1, size * 3 / 4);
  }
}

inline void draw_sizes(Case &c, Random &random) {
  c.batch = random.chance(0.03) ? 0 : random.whole(1, 3);
  c.key_heads = random.whole(1, 3);
  c.group = random.one_of<int64_t>({1, 1, 2, 3, 4, 8});
  c.queries = random.chance(0.2) ? random.whole(1, 4) : draw_length(random);
  c.keys = draw_length(random);
  c.width = draw_width(random);
  c.value_width = random.chance(0.4) ? c.width : draw_width(random);
  shrink(c, 1500000, random);
  c.dtype = random.one_of<int64_t>({saccade::kFloat32, saccade::kFloat32, saccade::kBFloat16, saccade::kFloat16});
  c.threads = random.whole(1, 4);
}

inline void draw_inputs(Case &c, Random &random) {
  c.scale = random.one_of({0.5, 1.0, 2.0}) / std::sqrt((double)c.width);
  c.softcap = random.chance(0.3) ? random.one_of({1.0, 5.0, 30.0}) : 0.0;
  c.query = normals(c.rows(c.width), random.one_of({0.5, 1.0, 3.0}), c.dtype, random);
  c.key = normals({c.batch, c.key_heads, c.keys, c.width}, 1.0, c.dtype, random);
  c.value = normals({c.batch, c.key_heads, c.keys, c.value_width}, 1.0, c.dtype, random);
  if (!random.chance(0.3)) return;
  c.sinks = normals({random.chance(0.5) ? 1 : c.batch, c.heads(), 1, 1}, 2.0, saccade::kFloat32, random);
  for (double &x : c.sinks.x)
    if (random.chance(0.1)) x = random.one_of({-kInfinity, 12.0});
}

// ---------------------------------------------------------------------------------------- masks

inline void draw_run(double *starts, double *stops, int64_t runs, int64_t keys, Random &random) {
  std::vector<int64_t> cuts((size_t)(2 * runs));
  for (int64_t &cut : cuts) cut = random.whole(0, keys);
  std::sort(cuts.begin(), cuts.end());
  for (int64_t run = 0; run < runs; run++) {
    starts[run] = (double)cuts[(size_t)(2 * run)];
    stops[run] = (double)cuts[(size_t)(2 * run + 1)];
  }
  if (runs > 1 && random.chance(0.3)) starts[runs - 1] = stops[runs - 1] = (double)keys;
}

inline void draw_intervals(Case &c, Random &random) {
  const int64_t runs = random.one_of<int64_t>({1, 1, 2, 3, 5});
  const Shape shape = {random.chance(0.5) ? 1 : c.batch, random.chance(0.5) ? 1 : c.heads(), c.queries, runs};
  const int64_t offset = random.whole(-3, std::max<int64_t>(0, c.keys - c.queries)), window = random.whole(1, 64);
  const int64_t form = random.whole(0, 2);
  c.starts = Array(shape, (double)c.keys), c.stops = Array(shape, (double)c.keys);
  for (size_t at = 0; at < c.starts.x.size(); at += (size_t)runs) {
    const int64_t i = (int64_t)at / runs % c.queries + offset + 1;
    double &start = c.starts.x[at], &stop = c.stops.x[at];
    if (form == 0) draw_run(&start, &stop, runs, c.keys, random);
    if (form > 0) stop = (double)std::min(std::max<int64_t>(i, 0), c.keys);  // causal
    if (form > 0) start = form == 1 ? 0.0 : (double)std::min(std::max<int64_t>(i - window, 0), c.keys);
    for (int64_t run = 0; run < runs && random.chance(0.05); run++) (&start)[run] = (&stop)[run];  // sees nothing there
  }
}

inline void draw_visible(Case &c, Random &random) {
  c.visible = Array({random.chance(0.5) ? 1 : c.batch, random.chance(0.5) ? 1 : c.heads(), c.queries, c.keys});
  const double share = random.one_of({0.02, 0.5, 0.95});
  for (double &x : c.visible.x) x = random.chance(share) ? 1.0 : 0.0;
}

inline void draw_mask(Case &c, Random &random) {
  const double choice = random.fraction();
  if (choice < 0.5) draw_intervals(c, random);
  else if (choice < 0.75) draw_visible(c, random);
}

// ---------------------------------------------------------------------------------------- biases

inline void draw_bias(Case &c, Random &random) {
  const int64_t batch = random.chance(0.5) ? 1 : c.batch, heads = random.chance(0.5) ? 1 : c.heads();
  c.bias_kind = random.chance(0.5) ? (int64_t)saccade::kNoBias : random.whole(saccade::kDenseBias, saccade::kRelativeBias);
  c.bias_dtype = random.whole(saccade::kFloat32, saccade::kFloat16);
  c.bias_offset = random.whole(-40, std::max<int64_t>(40, c.keys));
  if (c.bias_kind == saccade::kDenseBias) {
    const Shape shape = {batch, heads, random.chance(0.3) ? 1 : c.queries, random.chance(0.3) ? 1 : c.keys};
    c.bias = normals(shape, 2.0, c.bias_dtype, random);
  }
  if (c.bias_kind == saccade::kALiBi) c.bias = normals({batch, heads, 1, 1}, 0.1, c.bias_dtype, random);
  if (c.bias_kind == saccade::kRelativeBias) {
    c.bias = normals({batch, heads, 1, random.whole(1, 80)}, 2.0, c.bias_dtype, random);
    c.bias_first = random.whole(-60, 20);
  }
  if (c.bias.empty()) c.bias_kind = saccade::kNoBias;
  const bool far = random.chance(0.15), holes = c.bias_kind == saccade::kDenseBias && random.chance(0.3);
  for (double &x : c.bias.x) {
    if (far && c.bias_kind != saccade::kALiBi) x = rounded(x + 90.0, c.bias_dtype);  // a sum of exponentials beyond e^64
    if (holes && random.chance(0.2)) x = -kInfinity;
  }
}

// ---------------------------------------------------------------------------------------- pages

inline int64_t pages_needed(const Case &c) { return (c.keys + c.page_size - 1) / c.page_size; }

inline void draw_pages(Case &c, Random &random) {
  if (c.keys == 0 || c.batch == 0 || !random.chance(0.3)) return;
  c.page_size = random.one_of<int64_t>({1, 2, 3, 5, 16, 31, 32, 33, 96, 100, 128});
  c.pages = Array({c.batch, 1, 1, pages_needed(c)});
  std::vector<double> numbers(c.pages.x.size() + 3);
  for (size_t i = 0; i < numbers.size(); i++) numbers[i] = (double)i;
  for (size_t i = numbers.size() - 1; i > 0; i--) std::swap(numbers[i], numbers[(size_t)random.whole(0, (int64_t)i)]);
  std::copy_n(numbers.begin(), c.pages.x.size(), c.pages.x.begin());
}

// ---------------------------------------------------------------------------------------- statistics

inline Array draw_groups(const Case &c, int64_t count, int64_t length, Random &random) {
  Array groups({random.chance(0.5) ? 1 : c.batch, 1, 1, length});
  for (double &x : groups.x) x = (double)random.whole(-1, count - 1);
  return groups;
}

inline Asked draw_statistic(const Case &c, int64_t kind, Random &random) {
  Asked asked;
  asked.kind = kind;
  if (kind == kTopKeys) asked.first = random.chance(0.2) ? c.keys + random.whole(1, 3) : random.whole(1, 8);
  if (kind == kDistance) asked.first = random.whole(-20, 20);
  if (kind == kMass) asked.groups = draw_groups(c, asked.first = random.whole(1, 5), c.keys, random);
  if (kind == kReceived && random.chance(0.5))
    asked.groups = draw_groups(c, asked.first = random.whole(1, 5), c.queries, random);
  if (kind == kMap) {
    asked.first = random.whole(1, c.queries);
    asked.second = random.whole(1, c.keys);
    asked.third = random.whole(0, 2);
  }
  if (kind >= kReceived) asked.over_heads = random.chance(0.3);
  return asked;
}

inline void draw_statistics(Case &c, Random &random) {
  const bool maps = c.queries > 0 && c.keys > 0, few = random.chance(0.3);
  for (int64_t kind = kEntropy; kind <= (maps ? kMap : kReceived); kind++)
    for (int copy = 0; copy < 2; copy++)
      if (random.chance(copy ? 0.1 : few ? 0.2 : 0.6)) c.statistics.push_back(draw_statistic(c, kind, random));
  if (c.statistics.empty()) c.statistics.push_back(draw_statistic(c, kReceived, random));
}

inline void draw_window(Case &c, Random &random) {
  c.row_start = random.whole(0, c.queries);
  c.row_stop = random.whole(c.row_start, c.queries);
  c.key_start = random.whole(0, c.keys);
  c.key_stop = random.whole(c.key_start, c.keys);
}

// All but the sizes and the dtype.
inline void draw_rest(Case &c, Random &random) {
  draw_inputs(c, random);
  draw_mask(c, random);
  draw_bias(c, random);
  draw_pages(c, random);
  draw_statistics(c, random);
  draw_window(c, random);
}

inline Case draw(uint64_t seed) {
  Random random(seed);
  Case c;
  c.seed = seed;
  draw_sizes(c, random);
  draw_rest(c, random);
  return c;
}

// ---------------------------------------------------------------------------------------- in words

inline std::string text(const Shape &shape) {
  std::string words = "(";
  for (int i = 0; i < 4; i++) words += (i ? ", " : "") + std::to_string(shape[i]);
  return words + ")";
}

inline std::string describe(const Case &c) {
  const char *dtypes[] = {"float32", "bfloat16", "float16"}, *biases[] = {"", "dense bias", "ALiBi", "relative bias"};
  const char *kinds[] = {"entropy", "max", "top", "distance", "mass", "received", "map"};
  std::string words = "seed " + std::to_string(c.seed) + ", B " + std::to_string(c.batch) + ", H " +
                      std::to_string(c.heads()) + ", Hk " + std::to_string(c.key_heads) + ", Nq " +
                      std::to_string(c.queries) + ", Nk " + std::to_string(c.keys) + ", D " + std::to_string(c.width) +
                      ", Dv " + std::to_string(c.value_width) + ", " + dtypes[c.dtype];
  if (c.softcap != 0.0) words += ", softcap " + std::to_string(c.softcap);
  if (!c.starts.empty()) words += ", intervals " + text(c.starts.shape);
  if (!c.visible.empty()) words += ", dense mask " + text(c.visible.shape);
  if (c.bias_kind) words += std::string(", ") + dtypes[c.bias_dtype] + " " + biases[c.bias_kind] + " " + text(c.bias.shape);
  if (!c.sinks.empty()) words += ", sinks " + text(c.sinks.shape);
  if (c.page_size) words += ", pages of " + std::to_string(c.page_size);
  for (const Asked &asked : c.statistics)
    words += std::string(", ") + kinds[asked.kind] + "(" + std::to_string(asked.first) + " " + std::to_string(asked.second) +
             " " + std::to_string(asked.third) + (asked.over_heads ? " over heads)" : ")");
  return words + ", threads " + std::to_string(c.threads);
}

}  // namespace test
