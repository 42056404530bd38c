// The library's door: which instruction set runs, on which threads, and how a call ends.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include <dlfcn.h>
#include <pthread.h>

#include <thread>
#include <vector>

#include "abi.h"
#include "variants.h"  // SACCADE_VARIANTS: what CMakeLists.txt builds

#define EXPORT extern "C" __attribute__((visibility("default")))

#define SACCADE_DECLARE(name) \
  namespace name { extern const saccade::Variant variant; }
SACCADE_VARIANTS(SACCADE_DECLARE)

namespace {

using namespace saccade;

// ---------------------------------------------------------------------------------------- instruction sets

bool runs_here(const char *name) {
#if defined(__x86_64__) || defined(__i386__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!strcmp(name, "avx2") || !strcmp(name, "emulated_bf16")) return avx2;
  if (!strcmp(name, "avx512")) return avx512;
  if (!strcmp(name, "avx512_bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return !strcmp(name, "portable");
}

#define SACCADE_ENTRY(name) &name::variant,
const Variant *const variants[] = {SACCADE_VARIANTS(SACCADE_ENTRY)};  // in the order of preference

std::atomic<const Variant *> chosen{nullptr};

const Variant *find(const char *name) {
  for (const Variant *variant : variants)
    if (!strcmp(variant->name, name) && runs_here(name)) return variant;
  return nullptr;
}

const Variant *best() {
  for (const Variant *variant : variants)
    if (runs_here(variant->name) && strcmp(variant->name, "emulated_bf16")) return variant;
  return nullptr;
}

// ---------------------------------------------------------------------------------------- threads

// A forked child inherits a thread pool without its threads, and OpenMP would wait for them forever.
std::atomic<bool> forked{false};
std::atomic<bool> had_threads{false};

void after_fork() {
  if (had_threads) forked = true;
}

// OpenMP's entry point. A second runtime, or a pool of our own, would fight the workers that torch leaves spinning between
// its operations (a median of 177 us became 881), so the one that is loaded already is looked up by name. GCC's, LLVM's and
// Intel's runtimes all have this function.
using OpenMP = void (*)(void (*work)(void *), void *context, unsigned threads, unsigned flags);

OpenMP find_openmp() {
#if !defined(SACCADE_STD_THREADS)
  const char *names[] = {"libgomp.so.1", "libiomp5.so", "libomp.so.5", "libomp.so", "libomp.dylib", "libiomp5.dylib"};
  for (int flags : {RTLD_NOLOAD | RTLD_LAZY, RTLD_LAZY})
    for (const char *name : names)
      if (void *runtime = dlopen(name, flags))
        if (void *found = dlsym(runtime, "GOMP_parallel")) return (OpenMP)found;
#endif
  return nullptr;
}

// Run `work(thread)` on this and threads - 1 others; each gets its own number below `threads`.
template <class Work>
void parallel(int64_t threads, Work work) {
  if (threads <= 1 || forked) return work(0);
  had_threads = true;
  struct Context {
    Work &work;
    std::atomic<int64_t> next{0};
    static void enter(void *context) {
      Context &self = *(Context *)context;
      self.work(self.next.fetch_add(1, std::memory_order_relaxed));
    }
  } context{work};
  static const OpenMP openmp = find_openmp();
  if (openmp) return openmp(Context::enter, &context, (unsigned)threads, 0);
  std::vector<std::thread> team;
  for (int64_t t = 1; t < threads; t++) team.emplace_back(Context::enter, &context);
  Context::enter(&context);
  for (std::thread &thread : team) thread.join();
}

// Memory for workspaces. Each calling thread keeps one piece for its next call, as fresh pages cost as much as the work
// of a small call; a piece larger than this is given back at once.
constexpr int64_t kKeep = 64 << 20;

struct Memory {
  char *base = nullptr;
  int64_t size = 0;

  char *at_least(int64_t wanted) {
    if (wanted > size) {
      free(base);
      size = (wanted + 4095) / 4096 * 4096;
      base = (char *)aligned_alloc(64, (size_t)size);
      if (!base) size = 0;
    }
    return base;
  }
  void trim() {
    if (size > kKeep) release();
  }
  void release() {
    free(base);
    base = nullptr;
    size = 0;
  }
  ~Memory() { release(); }
};

thread_local Memory kept;

// ---------------------------------------------------------------------------------------- interrupts

double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// What the library needs of Python's C interface to see signals, e.g. Ctrl-C, and to hand their exception over. It is told
// the addresses and links to no Python. All null: nobody is asked.
struct Python {
  int (*lock)();
  void (*unlock)(int);
  int (*check_signals)();
  void (*fetch)(void **, void **, void **);
  void (*restore)(void *, void *, void *);
};

Python python = {};
thread_local void *pending[3] = {};  // the exception of an interrupted call, until saccade_raise

bool signalled() {
  if (!python.check_signals) return false;
  const int state = python.lock();
  const bool raised = python.check_signals() != 0;
  if (raised) python.fetch(&pending[0], &pending[1], &pending[2]);
  python.unlock(state);
  return raised;
}

constexpr double kLookEvery = 0.1;  // seconds

thread_local bool calling = false;  // this thread made the call: only it may ask Python

bool stopped(Task &task) {
  if (__atomic_load_n(&task.interrupted, __ATOMIC_RELAXED)) return true;
  if (!calling) return false;
  const double now = seconds();
  if (now - task.last_look < kLookEvery) return false;
  task.last_look = now;
  if (signalled()) __atomic_store_n(&task.interrupted, 1, __ATOMIC_RELAXED);
  return task.interrupted;
}

// ---------------------------------------------------------------------------------------- calls

// What two products cost; a thread that is woken for less than this takes longer than it saves.
constexpr double kOperationsForAThread = 1e6;

double operations(const Problem &p) {
  return 2.0 * (double)p.batch * (double)p.heads * (double)p.queries * (double)p.keys * (double)(p.width + p.value_width);
}

int run_phases(Task &task) {
  int64_t threads = task.problem.threads < 1 ? 1 : task.problem.threads, most_items = 0, workspace = 0;
  for (int i = 0; i < task.phase_count; i++) {
    if (task.phases[i].items > most_items) most_items = task.phases[i].items;
    if (task.phases[i].workspace > workspace) workspace = task.phases[i].workspace;
  }
  if (threads > most_items) threads = most_items < 1 ? 1 : most_items;
  const int64_t useful = 1 + (int64_t)(operations(task.problem) / kOperationsForAThread);
  if (threads > useful) threads = useful;
  workspace = (workspace + 127) / 64 * 64;
  const int64_t shared = (task.shared_bytes + 63) / 64 * 64;
  char *memory = kept.at_least(shared + threads * workspace + 64);
  if (!memory) return kOutOfMemory;
  task.shared = memory;
  memset(task.shared, 0, (size_t)task.shared_bytes);
  for (int i = 0; i < task.phase_count; i++) {
    const Phase &phase = task.phases[i];
    std::atomic<int64_t> next{0};  // a core that is slowed down by others takes fewer items
    const int64_t used = threads < phase.items ? threads : phase.items;
    parallel(used, [&](int64_t thread) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < phase.items;)
        phase.run(task, item, memory + shared + thread * workspace);
    });
    if (task.interrupted || task.not_finite) break;
  }
  kept.trim();
  return task.interrupted ? kInterrupted : task.not_finite ? kNotFinite : kDone;
}

int call(const void *packed, void (*Variant::*plan)(Task &)) {
  const Variant *variant = chosen.load();
  if (!variant) return kNoVariant;
  Task task = {};
  memcpy(&task.problem, packed, sizeof task.problem);
  task.statistics = (const Statistic *)task.problem.statistics;
  task.stopped = stopped;
  task.last_look = seconds();
  calling = true;
  (variant->*plan)(task);
  const int status = run_phases(task);
  calling = false;
  return status;
}

}  // namespace

EXPORT int saccade_forward(const void *problem) { return call(problem, &Variant::forward); }
EXPORT int saccade_backward(const void *problem) { return call(problem, &Variant::backward); }
EXPORT int saccade_observe(const void *problem) { return call(problem, &Variant::observe); }
EXPORT int saccade_transposed(const void *problem) { return call(problem, &Variant::transposed); }
EXPORT int saccade_window(const void *problem) { return call(problem, &Variant::window); }

// Operations per second of one core when it does nothing but multiply and add, over about `rounds` * 24 vectors.
EXPORT double saccade_peak(int64_t rounds) {
  const Variant *variant = chosen.load();
  const double start = seconds();
  const int64_t operations = variant ? variant->multiply_adds(rounds) : 0;
  return (double)operations / (seconds() - start);
}

#define SACCADE_NAME_P(name) "P" #name " "
#define SACCADE_NAME_I(name) "q" #name " "
#define SACCADE_NAME_D(name) "d" #name " "

// The fields of a call and of a statistic, each with its type in front: P pointer, q integer, d double.
EXPORT const char *saccade_problem_fields() { return SACCADE_PROBLEM(SACCADE_NAME_P, SACCADE_NAME_I, SACCADE_NAME_D); }
EXPORT const char *saccade_statistic_fields() {
  return SACCADE_STATISTIC(SACCADE_NAME_P, SACCADE_NAME_I, SACCADE_NAME_D);
}

// The variants that were built and run on this machine, the preferred one first.
EXPORT const char *saccade_variants() {
  static char names[256];
  names[0] = 0;
  for (const Variant *variant : variants)
    if (runs_here(variant->name)) {
      if (names[0]) strncat(names, " ", sizeof names - strlen(names) - 1);
      strncat(names, variant->name, sizeof names - strlen(names) - 1);
    }
  return names;
}

// Use a variant by name, or the best one for an empty name. Returns the name in use, or null if it does not run here.
EXPORT const char *saccade_use(const char *name) {
  const Variant *variant = name[0] ? find(name) : best();
  if (!variant) return nullptr;
  chosen = variant;
  return variant->name;
}

EXPORT void saccade_python(void *lock, void *unlock, void *check_signals, void *fetch, void *restore) {
  python = {(int (*)())lock, (void (*)(int))unlock, (int (*)())check_signals, (void (*)(void **, void **, void **))fetch,
            (void (*)(void *, void *, void *))restore};
}

// Raise the exception of this thread's interrupted call. To be called with Python's lock held.
EXPORT void saccade_raise() {
  python.restore(pending[0], pending[1], pending[2]);
  pending[0] = pending[1] = pending[2] = nullptr;
}

__attribute__((constructor)) static void watch_forks() { pthread_atfork(nullptr, nullptr, after_fork); }
